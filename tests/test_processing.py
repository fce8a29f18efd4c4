"""Frames and prompts in, masks out: formulas, scales, and what is said of malformed input.

That pixels are torchvision's is shown in test_parity.py, clean-up in test_mask_ops.py.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from videos import moving_square, write_moving_square

from sam2model import (
    CheckpointError,
    PromptError,
    Sam2VideoInferenceSession,
    Sam2VideoProcessor,
    Sam2VideoVideoProcessor,
    SessionError,
)
from sam2model.frame_processing import IMAGENET_MEAN, IMAGENET_STD
from sam2model.prompts import Prompt
from sam2model.stepper import ModelPrompt
from sam2model.video import Video

SIZE = 64
HEIGHT, WIDTH = 32, 128  # of the videos: a source pixel is half a model pixel wide and two high
PROCESSOR = Sam2VideoProcessor(Sam2VideoVideoProcessor(SIZE))


def frame(value: int = 100, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


# Pixels.


@pytest.mark.parametrize("value", [0, 1, 100, 255])
def test_a_pixel_is_its_share_of_255_less_the_mean_over_the_deviation(value: int) -> None:
    pixels = PROCESSOR(images=frame(value)).pixel_values

    assert pixels.shape == (1, 3, SIZE, SIZE) and pixels.dtype == torch.float32
    for channel, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        wanted = (value / 255 - mean) / std
        assert torch.allclose(pixels[0, channel], torch.tensor(wanted), atol=1e-5)


def test_mean_and_deviation_are_the_processors_own() -> None:
    own = Sam2VideoVideoProcessor(SIZE, image_mean=(0.0, 0.5, 1.0), image_std=(1.0, 0.5, 0.25))

    pixels = own([frame(255)]).pixel_values_videos[0, 0, :, 0, 0]

    assert pixels.tolist() == pytest.approx([1.0, 1.0, 0.0], abs=1e-6)


def test_a_frame_is_made_square_without_keeping_its_aspect_ratio() -> None:
    halves = frame(0)
    halves[: HEIGHT // 2, :, 0] = 200
    halves[:, : WIDTH // 4, 1] = 200

    red, green, _ = PROCESSOR.video_processor.resize(halves)

    assert red[: SIZE // 2 - 2].min() == 200 and red[SIZE // 2 + 2 :].max() == 0
    assert green[:, : SIZE // 4 - 2].min() == 200 and green[:, SIZE // 4 + 2 :].max() == 0


def test_a_frame_of_the_models_size_is_taken_as_it_is() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)

    resized = PROCESSOR.video_processor.resize(picture)

    assert torch.equal(resized, torch.from_numpy(picture).permute(2, 0, 1))


def test_a_video_and_its_frames_one_by_one_give_the_same_pixels() -> None:
    frames = [moving_square(i) for i in range(3)]

    whole = PROCESSOR.video_processor(frames)

    assert whole.original_sizes == [(96, 128)]
    for index, one in enumerate(frames):
        single = PROCESSOR(images=one, return_tensors="pt")
        assert torch.equal(whole.pixel_values_videos[0, index], single.pixel_values[0])
        assert single.original_sizes.tolist() == [[96, 128]]


def _variants() -> dict[str, Any]:
    picture = moving_square(3)
    read_only = picture.copy()
    read_only.flags.writeable = False
    padded = np.zeros((96, 130, 3), np.uint8)
    padded[:, 1:-1] = picture
    return {
        "read-only": read_only,
        "a view into a larger array": padded[:, 1:-1],
        "channels turned round twice": picture[..., ::-1].copy()[..., ::-1],  # as after OpenCV
        "columns turned round twice": picture[:, ::-1].copy()[:, ::-1],
        "Fortran order": np.asfortranarray(picture),
        "colours first": torch.from_numpy(picture).permute(2, 0, 1),
        "a picture with transparency": Image.fromarray(picture).convert("RGBA"),
    }


@pytest.mark.parametrize("name", _variants())
def test_however_a_frame_is_stored_it_gives_the_same_pixels(name: str) -> None:
    got = PROCESSOR(images=_variants()[name]).pixel_values

    assert torch.equal(got, PROCESSOR(images=moving_square(3)).pixel_values)


def test_a_grey_picture_becomes_three_equal_colours() -> None:
    red, green, blue = PROCESSOR.video_processor.resize(Image.new("L", (WIDTH, HEIGHT), 77))

    assert torch.equal(red, green) and torch.equal(red, blue) and int(red[0, 0]) == 77


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"uint8 of shape \(4, 4\); wanted uint8 \(H, W, 3\)"),
        (np.zeros((4, 4, 3), np.float32), r"float32 of shape \(4, 4, 3\); wanted uint8"),
        (np.zeros((4, 4, 4), np.uint8), r"shape \(4, 4, 4\); wanted three colours"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), r"shape \(1, 3, 4, 4\); wanted"),
    ],
)
def test_a_frame_that_is_no_picture_is_refused_with_what_it_is(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PROCESSOR(images=wrong)


def test_what_a_processor_returns_can_be_read_by_name_moved_and_is_a_dictionary() -> None:
    made = PROCESSOR(images=[frame(), frame(7)])

    assert set(made) == {"pixel_values", "original_sizes"}
    assert made["pixel_values"] is made.pixel_values
    assert made.to("meta").pixel_values.device.type == "meta"
    with pytest.raises(AttributeError, match="pixels"):
        made.pixels  # noqa: B018


# Sessions.


def test_a_session_of_frames_knows_their_number_and_size() -> None:
    session = PROCESSOR.init_video_session(video=[frame(i) for i in range(5)])

    assert session.num_frames == 5
    assert (session.video_height, session.video_width) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("as_array", [np.stack, lambda f: torch.from_numpy(np.stack(f))])
def test_a_video_may_be_one_array_of_frames(as_array: Any) -> None:
    frames = [frame(i) for i in range(3)]

    session = PROCESSOR.init_video_session(video=as_array(frames))

    assert session.video is not None and session.num_frames == 3
    assert torch.equal(session.video[2], PROCESSOR(images=frames[2]).pixel_values[0])


@pytest.mark.parametrize("kind", [str, Path])
def test_a_session_of_a_file_has_the_pixels_of_its_frames(tmp_path: Path, kind: type) -> None:
    path = write_moving_square(tmp_path / "v.mp4", 6)

    session = PROCESSOR.init_video_session(video=kind(path))

    with Video(path, name="v") as video:
        decoded = [f.rgb for f in video.frames()]
    listed = PROCESSOR.init_video_session(video=decoded)
    assert (session.num_frames, session.video_height, session.video_width) == (6, 96, 128)
    assert session.video is not None and listed.video is not None
    for index in (5, 0, 3):
        assert torch.equal(session.video[index], listed.video[index])


def test_frames_of_two_sizes_are_refused_with_the_first_that_differs() -> None:
    frames = [frame(), frame(), frame(height=HEIGHT + 1)]

    with pytest.raises(ValueError, match=r"video: frame 2 .*33×128.* the first 32×128"):
        PROCESSOR.init_video_session(video=frames)


def test_a_video_without_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="video: no frames"):
        PROCESSOR.init_video_session(video=[])


# Prompts.


def session(num_frames: int = 4) -> Sam2VideoInferenceSession:
    return PROCESSOR.init_video_session(video=[frame()] * num_frames)


def added(**inputs: Any) -> ModelPrompt:
    """The prompt of object 1 on frame 0 after one call."""
    made = session()
    PROCESSOR.add_inputs_to_inference_session(made, 0, inputs.pop("obj_ids", 1), **inputs)
    prompt = made.prompt_of(1, 0)
    assert prompt is not None
    return prompt


def test_clicks_are_scaled_from_source_pixels_to_model_pixels_along_each_side() -> None:
    prompt = added(input_points=[[[[0, 0], [128, 32], [10, 4]]]], input_labels=[[[1, 0, 1]]])

    assert prompt.points.tolist() == [[0, 0], [64, 64], [5, 8]]
    assert prompt.labels.tolist() == [1, 0, 1]


def test_a_box_becomes_two_points_before_the_clicks() -> None:
    prompt = added(
        input_boxes=[[[10, 4, 100, 30]]], input_points=[[[[20, 6]]]], input_labels=[[[0]]]
    )

    assert prompt.points.tolist() == [[5, 8], [50, 60], [10, 12]]
    assert prompt.labels.tolist() == [2, 3, 0]


def test_a_prompt_in_source_pixels_gives_what_a_session_makes_of_it() -> None:
    given = Prompt(1, 0, ((20.0, 6.0),), (False,), (10.0, 4.0, 100.0, 30.0))

    prompt = PROCESSOR.model_prompt(given, HEIGHT, WIDTH)

    wanted = added(
        input_boxes=[[[10, 4, 100, 30]]], input_points=[[[[20, 6]]]], input_labels=[[[0]]]
    )
    assert torch.equal(prompt.points, wanted.points) and torch.equal(prompt.labels, wanted.labels)


@pytest.mark.parametrize(
    "nested",
    [
        np.array([[[[10.0, 4.0]]]]),
        torch.tensor([[[[10.0, 4.0]]]]),
        [[np.array([[10.0, 4.0]])]],
        [[[torch.tensor([10.0, 4.0])]]],
        ((((10, 4),),),),
    ],
    ids=["array", "tensor", "arrays in lists", "tensors in lists", "tuples"],
)
def test_clicks_may_be_lists_arrays_or_tensors(nested: Any) -> None:
    assert added(input_points=nested, input_labels=[[[1]]]).points.tolist() == [[5, 8]]


def test_objects_of_one_call_may_have_different_numbers_of_clicks() -> None:
    made = session()
    PROCESSOR.add_inputs_to_inference_session(
        made,
        2,
        np.array([7, 3]),
        input_points=[[[[10, 4]], [[0, 0], [64, 16]]]],
        input_labels=[[[1], [1, 0]]],
    )

    assert made.obj_ids == [7, 3]
    first, second = made.prompt_of(7, 2), made.prompt_of(3, 2)
    assert first is not None and first.points.tolist() == [[5, 8]]
    assert second is not None and second.points.tolist() == [[0, 0], [32, 32]]


def test_new_clicks_replace_the_old_ones_or_join_them() -> None:
    made = session()

    def add(x: int, clear: bool) -> list[list[float]]:
        PROCESSOR.add_inputs_to_inference_session(
            made,
            0,
            1,
            input_points=[[[[x, 0]]]],
            input_labels=[[[1]]],
            clear_old_inputs=clear,
        )
        prompt = made.prompt_of(1, 0)
        assert prompt is not None
        return prompt.points.tolist()

    assert add(2, True) == [[1, 0]]
    assert add(4, False) == [[1, 0], [2, 0]]
    assert add(6, True) == [[3, 0]]


def test_a_mask_of_any_size_is_brought_to_the_models_and_cut_at_one_half() -> None:
    small, own = np.zeros((16, 16), np.bool_), np.zeros((SIZE, SIZE), np.bool_)
    small[4:8] = True
    own[16:32] = True

    for mask in (small, [small], own, [torch.from_numpy(own)], own.astype(np.float32)):
        prompt = added(input_masks=mask)
        assert prompt.mask is not None and prompt.mask.dtype == torch.bool
        assert torch.equal(prompt.mask, torch.from_numpy(own))
        assert prompt.points.shape == (0, 2)


def test_a_mask_prompt_in_source_pixels_is_scaled_like_a_sessions() -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[8:16, 64:] = True

    prompt = PROCESSOR.model_prompt(Prompt(1, 0, mask=mask), HEIGHT, WIDTH)

    wanted = added(input_masks=[mask]).mask
    assert prompt.mask is not None and wanted is not None and torch.equal(prompt.mask, wanted)
    assert bool(prompt.mask[17:31, 33:].all()) and int(prompt.mask.sum()) == 16 * 32


CLICK: dict[str, Any] = {"input_points": [[[[10, 4]]]], "input_labels": [[[1]]]}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_points": [[[10, 4]]]}, "input_points: 3 levels of brackets; wanted 4"),
        ({"input_points": [[[[[10, 4]]]]]}, "input_points: 5 levels of brackets; wanted 4"),
        ({"input_labels": [[1]]}, "input_labels: 2 levels of brackets; wanted 3"),
        ({"input_boxes": [[[[1, 2, 3, 4]]]]}, "input_boxes: 4 levels of brackets; wanted 3"),
        ({"input_boxes": [1, 2, 3, 4]}, "input_boxes: 1 levels of brackets; wanted 3"),
        ({"input_points": [[[[1, 2]]]] * 2}, r"input_points: got 2 images of \[1, 1\] objects"),
        ({"input_points": [[[[1, 2]], [[3, 4]]]]}, r"input_points: got 1 images of \[2\] objects"),
        ({"input_points": [[[[1, 2], [3, 4]]]]}, "2 points but 1 labels"),
        ({"input_points": [[[[1, 2, 3]]]]}, r"input_points: \[1, 2, 3\]; wanted \[x, y\]"),
        ({"input_points": [[[[1, 2], 3]]]}, r"input_points: 3; wanted \[x, y\]"),
        ({"input_boxes": [[[1, 2, 3]]]}, r"input_boxes: \[1, 2, 3\]; wanted \[x0, y0, x1, y1\]"),
        ({"input_points": [[[[1, "two"]]]]}, r"input_points: \[1, 'two'\]; wanted \[x, y\]"),
        ({"input_points": [[[]]], "input_labels": [[[]]]}, "no points and no box"),
        ({"input_points": []}, "input_points"),
        ({"input_labels": [[[2]]]}, r"labels \[2\]: wanted 1 \(adds\) or 0 \(takes away\)"),
        ({"input_labels": [[[-1]]]}, r"labels \[-1\]"),
        ({"input_labels": [[[[1]]]]}, "input_labels: 4 levels of brackets; wanted 3"),
        ({"input_points": [[[[1, float("nan")]]]]}, "coordinates must be finite"),
        ({"input_labels": None}, "input_points and input_labels go together"),
        ({"input_points": None}, "input_points and input_labels go together"),
        ({"input_points": None, "input_labels": None}, "nothing to add"),
        ({"input_masks": [np.ones((4, 4))]}, "input_masks stand alone"),
        (
            {"input_boxes": [[[1, 2, 3, 4]]], "clear_old_inputs": False},
            "a box comes before clicks: wanted clear_old_inputs=True",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed_prompts_are_refused_by_name_and_add_nothing(
    inputs: dict[str, Any], message: str
) -> None:
    made = session()

    with pytest.raises(PromptError, match=message):
        PROCESSOR.add_inputs_to_inference_session(made, 0, [1], **{**CLICK, **inputs})

    assert made.obj_ids == []


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([np.ones((4, 4))] * 2, "input_masks: 2 for 1 objects"),
        ([np.ones((2, 4, 4))], r"input_masks: shape \(2, 4, 4\); wanted \(H, W\) each"),
        ([np.ones(4)], r"input_masks: shape \(4,\)"),
    ],
)
def test_malformed_masks_are_refused_by_name_and_add_nothing(masks: Any, message: str) -> None:
    made = session()

    with pytest.raises(PromptError, match=message):
        PROCESSOR.add_inputs_to_inference_session(made, 0, [1], input_masks=masks)

    assert made.obj_ids == []


@pytest.mark.parametrize("index", [-1, 4])
def test_a_prompt_on_a_frame_that_is_not_there_is_refused(index: int) -> None:
    with pytest.raises(SessionError, match=rf"frame {index}: wanted 0 to 3"):
        PROCESSOR.add_inputs_to_inference_session(session(), index, 1, **CLICK)


def test_the_first_prompt_of_a_stream_needs_the_size_of_its_frames() -> None:
    stream = PROCESSOR.init_video_session()
    with pytest.raises(PromptError, match="original_size is needed"):
        PROCESSOR.add_inputs_to_inference_session(stream, 0, 1, **CLICK)

    size = PROCESSOR(images=frame()).original_sizes[0]
    PROCESSOR.add_inputs_to_inference_session(stream, 0, 1, **CLICK, original_size=size)

    prompt = stream.prompt_of(1, 0)
    assert prompt is not None and prompt.points.tolist() == [[5, 8]]


# Masks.


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_masks_come_back_at_the_videos_size_above_the_threshold() -> None:
    given = torch.full((2, 1, 16, 16), -1.0)
    given[0, :, :8] = 3.0

    (above_0,) = PROCESSOR.post_process_masks([given], [[HEIGHT, WIDTH]])
    (above_2,) = PROCESSOR.post_process_masks([given], [[HEIGHT, WIDTH]], mask_threshold=2.0)
    (values,) = PROCESSOR.post_process_masks([given], [[HEIGHT, WIDTH]], binarize=False)

    assert above_0.shape == (2, 1, HEIGHT, WIDTH) and above_0.dtype == torch.bool
    assert above_0[0, 0, :15].all() and not above_0[0, 0, 17:].any() and not above_0[1].any()
    assert above_2.sum() < above_0.sum()
    assert float(values.max()) == 3.0 and float(values.min()) == -1.0
    (from_half,) = PROCESSOR.post_process_masks([given.half()], [[9, 9]], binarize=False)
    assert values.dtype == from_half.dtype == torch.float32


def test_each_image_has_its_own_size() -> None:
    sizes = torch.tensor([[10, 20], [30, 5]])

    masks = PROCESSOR.post_process_masks([logits(1, 1, 16, 16), logits(3, 1, 16, 16)], sizes)

    assert [tuple(m.shape) for m in masks] == [(1, 1, 10, 20), (3, 1, 30, 5)]


@pytest.mark.parametrize("kind", [lambda t: t, lambda t: t.numpy(), lambda t: t.bfloat16()])
def test_what_is_passed_in_is_not_changed(kind: Any) -> None:
    given = [kind(logits(3, 1, 16, 16)), kind(logits(2, 1, 16, 16))]
    kept = [torch.as_tensor(g).clone() for g in given]
    passed = list(given)

    PROCESSOR.post_process_masks(
        passed,
        [[20, 20], [20, 20]],
        max_hole_area=5,
        max_sprinkle_area=5,
        apply_non_overlapping_constraints=True,
    )

    assert all(a is b for a, b in zip(passed, given, strict=True))
    assert all(torch.equal(torch.as_tensor(a), b) for a, b in zip(given, kept, strict=True))


def test_objects_of_one_frame_can_be_kept_from_overlapping() -> None:
    given = logits(4, 1, 16, 16) + 0.5

    (free,) = PROCESSOR.post_process_masks([given], [[40, 40]])
    (apart,) = PROCESSOR.post_process_masks(
        [given], [[40, 40]], apply_non_overlapping_constraints=True
    )

    assert int(free.sum(0).max()) > 1
    assert int(apart.sum(0).max()) == 1
    assert torch.equal(apart.any(0), free.any(0))


def test_holes_and_sprinkles_are_measured_in_pixels_of_the_logits() -> None:
    given = torch.full((1, 1, 16, 16), -4.0)
    given[..., 2:12, 2:12] = 4.0
    given[..., 5:7, 5:7] = -4.0  # a hole of 4
    given[..., 14, 14] = 4.0  # a sprinkle of 1

    def area(**clean_up: Any) -> int:
        return int(PROCESSOR.post_process_masks([given], [[16, 16]], **clean_up)[0].sum())

    assert area() == 100 - 4 + 1
    assert area(max_hole_area=3) == 100 - 4 + 1
    assert area(max_hole_area=4) == 100 + 1
    assert area(max_hole_area=4, max_sprinkle_area=1) == 100


# Files beside a model.

COMMON = {
    "data_format": "channels_first",
    "device": None,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 512, "width": 512},
}
IMAGE = {
    **COMMON,
    "image_processor_type": "Sam2ImageProcessorFast",
    "mask_size": {"height": 128, "width": 128},
    "processor_class": "Sam2VideoProcessor",
}
VIDEO = {**COMMON, "video_processor_type": "Sam2VideoVideoProcessor", "return_metadata": False}
LONE = {"processor_class": "Sam2VideoProcessor", "target_size": 512, "point_pad_value": -10}
NESTED = {**LONE, "image_processor": IMAGE, "video_processor": VIDEO}
MODEL = {"model_type": "sam2_video", "image_size": 512}


def write_files(folder: Path, **files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "files",
    [
        {"processor_config": NESTED},
        {"preprocessor_config": IMAGE},
        {"preprocessor_config": IMAGE, "processor_config": LONE},
        {
            "preprocessor_config": IMAGE,
            "video_preprocessor_config": VIDEO,
            "processor_config": LONE,
            "config": {**MODEL, "image_size": 1024},  # the processor's own files go before it
        },
    ],
    ids=lambda files: " ".join(files),
)
def test_the_files_that_transformers_writes_beside_a_model_are_read(
    tmp_path: Path, files: dict[str, Any]
) -> None:
    processor = Sam2VideoProcessor.from_pretrained(write_files(tmp_path, **files))

    assert processor.target_size == 512
    assert processor.video_processor.image_mean == (0.1, 0.2, 0.3)
    assert processor.video_processor.image_std == (0.4, 0.5, 0.6)


@pytest.mark.parametrize("files", [{"config": MODEL}, {"processor_config": LONE}], ids=str)
def test_without_an_image_processors_file_the_size_is_the_models(
    tmp_path: Path, files: dict[str, Any]
) -> None:
    processor = Sam2VideoProcessor.from_pretrained(write_files(tmp_path, **files))

    assert processor.target_size == 512
    assert processor.video_processor.image_mean == IMAGENET_MEAN


def test_a_processor_beside_a_weights_file_is_read_from_its_folder(tmp_path: Path) -> None:
    write_files(tmp_path, preprocessor_config=IMAGE)
    weights = tmp_path / "model.safetensors"
    weights.touch()

    assert Sam2VideoProcessor.from_pretrained(weights).target_size == 512


def test_a_processor_survives_saving_and_loading(tmp_path: Path) -> None:
    before = Sam2VideoProcessor(Sam2VideoVideoProcessor(96, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))

    before.save_pretrained(tmp_path / "new" / "folder")

    after = Sam2VideoProcessor.from_pretrained(tmp_path / "new" / "folder")
    assert after.video_processor == before.video_processor


def test_saved_files_say_what_transformers_needs(tmp_path: Path) -> None:
    PROCESSOR.save_pretrained(tmp_path)

    written = {p.stem: json.loads(p.read_text()) for p in tmp_path.iterdir()}

    assert set(written) == {
        "preprocessor_config",
        "processor_config",
        "video_preprocessor_config",
    }
    for name, known in (("preprocessor_config", IMAGE), ("video_preprocessor_config", VIDEO)):
        made = written[name]
        assert made["size"] == {"height": SIZE, "width": SIZE}
        assert made["rescale_factor"] == pytest.approx(known["rescale_factor"])
        assert all(made[key] == known[key] for key in ("do_resize", "do_normalize", "resample"))
    assert written["processor_config"]["processor_class"] == "Sam2VideoProcessor"
    assert written["preprocessor_config"]["mask_size"] == {"height": 16, "width": 16}


def test_a_broken_processor_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{not json")

    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        Sam2VideoProcessor.from_pretrained(tmp_path)
