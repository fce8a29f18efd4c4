"""Configuration: defaults, YAML, overrides, and the part of it that decides the masks."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from workflows.config import (
    ComputeConfig,
    ConfigError,
    LabelConfig,
    ModelConfig,
    RefineConfig,
    dump_config,
    load_config,
    to_tree,
)
from workflows.rows import config_hash, fingerprint

LABEL_YAML = Path(__file__).parents[1] / "configs/label.yaml"
REFINE_YAML = LABEL_YAML.with_name("refine.yaml")
MINIMAL = ["manifest=m.parquet", "output=out"]


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    path = tmp_path / "label.yaml"
    path.write_text("manifest: m.parquet\noutput: out\ncompute:\n  actors: 4\n")
    return path


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= leaves(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def test_defaults_fill_what_the_file_leaves_out(yaml_file: Path) -> None:
    config = load_config(LabelConfig, yaml_file)
    assert config.compute == ComputeConfig(actors=4)
    assert config.model == ModelConfig()


def test_overrides_win_over_the_file(yaml_file: Path) -> None:
    config = load_config(LabelConfig, yaml_file, ["compute.actors=2", "output=s3://b/out"])
    assert (config.compute.actors, config.output) == (2, "s3://b/out")


def test_values_of_overrides_are_yaml() -> None:
    overrides = [
        *("retry_reasons=[timeout, not_found]", "supersede_reviewed=true"),
        *("compute.max_actors=null", "limits.max_seconds=1e3", "price.currency='1'"),
    ]
    config = load_config(LabelConfig, overrides=MINIMAL + overrides)
    assert config.retry_reasons == ("timeout", "not_found")
    assert config.supersede_reviewed is True
    assert config.compute.max_actors is None
    assert config.limits.max_seconds == 1000.0
    assert config.price.currency == "1"


def test_a_value_may_hold_an_equals_sign() -> None:
    config = load_config(LabelConfig, overrides=[*MINIMAL, "output=s3://b/run=7"])
    assert config.output == "s3://b/run=7"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("compute.actor=3", r"unknown key compute\.actor \(did you mean compute\.actors\?\); "),
        ("compute.actor=3", r"compute takes actors, max_actors, gpus_per_actor"),
        ("comptue.actors=3", r"unknown key comptue \(did you mean compute\?\); choices are manif"),
        ("qqqq=3", r"unknown key qqqq; choices are manifest, output"),
        ("compute.actors='2'", r'compute\.actors: input should be a valid integer, got "2"'),
        ("compute.actors=2.0", r"compute\.actors: input should be a valid integer, got 2\.0"),
        ("compute.actors=true", r"compute\.actors: input should be a valid integer, got true"),
        ("compute.actors=0", r"compute\.actors: .* greater than or equal to 1, got 0"),
        ("compute.frame_batch=64", r"compute\.frame_batch: .* less than or equal to 63, got 64"),
        ("compute.max_actors=0", r"compute\.max_actors: "),
        ("limits.max_seconds=.inf", r"limits\.max_seconds: input should be a finite number"),
        ("model.semantics=meta", r"model\.semantics: .*'labelling' or 'reference', got \"meta\""),
        (
            "retry_reasons=[slow]",
            r"retry_reasons\.0: .*'request_invalid' or 'stale_revision', got \"slow\"",
        ),
        ("storage.anonymous=1", r"storage\.anonymous: input should be a valid boolean, got 1"),
        ("compute=3", r"compute: input should be an object, got 3"),
        ("manifest=", r"manifest: input should be a valid string, got null"),
        ("manifest=!!set {a}", r"wanted text, numbers, lists or keys"),
        ("compute.actors", r"--set compute\.actors: wanted key=value"),
        (".actors=1", r"--set \.actors=1: wanted key=value or key\.sub=value"),
        ("manifest.uri=1", r"--set manifest\.uri=1: manifest holds 'm\.parquet', no further keys"),
        ("compute=[", r"--set compute=\[: the value is not YAML"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(LabelConfig, overrides=[*MINIMAL, override])


def test_a_fault_between_two_keys_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"compute: max_actors is 2; wanted at least actors \(3"):
        load_config(LabelConfig, overrides=[*MINIMAL, "compute.actors=3", "compute.max_actors=2"])


def test_every_fault_is_named_at_once(yaml_file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(LabelConfig, yaml_file, ["compute.actors=0", "modle.dtype=x"])
    assert str(yaml_file) in str(caught.value)
    assert "compute.actors" in str(caught.value) and "modle" in str(caught.value)


def test_a_required_key_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="output is not given; it has no default"):
        load_config(LabelConfig, overrides=["manifest=m.parquet"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "not YAML"),
        (b"- manifest", "holds a list; wanted keys with values"),
        (b"just words", "holds a str"),
        (b"\xff\xfe\xfa", "cannot be read"),
        (b"a: 1\na: 2", "key 'a' is given twice"),
        (b"compute: {actors: 1, actors: 2}", "key 'actors' is given twice"),
        (b"1: 2", "key 1 is not a string"),
        (b"x: !!python/object:os.system {}", "not YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(LabelConfig, path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent.yaml: cannot be read: .*No such file"):
        load_config(LabelConfig, tmp_path / "absent.yaml")


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert load_config(LabelConfig, path, MINIMAL) == LabelConfig("m.parquet", "out")


def test_a_date_in_yaml_stays_text() -> None:
    assert (
        load_config(LabelConfig, overrides=[*MINIMAL, "output=2024-01-31"]).output == "2024-01-31"
    )


def test_the_resolved_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(
        LabelConfig, LABEL_YAML, ["retry_reasons=[timeout]", "price.per_actor_hour=2.5"]
    )
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_config(config))
    again = load_config(LabelConfig, path)
    assert again == config
    assert dump_config(again) == dump_config(config)


def test_the_hash_of_a_configuration_sees_every_key_but_not_their_order() -> None:
    tree = to_tree(LabelConfig("m", "o"))
    assert config_hash(dict(reversed(tree.items()))) == config_hash(tree)
    assert config_hash(to_tree(LabelConfig("m", "o2"))) != config_hash(tree)


def test_label_yaml_holds_every_key_at_its_default() -> None:
    written = leaves(yaml.safe_load(LABEL_YAML.read_text()))
    defaults = leaves(to_tree(LabelConfig(manifest="manifest.parquet", output="dataset")))
    assert written == defaults
    assert load_config(LabelConfig, LABEL_YAML) == LabelConfig("manifest.parquet", "dataset")


def test_refine_yaml_holds_every_key_at_its_default() -> None:
    defaults = leaves(to_tree(RefineConfig(dataset="dataset")))
    assert leaves(yaml.safe_load(REFINE_YAML.read_text())) == defaults
    assert load_config(RefineConfig, REFINE_YAML) == RefineConfig("dataset")


def test_label_yaml_explains_every_key() -> None:
    lines = LABEL_YAML.read_text().splitlines()
    for before, line in zip(lines, lines[1:], strict=False):
        key, _, value = line.partition(":")
        if key.lstrip().startswith("#") or not value.strip():
            continue  # a comment, or a section, whose keys are explained each
        assert before.lstrip().startswith("#"), f"no comment above {line!r}"


# Every key, at another value than its default, and whether it changes the masks.
OTHER_VALUES = {
    "manifest": "other.parquet",
    "output": "other",
    "model.checkpoint": "facebook/sam2.1-hiera-tiny",
    "model.semantics": "reference",
    "model.dtype": "float32",
    "model.hole_area_px": 0,
    "model.sprinkle_area_px": 0,
    "model.max_conditioning_frames": 4,
    "model.attention": "sdpa",
    "compute.actors": 2,
    "compute.max_actors": 9,
    "compute.gpus_per_actor": 0.5,
    "compute.cpus_per_actor": 1.0,
    "compute.videos_in_flight": 1,
    "compute.slots_per_actor": 8,
    "compute.frame_batch": 1,
    "compute.cuda_graphs": False,
    "compute.compile_encoder": True,
    "limits.max_video_bytes": 1,
    "limits.max_pixels": 1,
    "limits.max_frames": 1,
    "limits.max_seconds": 1.0,
    "limits.video_deadline_s": 1.0,
    "commit.videos": 1,
    "commit.seconds": 1.0,
    "quality.backward_share": 0.5,
    "retry_reasons": ["timeout"],
    "supersede_reviewed": True,
    "price.per_actor_hour": 3.0,
    "price.currency": "EUR",
}
CHANGES_MASKS = {
    *("model.semantics", "model.dtype", "model.hole_area_px", "model.sprinkle_area_px"),
    *("model.max_conditioning_frames", "model.attention"),
}


def fingerprint_of(config: LabelConfig) -> str:
    return fingerprint([], "0" * 64, config.inference_config)


@pytest.mark.parametrize("key", OTHER_VALUES)
def test_the_fingerprint_changes_with_the_keys_that_change_masks_only(key: str) -> None:
    before = load_config(LabelConfig, overrides=MINIMAL)
    value = yaml.safe_dump(OTHER_VALUES[key], default_flow_style=True).removesuffix("...\n")
    after = load_config(LabelConfig, overrides=[*MINIMAL, f"{key}={value}"])
    assert after != before
    assert (fingerprint_of(after) != fingerprint_of(before)) == (key in CHANGES_MASKS)


def test_every_key_has_been_judged_for_the_fingerprint() -> None:
    ours = {key for key in leaves(to_tree(LabelConfig("m", "o"))) if not key.startswith("storage.")}
    assert ours == set(OTHER_VALUES)


def test_a_new_key_outside_the_model_leaves_fingerprints_alone() -> None:
    @dataclasses.dataclass(frozen=True, slots=True)
    class LabelConfigOfTomorrow(LabelConfig):
        verbosity: int = 3

    today = LabelConfig("m", "o")
    assert fingerprint_of(LabelConfigOfTomorrow("m", "o")) == fingerprint_of(today)


def test_the_inference_config_is_the_one_that_past_datasets_were_labelled_with() -> None:
    """Changing this golden means that every dataset is labelled anew: raise it on purpose only."""
    assert LabelConfig("m", "o").inference_config == {
        "semantics": "labelling",
        "dtype": "bfloat16",
        "hole_area_px": 8,
        "sprinkle_area_px": 8,
        "max_conditioning_frames": None,
        "attention": "auto",
    }
