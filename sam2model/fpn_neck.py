"""The feature pyramid: backbone maps to the three maps that tracking reads.

Knows nothing of objects or memory. The two fine maps are only ever read through the mask
decoder's 1×1 projections, so the two projections are folded into one.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from sam2model.configuration import Sam2VisionConfig


@dataclass(frozen=True, slots=True)
class FoldedLateral:
    """One linear map in place of a pyramid convolution followed by a decoder convolution."""

    weight: Tensor  # (C_out, C_in)
    bias: Tensor  # (C_out,)


def fold(lateral: nn.Conv2d, projection: nn.Conv2d) -> FoldedLateral:
    """Two 1×1 convolutions as one linear map, multiplied in fp32."""
    inner, outer = lateral.weight.float().flatten(1), projection.weight.float().flatten(1)
    assert lateral.bias is not None and projection.bias is not None
    weight = outer @ inner
    bias = outer @ lateral.bias.float() + projection.bias.float()
    return FoldedLateral(weight.to(lateral.weight.dtype), bias.to(lateral.weight.dtype))


class FpnNeck(nn.Module):
    """1×1 convolutions, coarse first, with a top-down sum at the levels that have one."""

    def __init__(self, config: Sam2VisionConfig) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, config.fpn_hidden_size, kernel_size=1)
            for channels in config.backbone_channel_list
        )
        self.top_down_levels = set(config.fpn_top_down_levels)
        if self.top_down_levels & {0, 1}:
            raise ValueError(
                f"fpn_top_down_levels: got {config.fpn_top_down_levels}; "
                "the two finest levels take no top-down sum in any SAM 2 model"
            )

    def lateral(self, level: int) -> nn.Conv2d:
        """The convolution of `level`, 0 being the finest."""
        conv = self.convs[len(self.convs) - 1 - level]
        assert isinstance(conv, nn.Conv2d)
        return conv

    def coarse_map(self, maps: list[Tensor]) -> Tensor:
        """The map that memory attention reads, level 2: (B, H, W, C)."""
        level = len(maps) - 1
        out = self._project(maps, level)
        while level > 2:
            level -= 1
            lateral = self._project(maps, level)
            if level in self.top_down_levels:
                above = F.interpolate(out.permute(0, 3, 1, 2).float(), scale_factor=2.0)
                lateral = lateral + above.permute(0, 2, 3, 1).to(lateral.dtype)
            out = lateral
        return out

    def _project(self, maps: list[Tensor], level: int) -> Tensor:
        conv = self.lateral(level)
        return F.linear(maps[level], conv.weight.flatten(1), conv.bias)


class VisionEncoder(nn.Module):
    """Backbone and neck under the names of the checkpoints."""

    def __init__(self, config: Sam2VisionConfig, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = FpnNeck(config)

    def forward(
        self, pixels: Tensor, fine: FoldedLateral, middle: FoldedLateral
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, S, S) → (B, 4H, 4W, C/8), (B, 2H, 2W, C/4) and (B, H, W, C)."""
        maps: list[Tensor] = self.backbone(pixels)
        return (
            F.linear(maps[0], fine.weight, fine.bias),
            F.linear(maps[1], middle.weight, middle.bias),
            self.neck.coarse_map(maps),
        )
