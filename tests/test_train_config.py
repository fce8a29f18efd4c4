"""The configurations of training: every key explained, faults refused by name."""

from pathlib import Path

import pytest

from workflows.config import ConfigError, dump_config, load_config
from workflows.train_config import TrainConfig

CONFIGS = Path(__file__).parents[1] / "configs"
TRAIN_YAML = CONFIGS / "train.yaml"
ONE_PHASE = (
    "[{name: a, steps: 1, clips: 1, frames: 1, objects: 1, learning_rate: 0.1, click: 1.0, "
    "box: 0.0, mask: 0.0}]"
)
MINIMAL = ["output=o", "start={shape: s.json}", f"phases={ONE_PHASE}"]


def names_and_comments(text: str) -> list[tuple[str, bool]]:
    """Every key with a value, and whether a comment stands above it or above its neighbours."""
    found: list[tuple[str, bool]] = []
    explained = False
    for line in text.splitlines():
        bare = line.strip().removeprefix("- ")
        if not bare or bare.startswith("#"):
            explained = bool(bare)
            continue
        key, _, value = bare.partition(":")
        if value.strip():
            found.append((key, explained))
    return found


def test_train_yaml_explains_every_key() -> None:
    keys = names_and_comments(TRAIN_YAML.read_text())
    assert keys and all(explained for _, explained in keys), [k for k, e in keys if not e]


def test_train_yaml_names_every_key() -> None:
    written = {key for key, _ in names_and_comments(TRAIN_YAML.read_text())}
    resolved = names_and_comments(dump_config(load_config(TrainConfig, TRAIN_YAML)))
    assert {key for key, _ in resolved} <= written


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("train*.yaml")), ids=lambda p: p.name)
def test_a_resolved_configuration_reads_back_equal(path: Path, tmp_path: Path) -> None:
    config = load_config(TrainConfig, path)
    (tmp_path / "resolved.yaml").write_text(dump_config(config))
    assert load_config(TrainConfig, tmp_path / "resolved.yaml") == config


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("start={}", "exactly one of checkpoint and shape"),
        ("start={shape: a, checkpoint: b}", "exactly one of checkpoint and shape"),
        ("phases=[]", "wanted at least one"),
        (f"phases={ONE_PHASE.replace('mask: 0.0', 'mask: 0.5')}", "click + box + mask is 1.5"),
        (f"phases={ONE_PHASE.replace('frames: 1', 'frames: 9')}", "more frames than data.frames"),
        ("soup=[{checkpoint: a, share: 0.5}, {checkpoint: b, share: 0.5}]", "shares sum to 1;"),
        (f"phases={ONE_PHASE.replace('frames', 'frame')}", "unknown key phases.0.frame"),
        ("data.sources=[{kind: dataset}]", "dataset is missing"),
        ("data.sources=[{kind: drawn, videos: v}]", "videos is given"),
        ("data.sources=[{kind: folder, annotations: a}]", "videos is missing"),
        ("optimizer.average=1", "did you mean optimiser"),
        ("workers.gpus_each=2", "workers.gpus_each"),
    ],
)
def test_a_fault_is_refused_by_name(override: str, complaint: str) -> None:
    load_config(TrainConfig, overrides=MINIMAL)
    with pytest.raises(ConfigError, match=complaint.replace("+", r"\+")):
        load_config(TrainConfig, overrides=[*MINIMAL, override])
