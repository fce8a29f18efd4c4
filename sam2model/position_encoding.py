"""Where and when: sine, Fourier, rotary and temporal encodings, all built in fp32.

Knows nothing of attention or memory. bf16 would move a click by most of a pixel, so nothing
here is computed in the model's dtype; callers cast the finished tables.
"""

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


def sine_encoding(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """The 2-D sine encoding of every cell, rows first: (height·width, channels) fp32.

    The first half of the channels encodes y, the second half x, both scaled to (0, 2π].
    """
    y = torch.arange(1, height + 1, dtype=torch.float32, device=device)
    x = torch.arange(1, width + 1, dtype=torch.float32, device=device)
    y = y / (height + 1e-6) * (2 * math.pi)
    x = x / (width + 1e-6) * (2 * math.pi)
    quarter = torch.arange(channels // 2, dtype=torch.float32, device=device)
    wavelength = 10000 ** (2 * (quarter // 2) / (channels // 2))

    def interleaved(position: Tensor) -> Tensor:
        angle = position[:, None] / wavelength
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)

    grid_y = interleaved(y)[:, None].expand(height, width, -1)
    grid_x = interleaved(x)[None].expand(height, width, -1)
    return torch.cat((grid_y, grid_x), dim=2).flatten(0, 1)


def temporal_encoding(offsets: Tensor, channels: int) -> Tensor:
    """The 1-D sine encoding of normalised frame distances: (…,) → (…, channels) fp32."""
    half = channels // 2
    index = torch.arange(half, dtype=torch.float32, device=offsets.device)
    angle = offsets.float().unsqueeze(-1) / 10000 ** (2 * (index // 2) / half)
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


def rotary_turns(
    height: int, width: int, channels: int, theta: float, device: torch.device
) -> Tensor:
    """Cosine and sine of every cell's axial rotary turn, rows first: (2, height·width, channels/2).

    fp32; one angle for each pair of channels. The first half of the pairs turns with x, the second
    with y.
    """
    quarter = channels // 4
    frequency = theta ** (-torch.arange(quarter, dtype=torch.float32, device=device) / quarter)
    x = torch.arange(width, dtype=torch.float32, device=device).repeat(height)
    y = torch.arange(height, dtype=torch.float32, device=device).repeat_interleave(width)
    angle = torch.cat((x[:, None] * frequency, y[:, None] * frequency), dim=1)
    return torch.stack((angle.cos(), angle.sin()))


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the channel pairs of `x` (…, L, D) by `turns` (2, L, D/2) in fp32; the dtype of `x`.

    Channel i of the first half and channel i of the second are a pair: `pairs_in_halves`.
    """
    cos, sin = turns
    first, second = x.chunk(2, dim=-1)
    turned, half = torch.empty_like(x), first.shape[-1]
    turned[..., :half] = torch.addcmul(first * cos, second, sin, value=-1)
    turned[..., half:] = torch.addcmul(second * cos, first, sin)
    return turned


def pairs_in_halves(channels: Tensor, heads: int) -> Tensor:
    """What stands for neighbouring pairs along axis 0, as `rotate` wants each head's channels.

    Checkpoints pair channels 2i and 2i + 1. The same order for queries and for keys changes no
    score, and whole halves are turned without taking neighbours apart.
    """
    by_pair = channels.unflatten(0, (heads, -1, 2))
    return by_pair.transpose(1, 2).flatten(0, 2)


class FourierEncoding(nn.Module):
    """Random Fourier features of points; its matrix stays fp32 whatever the model's dtype."""

    positional_embedding: Tensor

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("positional_embedding", scale * torch.randn(2, channels // 2))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        matrix = self.positional_embedding
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = self.positional_embedding
        if moved.dtype != torch.float32:
            self.positional_embedding = matrix.to(moved.device, torch.float32)
        return self

    def forward(self, points: Tensor) -> Tensor:
        """points (…, 2) x then y in [0, 1] → (…, C) fp32."""
        projected = 2 * math.pi * ((2 * points.float() - 1) @ self.positional_embedding)
        return torch.cat((projected.sin(), projected.cos()), dim=-1)

    def grid(self, height: int, width: int) -> Tensor:
        """The encoding of every cell's centre, rows first: (height·width, C) fp32."""
        device = self.positional_embedding.device
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        points = torch.stack((x.repeat(height), y.repeat_interleave(width)), dim=1)
        return self(points)
