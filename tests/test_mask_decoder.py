"""The mask decoder equals the published one, written out here with convolutions and all masks.

The published order: every attention projects image plus position; both maps are up-scaled by
transposed convolutions; all masks are drawn and up-sampled, and then one is chosen.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_network import GRID, PLACES, SIZE, WIDTH, small_network
from torch import Tensor, nn

from sam2model.mask_decoder import Attention, MaskDecoder, MaskOutput, _double
from sam2model.mask_ops import upsample_logits

EXACT = 1e-5  # of the largest value: fp32 in another order


def decoder(**changes: Any) -> MaskDecoder:
    config = {
        **{"hidden_size": WIDTH, "mlp_dim": 2 * WIDTH, "iou_head_hidden_dim": WIDTH},
        **{"num_attention_heads": 4, **changes},
    }
    model: MaskDecoder = small_network(mask_decoder_config=config).mask_decoder
    head = model.iou_prediction_head.proj_out
    head.weight.mul_(5)  # so that the best of three is not always the same
    head.bias.copy_(torch.tensor([3.0, 0, 0, 0]))  # the single mask is none of the three
    return model


@dataclass(frozen=True)
class Inputs:
    """Of N objects: conditioned image, finer maps, prompt tokens, dense prompt."""

    image: Tensor
    fine: Tensor
    middle: Tensor
    sparse: Tensor
    dense: Tensor

    def rows(self, index: list[int]) -> "Inputs":
        def of(value: Tensor) -> Tensor:
            return value[index] if len(value) > 1 else value

        parts = (self.image, self.fine, self.middle, self.sparse, self.dense)
        return Inputs(*(of(part) for part in parts))

    def run(self, model: MaskDecoder, multimask: bool) -> MaskOutput:
        return model(self.image, self.fine, self.middle, self.sparse, self.dense, multimask)


def inputs(count: int = 10, frames: int | None = None, seed: int = 0) -> Inputs:
    """frames: 1 for finer maps that all objects share."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    frames = frames or count
    return Inputs(
        noise(count, PLACES, WIDTH),
        noise(frames, 4 * GRID, 4 * GRID, WIDTH // 8),
        noise(frames, 2 * GRID, 2 * GRID, WIDTH // 4),
        3 * noise(count, 2, WIDTH),
        noise(1, 1, WIDTH),
    )


def published_attention(attn: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Unprojected (L, C), (K, C), (K, C) of one object → (L, C)."""
    q, k, v = (
        p(x).view(len(x), attn.heads, -1).transpose(0, 1)
        for p, x in ((attn.q_proj, q), (attn.k_proj, k), (attn.v_proj, v))
    )
    weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return attn.o_proj((weights @ v).transpose(0, 1).flatten(1))


def published_masks(model: MaskDecoder, given: Inputs, row: int) -> tuple[Tensor, ...]:
    """Of one object: all masks (4, 4H, 4W), their IoU (4,), object score, mask tokens (4, C)."""
    one = given.rows([row])
    learned = (model.obj_score_token, model.iou_token, model.mask_tokens)
    start = torch.cat([*(e.weight for e in learned), one.sparse[0]])
    tokens, image = start, one.image[0] + one.dense[0]
    place = model._image_encoding[0].grid(GRID, GRID)
    for block in model.transformer.layers:
        at = tokens if block.first else tokens + start
        looked = published_attention(block.self_attn, at, at, tokens)
        tokens = block.layer_norm1(looked if block.first else tokens + looked)
        attn = block.cross_attn_token_to_image
        looked = published_attention(attn, tokens + start, image + place, image)
        tokens = block.layer_norm2(tokens + looked)
        tokens = block.layer_norm3(tokens + block.mlp(tokens))
        attn = block.cross_attn_image_to_token
        looked = published_attention(attn, image + place, tokens + start, tokens)
        image = block.layer_norm4(image + looked)
    attn = model.transformer.final_attn_token_to_image
    looked = published_attention(attn, tokens + start, image + place, image)
    tokens = model.transformer.layer_norm_final_attn(tokens + looked)

    grid = image.T.reshape(1, WIDTH, GRID, GRID)
    x = model.upscale_conv1(grid) + one.middle.permute(0, 3, 1, 2)
    x = F.gelu(model.upscale_layer_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    x = F.gelu(model.upscale_conv2(x) + one.fine.permute(0, 3, 1, 2))
    masks = tokens[2:6]
    kernels = [mlp(masks[i]) for i, mlp in enumerate(model.output_hypernetworks_mlps)]
    logits = torch.stack([(k[:, None, None] * x[0]).sum(0) for k in kernels])
    iou = model.iou_prediction_head(tokens[1]).sigmoid()
    return logits, iou, model.pred_obj_score_head(tokens[0])[0], masks


def published_stability(model: MaskDecoder, logits: Tensor) -> float:
    """How much of the mask above -δ is above δ as well, 1 for none."""
    delta = model.config.dynamic_multimask_stability_delta
    inner, outer = int((logits > delta).sum()), int((logits > -delta).sum())
    return inner / outer if outer else 1.0


def assert_close(got: Tensor, wanted: Tensor) -> None:
    assert got.shape == wanted.shape
    assert float((got - wanted).abs().max()) <= EXACT * float(wanted.abs().max())


@pytest.mark.parametrize("frames", [1, None], ids=["one frame", "a frame each"])
def test_the_best_of_three_is_chosen_before_it_is_drawn(frames: int | None) -> None:
    model, given = decoder(), inputs(frames=frames)

    got = given.run(model, multimask=True)

    chosen = set()
    for row in range(len(given.image)):
        logits, iou, score, tokens = published_masks(model, given, row)
        best = 1 + int(iou[1:].argmax())
        chosen.add(best)
        assert_close(got.logits[row], logits[best])
        assert_close(got.iou[row], iou[best])
        assert_close(got.object_score[row], score)
        assert_close(got.token[row], tokens[best])
    assert chosen == {1, 2, 3}, "the inputs do not tell the masks apart"


def test_choosing_before_up_sampling_gives_the_very_bits_of_choosing_after() -> None:
    logits = torch.randn(5, 4, 4 * GRID, 4 * GRID)
    best = torch.tensor([1, 3, 2, 2, 1])

    before = upsample_logits(logits[torch.arange(5), best], (SIZE, SIZE))
    after = F.interpolate(logits, (SIZE, SIZE), mode="bilinear")[torch.arange(5), best]

    assert torch.equal(before, after)


def _with_both_kinds() -> tuple[MaskDecoder, Inputs, list[bool]]:
    """A decoder whose threshold calls half of these single masks unstable."""
    model, given = decoder(dynamic_multimask_stability_delta=0.5), inputs()
    rows = range(len(given.image))
    stability = [published_stability(model, published_masks(model, given, r)[0][0]) for r in rows]
    middle = sum(sorted(stability)[4:6]) / 2
    model = decoder(
        dynamic_multimask_stability_delta=0.5, dynamic_multimask_stability_thresh=middle
    )
    return model, given, [s >= middle for s in stability]


def test_an_unstable_single_mask_gives_way_to_the_best_of_three_and_keeps_its_token() -> None:
    model, given, is_stable = _with_both_kinds()
    assert True in is_stable and False in is_stable

    got = given.run(model, multimask=False)

    for row, stable in enumerate(is_stable):
        logits, iou, score, tokens = published_masks(model, given, row)
        shown = 0 if stable else 1 + int(iou[1:].argmax())
        assert_close(got.logits[row], logits[shown])
        assert_close(got.iou[row], iou[shown])
        assert_close(got.object_score[row], score)
        assert_close(got.token[row], tokens[0])  # the pointer's, as in both reference models


def test_an_empty_single_mask_is_stable() -> None:
    model = decoder(dynamic_multimask_stability_delta=0.5, dynamic_multimask_stability_thresh=1)
    model.upscale_conv2.weight.zero_()
    model.upscale_conv2.bias.fill_(-100)  # the activation leaves nothing: logits of 0
    empty = torch.full((2, 16, 16), -3.0)

    assert model._is_stable(empty).tolist() == [True, True]
    assert model._is_stable(empty + 3).tolist() == [False, False]  # all of it between the bounds


def test_a_model_without_the_stability_rule_always_gives_the_single_mask() -> None:
    _, given, is_stable = _with_both_kinds()
    model = decoder(dynamic_multimask_via_stability=False)

    got = given.run(model, multimask=False)

    for row in range(len(is_stable)):
        logits, iou, _, _ = published_masks(model, given, row)
        assert_close(got.logits[row], logits[0])
        assert_close(got.iou[row], iou[0])


@pytest.mark.parametrize("multimask", [True, False])
def test_objects_in_a_batch_do_not_see_each_other(multimask: bool) -> None:
    model, given, _ = _with_both_kinds()
    together = given.run(model, multimask)

    for row in range(len(given.image)):
        alone = given.rows([row]).run(model, multimask)
        for name in MaskOutput.__slots__:
            assert_close(getattr(together, name)[[row]], getattr(alone, name))


@pytest.mark.parametrize("bias", [True, False])
def test_doubling_by_a_matrix_product_equals_the_transposed_convolution(bias: bool) -> None:
    conv = nn.ConvTranspose2d(6, 5, kernel_size=2, stride=2, bias=bias).requires_grad_(False)
    x = torch.randn(3, 4, 7, 6)

    got = _double(x, conv)

    assert_close(got, conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def test_a_dense_prompt_of_each_object_is_added_to_its_image() -> None:
    model, given = decoder(), inputs(3)
    dense = torch.randn(3, PLACES, WIDTH)
    own = Inputs(given.image, given.fine, given.middle, given.sparse, dense)
    moved = Inputs(
        given.image + dense, given.fine, given.middle, given.sparse, torch.zeros(1, 1, WIDTH)
    )

    assert_close(own.run(model, True).logits, moved.run(model, True).logits)


def test_no_operator_of_the_published_decoder_is_left_out() -> None:
    # The comparisons mean something only while each parameter moves what is compared.
    model, given = decoder(), inputs()
    before = given.run(model, multimask=True)
    without_effect = set()
    for name, value in model.named_parameters():
        kept = value.clone()
        value.add_(0.5 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
        model.eval()  # fold again
        after = given.run(model, multimask=True)
        fields = MaskOutput.__slots__
        if all(torch.allclose(getattr(after, f), getattr(before, f), atol=1e-4) for f in fields):
            without_effect.add(name)
        value.copy_(kept)

    # Keys' biases cancel in every softmax; conv_s0 and conv_s1 are folded into the image encoder;
    # the first mask is the single one.
    assert {
        n
        for n in without_effect
        if not n.endswith("k_proj.bias")
        and not n.startswith(("conv_s", "output_hypernetworks_mlps.0."))
    } == set()


def test_every_mask_holds_the_single_and_the_chosen_ambiguous_mask() -> None:
    model, given = decoder(dynamic_multimask_via_stability=False), inputs()

    every = model.every_mask(given.image, given.fine, given.middle, given.sparse, given.dense)

    best = 1 + every.iou[:, 1:].argmax(dim=1)
    rows = torch.arange(len(best))
    for output, mask in (
        (given.run(model, multimask=False), torch.zeros_like(best)),
        (given.run(model, multimask=True), best),
    ):
        assert torch.allclose(output.logits, every.logits[rows, mask], atol=1e-4)
        assert torch.equal(output.token, every.tokens[rows, mask])
        assert torch.equal(output.iou, every.iou[rows, mask])
        assert torch.equal(output.object_score, every.object_score)
