"""`maskmill serve` and `serve deploy`: the command, its tokens, and the file Ray itself takes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from refining import click, label_video
from serve_cluster import SETTINGS, Client

from jobs.serve import main
from workflows.service_auth import TokenConfig, Tokens

ROOT = Path(__file__).parents[1]
TOKEN = "a token of the tests, long enough"
pytest_plugins = ["job_cluster"]


def last_line(text: str) -> dict[str, Any]:
    return dict(json.loads(text.splitlines()[-1]))


def test_a_made_token_fits_its_entry_of_the_configuration(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--make-token", "ada", "--scope", "admin"]) == 0
    out = capsys.readouterr().out
    token = re.search(r"shown this once: (\S+)", out)
    entry = yaml.safe_load("\n".join(out.splitlines()[2:5]))[0]
    assert token is not None
    known = Tokens([TokenConfig(entry["name"], tuple(entry["scopes"]), entry["sha256"])])
    assert known.caller(f"Bearer {token[1]}").name == "ada"
    summary = last_line(out)
    assert summary["scopes"] == ["admin"] and token[1] not in json.dumps(summary)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "dataset is not given; it has no default"),
        (["--set", "dataset=x", "--set", "models.gpu=0"], "unknown key models.gpu (did you mean"),
        (["--set", "dataset=x", "--scope", "read"], "--scope goes with --make-token"),
        (["--prot", "8000"], "unknown option --prot (did you mean --port?)"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
    ],
)
def test_bad_input_exits_2_before_anything_is_started(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    made = tmp_path_factory.mktemp("labelled")
    label_video(made, checkpoint, [click(1, 4, 20.0), click(2, 0, 100.0)])
    return made


@pytest.mark.slow
@pytest.mark.cluster
def test_the_command_serves_with_a_token_of_its_own_until_it_is_told_to_stop(
    folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    port = free_port()
    given = [f"dataset={folder / 'labels'}", f"model.checkpoint={checkpoint}", *SETTINGS]
    command = [sys.executable, "-m", "jobs.serve", "--port", str(port), "--log-level", "warning"]
    said, out = tmp_path / "stderr", tmp_path / "stdout"
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    with said.open("w") as stderr, out.open("w") as stdout:
        process = subprocess.Popen(
            command + [word for one in given for word in ("--set", one)],
            cwd=ROOT,
            env=environment,
            stdout=stdout,
            stderr=stderr,
        )
        try:
            deadline = time.monotonic() + 240
            while (found := re.search(r"at (http\S+)/#token=(\S+)", said.read_text())) is None:
                assert process.poll() is None and time.monotonic() < deadline, said.read_text()
                time.sleep(0.2)
            client = Client(found[1], found[2])
            assert client.get("videos/v").json()["revision"] == 1
            assert client.refine("v", 1, click(1, 12, 80.0))[-1]["result"]["revision"] == 2
            assert requests.get(f"{found[1]}/v1/videos", timeout=30).status_code == 401
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0, said.read_text()
        finally:
            process.kill()
    summary = last_line(out.read_text())
    assert summary["url"] == found[1] and summary["served_s"] > 0
    assert found[2] not in out.read_text()


@pytest.mark.slow
@pytest.mark.cluster
def test_ray_deploys_the_file_as_it_is(
    job_cluster: str, folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """The commented file itself, with this test's dataset, model and port in it."""
    deploy = yaml.safe_load((ROOT / "configs/serve.yaml").read_text())
    port = free_port()
    deploy["http_options"]["port"] = port
    (application,) = deploy["applications"]
    args = application["args"]
    args["dataset"] = str(folder / "labels")
    args["model"] |= {"checkpoint": str(checkpoint), "dtype": "float32"}
    args["models"] |= {"gpus": 0.0, "cpus": 0.5}
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {"MASKMILL_TOKEN": TOKEN, "PYTHONPATH": python_path}
    application["runtime_env"] = {"env_vars": variables}
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(deploy))
    cli = [sys.executable, "-m", "ray.serve.scripts"]
    subprocess.run([*cli, "deploy", str(path), "-a", job_cluster], check=True, timeout=120)
    client = Client(f"http://127.0.0.1:{port}", TOKEN)
    deadline = time.monotonic() + 240
    while True:
        try:
            answer = client.get("videos/v")
            if answer.status_code == 200:
                break
        except requests.ConnectionError:
            pass
        assert time.monotonic() < deadline, "never came up"
        time.sleep(0.5)
    assert answer.json()["video_id"] == "v"
    assert client.preview("v", answer.json()["revision"], click(1, 12, 80.0))["masks"]
    assert client.post("jobs", {"requests": "x"}).status_code == 403
