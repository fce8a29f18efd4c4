"""Sessions refuse what cannot be done, say why, and stay as they were; streams stay small."""

from typing import Any

import numpy as np
import pytest
from PIL import Image
from reference import small_hf_model, synthetic_frames
from scenarios import our_model

from sam2model import Sam2VideoModel, Sam2VideoProcessor, Sam2VideoVideoProcessor

HEIGHT, WIDTH, FRAMES = 48, 80, 6


@pytest.fixture
def model() -> Sam2VideoModel:
    return our_model(small_hf_model())


@pytest.fixture
def processor() -> Sam2VideoProcessor:
    return Sam2VideoProcessor(Sam2VideoVideoProcessor(size=128))


@pytest.fixture
def video_frames() -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in synthetic_frames(FRAMES, HEIGHT, WIDTH)]


def add_click(
    processor: Sam2VideoProcessor,
    session: Any,
    obj_id: int,
    frame_idx: int = 0,
    at: tuple[float, float] = (20, 15),
) -> None:
    """One positive click on one object."""
    processor.add_inputs_to_inference_session(
        inference_session=session,
        frame_idx=frame_idx,
        obj_ids=obj_id,
        input_points=[[[list(at)]]],
        input_labels=[[[1]]],
    )


def test_the_memory_of_a_stream_does_not_grow_with_its_length(
    model: Sam2VideoModel, processor: Sam2VideoProcessor, video_frames: list[Image.Image]
) -> None:
    inference_session = processor.init_video_session()
    pixels = processor(images=video_frames).pixel_values
    processor.add_inputs_to_inference_session(
        inference_session=inference_session,
        frame_idx=0,
        obj_ids=1,
        input_points=[[[[20, 15]]]],
        input_labels=[[[1]]],
        original_size=(HEIGHT, WIDTH),
    )

    for frame_idx in range(24):
        model(inference_session=inference_session, frame=pixels[frame_idx % FRAMES])

    assert inference_session.stepper is not None
    assert inference_session.stepper.bank.mask_pages_in_use <= model.config.num_maskmem


def test_a_prompt_on_a_frame_that_a_stream_has_passed_does_not_stop_the_stream(
    model: Sam2VideoModel, processor: Sam2VideoProcessor, video_frames: list[Image.Image]
) -> None:
    inference_session = processor.init_video_session()
    pixels = processor(images=video_frames).pixel_values
    inference_session.video_height, inference_session.video_width = HEIGHT, WIDTH
    add_click(processor, inference_session, obj_id=1)
    for frame in pixels[:3]:
        model(inference_session=inference_session, frame=frame)

    with pytest.raises(ValueError, match="frame 1 "):
        add_click(processor, inference_session, obj_id=1, frame_idx=1)
        model(inference_session=inference_session, frame=pixels[3])

    assert model(inference_session=inference_session, frame=pixels[4]).object_ids == [1]


@pytest.mark.parametrize("frame_idx", [-1, FRAMES, 99])
def test_a_frame_outside_the_video_is_refused_by_number(
    model: Sam2VideoModel,
    processor: Sam2VideoProcessor,
    video_frames: list[Image.Image],
    frame_idx: int,
) -> None:
    inference_session = processor.init_video_session(video=video_frames)
    add_click(processor, inference_session, obj_id=1)

    with pytest.raises(ValueError, match=rf"{frame_idx}.* 0 to {FRAMES - 1}"):
        model(inference_session=inference_session, frame_idx=frame_idx)


def test_a_box_may_not_be_added_to_old_clicks(
    model: Sam2VideoModel, processor: Sam2VideoProcessor, video_frames: list[Image.Image]
) -> None:
    inference_session = processor.init_video_session(video=video_frames[:1])
    add_click(processor, inference_session, obj_id=1)

    with pytest.raises(ValueError, match="clear_old_inputs"):
        processor.add_inputs_to_inference_session(
            inference_session=inference_session,
            frame_idx=0,
            obj_ids=1,
            input_boxes=[[[10, 5, 30, 25]]],
            clear_old_inputs=False,
        )


@pytest.mark.parametrize(
    "prompt",
    [
        {},
        {"input_points": [[[[20, 15]]]]},
        {"input_points": [[[20, 15]]], "input_labels": [[1]]},
        {"input_points": [[[[20, 15]]]], "input_labels": [[[1, 1]]]},
        {"input_points": [[[[20, 15]], [[20, 15]]]], "input_labels": [[[1], [1]]]},
        {"input_boxes": [[[[10, 5, 30, 25]]]]},
        {"input_masks": np.ones((4, 4), bool), "input_boxes": [[[10, 5, 30, 25]]]},
        {"input_masks": [np.ones((4, 4), bool)] * 2},
    ],
    ids=[
        "nothing",
        "points without labels",
        "points three levels deep",
        "more labels than points",
        "two objects' points for one id",
        "a box four levels deep",
        "a mask and a box",
        "two masks for one id",
    ],
)
def test_inputs_of_a_wrong_shape_are_refused_and_leave_the_session_as_it_was(
    processor: Sam2VideoProcessor, video_frames: list[Image.Image], prompt: dict[str, Any]
) -> None:
    inference_session = processor.init_video_session(video=video_frames[:1])

    with pytest.raises(ValueError):
        processor.add_inputs_to_inference_session(
            inference_session=inference_session, frame_idx=0, obj_ids=1, **prompt
        )

    assert inference_session.obj_ids == []


def test_a_session_with_answers_refuses_another_model(
    model: Sam2VideoModel, processor: Sam2VideoProcessor, video_frames: list[Image.Image]
) -> None:
    session = processor.init_video_session(video=video_frames)
    add_click(processor, session, obj_id=1)
    first = model(inference_session=session, frame_idx=0)
    other = our_model(small_hf_model(flickers=True))

    with pytest.raises(ValueError, match="begun by another model"):
        other(inference_session=session, frame_idx=1)
    assert model(inference_session=session, frame_idx=0).pred_masks.equal(first.pred_masks)

    session.reset_inference_session()
    add_click(processor, session, obj_id=1)
    fresh = processor.init_video_session(video=video_frames)
    add_click(processor, fresh, obj_id=1)
    after_reset = other(inference_session=session, frame_idx=0).pred_masks
    assert after_reset.equal(other(inference_session=fresh, frame_idx=0).pred_masks)
