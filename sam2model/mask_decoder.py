"""Prompt tokens and image features to one mask, its IoU prediction and an object score.

Knows nothing of time. All objects of a step are one batch; the mask that counts is chosen
before it is drawn, so one mask is drawn for an object instead of four.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2model.configuration import Sam2VideoMaskDecoderConfig
from sam2model.derived import DerivedModule
from sam2model.hiera import FeedForward
from sam2model.host_threads import in_blocks
from sam2model.position_encoding import FourierEncoding


class Attention(nn.Module):
    """Multi-head attention that may work in fewer channels than it is given."""

    def __init__(self, hidden: int, heads: int, downsample: int) -> None:
        super().__init__()
        inner = hidden // downsample
        self.heads = heads
        self.q_proj = nn.Linear(hidden, inner)
        self.k_proj = nn.Linear(hidden, inner)
        self.v_proj = nn.Linear(hidden, inner)
        self.o_proj = nn.Linear(inner, hidden)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Projected q (N, L, C'), k and v (N, K, C') → (N, L, C)."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class TwoWayBlock(nn.Module):
    """Tokens look at themselves, then at the image; then the image looks at the tokens."""

    def __init__(self, config: Sam2VideoMaskDecoderConfig, first: bool) -> None:
        super().__init__()
        hidden, heads = config.hidden_size, config.num_attention_heads
        rate = config.attention_downsample_rate
        self.self_attn = Attention(hidden, heads, 1)
        self.layer_norm1 = nn.LayerNorm(hidden)
        self.cross_attn_token_to_image = Attention(hidden, heads, rate)
        self.layer_norm2 = nn.LayerNorm(hidden)
        self.mlp = FeedForward(hidden, config.mlp_dim, hidden, 2)
        self.layer_norm3 = nn.LayerNorm(hidden)
        self.layer_norm4 = nn.LayerNorm(hidden)
        self.cross_attn_image_to_token = Attention(hidden, heads, rate)
        self.first = first  # the first block's tokens are still their own position encoding

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, key_pe: Tensor, query_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        """tokens (N, P, C), image (N, L, C) → the same shapes.

        key_pe, query_pe: (L, C') the image's position encoding after this block's projections,
        their biases included.
        """
        attn = self.self_attn
        if self.first:
            tokens = attn.attend(attn.q_proj(tokens), attn.k_proj(tokens), attn.v_proj(tokens))
        else:
            placed = tokens + token_pe
            looked = attn.attend(attn.q_proj(placed), attn.k_proj(placed), attn.v_proj(tokens))
            tokens = tokens + looked
        tokens = self.layer_norm1(tokens)

        attn = self.cross_attn_token_to_image
        keys = F.linear(image, attn.k_proj.weight) + key_pe
        looked = attn.attend(attn.q_proj(tokens + token_pe), keys, attn.v_proj(image))
        tokens = self.layer_norm2(tokens + looked)
        tokens = self.layer_norm3(tokens + self.mlp(tokens))

        attn = self.cross_attn_image_to_token
        queries = F.linear(image, attn.q_proj.weight) + query_pe
        looked = attn.attend(queries, attn.k_proj(tokens + token_pe), attn.v_proj(tokens))
        return tokens, self.layer_norm4(image + looked)


class TwoWayTransformer(nn.Module):
    """The blocks and a last look of the tokens at the image."""

    def __init__(self, config: Sam2VideoMaskDecoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(config, first=index == 0) for index in range(config.num_hidden_layers)
        )
        self.final_attn_token_to_image = Attention(
            config.hidden_size, config.num_attention_heads, config.attention_downsample_rate
        )
        self.layer_norm_final_attn = nn.LayerNorm(config.hidden_size)

    def project_encoding(self, pe: Tensor) -> list[Tensor]:
        """Every projection of the image's position encoding, in fp32 and then the model's dtype.

        Two for each block (keys, then queries) and one for the last attention.
        """

        def project(linear: nn.Linear) -> Tensor:
            bias = None if linear.bias is None else linear.bias.float()
            return F.linear(pe, linear.weight.float(), bias).to(linear.weight.dtype)

        projected = []
        for block in self.layers:
            assert isinstance(block, TwoWayBlock)
            projected.append(project(block.cross_attn_token_to_image.k_proj))
            projected.append(project(block.cross_attn_image_to_token.q_proj))
        projected.append(project(self.final_attn_token_to_image.k_proj))
        return projected

    def forward(self, token_pe: Tensor, image: Tensor, pes: list[Tensor]) -> tuple[Tensor, Tensor]:
        tokens = token_pe
        for index, block in enumerate(self.layers):
            tokens, image = block(tokens, image, token_pe, pes[2 * index], pes[2 * index + 1])
        attn = self.final_attn_token_to_image
        keys = F.linear(image, attn.k_proj.weight) + pes[-1]
        looked = attn.attend(attn.q_proj(tokens + token_pe), keys, attn.v_proj(image))
        return self.layer_norm_final_attn(tokens + looked), image


@dataclass(frozen=True, slots=True)
class MaskOutput:
    """The chosen mask of each object.

    logits: (N, 4H, 4W) fp32 before sigmoid; iou: (N,) fp32 in [0, 1]; object_score: (N,) fp32
    logit, above 0 where the object is in the frame; token: (N, C) the mask token it came from.
    """

    logits: Tensor
    iou: Tensor
    object_score: Tensor
    token: Tensor


@dataclass(frozen=True, slots=True)
class EveryMask:
    """All masks of each object, none of them chosen: the single one, then the ambiguous ones.

    logits: (N, masks, 4H, 4W) fp32; iou: (N, masks) fp32; object_score: (N,) fp32 logit;
    tokens: (N, masks, C).
    """

    logits: Tensor
    iou: Tensor
    object_score: Tensor
    tokens: Tensor


@dataclass(frozen=True, slots=True)
class DecoderConstants:
    """The image's position encoding, projected for every attention of the decoder."""

    encodings: list[Tensor]
    output_tokens: Tensor  # (2 + masks, C): object score, IoU, masks


class MaskDecoder(DerivedModule[DecoderConstants]):
    """Two-way transformer, up-scaling by transposed convolutions, one hypernetwork a mask."""

    def __init__(
        self,
        config: Sam2VideoMaskDecoderConfig,
        image_encoding: FourierEncoding,
        feature_size: tuple[int, int],
    ) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.feature_size = feature_size
        self._image_encoding = (image_encoding,)  # in a tuple: the model owns its parameters
        self.config = config
        self.num_masks = config.num_multimask_outputs + 1
        self.iou_token = nn.Embedding(1, hidden)
        self.mask_tokens = nn.Embedding(self.num_masks, hidden)
        self.obj_score_token = nn.Embedding(1, hidden)
        self.transformer = TwoWayTransformer(config)
        self.upscale_conv1 = nn.ConvTranspose2d(hidden, hidden // 4, kernel_size=2, stride=2)
        self.upscale_layer_norm = nn.LayerNorm(hidden // 4, eps=1e-6)
        self.upscale_conv2 = nn.ConvTranspose2d(hidden // 4, hidden // 8, kernel_size=2, stride=2)
        self.conv_s0 = nn.Conv2d(hidden, hidden // 8, kernel_size=1)
        self.conv_s1 = nn.Conv2d(hidden, hidden // 4, kernel_size=1)
        self.output_hypernetworks_mlps = nn.ModuleList(
            FeedForward(hidden, hidden, hidden // 8, 3) for _ in range(self.num_masks)
        )
        self.iou_prediction_head = FeedForward(
            hidden, config.iou_head_hidden_dim, self.num_masks, config.iou_head_depth
        )
        self.pred_obj_score_head = FeedForward(hidden, hidden, 1, 3)

    def derive(self) -> DecoderConstants:
        tokens = (self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight)
        encoding = self._image_encoding[0].grid(*self.feature_size)
        return DecoderConstants(self.transformer.project_encoding(encoding), torch.cat(tokens))

    def forward(
        self,
        image: Tensor,
        fine: Tensor,
        middle: Tensor,
        sparse: Tensor,
        dense: Tensor,
        multimask: bool,
    ) -> MaskOutput:
        """One mask for each of N objects.

        image: (N, H·W, C) conditioned features; fine: (N, 4H, 4W, C/8) and middle:
        (N, 2H, 2W, C/4), or 1 in place of N; sparse: (N, P, C); dense: (N, H·W, C) or (1, 1, C).
        multimask: choose among the ambiguous masks by predicted IoU; otherwise the single mask,
        unless it is unstable.
        """
        iou, score, kernels, pixels, mask_tokens = self._look(image, fine, middle, sparse, dense)
        best = 1 + iou[:, 1:].argmax(dim=1)  # among the ambiguous masks
        if multimask:
            logits = _draw(_pick(kernels, best), pixels)
            return MaskOutput(logits, _pick(iou, best), score, _pick(mask_tokens, best))
        single = _draw(kernels[:, 0], pixels)
        token = mask_tokens[:, 0]
        if not self.config.dynamic_multimask_via_stability or self.training:
            return MaskOutput(single, iou[:, 0], score, token)
        stable = self._is_stable(single)
        logits = torch.where(stable[:, None, None], single, _draw(_pick(kernels, best), pixels))
        # The pointer still comes from the single mask's token, as in both reference models.
        return MaskOutput(logits, torch.where(stable, iou[:, 0], _pick(iou, best)), score, token)

    def every_mask(
        self, image: Tensor, fine: Tensor, middle: Tensor, sparse: Tensor, dense: Tensor
    ) -> EveryMask:
        """All masks, for training; the arguments are those of `forward`."""
        iou, score, kernels, pixels, tokens = self._look(image, fine, middle, sparse, dense)
        logits = torch.einsum("nmc,nhwc->nmhw", kernels, pixels.float()).float()
        return EveryMask(logits, iou, score, tokens)

    def _look(
        self, image: Tensor, fine: Tensor, middle: Tensor, sparse: Tensor, dense: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Everything before a mask is drawn.

        IoU predictions (N, masks), object score (N,), kernels (N, masks, C/8), the pixels that
        they are drawn over (N, 4H, 4W, C/8) and the masks' tokens (N, masks, C).
        """
        constants = self.derived()
        output_tokens = constants.output_tokens.expand(sparse.shape[0], -1, -1)
        tokens, image = self.transformer(
            torch.cat((output_tokens, sparse), dim=1), image + dense, constants.encodings
        )
        mask_tokens = tokens[:, 2 : 2 + self.num_masks]
        iou = torch.sigmoid(self.iou_prediction_head(tokens[:, 1]).float())  # (N, masks)
        score = self.pred_obj_score_head(tokens[:, 0]).float().squeeze(-1)
        kernels = torch.stack(
            [mlp(mask_tokens[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1
        ).float()  # (N, masks, C/8)
        return iou, score, kernels, self._upscale(image, fine, middle), mask_tokens

    def _upscale(self, image: Tensor, fine: Tensor, middle: Tensor) -> Tensor:
        """(N, H·W, C) → (N, 4H, 4W, C/8), adding the finer features on the way."""
        size = middle.shape[1] // 2, middle.shape[2] // 2
        count = len(image)

        def some(objects: slice, rows: slice) -> Tensor:
            x = image[objects].unflatten(1, size)
            x = _double(x, self.upscale_conv1) + middle.expand(count, -1, -1, -1)[objects]
            x = F.gelu(self.upscale_layer_norm(x))
            x = _double(x, self.upscale_conv2) + fine.expand(count, -1, -1, -1)[objects]
            return F.gelu(x)[:, rows]

        shape = (count, *fine.shape[1:])
        return in_blocks(some, image, shape, fine.shape[1])

    def _is_stable(self, logits: Tensor) -> Tensor:
        """Whether the mask hardly depends on the threshold: (N,) bool."""
        delta = self.config.dynamic_multimask_stability_delta
        inner = (logits > delta).sum(dim=(1, 2)).float()
        outer = (logits > -delta).sum(dim=(1, 2)).float()
        stability = torch.where(outer > 0, inner / outer, 1.0)
        return stability >= self.config.dynamic_multimask_stability_thresh


def _double(x: Tensor, conv: nn.ConvTranspose2d) -> Tensor:
    """A 2×2 stride-2 transposed convolution on channels-last maps: one matrix product."""
    batch, height, width, _ = x.shape
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2·2·C_out, C_in)
    cells = F.linear(x, weight).view(batch, height, width, 2, 2, -1)
    if conv.bias is not None:
        cells = cells + conv.bias
    return cells.transpose(2, 3).reshape(batch, 2 * height, 2 * width, -1)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """values[n, index[n]] for each n, without leaving the device."""
    index = index.view(-1, *[1] * (values.dim() - 1)).expand(-1, 1, *values.shape[2:])
    return values.gather(1, index).squeeze(1)


def _draw(kernel: Tensor, pixels: Tensor) -> Tensor:
    """Each object's kernel over its pixels: (N, C/8), (N, h, w, C/8) → (N, h, w)."""
    return torch.einsum("nc,nhwc->nhw", kernel, pixels.float())
