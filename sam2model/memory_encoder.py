"""A frame's features and an object's mask to what is remembered of them.

Knows nothing of when the memory will be read. Source: SAM 2 (arXiv 2408.00714) section D.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2model.configuration import Sam2VideoConfig
from sam2model.prompt_encoder import ChannelNorm


class FuserBlock(nn.Module):
    """A ConvNeXt block: depthwise convolution, then a perceptron on channels."""

    def __init__(self, config: Sam2VideoConfig) -> None:
        super().__init__()
        dim, inner = config.memory_fuser_embed_dim, config.memory_fuser_intermediate_dim
        self.depthwise_conv = nn.Conv2d(
            dim,
            dim,
            kernel_size=config.memory_fuser_kernel_size,
            padding=config.memory_fuser_padding,
            groups=dim,
        )
        self.layer_norm = nn.LayerNorm(dim, eps=1e-6)
        self.pointwise_conv1 = nn.Linear(dim, inner)
        self.pointwise_conv2 = nn.Linear(inner, dim)
        self.scale = nn.Parameter(config.memory_fuser_layer_scale_init_value * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same."""
        y = self.layer_norm(self.depthwise_conv(x).permute(0, 2, 3, 1))
        y = self.scale * self.pointwise_conv2(F.gelu(self.pointwise_conv1(y)))
        return x + y.permute(0, 3, 1, 2)


class MemoryFuser(nn.Module):
    """The fuser blocks, one after the other."""

    def __init__(self, config: Sam2VideoConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            FuserBlock(config) for _ in range(config.memory_fuser_num_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class MaskDownsamplerLayer(nn.Module):
    """A strided convolution, a norm and an activation."""

    def __init__(self, config: Sam2VideoConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size=config.mask_downsampler_kernel_size,
            stride=config.mask_downsampler_stride,
            padding=config.mask_downsampler_padding,
        )
        self.layer_norm = ChannelNorm(out_channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.layer_norm(self.conv(x)))


class MaskDownsampler(nn.Module):
    """A mask at the model's size to a map at the size of the coarse features."""

    def __init__(self, config: Sam2VideoConfig) -> None:
        super().__init__()
        stride = config.mask_downsampler_stride
        count = int(math.log2(config.mask_downsampler_total_stride) // math.log2(stride))
        widths = [stride ** (2 * level) for level in range(count + 1)]
        self.layers = nn.ModuleList(
            MaskDownsamplerLayer(config, widths[i], widths[i + 1]) for i in range(count)
        )
        self.final_conv = nn.Conv2d(widths[-1], config.mask_downsampler_embed_dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 16H, 16W) → (N, C, H, W)."""
        for layer in self.layers:
            x = layer(x)
        return self.final_conv(x)


class MemoryEncoder(nn.Module):
    """Fuse the features of a frame with the mask of an object."""

    def __init__(self, config: Sam2VideoConfig) -> None:
        super().__init__()
        hidden = config.memory_encoder_hidden_size
        self.mask_downsampler = MaskDownsampler(config)
        self.feature_projection = nn.Conv2d(hidden, hidden, kernel_size=1)
        self.memory_fuser = MemoryFuser(config)
        self.projection = nn.Conv2d(hidden, config.memory_encoder_output_channels, kernel_size=1)

    def project_features(self, coarse: Tensor) -> Tensor:
        """The share of the memory that all objects of a frame have: (B, H, W, C) → the same."""
        weight = self.feature_projection.weight.flatten(1)
        return F.linear(coarse, weight, self.feature_projection.bias)

    def forward(self, projected: Tensor, mask: Tensor) -> Tensor:
        """projected: (N or 1, H, W, C) of `project_features`; mask: (N, 1, 16H, 16W) scaled
        probabilities → (N, H·W, C_mem)."""
        fused = projected.permute(0, 3, 1, 2) + self.mask_downsampler(mask)
        return self.projection(self.memory_fuser(fused)).flatten(2).transpose(1, 2)
