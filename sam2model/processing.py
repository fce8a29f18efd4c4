"""Frames and prompts to what the model reads, and its masks back to the video's size.

Knows nothing of networks. Prompts are scaled from source pixels to model pixels.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2model.checkpoint import CheckpointError, locate
from sam2model.frame_processing import (
    ByteFrames,
    FileFrames,
    Image,
    ProcessedFrames,
    Sam2VideoVideoProcessor,
    to_rgb,
)
from sam2model.inference_session import FrameSource, Sam2VideoInferenceSession
from sam2model.mask_ops import fill_holes, remove_sprinkles, suppress_overlaps
from sam2model.nested_prompts import clicks, first_image
from sam2model.prompts import Prompt, PromptError
from sam2model.stepper import ModelPrompt
from sam2model.video import Video


class Sam2VideoProcessor:
    """Makes sessions, adds prompts to them and brings masks to the video's size."""

    def __init__(self, video_processor: Sam2VideoVideoProcessor | None = None) -> None:
        self.video_processor = video_processor or Sam2VideoVideoProcessor()

    @property
    def target_size(self) -> int:
        """The model's image size S, in model pixels."""
        return self.video_processor.size

    @classmethod
    def from_pretrained(cls, source: str | Path, **hub: Any) -> Self:
        """Read the processor files beside a model, or its config where there are none."""
        path = locate(source, revision=hub.get("revision"), token=hub.get("token"))
        folder = path if path.is_dir() else path.parent
        settings: dict[str, Any] = {}
        for name in (
            "config.json",
            "preprocessor_config.json",
            "video_preprocessor_config.json",
            "processor_config.json",
        ):
            if (folder / name).exists():
                settings |= _settings(folder / name)
        return cls(Sam2VideoVideoProcessor(**settings))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the processor files that transformers reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        size = self.target_size
        common = {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(self.video_processor.image_mean),
            "image_std": list(self.video_processor.image_std),
            "resample": 2,
            "rescale_factor": 1 / 255,
            "size": {"height": size, "width": size},
        }
        image = common | {
            "image_processor_type": "Sam2ImageProcessor",
            "mask_size": {"height": size // 4, "width": size // 4},
        }
        video = common | {"video_processor_type": "Sam2VideoVideoProcessor"}
        processor = {
            "processor_class": "Sam2VideoProcessor",
            "target_size": size,
            "point_pad_value": -10,
            "image_processor": image,
            "video_processor": video,
        }
        for name, content in (
            ("preprocessor_config.json", image),
            ("video_preprocessor_config.json", video),
            ("processor_config.json", processor),
        ):
            (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")

    def __call__(
        self,
        images: Image,
        device: torch.device | str = "cpu",
        return_tensors: str = "pt",
    ) -> ProcessedFrames:
        """Frames of a stream → pixel_values (B, 3, S, S), original_sizes (B, 2) rows, columns."""
        del return_tensors
        frames = list(images) if isinstance(images, list | tuple) else [images]
        sizes = [list(to_rgb(frame).shape[-2:]) for frame in frames]
        resized = torch.stack([self.video_processor.resize(frame) for frame in frames])
        pixels = self.video_processor.normalise(resized.to(device))
        return ProcessedFrames(pixel_values=pixels, original_sizes=torch.tensor(sizes))

    def init_video_session(
        self,
        video: Sequence[Image] | str | Path | None = None,
        inference_device: torch.device | str = "cpu",
        inference_state_device: torch.device | str | None = None,
        processing_device: torch.device | str | None = None,
        video_storage_device: torch.device | str | None = None,
        max_vision_features_cache_size: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> Sam2VideoInferenceSession:
        """A session on a video: a list of frames, a file's path, or None for a stream."""
        del processing_device
        frames: FrameSource | None = None
        height: int | None = None
        width: int | None = None
        if isinstance(video, str | Path):
            opened = Video(Path(video), name=str(video))
            frames = FileFrames(opened, self.video_processor)
            height, width = opened.info.height, opened.info.width
        elif video is not None:
            resized, (height, width) = self._resize_all(video)
            stored = resized.to(video_storage_device or inference_device)
            frames = ByteFrames(stored, self.video_processor)
        return Sam2VideoInferenceSession(
            video=frames,
            video_height=height,
            video_width=width,
            inference_device=inference_device,
            inference_state_device=inference_state_device,
            dtype=dtype,
            max_vision_features_cache_size=max_vision_features_cache_size,
        )

    def _resize_all(self, images: Sequence[Image]) -> tuple[Tensor, tuple[int, int]]:
        """Frames of one size to (T, 3, S, S) uint8, and that size."""
        if len(images) == 0:
            raise ValueError("video: no frames; wanted a list of images of one size")
        sizes = [(image.shape[-2], image.shape[-1]) for image in map(to_rgb, images)]
        for index, (rows, columns) in enumerate(sizes):
            if (rows, columns) != sizes[0]:
                raise ValueError(
                    f"video: frame {index} has {rows}×{columns} rows and columns, the first "
                    f"{sizes[0][0]}×{sizes[0][1]}; wanted one size"
                )
        return torch.stack([self.video_processor.resize(image) for image in images]), sizes[0]

    def add_inputs_to_inference_session(
        self,
        inference_session: Sam2VideoInferenceSession,
        frame_idx: int,
        obj_ids: Sequence[int] | int,
        input_points: Any = None,
        input_labels: Any = None,
        input_boxes: Any = None,
        input_masks: Any = None,
        original_size: Sequence[int] | Tensor | None = None,
        clear_old_inputs: bool = True,
    ) -> Sam2VideoInferenceSession:
        """Prompt objects on a frame, in source pixels.

        input_points: [image][object][point][x, y] and input_labels: [image][object][point], 1
        adds and 0 takes away; input_boxes: [image][object][x0, y0, x1, y1]; input_masks: one
        (H, W) for each object. original_size: rows and columns, for a stream's first prompt.
        clear_old_inputs: False adds the clicks to those already on the frame. Objects may have
        different numbers of clicks.
        """
        session = inference_session
        ids = [int(obj_ids)] if isinstance(obj_ids, int | np.integer) else [int(i) for i in obj_ids]
        if original_size is not None:
            session.video_height, session.video_width = (int(side) for side in original_size)
        if (input_points is None) != (input_labels is None):
            raise PromptError("input_points and input_labels go together; got one of them")
        if input_masks is not None:
            if input_points is not None or input_boxes is not None:
                raise PromptError("input_masks stand alone; got points or boxes as well")
            self._add_masks(session, frame_idx, ids, input_masks)
            return session
        if input_points is None and input_boxes is None:
            raise PromptError("nothing to add; wanted input_points, input_boxes or input_masks")
        if input_boxes is not None and not clear_old_inputs:
            raise PromptError("a box comes before clicks: wanted clear_old_inputs=True")
        points = first_image(input_points, 4, "input_points", len(ids))
        labels = first_image(input_labels, 3, "input_labels", len(ids))
        boxes = first_image(input_boxes, 3, "input_boxes", len(ids))
        scale = self._scale(session)
        prompts = []
        for index, obj_id in enumerate(ids):
            prompt = clicks(points[index], labels[index], boxes[index], scale)
            before = session.prompt_of(obj_id, frame_idx)
            if not clear_old_inputs and before is not None and before.mask is None:
                prompt = ModelPrompt(
                    torch.cat((before.points, prompt.points)),
                    torch.cat((before.labels, prompt.labels)),
                )
            prompts.append(prompt.to(session.inference_device))
        for obj_id, prompt in zip(ids, prompts, strict=True):
            session.add_prompt(obj_id, frame_idx, prompt)
        return session

    def model_prompt(self, prompt: Prompt, height: int, width: int) -> ModelPrompt:
        """A prompt of a video of this size, in model pixels."""
        if prompt.mask is not None:
            return self._mask_prompt(torch.from_numpy(np.ascontiguousarray(prompt.mask)))
        scale = (self.target_size / width, self.target_size / height)
        labels = [int(positive) for positive in prompt.positive]
        return clicks(list(prompt.points_px), labels, prompt.box_xyxy_px, scale)

    def post_process_masks(
        self,
        masks: Sequence[Tensor],
        original_sizes: Any,
        mask_threshold: float = 0.0,
        binarize: bool = True,
        max_hole_area: int = 0,
        max_sprinkle_area: int = 0,
        apply_non_overlapping_constraints: bool = False,
    ) -> list[Tensor]:
        """Logits (N, 1, h, w) of each image to its size (H, W): bool, or logits.

        Areas are in pixels of the logits given. The list that is passed in is not changed.
        """
        sizes = original_sizes.tolist() if hasattr(original_sizes, "tolist") else original_sizes
        out = []
        for logits, size in zip(masks, sizes, strict=True):
            logits = torch.as_tensor(logits).float()
            flat = logits.flatten(0, -3)
            if max_hole_area > 0:
                flat = fill_holes(flat, int(max_hole_area))
            if max_sprinkle_area > 0:
                flat = remove_sprinkles(flat, int(max_sprinkle_area))
            grown = F.interpolate(
                flat.view(logits.shape), size=tuple(int(side) for side in size), mode="bilinear"
            )
            if apply_non_overlapping_constraints and grown.shape[0] > 1:
                grown = suppress_overlaps(grown.flatten(0, 1)).view(grown.shape)
            out.append(grown > mask_threshold if binarize else grown)
        return out

    def _scale(self, session: Sam2VideoInferenceSession) -> tuple[float, float]:
        """Model pixels for a source pixel, along x and along y."""
        if session.video_height is None or session.video_width is None:
            raise PromptError("original_size is needed for the first prompt of a stream")
        return self.target_size / session.video_width, self.target_size / session.video_height

    def _add_masks(
        self, session: Sam2VideoInferenceSession, frame_idx: int, ids: list[int], masks: Any
    ) -> None:
        given = list(masks) if isinstance(masks, list | tuple) else [masks]
        if len(given) != len(ids):
            raise PromptError(f"input_masks: {len(given)} for {len(ids)} objects")
        prompts = [self._mask_prompt(torch.as_tensor(np.asarray(mask))) for mask in given]
        for obj_id, prompt in zip(ids, prompts, strict=True):
            session.add_prompt(obj_id, frame_idx, prompt.to(session.inference_device))

    def _mask_prompt(self, mask: Tensor) -> ModelPrompt:
        if mask.dim() < 2 or mask.numel() != mask.shape[-1] * mask.shape[-2]:
            raise PromptError(f"input_masks: shape {tuple(mask.shape)}; wanted (H, W) each")
        size = (self.target_size, self.target_size)
        inside = mask.reshape(1, 1, *mask.shape[-2:]).float()
        if tuple(mask.shape[-2:]) != size:
            inside = F.interpolate(inside, size=size, mode="bilinear", antialias=True)
        nothing = torch.empty((0, 2))
        return ModelPrompt(nothing, torch.empty(0, dtype=torch.int64), inside[0, 0] >= 0.5)


def _settings(path: Path) -> dict[str, Any]:
    """The size, mean and std that a processor file or a model configuration states."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a processor's settings: {error}") from error
    for part in ("image_processor", "video_processor"):
        if isinstance(content.get(part), dict):
            content = content | content[part]
    found: dict[str, Any] = {}
    size = content.get("size", content.get("image_size", content.get("target_size")))
    if isinstance(size, dict):
        size = size.get("height", size.get("longest_edge"))
    if isinstance(size, list):
        size = size[0]
    if size is not None:
        found["size"] = int(size)
    for name in ("image_mean", "image_std"):
        if content.get(name) is not None:
            found[name] = tuple(float(value) for value in content[name])
    return found
