"""The examples of configs/cluster: every key is one that its reader knows; what runs is ours."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kuberay_keys import GOLDEN, POD

from workflows.config import LabelConfig, load_config

CLUSTER = Path(__file__).parents[1] / "configs/cluster"


def kubernetes_documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / "rayjob.yaml").read_text()))


def unknown_keys(tree: Any, known: Any, golden: dict[str, Any], path: str = "") -> Iterator[str]:
    """Keys of a document that its definition does not have."""
    if isinstance(tree, list):
        for index, element in enumerate(tree):
            yield from unknown_keys(element, known, golden, f"{path}[{index}]")
    elif isinstance(tree, dict):
        known = golden[known] if isinstance(known, str) else known
        for key, below in tree.items():
            if known and key not in known:
                yield f"{path}.{key}"
            elif known:
                yield from unknown_keys(below, known[key], golden, f"{path}.{key}")


def test_every_key_of_the_rayjob_is_one_of_kuberay() -> None:
    _, job = kubernetes_documents()
    golden = json.loads(GOLDEN.read_text())
    assert not list(unknown_keys(job, golden["RayJob"], golden))
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    group["minReplica"] = group["template"]["spec"]["containers"][0]["volumeMount"] = 1
    where = ".spec.rayClusterSpec.workerGroupSpecs[0]"
    assert list(unknown_keys(job, golden["RayJob"], golden)) == [
        f"{where}.template.spec.containers[0].volumeMount",
        f"{where}.minReplica",
    ]
    assert POD in golden


def test_the_rayjob_runs_a_command_that_we_have_with_a_configuration_that_we_read(
    tmp_path: Path,
) -> None:
    config_map, job = kubernetes_documents()
    (path := tmp_path / "label.yaml").write_text(config_map["data"]["label.yaml"])
    config = load_config(LabelConfig, path)
    words = shlex.split(job["spec"]["entrypoint"])
    assert words == ["exec", "maskmill", "label", "--config", "/etc/maskmill/label.yaml"]
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert config.compute.max_actors == workers["maxReplicas"]
    (container,) = workers["template"]["spec"]["containers"]
    assert float(container["resources"]["limits"]["cpu"]) >= config.compute.cpus_per_actor


def test_the_examples_are_for_the_ray_that_is_pinned() -> None:
    import ray

    _, job = kubernetes_documents()
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == ray.__version__
    assert f"rayproject/ray:{ray.__version__}-py3" in (CLUSTER / "Dockerfile").read_text()


def aws() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    return config


def test_ray_up_accepts_the_cluster_on_aws() -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    validate_config(fillout_defaults(aws()))
    with pytest.raises(ValidationError, match="idle_minutes"):
        validate_config(fillout_defaults({**aws(), "idle_minutes": 1}))


def test_aws_knows_every_key_of_its_machines() -> None:
    import botocore.session
    from botocore.validate import ParamValidator

    service = botocore.session.get_session().get_service_model("ec2")
    shape = service.operation_model("RunInstances").input_shape
    for name, node_type in aws()["available_node_types"].items():
        request = {**node_type["node_config"], "MinCount": 1, "MaxCount": 1}
        report = ParamValidator().validate(request, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"


def test_the_commands_of_the_cluster_on_aws_are_options_of_ray_start() -> None:
    from ray.scripts.scripts import start

    for name in ("head", "worker"):
        *_, line = aws()[f"{name}_start_ray_commands"]
        words = shlex.split(line.partition("; ")[2])
        assert words[:2] == ["ray", "start"]
        start.make_context("start", words[2:])  # raises for an option that it does not have


def stub(folder: Path, name: str, code: str) -> None:
    path = folder / name
    path.write_text(code)
    path.chmod(0o755)


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment in which Slurm and Ray only start what they are to start, once."""
    stub(
        tmp_path,
        "scontrol",
        # as slow as a long list: whoever reads only its beginning breaks the pipe
        '#!/bin/sh\n[ "$*" = "show hostnames n[1-2]" ] && echo n1 && sleep 0.1 && echo n2\n',
    )
    stub(
        tmp_path,
        "srun",
        '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n',
    )
    stub(
        tmp_path,
        "ray",
        '#!/bin/sh\necho "ray $*"\nwhile [ "$1" != -- ]; do shift; done; shift\n"$@"\n'
        "echo ray has stopped\n",
    )
    stub(
        tmp_path,
        "maskmill",
        f"#!{sys.executable}\nimport os, signal, sys\n"
        "def stop(*_):\n    os.write(1, b'maskmill keeps what is finished\\n')\n    sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, stop)\nprint(sys.argv[1:], flush=True)\n"
        "if 'wait' in sys.argv: signal.pause()\n",
    )
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "32",
        "SLURM_GPUS_ON_NODE": "4",
    }


def test_the_slurm_script_starts_ray_on_all_nodes_and_hands_its_words_to_the_job(
    slurm: dict[str, str],
) -> None:
    words = ["--set", "output=s3://b/a b", "--set", "compute={actors: 8}"]
    ran = subprocess.run(
        ["bash", str(CLUSTER / "slurm.sh"), *words], env=slurm, capture_output=True, text=True
    )
    started, given, _ = ran.stdout.splitlines()
    assert ran.returncode == 0, ran.stderr
    assert started.startswith("ray symmetric-run --address n1:6379 --min-nodes 2 --num-cpus 32")
    assert given == str(["label", *words])


def test_the_options_that_slurm_gives_to_ray_are_its_own(slurm: dict[str, str]) -> None:
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

    ran = subprocess.run(
        ["bash", str(CLUSTER / "slurm.sh")], env=slurm, capture_output=True, text=True
    )
    words = shlex.split(ran.stdout.splitlines()[0])
    ours = words[words.index("symmetric-run") + 1 : words.index("--")]
    rest = curate_and_validate_ray_start_args(ours)
    assert rest == ["--num-cpus", "32", "--num-gpus", "4", "--disable-usage-stats"]
    start.make_context("start", ["--head", *rest])


def test_slurms_warning_before_the_end_reaches_the_job_alone(slurm: dict[str, str]) -> None:
    with subprocess.Popen(
        ["bash", str(CLUSTER / "slurm.sh"), "wait"],
        env=slurm,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        while "wait" not in (line := process.stdout.readline()) or "ray" in line:
            assert line, "the job did not begin"
        os.killpg(process.pid, signal.SIGTERM)
        said = process.stdout.read()
    assert said.splitlines() == ["maskmill keeps what is finished", "ray has stopped"]


def test_what_sbatch_reads_are_options_that_it_has() -> None:
    known = {
        *("job-name", "nodes", "ntasks-per-node", "exclusive", "gpus-per-node", "cpus-per-task"),
        *("time", "requeue", "signal"),
    }  # of sbatch(1)
    lines = (CLUSTER / "slurm.sh").read_text().splitlines()
    options = [line.split()[1] for line in lines if line.startswith("#SBATCH")]
    assert {option.removeprefix("--").partition("=")[0] for option in options} == known
