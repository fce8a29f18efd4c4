"""Meta's video predictor from a checkout of its repository, with our weights and our frames.

Nothing of it is a part of this project, and it is imported only when its folder is named. It is
run as its authors say: weights in fp32 under autocast where the number format is bf16.
"""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from sam2model import Sam2VideoModel
from sam2model.checkpoint import names_from_meta
from workflows.benchmark_config import BenchConfig
from workflows.benchmark_models import Point
from workflows.config import ConfigError

CONFIGS = {"tiny": "t", "small": "s", "base-plus": "b+", "large": "l"}


class MetaPredictor:
    """One predictor. compiled: its `vos_optimized` form, which compiles its parts on first use."""

    def __init__(self, folder: str, size: str, ours: Sam2VideoModel, *, compiled: bool) -> None:
        self.device, self.dtype = ours.device, ours.dtype
        build = _import_from(folder)
        self.predictor = build(
            f"configs/sam2.1/sam2.1_hiera_{CONFIGS[size]}.yaml",
            None,
            device=str(self.device),
            vos_optimized=compiled,
        )
        names = self.predictor.state_dict()
        weights = {name: t.float() for name, t in ours.state_dict().items()}
        self.predictor.load_state_dict(names_to_meta(names, weights))

    def start(
        self, pixels: Tensor, size: tuple[int, int], clicks: list[Point]
    ) -> Callable[[int], Tensor]:
        """Masks of one frame after the other; pixels: (T, 3, S, S) normalised."""
        frames = self._frames(pixels, size, clicks)

        def step(frame_index: int) -> Tensor:
            told, logits = next(frames)
            assert told == frame_index, (told, frame_index)
            return logits

        return step

    def _frames(
        self, pixels: Tensor, size: tuple[int, int], clicks: list[Point]
    ) -> Iterator[tuple[int, Tensor]]:
        with self._mode():
            module = "sam2.sam2_video_predictor.load_video_frames"
            with patch(module, lambda **_: (pixels.float().to(self.device), *size)):
                state = self.predictor.init_state("")
            for object_id, click in enumerate(clicks):
                self.predictor.add_new_points_or_box(
                    state, 0, object_id, points=[list(click)], labels=[1]
                )
            told = self.predictor.propagate_in_video(state)
        while True:
            with self._mode():  # a mode must not stay entered while others have their turn
                frame_index, _, logits = next(told)
            yield frame_index, logits

    def _mode(self) -> Any:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def meta_predictors(
    config: BenchConfig, size: str, ours: Sam2VideoModel
) -> dict[str, MetaPredictor]:
    """Those that a configuration asks for, by name: none without its folder."""
    if config.meta is None:
        return {}
    forms = {"meta": False} | ({"meta_compiled": True} if config.meta_compiled else {})
    return {
        name: MetaPredictor(config.meta, size, ours, compiled=compiled)
        for name, compiled in forms.items()
    }


def names_to_meta(names: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under the names of a model of Meta's: its names, each looked up by our rules."""
    theirs = {}
    for name, tensor in names.items():
        our_name = next(iter(names_from_meta({name: tensor})))
        value = ours[our_name]
        if our_name == "prompt_encoder.point_embed.weight":  # four tables of theirs in one
            row = int(name.split(".")[-2])
            value = value[row : row + 1]
        theirs[name] = value
    return theirs


def _import_from(folder: str) -> Any:
    if not (Path(folder) / "sam2" / "build_sam.py").exists():
        raise ConfigError(
            f"meta: {folder} has no sam2/build_sam.py; wanted a checkout of facebookresearch/sam2"
        )
    sys.path.insert(0, str(Path(folder).resolve()))
    try:
        return importlib.import_module("sam2.build_sam").build_sam2_video_predictor
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"meta: {folder} needs {error.name}; install what that repository asks for"
        ) from error
