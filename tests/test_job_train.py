"""maskmill train: one line of JSON at the end, the same command goes on, faults exit with 2."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from labelled import label, relabel
from training import STEPS, tiny_config
from videos import square_mask, write_moving_square

from jobs.train import main
from sam2model import Sam2VideoModel, Sam2VideoProcessor
from sam2model.video import Video
from workflows.config import dump_config
from workflows.mask_metrics import region_similarity
from workflows.rows import Review
from workflows.train_scenes import Clip
from workflows.train_validation import masks_of


def last_line(captured: str) -> dict[str, object]:
    summary: dict[str, object] = json.loads(captured.splitlines()[-1])
    return summary


def test_a_run_ends_with_its_summary_and_is_done_when_asked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "train.yaml"
    config.write_text(dump_config(tiny_config(tmp_path, "final_videos=1")))
    words = ["--config", str(config), "--log-level", "warning"]
    assert main(words) == 0
    summary = last_line(capsys.readouterr().out)
    assert summary["steps"] == STEPS
    assert set(summary) >= {"model", "total", "held_out", "wall_s", "output"}
    before = (tmp_path / "run/model/model.safetensors").read_bytes()

    assert main(words) == 0
    assert last_line(capsys.readouterr().out)["steps"] == STEPS
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("start={shape: nowhere.json}", "nowhere.json"),
        ("start.image_size=100", "image_size: got 100; wanted a multiple of 16"),
        ("start={checkpoint: ./nowhere}", "nowhere: no such file or folder"),
        ("data.sources=[{kind: dataset, dataset: nowhere}]", "nowhere"),
        ("data.sources=[{kind: folder, annotations: nowhere, videos: nowhere}]", "nowhere"),
        ("workers.gpus_each=1", "there is no GPU here"),
    ],
)
def test_what_cannot_be_had_is_named_with_exit_code_2(
    override: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "gpus" in override and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    config = tmp_path / "train.yaml"
    config.write_text(dump_config(tiny_config(tmp_path)))
    assert main(["--config", str(config), "--set", override]) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_learns_from_corrections_what_it_did_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """People accepted masks of the square's upper half only; no model would guess that."""
    num_frames, objects = 24, {1: {t: upper_half(t) for t in range(24)}}
    video = write_moving_square(tmp_path / "square.mp4", num_frames)
    root = str(tmp_path / "labels")
    whole = {1: {t: square_mask(t) for t in range(num_frames)}}
    label(root, {"square": whole}, video_uri=str(video))
    relabel(root, "square", objects, review=Review.ACCEPTED)
    with Video(video, name="square") as opened:
        frames = np.stack([frame.rgb for frame in opened.frames()])
    labels = np.stack([objects[1][t] for t in range(num_frames)]).astype(np.uint8)
    clip = Clip(frames, labels, tuple(map(float, range(num_frames))))

    def score(checkpoint: str) -> float:
        model = Sam2VideoModel.from_pretrained(checkpoint, semantics="labelling")
        y, x = np.argwhere(labels[0]).mean(axis=0)
        processor = Sam2VideoProcessor.from_pretrained(checkpoint)
        found = masks_of(model, processor, clip, [1], clicks=[(float(x), float(y))])
        pairs = zip(found, labels == 1, strict=True)
        return float(np.mean([region_similarity(masks[0], truth) for (masks, _), truth in pairs]))

    phase = (
        "[{name: a, steps: 120, clips: 2, frames: 4, objects: 1, learning_rate: 1.0e-4, "
        "warmup_steps: 10, click: 1.0, box: 0.0, mask: 0.0, rounds: 0}]"
    )
    overrides = [
        *(f"output={tmp_path / 'run'}", "start.checkpoint=demo", f"phases={phase}"),
        f"data.sources=[{{kind: dataset, dataset: {root}, clips: 12}}]",
        *(f"data.spool={tmp_path}", "optimiser.average=0.9", "final_videos=0"),
        *("losses={focal: 5.0, dice: 5.0, focal_alpha: 0.6}", "validation_steps=1000"),
    ]
    assert main([word for override in overrides for word in ("--set", override)]) == 0

    before, after = score("demo"), score(str(last_line(capsys.readouterr().out)["model"]))
    assert before < 0.7
    assert after > before + 0.15


def upper_half(index: int) -> np.ndarray:
    mask = square_mask(index)
    rows = np.flatnonzero(mask.any(axis=1))
    mask[rows[len(rows) // 2] :] = False
    return mask
