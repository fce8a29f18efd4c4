"""Scores of checkpoints: their formulas, and that truth scores 1 and random weights next to 0."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import small_checkpoint

from workflows.train_validation import HeldOut, auroc, innermost, score_held_out

SMALL = HeldOut(num_frames=3, height=48, width=64, least_share=0.01)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_the_auroc_is_the_chance_that_a_positive_ranks_above_a_negative() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, 40).astype(float).tolist()  # with many ties
    positive = (rng.random(40) < 0.4).tolist()
    pairs = itertools.product(
        [s for s, p in zip(scores, positive, strict=True) if p],
        [s for s, p in zip(scores, positive, strict=True) if not p],
    )
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]
    assert auroc(scores, positive) == pytest.approx(sum(wins) / len(wins))
    assert auroc([1.0, 2.0, 3.0], [False, True, True]) == 1.0
    assert math.isnan(auroc([1.0, 2.0], [True, True]))


def test_the_innermost_pixel_is_the_middle_of_the_thickest_part() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:13, 2:40] = True  # a thin arm
    mask[4:25, 40:55] = True
    x, y = innermost(mask)
    assert abs(x - 47) <= 1 and 10 <= y <= 18
    mask[:] = False
    mask[7, 3] = True
    assert innermost(mask) == (3.0, 7.0)
    edge = np.zeros((20, 20), bool)
    edge[:, :9] = True
    assert 3 <= innermost(edge)[0] <= 5  # not at the image's edge


def test_random_weights_score_next_to_nothing(tmp_path: Path) -> None:
    scores = score_held_out(small_checkpoint(tmp_path), range(4), SMALL)
    assert scores["objects"] > 3
    assert scores["j_first_frame_click"] < 0.4 and scores["j_first_frame_box"] < 0.4


def test_scores_do_not_depend_on_what_was_scored_before(tmp_path: Path) -> None:
    checkpoint = small_checkpoint(tmp_path)
    first = score_held_out(checkpoint, range(2), SMALL)
    assert str(score_held_out(checkpoint, range(2), SMALL)) == str(first)


def test_held_out_scenes_are_none_that_training_draws() -> None:
    from workflows.config import load_config
    from workflows.train import VALIDATION_SEED
    from workflows.train_config import TrainConfig

    for path in (Path(__file__).parents[1] / "configs").glob("train*.yaml"):
        config = load_config(TrainConfig, path)
        last = max(source.seed + source.clips for source in config.data.sources)
        assert last <= VALIDATION_SEED < VALIDATION_SEED + 10_000 < HeldOut().first_seed, path
