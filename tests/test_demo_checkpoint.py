"""The checkpoint that comes with maskmill segments what it says, and its card says the truth."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import hf_side
from script import Add, Propagate, Run, Side

from sam2model import Sam2VideoModel, Sam2VideoProcessor
from sam2model.checkpoint import BUNDLED
from workflows.demo_inputs import DRAWN_NAME, demo_prompts, drawn_clip
from workflows.train_validation import score_held_out

FOLDER = BUNDLED["demo"]
FIGURES = json.loads((FOLDER / "held_out.json").read_text())


def test_it_is_found_by_name_and_small() -> None:
    model = Sam2VideoModel.from_pretrained("demo")
    assert Sam2VideoProcessor.from_pretrained("demo").target_size == model.config.image_size == 384
    assert (FOLDER / "model.safetensors").stat().st_size <= 8e6


def test_a_folder_of_that_name_goes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Sam2VideoModel.from_pretrained("demo").save_pretrained(tmp_path / "demo")
    (tmp_path / "demo/model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="demo"):
        Sam2VideoModel.from_pretrained("demo")


def test_it_segments_a_few_held_out_videos() -> None:
    torch.set_num_threads(1)
    scores = score_held_out("demo", range(3))
    assert scores["j_and_f"] > 0.55
    assert scores["j_first_frame_box"] > 0.65


def test_these_bounds_fail_for_random_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Sam2VideoModel(Sam2VideoModel.from_pretrained("demo").config)
    model.save_pretrained(tmp_path)
    Sam2VideoProcessor.from_pretrained("demo").save_pretrained(tmp_path)
    scores = score_held_out(tmp_path, range(1))
    assert scores["j_and_f"] < 0.3
    assert scores["j_first_frame_box"] < 0.3


@pytest.mark.slow
def test_the_published_figures_come_out_again() -> None:
    torch.set_num_threads(1)
    scores = score_held_out("demo", range(160))
    assert scores["objects"] == FIGURES["objects"]
    for name, published in FIGURES.items():
        assert scores[name] == pytest.approx(published, abs=0.01), name


def test_the_card_gives_the_published_figures() -> None:
    card = (FOLDER / "README.md").read_text()
    for name in ("j_and_f", "j_first_frame_box", "j_first_frame_click", "presence_auroc"):
        assert f"{FIGURES[name]:.3f}" in card, name


@pytest.mark.slow
def test_it_is_no_model_for_real_videos_but_runs_on_them(
    real_data: Callable[[str], Path],
) -> None:
    """Nothing is claimed but that masks are masks: neither all nor nothing of the first frame."""
    model = Sam2VideoModel.from_pretrained("demo", semantics="labelling")
    processor = Sam2VideoProcessor.from_pretrained("demo")
    session = processor.init_video_session(video=str(real_data("05_default_juggle.mp4")))
    processor.add_inputs_to_inference_session(
        session, 0, [1], input_points=[[[[700.0, 200.0]]]], input_labels=[[[1]]]
    )
    output = next(iter(model.propagate_in_video_iterator(session, 0, max_frame_num_to_track=0)))
    share = float((output.pred_masks > 0).float().mean())
    assert 0.001 < share < 0.6
    assert np.isfinite(output.pred_masks.numpy()).all()


def test_transformers_makes_the_same_masks_of_it() -> None:
    transformers = pytest.importorskip("transformers")
    frames, prompts = drawn_clip().frames[:6], demo_prompts(Path(DRAWN_NAME))
    click = prompts[0].points_px[0]
    steps = [Add(0, [1], points=[[click]], signs=[[1]]), Run(0), Propagate()]
    their_model = transformers.Sam2VideoModel.from_pretrained(FOLDER, dtype=torch.float32)
    theirs = hf_side(their_model.eval(), frames)
    model, processor = (cls.from_pretrained("demo") for cls in (Sam2VideoModel, Sam2VideoProcessor))
    session = processor.init_video_session(video=list(frames))
    ours = Side(model, processor, session, torch.empty(0), frames.shape[1:3])
    compared = zip(theirs.play(steps), ours.play(steps), strict=True)
    for their_frame, our_frame in compared:
        difference = (their_frame.logits[1] - our_frame.logits[1]).abs().max()
        assert difference < 0.005 * their_frame.logits[1].abs().max()
