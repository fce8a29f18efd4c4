"""Frames at the model's size to features, in batches of few sizes. Knows nothing of videos."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sam2model.graphs import Directly, Runner
from sam2model.track_step import ImageFeatures, Sam2Network

log = logging.getLogger(__name__)


class FrameEncoder:
    """Encodes up to `batch` frames at once.

    normalise: bytes of pixels to what the network expects. runner: does the work; one that wants
    few shapes gets batches of 1 or `batch` frames, filled up with repetitions that nobody sees.
    compiles: by torch.compile, which takes minutes at first.
    """

    def __init__(
        self,
        network: Sam2Network,
        normalise: Callable[[Tensor], Tensor],
        batch: int,
        runner: Runner | None = None,
        compiles: bool = False,
    ) -> None:
        self._normalise = normalise
        self._batch = batch
        self._runner = runner or Directly()
        self._few_shapes = runner is not None or compiles
        self._encode_images: Callable[[Tensor], ImageFeatures] = network.encode_images
        if compiles:
            self._encode_images = torch.compile(network.encode_images, dynamic=False)
            log.info("compiling the image encoder for 1 and %d frames", batch)

    def encode(self, frames: Sequence[Tensor]) -> list[ImageFeatures]:
        """Features of each frame, one row each; frames: (3, S, S) uint8 on the network's device."""
        count = len(frames)
        if self._few_shapes and 1 < count < self._batch:
            frames = [*frames, *[frames[-1]] * (self._batch - count)]
        features = self._runner.run("encode", self._encode, torch.stack(list(frames)))
        return [features.rows(slice(row, row + 1)) for row in range(count)]

    def _encode(self, pixels: Tensor) -> ImageFeatures:
        return self._encode_images(self._normalise(pixels))
