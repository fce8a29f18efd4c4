"""What the "SAM2 Video" page of the Hugging Face documentation shows works with ours imported.

The calls have the page's shapes, on a small random checkpoint on disk and a synthetic video.
"""

import gc
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from reference import small_hf_model, synthetic_frames
from scenarios import our_model

from sam2model import (
    Sam2VideoConfig,
    Sam2VideoInferenceSession,
    Sam2VideoMaskDecoderConfig,
    Sam2VideoModel,
    Sam2VideoProcessor,
    Sam2VideoPromptEncoderConfig,
    Sam2VideoVideoProcessor,
)

HEIGHT, WIDTH, FRAMES = 48, 80, 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder such as a hub id stands for."""
    folder = tmp_path_factory.mktemp("sam2.1-hiera-small-test")
    our_model(small_hf_model()).save_pretrained(folder)
    Sam2VideoProcessor(Sam2VideoVideoProcessor(size=128)).save_pretrained(folder)
    return folder


@pytest.fixture
def model(checkpoint: Path) -> Sam2VideoModel:
    return Sam2VideoModel.from_pretrained(checkpoint)


@pytest.fixture
def processor(checkpoint: Path) -> Sam2VideoProcessor:
    return Sam2VideoProcessor.from_pretrained(checkpoint)


@pytest.fixture
def video_frames() -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in synthetic_frames(FRAMES, HEIGHT, WIDTH)]


def masks_of(processor: Sam2VideoProcessor, session: Any, output: Any) -> torch.Tensor:
    """The page's call that brings an output to the video's size."""
    return processor.post_process_masks(
        [output.pred_masks],
        original_sizes=[[session.video_height, session.video_width]],
        binarize=False,
    )[0]


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


@pytest.fixture
def video_path(tmp_path: Path, video_frames: list[Image.Image]) -> Path:
    """The frames as a file, without loss."""
    path = tmp_path / "video.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10, width=WIDTH, height=HEIGHT)
        stream.pix_fmt = "bgr0"
        for image in video_frames:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))
    return path


def test_loading_with_the_pages_own_arguments(checkpoint: Path) -> None:
    model = Sam2VideoModel.from_pretrained(checkpoint, device_map="auto")

    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_basic_video_tracking(
    model: Sam2VideoModel, processor: Sam2VideoProcessor, video_frames: list[Image.Image]
) -> None:
    inference_session = processor.init_video_session(
        video=video_frames, inference_device=model.device
    )
    processor.add_inputs_to_inference_session(
        inference_session=inference_session,
        frame_idx=0,
        obj_ids=1,
        input_points=[[[[20, 15]]]],
        input_labels=[[[1]]],
    )

    outputs = model(inference_session=inference_session, frame_idx=0)
    clicked = masks_of(processor, inference_session, outputs)
    assert clicked.shape == (1, 1, HEIGHT, WIDTH)
    assert clicked.is_floating_point()

    video_segments = {}
    for sam2_video_output in model.propagate_in_video_iterator(inference_session):
        video_res_masks = masks_of(processor, inference_session, sam2_video_output)
        video_segments[sam2_video_output.frame_idx] = video_res_masks

    assert sorted(video_segments) == [*range(FRAMES)]
    assert torch.equal(video_segments[0], clicked)
    assert not torch.equal(video_segments[0], video_segments[FRAMES - 1])


def test_multi_object_video_tracking_after_a_reset(
    model: Sam2VideoModel, processor: Sam2VideoProcessor, video_frames: list[Image.Image]
) -> None:
    inference_session = processor.init_video_session(
        video=video_frames, inference_device=model.device
    )
    add_click(processor, inference_session, obj_id=1)
    model(inference_session=inference_session, frame_idx=0)
    inference_session.reset_inference_session()
    assert inference_session.obj_ids == []

    processor.add_inputs_to_inference_session(
        inference_session=inference_session,
        frame_idx=0,
        obj_ids=[2, 3],
        input_points=[[[[20, 15]], [[55, 29]]]],
        input_labels=[[[1], [1]]],
    )
    outputs = model(inference_session=inference_session, frame_idx=0)
    assert outputs.object_ids == [2, 3]
    assert outputs.object_score_logits.shape == (2, 1)

    video_segments = {}
    for sam2_video_output in model.propagate_in_video_iterator(inference_session):
        video_res_masks = masks_of(processor, inference_session, sam2_video_output)
        video_segments[sam2_video_output.frame_idx] = {
            obj_id: video_res_masks[i] for i, obj_id in enumerate(inference_session.obj_ids)
        }

    assert len(video_segments) == FRAMES
    assert all(list(masks) == [2, 3] for masks in video_segments.values())
    assert not torch.equal(video_segments[0][2], video_segments[0][3])


def test_refining_a_later_frame_and_propagating_again(
    model: Sam2VideoModel, processor: Sam2VideoProcessor, video_frames: list[Image.Image]
) -> None:
    inference_session = processor.init_video_session(
        video=video_frames, inference_device=model.device
    )
    add_click(processor, inference_session, obj_id=2)
    model(inference_session=inference_session, frame_idx=0)
    before = {
        o.frame_idx: masks_of(processor, inference_session, o)
        for o in model.propagate_in_video_iterator(inference_session)
    }

    add_click(processor, inference_session, obj_id=2, frame_idx=3, at=(60, 40))
    video_segments = {}
    for sam2_video_output in model.propagate_in_video_iterator(inference_session):
        video_res_masks = masks_of(processor, inference_session, sam2_video_output)
        video_segments[sam2_video_output.frame_idx] = video_res_masks

    assert sorted(video_segments) == [*range(FRAMES)]
    assert not torch.allclose(video_segments[3], before[3], atol=0.1)


def test_streaming_video_inference(
    model: Sam2VideoModel, processor: Sam2VideoProcessor, video_frames: list[Image.Image]
) -> None:
    device = model.device
    inference_session = processor.init_video_session(inference_device=device)
    assert inference_session.video_height is None

    seen = []
    for frame_idx, frame in enumerate(video_frames):
        inputs = processor(images=frame, device=device, return_tensors="pt").to(model.device)
        if frame_idx == 0:
            processor.add_inputs_to_inference_session(
                inference_session=inference_session,
                frame_idx=0,
                obj_ids=1,
                input_points=[[[[20, 15], [25, 11]]]],
                input_labels=[[[1, 1]]],
                original_size=inputs.original_sizes[0],
            )
        sam2_video_output = model(inference_session=inference_session, frame=inputs.pixel_values[0])
        video_res_masks = processor.post_process_masks(
            [sam2_video_output.pred_masks], original_sizes=inputs.original_sizes, binarize=False
        )[0]
        seen.append((sam2_video_output.frame_idx, video_res_masks.shape))

    assert seen == [(i, (1, 1, HEIGHT, WIDTH)) for i in range(FRAMES)]
    assert (inference_session.video_height, inference_session.video_width) == (HEIGHT, WIDTH)


def test_batched_points_of_several_objects_with_different_numbers(
    model: Sam2VideoModel, processor: Sam2VideoProcessor, video_frames: list[Image.Image]
) -> None:
    inference_session = processor.init_video_session(
        video=video_frames, inference_device=model.device
    )
    input_points = [[[[20, 15], [23, 18], [70, 40]], [[55, 29]]]]
    input_labels = [[[1, 1, 0], [1]]]

    processor.add_inputs_to_inference_session(
        inference_session=inference_session,
        frame_idx=0,
        obj_ids=[2, 3],
        input_points=input_points,
        input_labels=input_labels,
    )
    outputs = model(inference_session=inference_session, frame_idx=0)

    assert masks_of(processor, inference_session, outputs).shape[0] == 2
    assert input_points == [[[[20, 15], [23, 18], [70, 40]], [[55, 29]]]]  # the caller's, intact
    segments = [*model.propagate_in_video_iterator(inference_session)]
    assert [o.frame_idx for o in segments] == [*range(FRAMES)]
    assert all(o.pred_masks.shape[:2] == (2, 1) for o in segments)


@pytest.mark.parametrize(
    "prompt",
    [
        {"obj_ids": 1, "input_boxes": [[[10, 5, 30, 25]]]},
        {"obj_ids": [1, 2], "input_boxes": [[[10, 5, 30, 25], [45, 20, 70, 45]]]},
        {"obj_ids": 1, "input_boxes": torch.tensor([[[10.0, 5, 30, 25]]])},
        {
            "obj_ids": 1,
            "input_boxes": [[[10, 5, 30, 25]]],
            "input_points": [[[[28, 7]]]],
            "input_labels": [[[0]]],
        },
        {
            "obj_ids": 1,
            "input_points": torch.tensor([[[[20.0, 15.0]]]]),
            "input_labels": torch.tensor([[[1]]]),
        },
        {
            "obj_ids": 1,
            "input_points": np.array([[[[20.0, 15.0]]]]),
            "input_labels": np.array([[[1]]]),
        },
        {"obj_ids": 1, "input_masks": np.eye(HEIGHT, WIDTH) > 0},
        {"obj_ids": 1, "input_masks": torch.ones(HEIGHT, WIDTH, dtype=torch.bool)},
        {"obj_ids": [1, 2], "input_masks": [np.eye(24, 40) > 0, np.ones((1, 1, 128, 128), bool)]},
    ],
    ids=[
        "a box",
        "two boxes",
        "a tensor of a box",
        "a box and a click",
        "tensors of a click",
        "arrays of a click",
        "an array of a mask",
        "a tensor of a mask",
        "two masks of other sizes",
    ],
)
def test_every_documented_kind_of_prompt_is_accepted(
    model: Sam2VideoModel,
    processor: Sam2VideoProcessor,
    video_frames: list[Image.Image],
    prompt: dict[str, Any],
) -> None:
    inference_session = processor.init_video_session(
        video=video_frames[:2], inference_device=model.device
    )

    processor.add_inputs_to_inference_session(
        inference_session=inference_session, frame_idx=0, **prompt
    )
    outputs = model(inference_session, frame_idx=0)

    ids = prompt["obj_ids"]
    assert outputs.object_ids == ([ids] if isinstance(ids, int) else ids)
    assert bool(outputs.pred_masks.isfinite().all())


def test_tracking_in_reverse_from_the_last_frame(
    model: Sam2VideoModel, processor: Sam2VideoProcessor, video_frames: list[Image.Image]
) -> None:
    inference_session = processor.init_video_session(
        video=video_frames, inference_device=model.device
    )
    add_click(processor, inference_session, obj_id=1, frame_idx=FRAMES - 1)

    outputs = model.propagate_in_video_iterator(
        inference_session, start_frame_idx=FRAMES - 1, max_frame_num_to_track=3, reverse=True
    )

    assert [o.frame_idx for o in outputs] == [5, 4, 3, 2]


def test_images_arrays_and_a_file_of_the_same_frames_track_alike(
    model: Sam2VideoModel,
    processor: Sam2VideoProcessor,
    video_frames: list[Image.Image],
    video_path: Path,
) -> None:
    arrays = [np.asarray(frame) for frame in video_frames]

    tracked = []
    for video in (video_frames, arrays, np.stack(arrays), video_path, str(video_path)):
        session = processor.init_video_session(video=video, inference_device=model.device)
        assert (session.video_height, session.video_width) == (HEIGHT, WIDTH)
        assert session.num_frames == FRAMES
        add_click(processor, session, obj_id=1)
        last = [*model.propagate_in_video_iterator(session)][-1]
        tracked.append(last.pred_masks)

    assert all(torch.equal(masks, tracked[0]) for masks in tracked)


def test_a_session_on_a_file_lets_go_of_it_when_it_is_dropped(
    processor: Sam2VideoProcessor, video_path: Path
) -> None:
    session = processor.init_video_session(video=video_path)

    complaints: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "unraisablehook", complaints.append)
        del session
        gc.collect()

    assert complaints == []


def test_run_lengths_are_those_of_the_masks_at_the_videos_size(
    model: Sam2VideoModel, processor: Sam2VideoProcessor, video_frames: list[Image.Image]
) -> None:
    inference_session = processor.init_video_session(video=video_frames[:1])
    for obj_id, at in ((1, (20, 15)), (2, (55, 29))):
        add_click(processor, inference_session, obj_id=obj_id, at=at)

    output = model(inference_session=inference_session, frame_idx=0)

    masks = (masks_of(processor, inference_session, output)[:, 0] > 0).numpy()
    assert masks.any()
    assert output.rle == [
        coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode() for mask in masks
    ]


def test_a_model_moved_to_bf16_tracks_a_bf16_session(
    checkpoint: Path, processor: Sam2VideoProcessor, video_frames: list[Image.Image]
) -> None:
    model = Sam2VideoModel.from_pretrained(checkpoint).to("cpu", dtype=torch.bfloat16)
    inference_session = processor.init_video_session(
        video=video_frames, inference_device="cpu", dtype=torch.bfloat16
    )
    add_click(processor, inference_session, obj_id=1)

    outputs = [*model.propagate_in_video_iterator(inference_session)]

    assert model.dtype == torch.bfloat16
    assert len(outputs) == FRAMES
    assert outputs[-1].pred_masks.dtype == torch.float32


def test_post_processing_grows_logits_binarises_and_leaves_its_list_alone(
    processor: Sam2VideoProcessor,
) -> None:
    logits = np.linspace(-4, 4, 2 * 32 * 32, dtype=np.float32).reshape(2, 1, 32, 32)
    given = [logits]

    grown = processor.post_process_masks(given, original_sizes=[[HEIGHT, WIDTH]], binarize=False)
    masks = processor.post_process_masks(given, original_sizes=torch.tensor([[HEIGHT, WIDTH]]))
    apart = processor.post_process_masks(
        [torch.ones(2, 1, 32, 32)], [[4, 4]], apply_non_overlapping_constraints=True
    )

    expected = torch.nn.functional.interpolate(
        torch.from_numpy(logits), (HEIGHT, WIDTH), mode="bilinear", align_corners=False
    )
    assert torch.equal(grown[0], expected)
    assert torch.equal(masks[0], expected > 0)
    assert given[0] is logits
    assert apart[0].sum(dim=0).max() <= 1


def test_the_processor_reads_the_settings_that_transformers_writes(tmp_path: Path) -> None:
    for name in ("processor_config.json", "preprocessor_config.json"):
        folder = tmp_path / name
        folder.mkdir()
        image = '"size": {"height": 256, "width": 256}, "image_mean": [0.1, 0.2, 0.3]'
        text = f'{{"image_processor": {{{image}}}, "target_size": 256}}'
        (folder / name).write_text(text if name.startswith("processor") else f"{{{image}}}")

        processor = Sam2VideoProcessor.from_pretrained(folder)

        assert processor.target_size == 256
        assert processor.video_processor.image_mean == (0.1, 0.2, 0.3)


def test_configurations_and_sessions_are_made_by_name() -> None:
    config = Sam2VideoConfig(
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(),
        mask_decoder_config=Sam2VideoMaskDecoderConfig(),
    )
    assert config.mask_decoder_config.num_multimask_outputs == 3

    session = Sam2VideoInferenceSession(
        video=torch.zeros(3, 3, 128, 128), video_height=HEIGHT, video_width=WIDTH
    )
    assert (session.num_frames, session.get_obj_num()) == (3, 0)
    assert session.obj_id_to_idx(7) == 0 and session.obj_idx_to_id(0) == 7
