"""Pictures to the pixels that a model reads, and videos as sources of them.

Knows nothing of prompts or models. Frames are resized to a square with anti-aliasing on whole
levels of 0 to 255, as torchvision does.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2model.video import Video

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Image = Any  # a PIL image, or (H, W, 3) uint8 as numpy or torch


class ProcessedFrames(dict[str, Any]):
    """What a processor returns: `pixel_values` and `original_sizes`, also as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device: torch.device | str) -> "ProcessedFrames":
        """The same with its tensors on a device."""
        return ProcessedFrames(
            {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.items()}
        )


@dataclass(frozen=True, slots=True)
class Sam2VideoVideoProcessor:
    """Frames to pixels: size in model pixels, mean and std of values in [0, 1]."""

    size: int = 1024
    image_mean: tuple[float, float, float] = IMAGENET_MEAN
    image_std: tuple[float, float, float] = IMAGENET_STD

    def resize(self, frame: Image) -> Tensor:
        """One frame to (3, S, S) uint8, not keeping its aspect ratio."""
        image = to_rgb(frame)
        if image.shape[-2:] == (self.size, self.size):
            return image
        resized = F.interpolate(
            image[None], size=(self.size, self.size), mode="bilinear", antialias=True
        )
        return resized[0]

    def normalise(self, image: Tensor) -> Tensor:
        """(…, 3, S, S) uint8 → fp32 with zero mean and unit deviation on ImageNet."""
        mean, std = _shades(tuple(self.image_mean), tuple(self.image_std), image.device)
        return (image.float() - mean) / std

    def __call__(
        self,
        videos: Sequence[Image],
        device: torch.device | str = "cpu",
        return_tensors: str = "pt",
    ) -> ProcessedFrames:
        """A video's frames → pixel_values_videos (1, T, 3, S, S), original_sizes [(h, w)]."""
        del return_tensors
        frames = torch.stack([self.resize(frame) for frame in videos]).to(device)
        height, width = to_rgb(videos[0]).shape[-2:]
        return ProcessedFrames(
            pixel_values_videos=self.normalise(frames)[None],
            original_sizes=[(height, width)],
        )


class ByteFrames:
    """Resized frames kept as bytes and normalised when read: a quarter of fp32."""

    def __init__(self, frames: Tensor, processor: Sam2VideoVideoProcessor) -> None:
        self._frames = frames
        self._processor = processor

    def __len__(self) -> int:
        return self._frames.shape[0]

    def __getitem__(self, index: int) -> Tensor:
        return self._processor.normalise(self._frames[index])


class FileFrames:
    """Frames of a file, decoded when read; constant memory whatever its length."""

    def __init__(self, video: Video, processor: Sam2VideoVideoProcessor) -> None:
        self._video = video
        self._processor = processor
        weakref.finalize(self, video.close)  # a session has no end of its own
        self._length = video.count_frames()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Tensor:
        frame = self._video.frame(index)
        return self._processor.normalise(self._processor.resize(frame.rgb))


@cache
def _shades(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Mean and spread of the colours, (3, 1, 1) of 0 to 255; brought to a device only once."""
    with torch.inference_mode(False):
        both = torch.tensor([mean, std], device=device).view(2, 3, 1, 1) * 255
    return both[0], both[1]


def to_rgb(frame: Image) -> Tensor:
    """A frame to (3, H, W) uint8."""
    if isinstance(frame, Tensor):
        image = frame
    else:
        array = np.asarray(frame.convert("RGB") if hasattr(frame, "convert") else frame)
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()  # torch shares neither, such as colours turned round from OpenCV
        image = torch.from_numpy(array)
    if image.dtype != torch.uint8 or image.dim() != 3:
        raise ValueError(
            f"frame: got {image.dtype} of shape {tuple(image.shape)}; wanted uint8 (H, W, 3)"
        )
    if image.shape[-1] == 3:
        return image.permute(2, 0, 1)
    if image.shape[0] == 3:
        return image
    raise ValueError(f"frame: shape {tuple(image.shape)}; wanted three colours, (H, W, 3)")
