"""Hiera, the image backbone: normalised pixels to four maps of features.

Knows nothing of video. Tokens stay channels-last, so a 1×1 convolution is a linear layer.
Source: the Hiera paper (arXiv 2306.00989) and SAM 2's use of it; parity: tests/test_parity.py.
"""

from collections.abc import Callable
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2model.attention import attend
from sam2model.configuration import Sam2HieraDetConfig
from sam2model.derived import DerivedModule

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


def _pair(sides: list[int]) -> tuple[int, int]:
    rows, columns = sides
    return rows, columns


def _pool(x: Tensor, stride: list[int]) -> Tensor:
    """Max-pool (B, H, W, C) by `stride`."""
    pooled = F.max_pool2d(x.permute(0, 3, 1, 2), kernel_size=stride, stride=stride)
    return pooled.permute(0, 2, 3, 1)


class FeedForward(nn.Module):
    """A multi-layer perceptron, named as the checkpoints name it."""

    def __init__(
        self, in_dim: int, hidden_dim: int, out_dim: int, layers: int, activation: str = "relu"
    ) -> None:
        super().__init__()
        self.proj_in = nn.Linear(in_dim, hidden_dim)
        self.layers = nn.ModuleList(nn.Linear(hidden_dim, hidden_dim) for _ in range(layers - 2))
        self.proj_out = nn.Linear(hidden_dim, out_dim)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.proj_in(x))
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.proj_out(x)


class WindowAttention(nn.Module):
    """Self-attention inside windows, or over the whole map when `window` is 0."""

    def __init__(
        self, dim: int, dim_out: int, heads: int, window: int, query_stride: list[int] | None
    ) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.query_stride = query_stride
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H', W', C_out); H' = H / stride where queries are pooled."""
        batch, height, width, _ = x.shape
        qkv = self.qkv(x)
        window = self.window or max(height, width)
        rows, columns = -(-height // window), -(-width // window)
        if (rows * window, columns * window) != (height, width):
            # A padded token is zero before the projection, so the bias after it; it takes part
            # in the attention as it did in training and must not be masked.
            padded = self.qkv.bias.expand(batch, rows * window, columns * window, -1).clone()
            padded[:, :height, :width] = qkv
            qkv = padded
        qkv = qkv.view(batch, rows, window, columns, window, -1).transpose(2, 3)
        qkv = qkv.reshape(batch * rows * columns, window, window, -1)
        q, k, v = qkv.chunk(3, dim=-1)
        if self.query_stride is not None:
            q = _pool(q, self.query_stride)
        side = q.shape[1]
        q, k, v = self._split_heads(q), self._split_heads(k), self._split_heads(v)
        out = self._look(q, k, v)
        out = out.transpose(1, 2).reshape(batch, rows, columns, side, side, -1)
        out = out.transpose(2, 3).reshape(batch, rows * side, columns * side, -1)
        stride_y, stride_x = self.query_stride or (1, 1)
        return self.proj(out[:, : height // stride_y, : width // stride_x])

    def _look(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax attention, (B, heads, L, D) each → the same."""
        if self.window or q.device.type != "cpu" or q.requires_grad:
            return F.scaled_dot_product_attention(q, k, v)
        scale = q.shape[-1] ** -0.5
        out, _ = attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), scale)
        return out.to(q.dtype).view_as(q)

    def _split_heads(self, tokens: Tensor) -> Tensor:
        """(B, h, w, heads·D) → (B, heads, h·w, D)."""
        return tokens.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)


class HieraBlock(nn.Module):
    """Attention and perceptron with residuals; the first block of a stage halves the map."""

    def __init__(
        self,
        dim: int,
        dim_out: int,
        heads: int,
        window: int,
        query_stride: list[int] | None,
        config: Sam2HieraDetConfig,
    ) -> None:
        super().__init__()
        self.query_stride = query_stride
        self.layer_norm1 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attn = WindowAttention(dim, dim_out, heads, window, query_stride)
        self.layer_norm2 = nn.LayerNorm(dim_out, eps=config.layer_norm_eps)
        self.mlp = FeedForward(
            dim_out, int(dim_out * config.mlp_ratio), dim_out, 2, config.hidden_act
        )
        if dim != dim_out:
            self.proj = nn.Linear(dim, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H', W', C_out)."""
        normed = self.layer_norm1(x)
        if hasattr(self, "proj"):
            x = self.proj(normed)
            if self.query_stride is not None:
                x = _pool(x, self.query_stride)
        x = x + self.attn(normed)
        return x + self.mlp(self.layer_norm2(x))


class PatchEmbedding(nn.Module):
    """Overlapping patches of pixels to tokens."""

    def __init__(self, config: Sam2HieraDetConfig) -> None:
        super().__init__()
        self.projection = nn.Conv2d(
            config.num_channels,
            config.hidden_size,
            kernel_size=_pair(config.patch_kernel_size),
            stride=_pair(config.patch_stride),
            padding=_pair(config.patch_padding),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, H/4, W/4, C)."""
        return self.projection(pixels).permute(0, 2, 3, 1)


class Hiera(DerivedModule[Tensor]):
    """Four stages of blocks; returns the last map of each stage, fine to coarse."""

    def __init__(self, config: Sam2HieraDetConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(config)
        background = config.window_positional_embedding_background_size
        window = config.window_size_per_stage[0]
        self.pos_embed = nn.Parameter(torch.zeros(1, config.hidden_size, *background))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, config.hidden_size, window, window))
        self.grid_size = [
            size // stride
            for size, stride in zip(config.image_size, config.patch_stride, strict=True)
        ]
        self.blocks = nn.ModuleList(self._blocks(config))
        self.stage_ends = {end - 1 for end in accumulate(config.blocks_per_stage)}

    @staticmethod
    def _blocks(config: Sam2HieraDetConfig) -> list[HieraBlock]:
        blocks: list[HieraBlock] = []
        for stage, count in enumerate(config.blocks_per_stage):
            for position in range(count):
                # The first block of a stage still sees the map, and so the window, of the last.
                source = stage - 1 if stage > 0 and position == 0 else stage
                pools = 0 < stage <= config.num_query_pool_stages and position == 0
                is_global = len(blocks) in config.global_attention_blocks
                blocks.append(
                    HieraBlock(
                        config.embed_dim_per_stage[source],
                        config.embed_dim_per_stage[stage],
                        config.num_attention_heads_per_stage[stage],
                        0 if is_global else config.window_size_per_stage[source],
                        config.query_stride if pools else None,
                        config,
                    )
                )
        return blocks

    def derive(self) -> Tensor:
        """The position embedding of the whole grid: (1, H/4, W/4, C)."""
        background = F.interpolate(self.pos_embed.float(), size=self.grid_size, mode="bicubic")
        window = self.pos_embed_window.float()
        repeats = [side // window.shape[-1] for side in self.grid_size]
        embedding = background + window.repeat(1, 1, *repeats)
        return embedding.permute(0, 2, 3, 1).to(self.pos_embed.dtype).contiguous()

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised → maps (B, H/4, W/4, C) … (B, H/32, W/32, 8C)."""
        x = self.patch_embed(pixels) + self.derived()
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.stage_ends:
                maps.append(x)
        return maps
