"""The service's configuration, and the file that `serve deploy` takes."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from workflows.config import ConfigError, to_tree
from workflows.refine_app import check_file
from workflows.service_auth import TokenConfig
from workflows.service_config import (
    IMPORT_PATH,
    ServeConfig,
    load_serve_file,
    serve_config,
    with_tokens,
)

SERVE_YAML = Path(__file__).parents[1] / "configs/serve.yaml"


def test_the_file_holds_every_key_with_its_default() -> None:
    file = load_serve_file(SERVE_YAML)
    defaults = dataclasses.replace(ServeConfig(dataset="dataset"), tokens=file.config.tokens)
    assert file.config == defaults
    args = yaml.safe_load(SERVE_YAML.read_text())["applications"][0]["args"]

    def keys(tree: Any, prefix: str = "") -> set[str]:
        if not isinstance(tree, dict):
            return set()
        below = {key for name in tree for key in keys(tree[name], f"{prefix}{name}.")}
        return {f"{prefix}{name}" for name in tree} | below

    assert keys(args) == keys(to_tree(defaults))


def test_ray_takes_the_file_and_so_do_we() -> None:
    deploy = yaml.safe_load(SERVE_YAML.read_text())
    schema = ServeDeploySchema.model_validate(deploy)
    assert schema.applications[0].import_path == IMPORT_PATH
    module, _, name = IMPORT_PATH.partition(":")
    assert callable(getattr(__import__(module, fromlist=[name]), name))
    check_file(load_serve_file(SERVE_YAML))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("proxy_location:", "proxy_locaton:", "unknown key proxy_locaton .did you mean proxy_loc"),
        ("  port:", "  prot:", r"unknown key http_options.prot .did you mean http_options.port"),
        ("    route_prefix:", "    route_prefx:", r"applications.0.route_prefx .did you mean"),
        ("jpeg_quality:", "jpg_quality:", r"unknown key frames.jpg_quality .did you mean frames.j"),
        (
            "          env:",
            "          evn:",
            r"unknown key tokens.0.evn .did you mean tokens.0.env",
        ),
        ("scopes: [refine]", "scopes: [write]", r"tokens.0.scopes.0: .*'read', 'refine' or 'adm"),
        ("gpus: 1.0", "gpus: -1", r"models.gpus: input should be greater than or equal to 0"),
        ("        max: 4", "        max: 0", r"models.max: input should be greater than or equal"),
        (IMPORT_PATH, "workflows.other:build", "applications.0.import_path: wanted workflows.ref"),
    ],
)
def test_a_misspelt_key_anywhere_is_refused_by_name(
    tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    text = SERVE_YAML.read_text()
    assert old in text
    path = tmp_path / "serve.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=complaint):
        check_file(load_serve_file(path))


def test_a_misspelt_deployment_which_ray_lets_through_is_refused(tmp_path: Path) -> None:
    deploy = yaml.safe_load(SERVE_YAML.read_text())
    deployment = {"name": "models", "max_queued_request": 3}
    deploy["applications"][0]["deployments"] = [deployment]
    ServeDeploySchema.model_validate(deploy)
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(deploy))
    complaint = (
        r"applications.0.deployments.0.max_queued_request .did you mean .*max_queued_requests"
    )
    with pytest.raises(ConfigError, match=complaint):
        check_file(load_serve_file(path))
    deployment["max_queued_requests"] = deployment.pop("max_queued_request")
    path.write_text(yaml.safe_dump(deploy))
    with pytest.raises(ConfigError, match="replicas and queues are set in args"):
        check_file(load_serve_file(path))


def test_overrides_go_before_the_file_and_options_of_http_before_both() -> None:
    overrides = ["dataset=s3://b/labels", "models.max=9", "frames.ahead=2"]
    file = load_serve_file(SERVE_YAML, overrides, {"port": 9999})
    assert file.config.dataset == "s3://b/labels"
    assert (file.config.models.max, file.config.frames.ahead) == (9, 2)
    assert file.deploy["http_options"]["port"] == 9999
    assert file.deploy["applications"][0]["args"]["models"]["max"] == 9


def test_without_a_file_the_dataset_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="dataset is not given"):
        load_serve_file()
    file = load_serve_file(None, ["dataset=labels"])
    assert file.config == ServeConfig(dataset="labels")
    check_file(file)


def test_words_of_serve_run_are_a_configuration() -> None:
    config = serve_config({"dataset": "labels", "models.gpus": "0", "model.checkpoint": "demo"})
    assert (config.models.gpus, config.model.checkpoint) == (0, "demo")
    with pytest.raises(ConfigError, match="unknown key models.gpu .did you mean models.gpus"):
        serve_config({"dataset": "labels", "models.gpu": "0"})


def test_tokens_may_be_added_where_there_are_none() -> None:
    token = TokenConfig("you", ("admin",), "0" * 64)
    file = with_tokens(load_serve_file(None, ["dataset=labels"]), [token])
    assert file.config.tokens == (token,)
    assert serve_config(file.deploy["applications"][0]["args"]).tokens == (token,)


def test_an_ingress_is_thin() -> None:
    """What it imports loads no model's library."""
    code = (
        "import sys, workflows.refine_app, workflows.service_http\n"
        "sys.exit(' '.join({'torch', 'av'} & set(sys.modules)) or 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
