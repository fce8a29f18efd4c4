"""Models with the same random weights, and the frames and clicks that they are given.

Knows nothing of timing. Random weights follow no object; they cost what trained ones cost.
"""

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam2model import (
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VideoProcessor,
    Sam2VideoVideoProcessor,
    released_config,
)
from workflows.benchmark_inputs import small_config

FRAME_SIZE = (540, 960)  # rows, columns of the synthetic video

Point = tuple[float, float]  # x, y in pixels of the frame


def random_model(name: str, device: str, dtype: str) -> Sam2VideoModel:
    """A released size, or the small model of the demo; objects are always present."""
    torch.manual_seed(0)
    model = Sam2VideoModel(small_config() if name == "demo" else released_config(name))
    model.requires_grad_(False)
    model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(10.0)
    # Every checkpoint has one matrix in both places.
    matrix = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(matrix)
    return model.to(torch.device(device), getattr(torch, dtype))


def processor_for(model: Sam2VideoModel) -> Sam2VideoProcessor:
    """Frames and clicks at the model's size."""
    return Sam2VideoProcessor(Sam2VideoVideoProcessor(model.config.image_size))


def twin_of_transformers(ours: Sam2VideoModel) -> Any:
    """transformers' model with our weights, on our device, in our number format."""
    from transformers import Sam2VideoConfig as TheirConfig
    from transformers import Sam2VideoModel as TheirModel

    theirs: Any = TheirModel(TheirConfig(**_values(ours.config)))
    theirs.eval()
    theirs.load_state_dict(ours.state_dict())
    return theirs.to(ours.device, ours.dtype)


def _values(config: Sam2VideoConfig) -> dict[str, Any]:
    values = copy.deepcopy(config.to_dict())
    del values["architectures"], values["model_type"]
    return values


def session_of_transformers(
    pixels: Tensor, size: tuple[int, int], clicks: list[Point], like: Tensor
) -> Any:
    """Its session with a click an object on frame 0; pixels: (T, 3, S, S) normalised.

    Its processor needs torchvision, so the clicks are put in by hand.
    """
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    height, width = size
    session = Sam2VideoInferenceSession(
        video=pixels.to(like.dtype),
        video_height=height,
        video_width=width,
        inference_device=like.device,
        inference_state_device=like.device,
        video_storage_device=like.device,
        dtype=like.dtype,
    )
    side = pixels.shape[-1]
    for object_id, (x, y) in enumerate(clicks):
        index = session.obj_id_to_idx(object_id)
        where = torch.tensor([[[[x * side / width, y * side / height]]]])
        labels = torch.ones(1, 1, 1, dtype=torch.int64)
        session.add_point_inputs(index, 0, {"point_coords": where, "point_labels": labels})
    session.obj_with_new_inputs = list(range(len(clicks)))
    return session


def drifting_frames(count: int) -> list[npt.NDArray[np.uint8]]:
    """A pattern that drifts, so that frames differ and nothing is blank."""
    height, width = FRAME_SIZE
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 255, (height // 20 + 2, width // 20 + 2, 3), dtype=np.uint8)
    picture = np.kron(tiles, np.ones((20, 20, 1), dtype=np.uint8))
    picture = np.tile(picture, (1 + count // height, 1 + 2 * count // width, 1))
    return [picture[t : t + height, 2 * t : 2 * t + width] for t in range(count)]


def spread_clicks(count: int) -> list[Point]:
    """Points spread over the frame, in its pixels."""
    height, width = FRAME_SIZE
    return [(width * ((i * 0.37 + 0.2) % 1), height * ((i * 0.61 + 0.3) % 1)) for i in range(count)]


def lowest_iou(a: Tensor, b: Tensor) -> float:
    """The worst intersection over union of two lots of logits (N, …, h, w); 1 when both empty."""
    inside_a, inside_b = (a > 0).flatten(1), (b > 0).flatten(1)
    union = (inside_a | inside_b).sum(dim=1)
    both = (inside_a & inside_b).sum(dim=1)
    return float(torch.where(union > 0, both / union.clamp(min=1), 1.0).min())
