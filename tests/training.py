"""A training run that takes a second a few steps. Knows no other library."""

import json
from pathlib import Path

from small_network import SIZE, small_config

from workflows.config import load_config
from workflows.train_config import PhaseConfig, TrainConfig

STEPS = 4


def tiny_config(folder: Path, *overrides: str) -> TrainConfig:
    """Four steps at 64 px: two of pictures, two of clips of three frames."""
    shape = folder / "shape.json"
    shape.write_text(json.dumps(small_config().to_dict()))
    every = {"clips": 2, "objects": 2, "learning_rate": 1e-3, "warmup_steps": 1}
    phases = [
        {"name": "images", "steps": 2, "frames": 1, "click": 0.5, "box": 0.5, "mask": 0.0},
        {"name": "videos", "steps": 2, "frames": 3, "correction": 0.5, "true_scores": 0.5},
    ]
    return load_config(
        TrainConfig,
        overrides=[
            f"output={folder / 'run'}",
            f"start.shape={shape}",
            f"phases={json.dumps([every | phase for phase in phases])}",
            "data.frames=4",
            "data.sources=[{kind: drawn, clips: 6}]",
            f"data.spool={folder / 'spool'}",
            f"data.min_area_px={SIZE * SIZE // 256}",
            "precision=float32",
            "checkpoint_steps=2",
            "validation_steps=100",
            "final_videos=0",
            *overrides,
        ],
    )


def one_phase(**changes: object) -> PhaseConfig:
    values: dict[str, object] = {
        **{"name": "only", "steps": 200, "clips": 1, "frames": 1, "objects": 3},
        **{"learning_rate": 2e-3, "warmup_steps": 10, "rounds": 0},
        **changes,
    }
    return PhaseConfig(**values)  # type: ignore[arg-type]
