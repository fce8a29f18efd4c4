"""Clicks, boxes and masks to the tokens of the mask decoder. Knows nothing of sessions.

Clicks of several objects are batched only when they agree in number: a padded click would
take part in the decoder's attention and change the mask.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2model.configuration import Sam2VideoPromptEncoderConfig
from sam2model.position_encoding import FourierEncoding

LABEL_NEGATIVE, LABEL_POSITIVE, LABEL_BOX_START, LABEL_BOX_END = 0, 1, 2, 3


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MaskEmbedding(nn.Module):
    """Mask logits at a quarter of the model's size to a dense prompt."""

    def __init__(self, config: Sam2VideoPromptEncoderConfig) -> None:
        super().__init__()
        narrow, wide = config.mask_input_channels // 4, config.mask_input_channels
        self.conv1 = nn.Conv2d(1, narrow, kernel_size=2, stride=2)
        self.layer_norm1 = ChannelNorm(narrow, eps=config.layer_norm_eps)
        self.conv2 = nn.Conv2d(narrow, wide, kernel_size=2, stride=2)
        self.layer_norm2 = ChannelNorm(wide, eps=config.layer_norm_eps)
        self.conv3 = nn.Conv2d(wide, config.hidden_size, kernel_size=1)

    def forward(self, logits: Tensor) -> Tensor:
        """(N, 1, 4H, 4W) → (N, C, H, W)."""
        x = F.gelu(self.layer_norm1(self.conv1(logits)))
        return self.conv3(F.gelu(self.layer_norm2(self.conv2(x))))


class PromptEncoder(nn.Module):
    """Sparse tokens for clicks and boxes, a dense map for mask logits."""

    def __init__(self, config: Sam2VideoPromptEncoderConfig) -> None:
        super().__init__()
        self.shared_embedding = FourierEncoding(config.hidden_size, config.scale)
        self.mask_embed = MaskEmbedding(config)
        self.no_mask_embed = nn.Embedding(1, config.hidden_size)
        self.point_embed = nn.Embedding(config.num_point_embeddings, config.hidden_size)
        self.not_a_point_embed = nn.Embedding(1, config.hidden_size)
        self.image_size = config.image_size

    def embed_points(self, points: Tensor, labels: Tensor) -> Tensor:
        """Tokens of P clicks and one closing token that is no click: (N, P + 1, C).

        points: (N, P, 2) float model pixels, x then y; labels: (N, P) of LABEL_…, a box being
        two points. P may be 0 for objects without a prompt: two closing tokens.
        """
        if points.shape[1] == 0:
            return self.not_a_point_embed.weight.expand(points.shape[0], 2, -1)
        where = self.shared_embedding((points.float() + 0.5) / self.image_size)
        kind = self.point_embed.weight.float()[labels]
        closing = self.not_a_point_embed.weight.expand(points.shape[0], 1, -1)
        return torch.cat(((where + kind).to(closing.dtype), closing), dim=1)

    def embed_mask(self, logits: Tensor | None) -> Tensor:
        """The dense prompt as tokens: (N, H·W, C), or (1, 1, C) when there is no mask.

        logits: (N, 4H, 4W) or None.
        """
        if logits is None:
            return self.no_mask_embed.weight[None]
        dtype = self.no_mask_embed.weight.dtype
        return self.mask_embed(logits[:, None].to(dtype)).flatten(2).transpose(1, 2)
