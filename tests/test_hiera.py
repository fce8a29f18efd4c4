"""The image encoder equals the published one, written out here with padding and convolutions."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_network import (
    GRID,
    WIDTH,
    largest_difference,
    random_pixels,
    small_config,
    small_network,
)
from torch import Tensor, nn

from sam2model import track_step
from sam2model.configuration import released_config
from sam2model.fpn_neck import FpnNeck, fold
from sam2model.hiera import Hiera, HieraBlock, WindowAttention
from sam2model.track_step import ImageFeatures, Sam2Network

EXACT = 1e-5  # of the largest value: fp32 in another order


def assert_close(got: Tensor, wanted: Tensor) -> None:
    assert got.shape == wanted.shape
    assert float((got - wanted).abs().max()) <= EXACT * float(wanted.abs().max())


# The published encoder.


def published_attention(attn: WindowAttention, x: Tensor) -> Tensor:
    """(H, W, C) of one frame: cut into zero-padded windows, each attended by itself."""
    height, width, _ = x.shape
    window = attn.window or height
    padded = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    stride = 2 if attn.query_stride else 1
    rows, columns = padded.shape[0] // window, padded.shape[1] // window
    out = None
    for row in range(rows):
        for column in range(columns):
            cell = padded[
                row * window : (row + 1) * window, column * window : (column + 1) * window
            ]
            q, k, v = attn.qkv(cell).chunk(3, dim=-1)
            if stride == 2:
                q = F.max_pool2d(q.permute(2, 0, 1), 2).permute(1, 2, 0)
            side = q.shape[0]
            q, k, v = (t.flatten(0, 1).unflatten(-1, (attn.heads, -1)) for t in (q, k, v))
            scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
            looked = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
            if out is None:
                out = x.new_zeros((rows * side, columns * side, attn.proj.in_features))
            here = slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side)
            out[here] = looked.flatten(1).view(side, side, -1)
    assert out is not None
    return attn.proj(out[: height // stride, : width // stride])


def published_block(block: HieraBlock, x: Tensor) -> Tensor:
    """(H, W, C) of one frame."""
    normed = block.layer_norm1(x)
    if hasattr(block, "proj"):
        x = block.proj(normed)
        if block.query_stride is not None:
            x = F.max_pool2d(x.permute(2, 0, 1), 2).permute(1, 2, 0)
    x = x + published_attention(block.attn, normed)
    y = block.layer_norm2(x)
    return x + block.mlp.proj_out(F.gelu(block.mlp.proj_in(y)))


def published_maps(backbone: Hiera, pixels: Tensor) -> list[Tensor]:
    """Four maps (C, H, W) of one frame, fine to coarse."""
    x = backbone.patch_embed.projection(pixels[None])[0]
    side = x.shape[-1]
    background = F.interpolate(backbone.pos_embed, (side, side), mode="bicubic")[0]
    window = backbone.pos_embed_window[0]
    repeats = side // window.shape[-1]
    x = (x + background + window.tile(1, repeats, repeats)).permute(1, 2, 0)
    maps = []
    for index, block in enumerate(backbone.blocks):
        x = published_block(block, x)
        if index in backbone.stage_ends:
            maps.append(x.permute(2, 0, 1))
    return maps


def published_pyramid(neck: FpnNeck, maps: list[Tensor], top_down: tuple[int, ...]) -> list[Tensor]:
    """The maps (C, H, W) of all levels, fine to coarse."""
    levels: list[Tensor] = []
    for conv, level in zip(neck.convs, range(len(maps) - 1, -1, -1), strict=True):
        lateral = conv(maps[level][None])
        if level in top_down and levels:
            lateral = lateral + F.interpolate(levels[0][None], scale_factor=2, mode="nearest")
        levels.insert(0, lateral[0])
    return levels


@pytest.mark.parametrize(
    ("side", "window", "stride"),
    [
        (8, 4, None),
        (8, 0, None),
        (8, 0, [2, 2]),
        (8, 4, [2, 2]),
        (8, 6, None),  # 4 windows over a map padded to 12
        (8, 14, None),  # one window larger than the map
        (8, 14, [2, 2]),
        (10, 4, [2, 2]),
    ],
)
def test_projecting_before_padding_equals_padding_before_projecting(
    side: int, window: int, stride: list[int] | None
) -> None:
    attn = WindowAttention(8, 16, 2, window, stride).requires_grad_(False)
    x = torch.randn(3, side, side, 8)

    got = attn(x)

    assert_close(got, torch.stack([published_attention(attn, frame) for frame in x]))


def test_padded_places_take_part_in_the_attention() -> None:
    attn = WindowAttention(8, 16, 2, 6, None).requires_grad_(False)
    x = torch.randn(1, 8, 8, 8)
    alone = attn.qkv(x[0, 6:, 6:]).flatten(0, 1)  # the last window: 4 places, 32 of padding
    q, k, v = (t.unflatten(-1, (2, 8)).transpose(0, 1) for t in alone.chunk(3, dim=-1))
    masked = attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1))

    assert float((attn(x)[0, 6:, 6:].flatten(0, 1) - masked).abs().max()) > 0.01


def test_the_backbone_equals_the_published_one() -> None:
    backbone: Hiera = small_network().vision_encoder.backbone
    pixels = random_pixels(2)

    maps = backbone(pixels)

    assert [tuple(m.shape[1:]) for m in maps] == [
        (16, 16, 8),
        (8, 8, 16),
        (4, 4, 32),
        (2, 2, 64),
    ]
    for frame in range(2):
        for got, wanted in zip(maps, published_maps(backbone, pixels[frame]), strict=True):
            assert_close(got[frame], wanted.permute(1, 2, 0))


@pytest.mark.parametrize("size", ["tiny", "small", "base-plus", "large"])
def test_a_released_size_has_its_windows_strides_and_global_blocks(size: str) -> None:
    with torch.device("meta"):
        backbone = Hiera(released_config(size).vision_config.backbone_config)
    config = released_config(size).vision_config.backbone_config
    first = [sum(config.blocks_per_stage[:stage]) for stage in range(4)]

    windows = [block.attn.window for block in backbone.blocks]
    assert [i for i, w in enumerate(windows) if w == 0] == config.global_attention_blocks
    for stage, window in enumerate(config.window_size_per_stage):
        inside = windows[first[stage] + 1 : first[stage] + config.blocks_per_stage[stage]]
        assert set(inside) - {0} <= {window}
    # The first block of a stage attends in the windows of the stage before.
    assert windows[first[1]] == config.window_size_per_stage[0]
    assert [i for i, b in enumerate(backbone.blocks) if b.query_stride] == first[1:]
    assert backbone.stage_ends == {*(f - 1 for f in first[1:]), len(windows) - 1}


@pytest.mark.parametrize("levels", [[2, 3], [3], [2]])
def test_the_pyramid_with_folded_projections_equals_the_published_one(levels: list[int]) -> None:
    network = pyramid(levels)
    pixels = random_pixels(2)

    image = network.encode_images(pixels)

    decoder, neck = network.mask_decoder, network.vision_encoder.neck
    for frame in range(2):
        maps = published_maps(network.vision_encoder.backbone, pixels[frame])
        fine, middle, coarse, _ = published_pyramid(neck, maps, tuple(levels))
        assert_close(image.fine[frame], decoder.conv_s0(fine[None])[0].permute(1, 2, 0))
        assert_close(image.middle[frame], decoder.conv_s1(middle[None])[0].permute(1, 2, 0))
        assert_close(image.coarse[frame], coarse.flatten(1).T)


def pyramid(levels: list[int]) -> Sam2Network:
    values: dict[str, Any] = small_config().to_dict()
    vision = {**values["vision_config"], "fpn_top_down_levels": levels}
    network: Sam2Network = small_network(vision_config=vision)
    return network


def test_a_top_down_sum_into_the_fine_levels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fpn_top_down_levels: got \[1, 2, 3\]"):
        pyramid([1, 2, 3])


def test_two_convolutions_of_one_place_fold_into_one() -> None:
    first, second = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 3, 1)
    x = torch.randn(2, 6, 5, 5)

    folded = fold(first, second)

    with torch.no_grad():
        got = F.linear(x.permute(0, 2, 3, 1), folded.weight, folded.bias)
        assert_close(got, second(first(x)).permute(0, 2, 3, 1))


def test_folding_in_bf16_multiplies_in_fp32_and_rounds_once() -> None:
    first, second = nn.Conv2d(64, 64, 1).bfloat16(), nn.Conv2d(64, 8, 1).bfloat16()

    folded = fold(first, second)

    with torch.no_grad():
        exact = fold(first.float(), second.float())
    assert torch.equal(folded.weight, exact.weight.bfloat16())
    assert torch.equal(folded.bias, exact.bias.bfloat16())


# Frames in batches.


def one_by_one(network: Sam2Network, pixels: Tensor) -> ImageFeatures:
    return track_step.join_rows([network.encode_images(frame[None]) for frame in pixels])


def test_frames_encoded_together_equal_frames_encoded_one_by_one() -> None:
    network: Sam2Network = small_network()
    pixels = random_pixels(5)

    together = network.encode_images(pixels)

    assert largest_difference(together, one_by_one(network, pixels)) < EXACT
    assert together.tokens.shape == together.queries.shape == (5, GRID * GRID, WIDTH)


def test_more_frames_than_fit_a_batch_are_encoded_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network: Sam2Network = small_network()
    pixels = random_pixels(7)
    sizes = []
    network.vision_encoder.backbone.register_forward_pre_hook(
        lambda _, inputs: sizes.append(inputs[0].shape[0])
    )
    monkeypatch.setattr(track_step, "MAX_FRAME_BATCH", 3)

    got = network.encode_images(pixels)

    assert sizes == [3, 3, 1]
    assert largest_difference(got, one_by_one(network, pixels)) < EXACT


@pytest.mark.parametrize("size", ["tiny", "large"])
def test_the_largest_batch_stays_below_the_row_limit_of_fused_attention(size: str) -> None:
    backbone = released_config(size).vision_config.backbone_config
    cells = backbone.image_size[0] // backbone.patch_stride[0]
    windows_of_a_frame = (cells // backbone.window_size_per_stage[0]) ** 2

    assert windows_of_a_frame == 1024
    assert track_step.MAX_FRAME_BATCH * windows_of_a_frame < 65536
