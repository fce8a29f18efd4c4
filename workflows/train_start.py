"""Random weights that learn: a decoder that begins by looking where the prompt is.

Knows nothing of data or losses. With weights drawn as usual a click says next to nothing: its
attention to the image is flat, and what the image hears back is the same for all tokens. The
encoder then learns what stands out, whatever was clicked, and drowns the click for thousands of
steps. Here attention starts by comparing places, and passes on what it finds unchanged; and a
frame starts by reading what was remembered of the same place and round it.
"""

import torch

from sam2model.mask_decoder import Attention, TwoWayBlock
from sam2model.memory_attention import MemoryAttentionLayer, RopeAttention
from sam2model.track_step import Sam2Network

PLACE_GAIN = 1.5  # a click's own cell then gets e^5 times the weight of a far one
PROMPT_SCALE = 0.5  # of the kinds' embeddings, beside the encoding of the place
NEARBY_PAIRS = 10  # of channels an axis: wavelengths of 6 to 84 cells
NEARBY_GAIN = 1.5  # a memory two cells away then gets a tenth of the weight
NOISE = 0.5  # of the usual random weights, which stay underneath


@torch.no_grad()
def begin_by_place(network: Sam2Network) -> None:
    """Set the attention of decoder and memory, in place. For weights drawn at random only."""
    network.prompt_encoder.no_mask_embed.weight.zero_()
    network.prompt_encoder.point_embed.weight.mul_(PROMPT_SCALE)
    network.prompt_encoder.not_a_point_embed.weight.mul_(PROMPT_SCALE)
    transformer = network.mask_decoder.transformer
    looks = [transformer.final_attn_token_to_image]
    for block in transformer.layers:
        assert isinstance(block, TwoWayBlock)
        looks += [block.cross_attn_token_to_image, block.cross_attn_image_to_token]
        if block.first:
            _keep_apart(block.self_attn)
    for look in looks:
        _compare_places(look)
    for layer in network.memory_attention.layers:
        assert isinstance(layer, MemoryAttentionLayer)
        _look_nearby(layer.cross_attn_image)


def _compare_places(attention: Attention) -> None:
    """Queries and keys alike, each head with whole frequencies of the places' encoding."""
    inner, channels = attention.q_proj.weight.shape
    width = inner // attention.heads
    frequency = torch.arange(inner // 2) % (channels // 2)
    head, within = torch.arange(inner // 2) // (width // 2), torch.arange(inner // 2) % (width // 2)
    place = torch.zeros(inner, channels)
    place[head * width + within, frequency] = 1  # sines
    place[head * width + width // 2 + within, channels // 2 + frequency] = 1  # cosines
    attention.q_proj.weight.mul_(NOISE).add_(PLACE_GAIN * place)
    attention.k_proj.weight.copy_(attention.q_proj.weight)
    passed = torch.eye(inner, channels)
    attention.v_proj.weight.mul_(NOISE).add_(0.7 * passed)
    attention.o_proj.weight.mul_(NOISE).add_(0.7 * passed.T)


def _look_nearby(attention: RopeAttention) -> None:
    """Equal biases of queries and keys: turned by their places, they agree where those do."""
    for bias in (attention.q_proj.bias, attention.k_proj.bias):
        pairs = bias.view(attention.heads, 2, -1, 2)  # head, axis, frequency from high to low
        pairs[:, :, :NEARBY_PAIRS] = NEARBY_GAIN


def _keep_apart(attention: Attention) -> None:
    """Each token attends to itself and stays what it is."""
    same = torch.eye(*attention.q_proj.weight.shape)
    attention.q_proj.weight.mul_(0.3).add_(1.2 * same)
    attention.k_proj.weight.copy_(attention.q_proj.weight)
    attention.v_proj.weight.mul_(0.3).add_(same)
    attention.o_proj.weight.mul_(0.3).add_(same.T)
