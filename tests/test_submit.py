"""`maskmill submit`: what reaches the cluster's shell, who joins whom, and how jobs are stopped."""

import json
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bulk import Row, click, settings_of, video_row, words_of, write_rows
from ray.job_submission import JobStatus, JobSubmissionClient

from jobs import submit
from workflows.config import LabelConfig, load_config, to_tree
from workflows.query import Dataset
from workflows.submission import (
    JobServer,
    LogOutput,
    Submission,
    SubmitError,
    is_on_this_machine,
    settings,
)

pytest_plugins = ["job_cluster"]
ROOT = Path(__file__).parents[1]


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return summary


def run_by_shell(submission: Submission, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["/bin/sh", "-c", submission.entrypoint], cwd=folder, capture_output=True, text=True
    )


def echoing_python(folder: Path, knows_us: bool = True) -> str:
    """An interpreter that says where and with what it was called."""
    path = folder / "a python"
    path.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exit {0 if knows_us else 1}\n'
        'echo "in $PWD"; for word in "$@"; do echo "<$word>"; done\n'
    )
    path.chmod(0o755)
    return str(path)


def test_options_reach_the_job_as_they_were_given(tmp_path: Path) -> None:
    odd = ("--set", 'manifest="a b\'c" $HOME;ls', "--set", 'prices={"x": null}\n')
    there = tmp_path / "the folder"
    there.mkdir()
    job = Submission("a", ("label", *odd), python=echoing_python(tmp_path), folder=str(there))
    ran = run_by_shell(job, tmp_path)
    said = "".join(f"<{word}>\n" for word in ("-m", "jobs.label", *odd))
    assert (ran.returncode, ran.stdout) == (0, f"in {there}\n{said}")


def test_a_folder_that_the_cluster_lacks_is_named_and_the_job_runs(tmp_path: Path) -> None:
    job = Submission("a", ("label",), python=echoing_python(tmp_path), folder="/no/such/folder")
    ran = run_by_shell(job, tmp_path)
    assert ran.returncode == 0
    assert "/no/such/folder is not on this machine" in ran.stdout
    assert f"in {tmp_path}\n" in ran.stdout


def test_code_that_is_sent_along_runs_where_it_was_put(tmp_path: Path) -> None:
    python = echoing_python(tmp_path)
    job = Submission("a", ("label",), python=python, folder="/", working_dir="s3://code/a.zip")
    assert f"in {tmp_path}\n" in run_by_shell(job, tmp_path).stdout
    assert job.runtime_env["working_dir"] == "s3://code/a.zip"


@pytest.mark.parametrize("python", ["no-such-python", None])
def test_a_python_without_maskmill_is_said_to_be_one(python: str | None, tmp_path: Path) -> None:
    job = Submission("a", ("label",), python=python or echoing_python(tmp_path, knows_us=False))
    ran = run_by_shell(job, tmp_path)
    assert ran.returncode == 2
    assert f"{job.python} on this machine cannot import maskmill and Ray" in ran.stdout
    assert "--python" in ran.stdout


def test_a_resolved_configuration_travels_as_words_and_stays_the_same() -> None:
    overrides = ['manifest="s3://b/ü 🎥.parquet"', "output=/o", "limits.max_seconds=1e-05"]
    more = ["retry_reasons=[timeout, internal]", "price.per_actor_hour=2.5", "price.currency='1e3'"]
    config = load_config(LabelConfig, overrides=[*overrides, *more])
    words = settings(to_tree(config))
    assert words[::2] == ["--set"] * (len(words) // 2)
    assert load_config(LabelConfig, overrides=words[1::2]) == config


def test_a_log_that_begins_again_is_passed_on_once() -> None:
    written: list[str] = []
    output = LogOutput(written.append)
    for texts in (
        ["one\ntwo", "\nthr"],
        ["one\n", "two\nthree\n"],
        ['one\ntwo\nthree\n{"a": 1}\n'],
    ):
        output.begin()
        for text in texts:
            output.add(text)
    output.add("(raylet) a warning of the cluster\n{no json\n")
    assert "".join(written).startswith('one\ntwo\nthree\n{"a": 1}\n(raylet)')
    assert output.summary() == {"a": 1}


def test_an_address_leads_here_or_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    assert not is_on_this_machine(None)
    assert is_on_this_machine("http://127.0.0.1:8265")
    assert not is_on_this_machine("ray-head:6379")
    monkeypatch.delenv("RAY_ADDRESS")
    assert is_on_this_machine(None)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["lable"], "did you mean label?"),
        (["submit", "label"], "choices are"),
        (["--env", "A", "label", "--set", "manifest=m", "--set", "output=o"], "NAME=VALUE"),
        (["label", "--set", "manifest=m"], "output is not given"),
        (["label", "--sett", "a=b"], "--sett"),
        (["--submission-id", "a/b", "query"], "submission id 'a/b'"),
        (["--address", "http://127.0.0.1:9", "query"], "no job server at http://127.0.0.1:9"),
        ([], "JOB"),
    ],
)
def test_what_the_caller_can_mend_exits_2(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit.main(words) == 2
    assert complaint in last_line(capsys)["error"]["message"]


def test_the_name_of_a_submission_follows_from_job_and_configuration(tmp_path: Path) -> None:
    def name(*words: str) -> str:
        return submit.submission_id(("label", *submit.resolved("label", words)))

    (tmp_path / "label.yaml").write_text("manifest: /m.parquet\noutput: /o\n")
    from_file = name("--config", str(tmp_path / "label.yaml"))
    assert from_file == name("--set", "output=/o", "--set", "manifest=/m.parquet")
    assert from_file != name("--set", "output=/p", "--set", "manifest=/m.parquet")


def test_a_job_with_a_configuration_can_be_sent_with_it() -> None:
    from jobs.__main__ import commands

    sent = [name for name in commands() if hasattr(import_module(f"jobs.{name}"), "config_of")]
    assert "label" in sent
    for name in sent:
        job = import_module(f"jobs.{name}")
        assert callable(job.add_options) and callable(job.anchored), name


def test_the_options_of_other_jobs_stay_as_they_are() -> None:
    words = ["--dataset", "s3://b/labels", "SELECT 1"]
    assert submit.resolved("query", words) == words


def test_paths_become_absolute_and_names_of_models_stay() -> None:
    given = ["manifest=m.parquet", "output=s3://b/o", "model.checkpoint=facebook/sam2.1-hiera-tiny"]
    words = [word for pair in given for word in ("--set", pair)]
    resolved = submit.resolved("label", words)
    config = load_config(LabelConfig, overrides=resolved[1:-2:2])
    assert config.manifest == str(Path.cwd() / "m.parquet")
    assert config.output == "s3://b/o"
    assert config.model.checkpoint == "facebook/sam2.1-hiera-tiny"


class Clients:
    """What JobServer asks of Ray's client: jobs by name, with their status."""

    def __init__(self, **jobs: str) -> None:
        self.jobs = jobs
        self.answers_without_agent = 0

    def submit_job(self, *, submission_id: str, **more: object) -> str:
        # The GPUs and processors of a cluster are for the actors, not for who hands out their work.
        assert not [name for name in more if name.startswith("entrypoint_")]
        if submission_id in self.jobs:
            raise RuntimeError(f"Request failed with status code 500: {submission_id} exists")
        if self.answers_without_agent:
            self.answers_without_agent -= 1
            raise RuntimeError("Request failed with status code 500: No available agent to submit")
        if "refused" in submission_id:
            raise RuntimeError("Request failed with status code 400: no room")
        self.jobs[submission_id] = "PENDING"
        return submission_id

    def get_job_info(self, submission_id: str) -> object:
        if submission_id not in self.jobs:
            raise RuntimeError("Request failed with status code 404: does not exist")
        return SimpleNamespace(status=JobStatus(self.jobs[submission_id]))


def server_with(**jobs: str) -> JobServer:
    server = JobServer.__new__(JobServer)
    server._client = Clients(**jobs)  # type: ignore[assignment]
    return server


@pytest.mark.parametrize(
    ("jobs", "name", "is_new"),
    [
        ({}, "a", True),
        ({"a": "PENDING"}, "a", False),
        ({"a": "RUNNING"}, "a", False),
        ({"a": "SUCCEEDED"}, "a-2", True),
        ({"a": "FAILED", "a-2": "STOPPED"}, "a-3", True),
        ({"a": "FAILED", "a-2": "RUNNING"}, "a-2", False),
    ],
)
def test_a_job_that_runs_is_joined_and_one_that_ended_is_followed_by_another(
    jobs: dict[str, str], name: str, is_new: bool
) -> None:
    assert server_with(**jobs).submit_or_join(Submission("a", ("label",))) == (name, is_new)


def test_a_job_of_a_given_name_is_joined_even_if_it_has_ended() -> None:
    assert not server_with(a="SUCCEEDED").submit(Submission("a", ("label",)))


def test_a_cluster_that_is_still_starting_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.submission.POLL_S", 0.0)
    server = server_with()
    server._client.answers_without_agent = 3  # type: ignore[attr-defined]
    assert server.submit(Submission("a", ("label",)))


def test_a_refusal_of_the_cluster_is_told() -> None:
    with pytest.raises(SubmitError, match="no room"):
        server_with().submit(Submission("refused", ("label",)))


@pytest.mark.cluster
def test_a_job_is_submitted_once_and_followed_by_whoever_submits_it_again(
    job_cluster: str,
    tmp_path: Path,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = settings_of(tmp_path, checkpoint)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    write_rows(settings, [video_row(tmp_path, "a"), video_row(tmp_path, "b")])
    words = ["--address", job_cluster, "--submission-id", "one", "label", *words_of(settings)]
    assert submit.main(["--no-wait", *words]) == 0
    assert not last_line(capsys)["joined"]
    assert submit.main(words) == 3
    out, err = capsys.readouterr()
    ended = json.loads(out.splitlines()[-1])
    assert (ended["submission_id"], ended["joined"]) == ("one", True)
    assert (ended["status"], ended["summary"]["ok"], ended["summary"]["failed"]) == ("FAILED", 1, 1)
    assert "2 rows in the manifest = 1 ok + 1 failed" in err
    (run,) = Dataset(str(settings["output"])).sql("SELECT count(*) n FROM runs").to_pylist()
    assert run == {"n": 1}


def long_job(folder: Path, checkpoint: Path) -> dict[str, Any]:
    """Settings of a job over 40 videos, that commits by itself only in the end."""
    rows: list[Row] = [
        video_row(folder, f"v{i:02}", 12, prompts=[click(0), click(1, x=90.0)]) for i in range(40)
    ]
    settings = settings_of(folder, checkpoint, commit__seconds=600.0, commit__videos=1000)
    write_rows(settings, rows)
    return settings


def wait_for_videos(address: str, name: str, settings: dict[str, Any]) -> None:
    """Until the driver has at least one video. Masks that are put may not have come home yet: the
    next run finds them."""
    objects, client = Path(settings["output"], "masks"), JobSubmissionClient(address)
    while not list(objects.glob("*/*.parquet")):  # before, there may be no job of that name
        time.sleep(0.05)
    while client.get_job_logs(name).count(": ok in ") < 2:
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_job_and_keeps_what_is_finished(
    number: signal.Signals, job_cluster: str, tmp_path: Path, checkpoint: Path
) -> None:
    settings = long_job(tmp_path, checkpoint)
    name = f"signal-{number}"
    words = ["--address", job_cluster, "--submission-id", name, "label", *words_of(settings)]
    with subprocess.Popen(
        [sys.executable, "-m", "jobs.submit", *words], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        wait_for_videos(job_cluster, name, settings)
        process.send_signal(number)
        out, _ = process.communicate()
    ended = json.loads(out.splitlines()[-1])
    assert (process.returncode, ended["status"]) == (1, "STOPPED")
    kept = Dataset(str(settings["output"])).videos().num_rows
    assert ended["summary"]["stopped"]
    assert kept == ended["summary"]["labelled"] >= 1


@pytest.mark.slow
def test_a_job_killed_3_s_after_it_was_asked_has_kept_what_is_finished_and_says_so(
    job_cluster: str, tmp_path: Path, checkpoint: Path
) -> None:
    settings = long_job(tmp_path, checkpoint)
    words = ["--address", job_cluster, "--no-wait", "--env", "RAY_JOB_STOP_WAIT_TIME_S=3"]
    name = "killed-after-3-s"
    assert submit.main([*words, "--submission-id", name, "label", *words_of(settings)]) == 0
    wait_for_videos(job_cluster, name, settings)
    server = JobServer(job_cluster)
    server.stop(name)
    assert server.follow(name, lambda text: None).status == "STOPPED"
    dataset = Dataset(str(settings["output"]))
    (run,) = dataset.sql("SELECT * FROM runs").to_pylist()
    assert dataset.videos().num_rows == run["videos_ok"] >= 1


@pytest.mark.slow
def test_code_is_sent_along_to_a_python_that_has_only_ray(
    job_cluster: str,
    tmp_path: Path,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings_of(tmp_path, checkpoint)
    write_rows(settings, [video_row(tmp_path, "a")])
    words = ["--address", job_cluster, "--working-dir", str(ROOT), "--env", "PYTHONPATH="]
    assert submit.main([*words, "label", *words_of(settings)]) == 0
    assert last_line(capsys)["summary"]["ok"] == 1
