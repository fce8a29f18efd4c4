"""Our model beside transformers' in one process: same weights, frames and prompts, masks compared.

Knows nothing of datasets or clusters. The two take turns frame by frame, so that a busy machine
slows both alike, and what is reported is the ratio of their medians.
"""

import copy
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from sam2model import (
    Sam2VideoInferenceSession,
    Sam2VideoModel,
    Sam2VideoProcessor,
    released_config,
)
from sam2model.attention import synchronize
from sam2model.rle import encode_masks

FRAME_SIZE = (540, 960)  # rows, columns of the synthetic video


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """What to measure. The device is a torch device; frames counts the tracked ones."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    suites: tuple[Literal["objects", "rle"], ...] = ("objects", "rle")
    size: Literal["tiny", "small", "base-plus", "large"] = "tiny"
    objects: tuple[Annotated[int, Field(ge=1)], ...] = (1, 4)
    # The memory is full after 7 tracked frames; only later ones are counted.
    frames: Annotated[int, Field(ge=9)] = 11
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    device: str = "cpu"
    threads: Annotated[int, Field(ge=1)] | None = None
    results: str = field(default="bench-results")


@dataclass(frozen=True, slots=True)
class ObjectsRow:
    """One line of the table: seconds a frame once the memory is full."""

    objects: int
    ours_s: float
    transformers_s: float
    mask_iou: float  # the lowest of all objects and frames, ours against transformers

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.transformers_s / self.ours_s


def machine() -> dict[str, str | int]:
    """The hardware and versions that a figure belongs to."""
    import transformers

    facts: dict[str, str | int] = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def measure_objects(config: BenchConfig) -> Iterator[ObjectsRow]:
    """Frames of one video with N objects, one click each: ours and transformers in turn."""
    theirs, ours = _twin_models(config)
    for count in config.objects:
        yield _measure_count(config, theirs, ours, count)


def _measure_count(
    config: BenchConfig, theirs: Any, ours: Sam2VideoModel, count: int
) -> ObjectsRow:
    frames = _frames(config.frames + 1)
    processor = Sam2VideoProcessor()
    device, dtype = torch.device(config.device), getattr(torch, config.dtype)
    pixels = processor.video_processor(frames).pixel_values_videos[0]
    height, width = FRAME_SIZE
    session = Sam2VideoInferenceSession(pixels, height, width, inference_device=device, dtype=dtype)
    points = _clicks(count)
    processor.add_inputs_to_inference_session(
        session,
        0,
        list(range(count)),
        input_points=[[[p] for p in points]],
        input_labels=[[[1]] * count],
    )
    other = _their_session(pixels.to(dtype), points, device, dtype)
    sides: dict[str, Callable[[int], Tensor]] = {
        "ours": lambda t: ours(session, frame_idx=t).pred_masks,
        "transformers": lambda t: theirs(other, frame_idx=t).pred_masks,
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    worst = 1.0
    for t in range(config.frames + 1):
        masks = {}
        for name, side in sides.items():
            synchronize(device)
            start = time.perf_counter()
            masks[name] = side(t)
            synchronize(device)
            if t > 7:
                seconds[name].append(time.perf_counter() - start)
        worst = min(worst, _lowest_iou(masks["ours"], masks["transformers"]))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return ObjectsRow(count, medians["ours"], medians["transformers"], worst)


def _twin_models(config: BenchConfig) -> tuple[Any, Sam2VideoModel]:
    """transformers' model and ours with the same random weights; objects are always present."""
    from transformers import Sam2VideoConfig as TheirConfig
    from transformers import Sam2VideoModel as TheirModel

    torch.manual_seed(0)
    ours_config = released_config(config.size)
    ours = Sam2VideoModel(ours_config)
    with torch.no_grad():
        ours.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(10.0)
    values = ours_config.to_dict()
    del values["architectures"], values["model_type"]
    theirs: Any = TheirModel(TheirConfig(**copy.deepcopy(values)))
    theirs.eval()
    theirs.load_state_dict(ours.state_dict())
    device, dtype = torch.device(config.device), getattr(torch, config.dtype)
    return theirs.to(device, dtype), ours.to(device, dtype)


def _their_session(
    pixels: Tensor, points: Sequence[tuple[float, float]], device: torch.device, dtype: torch.dtype
) -> Any:
    """A session of transformers'. Its processor needs torchvision, so clicks are put in by hand."""
    from transformers.models.sam2_video.modeling_sam2_video import (
        Sam2VideoInferenceSession as TheirSession,
    )

    height, width = FRAME_SIZE
    session = TheirSession(
        video=pixels,
        video_height=height,
        video_width=width,
        inference_device=device,
        inference_state_device=device,
        video_storage_device=device,
        dtype=dtype,
    )
    side = pixels.shape[-1]
    for obj_id, (x, y) in enumerate(points):
        index = session.obj_id_to_idx(obj_id)
        where = torch.tensor([[[[x * side / width, y * side / height]]]])
        session.add_point_inputs(
            index,
            0,
            {"point_coords": where, "point_labels": torch.ones(1, 1, 1, dtype=torch.int64)},
        )
    session.obj_with_new_inputs = list(range(len(points)))
    return session


def _frames(count: int) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    """A pattern that drifts, so that frames differ and nothing is blank."""
    height, width = FRAME_SIZE
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 255, (height // 20 + 2, width // 20 + 2, 3), dtype=np.uint8)
    picture = np.kron(tiles, np.ones((20, 20, 1), dtype=np.uint8))
    return [picture[t : t + height, 2 * t : 2 * t + width] for t in range(count)]


def _clicks(count: int) -> list[tuple[float, float]]:
    """Points spread over the frame, in its pixels."""
    height, width = FRAME_SIZE
    return [(width * ((i * 0.37 + 0.2) % 1), height * ((i * 0.61 + 0.3) % 1)) for i in range(count)]


def _lowest_iou(a: Tensor, b: Tensor) -> float:
    """The worst intersection over union of two lots of logits (N, 1, h, w); 1 when both empty."""
    inside_a, inside_b = (a > 0).flatten(1), (b > 0).flatten(1)
    union = (inside_a | inside_b).sum(dim=1)
    both = (inside_a & inside_b).sum(dim=1)
    return float(torch.where(union > 0, both / union.clamp(min=1), 1.0).min())


@dataclass(frozen=True, slots=True)
class RleRow:
    """Milliseconds for one 1080p mask on one core, a row-major bool mask to a COCO string."""

    ours_ms: float
    pycocotools_ms: float

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.pycocotools_ms / self.ours_ms


def measure_rle(repeats: int = 30) -> RleRow:
    """Ragged blobs as a model draws them, encoded by both in turn; the strings must be equal."""
    from pycocotools import mask as coco

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn((1, 1, 34, 60), generator=generator)
        size = (1080, 1920)
        mask = torch.nn.functional.interpolate(coarse, size, mode="bicubic")[0] > 0.5
        array = mask[0].numpy().astype(np.uint8)

        def ours() -> str:
            return encode_masks(mask)[0]

        def theirs() -> str:
            encoded = coco.encode(np.asfortranarray(array))["counts"]
            return str(encoded.decode("ascii"))

        if ours() != theirs():
            raise AssertionError("our run lengths differ from pycocotools'")
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(repeats):
            for name, call in (("ours", ours), ("theirs", theirs)):
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return RleRow(*(statistics.median(times[name]) * 1e3 for name in ("ours", "theirs")))


def as_json(row: ObjectsRow | RleRow) -> dict[str, float]:
    """A row with its ratio, rounded for reading."""
    return {name: round(value, 4) for name, value in (asdict(row) | {"ratio": row.ratio}).items()}
