"""What a session allows, and what it says of calls that its state does not allow."""

from typing import Any

import numpy as np
import pytest
import torch
from small_network import SIZE, random_pixels, small_network

from sam2model import (
    Sam2VideoInferenceSession,
    Sam2VideoModel,
    Sam2VideoProcessor,
    Sam2VideoVideoProcessor,
    SessionError,
)

PROCESSOR = Sam2VideoProcessor(Sam2VideoVideoProcessor(SIZE))


@pytest.fixture(scope="module")
def model() -> Sam2VideoModel:
    built: Sam2VideoModel = small_network(3, Sam2VideoModel)
    return built


def session(num_frames: int = 5) -> Sam2VideoInferenceSession:
    return PROCESSOR.init_video_session(video=[np.zeros((32, 48, 3), np.uint8)] * num_frames)


def click(on: Sam2VideoInferenceSession, frame: int = 0, object_id: int = 1) -> None:
    PROCESSOR.add_inputs_to_inference_session(
        on, frame, object_id, input_points=[[[[20, 10]]]], input_labels=[[[1]]]
    )


def test_a_session_without_objects_says_what_to_add(model: Sam2VideoModel) -> None:
    for call in (
        lambda: model(session(), frame_idx=0),
        lambda: next(model.propagate_in_video_iterator(session())),
    ):
        with pytest.raises(SessionError, match="no objects; add points, boxes or masks"):
            call()


def test_an_object_that_was_named_and_never_prompted_is_named_in_the_error(
    model: Sam2VideoModel,
) -> None:
    named = session()
    click(named, object_id=1)
    assert named.obj_id_to_idx(7) == 1 and named.obj_idx_to_id(1) == 7

    for call in (
        lambda: model(named, frame_idx=0),
        lambda: next(model.propagate_in_video_iterator(named)),
    ):
        with pytest.raises(SessionError, match=r"objects \[7\]: no prompt yet"):
            call()

    named.remove_object(7)
    assert [o.frame_idx for o in model.propagate_in_video_iterator(named)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("frame", [-1, 5])
def test_a_frame_that_is_not_there_is_refused(model: Sam2VideoModel, frame: int) -> None:
    asked = session()
    click(asked)

    with pytest.raises(SessionError, match=f"frame {frame}: wanted 0 to 4"):
        model(asked, frame_idx=frame)
    with pytest.raises(SessionError, match=f"start_frame_idx {frame}: wanted 0 to 4"):
        next(model.propagate_in_video_iterator(asked, start_frame_idx=frame))


def test_a_call_needs_a_frame(model: Sam2VideoModel) -> None:
    asked = session()
    click(asked)

    with pytest.raises(SessionError, match="frame_idx or frame is needed"):
        model(asked)


# Streams.


def stream(model: Sam2VideoModel, cache: int = 1) -> Sam2VideoInferenceSession:
    """A stream with one object, its first frame answered."""
    opened = PROCESSOR.init_video_session(max_vision_features_cache_size=cache)
    assert opened.num_frames is None
    PROCESSOR.add_inputs_to_inference_session(
        opened, 0, 1, input_points=[[[[20, 10]]]], input_labels=[[[1]]], original_size=(32, 48)
    )
    model(opened, frame=random_pixels(1)[0])
    return opened


def test_a_stream_cannot_be_propagated_through(model: Sam2VideoModel) -> None:
    with pytest.raises(SessionError, match="a stream has no frames to go through"):
        next(model.propagate_in_video_iterator(stream(model)))


def test_a_session_on_a_video_takes_no_further_frames() -> None:
    with pytest.raises(SessionError, match="a stream's session has none"):
        session().add_new_frame(random_pixels(1)[0])


def test_a_frame_of_a_stream_can_be_prompted_while_it_is_held(model: Sam2VideoModel) -> None:
    pixels = random_pixels(4)
    opened = stream(model, cache=2)
    for index in (1, 2, 3):
        model(opened, frame=pixels[index])

    click(opened, frame=2, object_id=2)
    assert model(opened, frame_idx=2).object_ids == [1, 2]
    with pytest.raises(SessionError, match="frame 1 of the stream is not held"):
        click(opened, frame=1, object_id=3)
    assert opened.obj_ids == [1, 2]


def test_a_stream_holds_as_many_features_as_asked_and_one_frame(model: Sam2VideoModel) -> None:
    opened = stream(model, cache=3)
    for frame in random_pixels(10):
        model(opened, frame=frame)
        assert len(opened._features) <= 3

    assert opened.num_frames == 11


# Forgetting.


def test_a_reset_forgets_objects_and_their_memories_and_keeps_the_video(
    model: Sam2VideoModel,
) -> None:
    opened = session()
    click(opened, object_id=4)
    list(model.propagate_in_video_iterator(opened))
    assert opened.stepper is not None and opened.stepper.bank.mask_pages_in_use == 5

    opened.reset_inference_session()

    assert opened.obj_ids == [] and opened.num_frames == 5
    assert opened.stepper.bank.mask_pages_in_use == 0
    click(opened, object_id=9)
    assert model(opened, frame_idx=0).object_ids == [9]


def test_two_sessions_of_one_model_do_not_know_of_each_other(model: Sam2VideoModel) -> None:
    alone, first, second = session(), session(), session()
    click(alone)
    click(first)
    click(second, object_id=8)

    wanted = [o.pred_masks for o in model.propagate_in_video_iterator(alone)]
    others = model.propagate_in_video_iterator(second)
    got: list[Any] = []
    for output in model.propagate_in_video_iterator(first):
        next(others)
        got.append(output.pred_masks)

    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert (first.obj_ids, second.obj_ids) == ([1], [8])
