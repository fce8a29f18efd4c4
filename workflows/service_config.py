"""The configuration of the refinement service: `args` of configs/serve.yaml, and that file whole.

Knows nothing of Ray. The file is Ray Serve's own (`serve deploy` takes it), which lets misspelt
keys through; here every key is checked, in ours and in Ray's parts of it.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from workflows.config import (
    STRICT,
    AtLeast1,
    ConfigError,
    LimitsConfig,
    ModelConfig,
    NotNegative,
    Positive,
    Tree,
    apply_override,
    config_of_tree,
    read_yaml,
    unknown_key,
)
from workflows.service_auth import TokenConfig
from workflows.service_frames import FramesConfig
from workflows.storage import StorageConfig

IMPORT_PATH = "workflows.refine_app:build"


@dataclass(frozen=True, slots=True)
class ReplicasConfig:
    """How many processes of one kind, what each reserves, and what waits in front of it."""

    min: AtLeast1 = 1
    max: AtLeast1 = 1
    cpus: Annotated[float, Field(ge=0)] = 0.5
    gpus: Annotated[float, Field(ge=0)] = 0.0
    ongoing: AtLeast1 = 8
    queued: NotNegative = 32
    target_ongoing: Positive = 2.0
    upscale_delay_s: Annotated[float, Field(ge=0)] = 30.0
    downscale_delay_s: Annotated[float, Field(ge=0)] = 600.0
    drain_s: Positive = 120.0

    def __post_init__(self) -> None:
        if self.max < self.min:
            raise ValueError(f"max is {self.max}; wanted at least min ({self.min})")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How much the engine of one model replica does at once; no effect on the masks."""

    slots: AtLeast1 = 32
    frame_batch: Annotated[int, Field(ge=1, le=63)] = 4
    cuda_graphs: bool = True
    compile_encoder: bool = False


@dataclass(frozen=True, slots=True)
class SessionsConfig:
    """How much a replica keeps of the videos that people work on; no effect on the masks."""

    videos: AtLeast1 = 8
    on_device: AtLeast1 = 2
    warm_frames: NotNegative = 2000
    device_feature_bytes: NotNegative = 2**30
    host_feature_bytes: NotNegative = 2**31
    snapshot_bytes: NotNegative = 2**30
    snapshot_every: AtLeast1 = 16


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What one request may ask for; more is refused before any work is done."""

    max_body_bytes: AtLeast1 = 8 * 2**20
    max_prompts: AtLeast1 = 1000
    max_points: AtLeast1 = 200
    max_frames: AtLeast1 = 50_000
    max_page: AtLeast1 = 1000
    preview_deadline_s: Positive = 60.0
    first_frame_deadline_s: Positive = 120.0


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """The refinement service; units and reasons of each key stand in configs/serve.yaml."""

    __pydantic_config__ = STRICT

    dataset: str
    tokens: tuple[TokenConfig, ...] = ()
    model: ModelConfig = field(default_factory=ModelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    sessions: SessionsConfig = field(default_factory=SessionsConfig)
    models: ReplicasConfig = field(
        default_factory=lambda: ReplicasConfig(max=4, cpus=1.0, gpus=1.0)
    )
    library: ReplicasConfig = field(
        default_factory=lambda: ReplicasConfig(
            max=4, ongoing=64, queued=256, target_ongoing=32.0, drain_s=30.0
        )
    )
    ingress: ReplicasConfig = field(
        default_factory=lambda: ReplicasConfig(
            max=4, cpus=0.25, ongoing=200, queued=400, target_ongoing=100.0
        )
    )
    frames: FramesConfig = field(default_factory=FramesConfig)
    requests: RequestLimits = field(default_factory=RequestLimits)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    jobs_address: str | None = None
    storage: StorageConfig = field(default_factory=StorageConfig)


@dataclass(frozen=True, slots=True)
class ServeFile:
    """configs/serve.yaml as `serve deploy` takes it, and our part of it."""

    config: ServeConfig
    deploy: Tree
    where: str  # it came from, for messages


def serve_config(args: Mapping[str, Any]) -> ServeConfig:
    """From the `args` of a Serve application; `a.b: value` sets a key within a key.

    `serve run workflows.refine_app:build dataset=labels model.checkpoint=x` gives such args, all
    text. Raises ConfigError naming key and choices.
    """
    tree: Tree = {key: value for key, value in args.items() if "." not in key}
    for key, value in args.items():
        if "." in key:
            apply_override(tree, f"{key}={value}")
    return config_of_tree(ServeConfig, tree, "args")


def load_serve_file(
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    http: Mapping[str, Any] | None = None,
) -> ServeFile:
    """The file, or all defaults; overrides are keys of `args`; http overrides `http_options`."""
    deploy: Tree = read_yaml(Path(path)) if path is not None else {}
    where = str(path or "defaults")
    application = _application(deploy, where)
    tree = application.setdefault("args", {})
    for override in overrides:
        apply_override(tree, override)
    where = " and ".join([where, *(f"--set {override}" for override in overrides)])
    config = config_of_tree(ServeConfig, tree, where)
    deploy.setdefault("http_options", {}).update(http or {})
    return ServeFile(config, deploy, where)


def _application(deploy: Tree, where: str) -> Tree:
    """The one application of the file, made where there is none."""
    applications = deploy.setdefault("applications", [{"import_path": IMPORT_PATH}])
    if not isinstance(applications, list) or len(applications) != 1:
        raise ConfigError(f"{where}: applications: wanted a list of one application")
    (application,) = applications
    if not isinstance(application, dict) or application.get("import_path") != IMPORT_PATH:
        raise ConfigError(f"{where}: applications.0.import_path: wanted {IMPORT_PATH}")
    application.setdefault("name", "maskmill")
    application.setdefault("route_prefix", "/")
    return application


# Where the schema itself says nothing of the keys inside.
_OPEN = {"args", "runtime_env", "user_config", "ray_actor_options", "request_router_kwargs"}


def check_keys(schema: Any, tree: Any, where: str, prefix: str = "") -> None:
    """Raise ConfigError for a key that a pydantic model does not have, all the way down."""
    if isinstance(tree, list):
        for index, item in enumerate(tree):
            check_keys(schema, item, where, f"{prefix}{index}.")
        return
    fields: Mapping[str, Any] | None = getattr(schema, "model_fields", None)
    if fields is None or not isinstance(tree, dict):
        return
    names = _names(fields)
    for key, value in tree.items():
        if key not in names:
            raise ConfigError(f"{where}: {unknown_key([*_steps(prefix), key], sorted(names))}")
        if key not in _OPEN:
            for inner in _models_in(fields[key].annotation if key in fields else None):
                check_keys(inner, value, where, f"{prefix}{key}.")


def _names(fields: Mapping[str, Any]) -> Collection[str]:
    aliases = {spec.alias for spec in fields.values() if spec.alias}
    return {*fields, *aliases}


def _models_in(annotation: Any) -> list[Any]:
    """The pydantic models that an annotation such as list[X] | None names."""
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [model for inner in getattr(annotation, "__args__", ()) for model in _models_in(inner)]


def _steps(prefix: str) -> list[str]:
    return [step for step in prefix.split(".") if step]


def with_tokens(file: ServeFile, tokens: Sequence[TokenConfig]) -> ServeFile:
    """The same with other tokens, for a service whose configuration has none."""
    config = dataclasses.replace(file.config, tokens=tuple(tokens))
    deploy = {**file.deploy}
    (application,) = deploy["applications"]
    listed = [dataclasses.asdict(token) for token in tokens]
    args = {**application["args"], "tokens": listed}
    deploy["applications"] = [{**application, "args": args}]
    return ServeFile(config, deploy, file.where)
