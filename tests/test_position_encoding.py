"""Encodings equal their formulas, and stay fp32 whatever the model's dtype."""

import math

import pytest
import torch
from small_network import GRID, WIDTH, small_network
from torch import Tensor

from sam2model.position_encoding import (
    FourierEncoding,
    pairs_in_halves,
    rotary_turns,
    rotate,
    sine_encoding,
    temporal_encoding,
)
from sam2model.track_step import PromptBatch, Sam2Network

CPU = torch.device("cpu")


def test_the_sine_encoding_equals_its_formula() -> None:
    height, width, channels = 3, 5, 16
    got = sine_encoding(height, width, channels, CPU).view(height, width, channels)

    half = channels // 2
    for y in range(height):
        for x in range(width):
            for channel in range(channels):
                position, size = (y, height) if channel < half else (x, width)
                index = channel % half
                angle = 2 * math.pi * (position + 1) / (size + 1e-6)
                angle /= 10000 ** (2 * (index // 2) / half)
                wanted = math.sin(angle) if index % 2 == 0 else math.cos(angle)
                assert float(got[y, x, channel]) == pytest.approx(wanted, abs=1e-6)


def test_the_temporal_encoding_equals_its_formula() -> None:
    offsets = torch.tensor([[0.0, 0.2], [-0.5, 1.0]])
    got = temporal_encoding(offsets, 8)

    assert got.shape == (2, 2, 8)
    for row in range(2):
        for column in range(2):
            for index in range(4):
                angle = float(offsets[row, column]) / 10000 ** (2 * (index // 2) / 4)
                assert float(got[row, column, index]) == pytest.approx(math.sin(angle), abs=1e-6)
                assert float(got[row, column, 4 + index]) == pytest.approx(
                    math.cos(angle), abs=1e-6
                )


def test_a_rotation_turns_pairs_by_place_times_frequency() -> None:
    height, width, channels, theta = 3, 4, 8, 100.0
    x = torch.randn(height * width, channels)

    got = rotate(x, rotary_turns(height, width, channels, theta, CPU))

    for place in range(height * width):
        for pair in range(channels // 2):
            frequency = theta ** (-(pair % 2) / 2)
            angle = (place % width if pair < 2 else place // width) * frequency
            a, b = float(x[place, pair]), float(x[place, channels // 2 + pair])
            turned = complex(a, b) * complex(math.cos(angle), math.sin(angle))
            assert float(got[place, pair]) == pytest.approx(turned.real, abs=1e-5)
            assert float(got[place, channels // 2 + pair]) == pytest.approx(turned.imag, abs=1e-5)


def test_neighbouring_pairs_of_every_head_come_to_lie_in_the_halves_of_its_channels() -> None:
    channels = torch.arange(12)
    assert pairs_in_halves(channels, heads=1).tolist() == [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]
    assert pairs_in_halves(channels, heads=2).tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_scores_of_turned_queries_and_keys_depend_on_the_distance_alone() -> None:
    height, width = 6, 7
    turns = rotary_turns(height, width, 16, 10000.0, CPU)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn((2, 16), generator=generator)
    cells = height * width

    scores = rotate(q.expand(cells, 16), turns) @ rotate(k.expand(cells, 16), turns).T

    scores = scores.view(height, width, height, width)
    wanted = scores[0, 0, 2, 3]
    for y, x in ((1, 2), (3, 0), (2, 3)):
        assert float(scores[y, x, y + 2, x + 3]) == pytest.approx(float(wanted), abs=1e-4)
    for y, x in ((1, 3), (2, 2), (3, 2)):  # another distance, another score
        assert abs(float(scores[0, 0, y, x] - wanted)) > 1e-2


def test_fourier_features_equal_their_formula() -> None:
    encoding = FourierEncoding(6, scale=2.0)
    matrix = encoding.positional_embedding
    points = torch.tensor([[0.1, 0.9], [0.5, 0.25]])

    got = encoding(points)

    for row, (x, y) in enumerate(points.tolist()):
        for index in range(3):
            angle = (2 * x - 1) * float(matrix[0, index]) + (2 * y - 1) * float(matrix[1, index])
            angle *= 2 * math.pi
            assert float(got[row, index]) == pytest.approx(math.sin(angle), abs=1e-5)
            assert float(got[row, 3 + index]) == pytest.approx(math.cos(angle), abs=1e-5)


def test_the_grid_of_fourier_features_is_taken_at_the_centres_of_cells_rows_first() -> None:
    encoding = FourierEncoding(8, scale=1.0)

    got = encoding.grid(2, 3)

    centres = [((x + 0.5) / 3, (y + 0.5) / 2) for y in range(2) for x in range(3)]
    assert torch.equal(got, encoding(torch.tensor(centres)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_fourier_matrix_keeps_its_fp32_values_whatever_the_models_dtype(
    dtype: torch.dtype,
) -> None:
    network: Sam2Network = small_network()
    matrices = (network.shared_image_embedding, network.prompt_encoder.shared_embedding)
    before = [m.positional_embedding.clone() for m in matrices]

    network.to(dtype)

    assert network.dtype == dtype
    for matrix, wanted in zip(matrices, before, strict=True):
        assert matrix.positional_embedding.dtype == torch.float32
        assert torch.equal(matrix.positional_embedding, wanted)
        assert "positional_embedding" in dict(matrix.named_buffers())
    network.to(torch.float32)
    assert torch.equal(network.state_dict()["shared_image_embedding.positional_embedding"], wanted)


def test_the_fourier_matrix_moves_with_the_model() -> None:
    network: Sam2Network = small_network()

    network.to("meta", torch.bfloat16)

    assert network.shared_image_embedding.positional_embedding.device.type == "meta"
    assert network.shared_image_embedding.positional_embedding.dtype == torch.float32


def _pair() -> tuple[Sam2Network, Sam2Network]:
    """A bf16 model and the fp32 model of the very same weights."""
    half: Sam2Network = small_network().to(torch.bfloat16)
    full: Sam2Network = small_network()
    full.load_state_dict(half.state_dict())
    return half, full


def _assert_rounded_once(half: Tensor, full: Tensor) -> None:
    assert (half.dtype, full.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(half, full.bfloat16())
    assert not torch.equal(half.float(), full)  # else there is nothing to round


def test_in_bf16_a_click_is_encoded_in_fp32_and_rounded_once() -> None:
    half, full = _pair()
    points, labels = torch.rand(5, 2, 2) * 64, torch.randint(0, 4, (5, 2))

    tokens = [n.prompt_encoder.embed_points(points, labels)[:, :2] for n in (half, full)]

    _assert_rounded_once(*tokens)


def test_in_bf16_the_images_encoding_is_projected_in_fp32_and_rounded_once() -> None:
    half, full = _pair()

    encodings = [n.mask_decoder.derived().encodings for n in (half, full)]

    assert len(encodings[0]) == 2 * 2 + 1
    for pair in zip(*encodings, strict=True):
        _assert_rounded_once(*pair)


def test_in_bf16_places_and_times_of_memories_are_added_in_fp32_and_rounded_once() -> None:
    half, full = _pair()
    constants = [n.derived() for n in (half, full)]

    _assert_rounded_once(constants[0].memory_place, constants[1].memory_place)
    _assert_rounded_once(constants[0].query_place, constants[1].query_place)
    sine = sine_encoding(GRID, GRID, WIDTH, CPU)
    assert torch.equal(constants[1].query_place, 0.1 * sine)


def test_in_bf16_keys_are_turned_in_fp32_and_rounded_once() -> None:
    half, full = _pair()
    turns = [n.memory_attention.derived() for n in (half, full)]
    assert turns[0].dtype == torch.float32 and torch.equal(*turns)
    keys = torch.randn(2, GRID * GRID, WIDTH).bfloat16()

    _assert_rounded_once(rotate(keys, turns[0]), rotate(keys.float(), turns[0]))


def test_in_bf16_logits_scores_and_predictions_are_fp32() -> None:
    half, _ = _pair()
    image = half.encode_images(torch.randn(1, 3, 64, 64))

    click = PromptBatch(torch.tensor([[[20.0, 30.0]]]), torch.tensor([[1]]))
    output = half.prompt_step(image, None, click)

    for name in ("logits", "iou", "object_score"):
        assert getattr(output, name).dtype == torch.float32, name
