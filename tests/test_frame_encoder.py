"""Frames to features in batches of few sizes: nobody sees what fills a batch up."""

import pytest
import torch
from small_network import SIZE, largest_difference, small_network
from test_engine import PROCESSOR, SEED
from test_graphs import StandIn
from torch import Tensor

from sam2model.attention import KERNELS
from sam2model.frame_encoder import FrameEncoder
from sam2model.graphs import GraphRunner
from sam2model.track_step import ImageFeatures, Sam2Network

NORMALISE = PROCESSOR.video_processor.normalise


class Counting(Sam2Network):
    """Notes how many frames are encoded together."""

    def encode_images(self, pixels: Tensor) -> ImageFeatures:
        if not torch.compiler.is_compiling():
            self.batches = [*getattr(self, "batches", []), len(pixels)]
        return super().encode_images(pixels)


def frames(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return list(torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=generator).byte())


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_features_are_those_of_each_frame_alone_whatever_fills_the_batch_up(count: int) -> None:
    network = small_network(SEED, Counting)
    encoder = FrameEncoder(network, NORMALISE, 4, GraphRunner(StandIn, after=0))
    for _ in range(2):  # recorded, and replayed
        rows = encoder.encode(frames(count))

        assert len(rows) == count
        for frame, row in zip(frames(count), rows, strict=True):
            alone = network.encode_images(NORMALISE(frame[None]))
            assert largest_difference(row, alone) < 1e-5
    assert set(network.batches) <= {1, 4}


def test_as_many_frames_as_there_are_where_shapes_do_not_matter() -> None:
    network = small_network(SEED, Counting)
    FrameEncoder(network, NORMALISE, 4).encode(frames(3))

    assert network.batches == [3]


def test_a_compiled_encoder_gives_the_same_features(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile

    def eagerly(work: object, **options: object) -> object:
        assert options == {"dynamic": False}
        return compiled(work, backend="eager", fullgraph=True, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("sam2model.frame_encoder.torch.compile", eagerly)
    monkeypatch.setattr("sam2model.attention._forced", KERNELS["sdpa"])
    network = small_network(SEED)
    encoder = FrameEncoder(network, NORMALISE, 4, compiles=True)
    with torch.inference_mode():
        rows = encoder.encode(frames(3))
        wanted = network.encode_images(NORMALISE(torch.stack(frames(3))))
    torch.compiler.reset()

    for place, row in enumerate(rows):
        assert largest_difference(row, wanted.rows(slice(place, place + 1))) < 1e-5
