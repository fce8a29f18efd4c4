"""Configuration of the jobs: one frozen dataclass a job, from a YAML file and `--set` overrides.

Knows nothing of Ray, models or files other than the YAML itself. Every default lives here, once;
`configs/*.yaml` say the same with reasons, and a test holds the two together.
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from workflows.rows import FailureReason
from workflows.storage import StorageConfig

Config = TypeVar("Config")
Tree = dict[str, Any]  # a YAML mapping: keys → scalars, lists or further mappings

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
AtLeast1 = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, what it got and wanted."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which weights, and every switch that changes a mask. The image size is the checkpoint's."""

    checkpoint: str = "facebook/sam2.1-hiera-large"
    semantics: Literal["labelling", "reference"] = "labelling"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    hole_area_px: NotNegative = 8
    sprinkle_area_px: NotNegative = 8
    max_conditioning_frames: AtLeast1 | None = None
    attention: Literal["auto", "sdpa", "blocked", "plain"] = "auto"

    @property
    def inference_config(self) -> Tree:
        """Exactly the keys that change the masks, for the fingerprint of a video's labelling.

        The checkpoint's name is left out: the fingerprint holds the hash of its weights, which
        stays the same when they move.
        """
        keys = to_tree(self)
        del keys["checkpoint"]
        return keys


@dataclass(frozen=True, slots=True)
class ComputeConfig:
    """How much of the cluster, and how one actor shares it among its videos."""

    actors: AtLeast1 = 1
    max_actors: AtLeast1 | None = None
    gpus_per_actor: Annotated[float, Field(ge=0)] = 1.0
    cpus_per_actor: Annotated[float, Field(ge=0)] = 4.0
    videos_in_flight: AtLeast1 = 4
    slots_per_actor: AtLeast1 = 32
    frame_batch: Annotated[int, Field(ge=1, le=63)] = 4
    cuda_graphs: bool = True
    compile_encoder: bool = False

    def __post_init__(self) -> None:
        if self.max_actors is not None and self.max_actors < self.actors:
            raise ValueError(
                f"max_actors is {self.max_actors}; wanted at least actors ({self.actors}) or null"
            )


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """What is refused before it can hurt: a video over a limit fails with `too_large`."""

    max_video_bytes: AtLeast1 = 20 * 2**30
    max_pixels: AtLeast1 = 8192 * 4320
    max_frames: AtLeast1 = 500_000
    max_seconds: Positive = 14_400.0
    video_deadline_s: Positive = 21_600.0


@dataclass(frozen=True, slots=True)
class CommitConfig:
    """When finished videos become visible: whichever comes first."""

    videos: AtLeast1 = 64
    seconds: Positive = 30.0


@dataclass(frozen=True, slots=True)
class QualityConfig:
    """How much is computed only to know how good the masks are."""

    backward_share: Annotated[float, Field(ge=0, le=1)] = 0.02


@dataclass(frozen=True, slots=True)
class PriceConfig:
    """What an actor costs, for the report; null leaves cost out rather than guess it."""

    per_actor_hour: Annotated[float, Field(ge=0)] | None = None
    currency: str = "USD"


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """The bulk labelling job; units and reasons of each key stand in configs/label.yaml."""

    __pydantic_config__ = STRICT

    manifest: str
    output: str
    model: ModelConfig = field(default_factory=ModelConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    commit: CommitConfig = field(default_factory=CommitConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    retry_reasons: tuple[FailureReason, ...] = ()
    supersede_reviewed: bool = False
    price: PriceConfig = field(default_factory=PriceConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)

    @property
    def inference_config(self) -> Tree:
        """Of the model."""
        return self.model.inference_config


@dataclass(frozen=True, slots=True)
class RefineConfig:
    """Refinements of many videos; units and reasons of each key stand in configs/refine.yaml."""

    __pydantic_config__ = STRICT

    dataset: str
    requests: str | None = None
    author: str = "batch"
    model: ModelConfig = field(default_factory=ModelConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    commit: CommitConfig = field(default_factory=CommitConfig)
    retry_reasons: tuple[FailureReason, ...] = ()
    price: PriceConfig = field(default_factory=PriceConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)

    @property
    def inference_config(self) -> Tree:
        """Of the model."""
        return self.model.inference_config

    @property
    def output(self) -> str:
        """Where new labels go: to the dataset that has the old ones."""
        return self.dataset


PipelineConfig = LabelConfig | RefineConfig  # of jobs that run over a pool of actors


@dataclass(frozen=True, slots=True)
class StorageOnlyConfig:
    """Jobs whose choices are options of their own: only how to reach storage."""

    __pydantic_config__ = STRICT

    storage: StorageConfig = field(default_factory=StorageConfig)


def load_config(
    cls: type[Config], path: str | Path | None = None, overrides: Sequence[str] = ()
) -> Config:
    """The configuration of a job: defaults, then the YAML file, then `key.sub=value` overrides.

    A value of an override is read as YAML, so `null`, `true`, `[timeout]` and `"2"` mean what
    they mean in the file. Raises ConfigError naming file and key.
    """
    sources = [str(path)] if path is not None else []
    where = " and ".join(sources + [f"--set {override}" for override in overrides]) or "defaults"
    tree = read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        apply_override(tree, override)
    return config_of_tree(cls, tree, where)


def config_of_tree(cls: type[Config], tree: Tree, where: str) -> Config:
    """The configuration that a tree makes. Raises ConfigError, which begins with `where`."""
    try:
        # Strict validation takes JSON, where a list may become a tuple; of Python objects it
        # would refuse the plain dict itself.
        return TypeAdapter(cls).validate_json(json.dumps(tree))
    except TypeError as error:
        raise ConfigError(f"{where}: {error}; wanted text, numbers, lists or keys") from error
    except ValidationError as error:
        faults = [_explain(cls, fault) for fault in error.errors()]
        raise ConfigError(f"{where}: {'; '.join(faults)}") from error


def to_tree(config: Any) -> Tree:
    """A configuration as YAML and JSON see it: tuples as lists, keys in the order of the fields."""
    tree: Tree = json.loads(json.dumps(dataclasses.asdict(config), allow_nan=False))
    return tree


def dump_config(config: Any) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal one."""
    return str(yaml.safe_dump(to_tree(config), sort_keys=False, allow_unicode=True))


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML carries no types
    """YAML without its surprises: no key twice, 1e6 is a number, a date stays text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} is not a string", problem_mark=node.start_mark
                )
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} is given twice", problem_mark=node.start_mark
                )
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


# YAML 1.1 reads 1e6 as text, for want of a dot and a sign.
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(path: Path) -> Tree:
    """The keys of a YAML file. Raises ConfigError for what is none, or has a key twice."""
    try:
        tree = _parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if tree is None:  # an empty file, or comments only
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds a {type(tree).__name__}; wanted keys with values")
    return tree


def _parse_yaml(text: str) -> Any:
    # The loader is a SafeLoader: it makes plain values only, never objects.
    return yaml.load(text, Loader=_PlainLoader)  # noqa: S506


def apply_override(tree: Tree, override: str) -> None:
    """Set one `key.sub=value` in place; the value is YAML. Raises ConfigError."""
    key, equals, value = override.partition("=")
    steps = key.strip().split(".")
    if not equals or not all(steps):
        raise ConfigError(f"--set {override}: wanted key=value or key.sub=value")
    section = tree
    for step in steps[:-1]:
        section = section.setdefault(step, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override}: {step} holds {section!r}, no further keys")
    try:
        section[steps[-1]] = _parse_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML: {error}") from error


def _explain(cls: type[Any], fault: Any) -> str:
    """One sentence for one fault of pydantic: key, what it got, what is wanted."""
    path = [str(step) for step in fault["loc"]]
    key = ".".join(path)
    if fault["type"] == "unexpected_keyword_argument":
        return unknown_key(path, _fields_at(cls, path[:-1]))
    if fault["type"] == "missing":
        return f"{key} is not given; it has no default"
    if fault["type"] == "value_error":
        return f"{key}: {fault['ctx']['error']}" if key else str(fault["ctx"]["error"])
    wanted = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{key}: {wanted}, got {json.dumps(fault['input'])}"


def unknown_key(path: list[str], choices: list[str]) -> str:
    """A sentence about a key that is none, with the choices and the one that may be meant."""
    prefix = "".join(f"{step}." for step in path[:-1])
    close = difflib.get_close_matches(path[-1], choices, n=1)
    hint = f" (did you mean {prefix}{close[0]}?)" if close else ""
    where = f"{prefix[:-1]} takes" if prefix else "choices are"
    return f"unknown key {prefix}{path[-1]}{hint}; {where} {', '.join(choices)}"


def _fields_at(cls: type[Any], path: list[str]) -> list[str]:
    for step in path:
        # of a list, the items are asked about: tuple[Item, ...]
        cls = get_args(cls)[0] if step.isdigit() else get_type_hints(cls)[step]
    return [spec.name for spec in dataclasses.fields(cls)]
