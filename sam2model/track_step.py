"""One step of tracking for any number of objects at once: tensors in, tensors out.

Knows nothing of videos, sessions or Python objects, and never waits for the device. Objects
are a batch axis; each names its frame by a row of the frame batch.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2model.configuration import Sam2VideoConfig
from sam2model.derived import DerivedModule
from sam2model.fpn_neck import FoldedLateral, VisionEncoder, fold
from sam2model.hiera import FeedForward, Hiera
from sam2model.host_threads import in_blocks
from sam2model.mask_decoder import MaskDecoder, MaskOutput
from sam2model.memory_attention import MemoryAttention, MemoryKeys
from sam2model.memory_bank import REMEMBERED_AS, Readout
from sam2model.memory_encoder import MemoryEncoder
from sam2model.position_encoding import FourierEncoding, sine_encoding, temporal_encoding
from sam2model.precision import compute_dtype
from sam2model.prompt_encoder import PromptEncoder

ABSENT_LOGIT = -1024.0  # every pixel of an object that is not in the frame
MASK_LOGIT = 10.0  # ± this inside and outside a mask that a person gave

# Windows of the first stage are 1,024 a frame at 1,024 px, and PyTorch's fused attention
# fails from 65,536 rows on (pytorch issues 142228, 146704).
MAX_FRAME_BATCH = 32


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """Everything of B frames that no object changes.

    coarse: (B, L, C) pyramid features; tokens, queries: (B, L, C) of the memory prologue;
    fine: (B, 4H, 4W, C/8); middle: (B, 2H, 2W, C/4); memory_share: (B, H, W, C).
    """

    coarse: Tensor
    tokens: Tensor
    queries: Tensor
    fine: Tensor
    middle: Tensor
    memory_share: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in the order of the fields."""
        return tuple(getattr(self, name) for name in ImageFeatures.__slots__)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors)

    def rows(self, index: Tensor | slice) -> "ImageFeatures":
        """The features of some frames."""
        return ImageFeatures(
            self.coarse[index],
            self.tokens[index],
            self.queries[index],
            self.fine[index],
            self.middle[index],
            self.memory_share[index],
        )


def join_rows(parts: list[ImageFeatures]) -> ImageFeatures:
    """The features of several batches of frames as one, in order."""
    if len(parts) == 1:
        return parts[0]
    names = ImageFeatures.__slots__
    return ImageFeatures(*(torch.cat([getattr(p, name) for p in parts]) for name in names))


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Clicks of N objects, equally many each; a box is two points.

    points: (N, P, 2) fp32 model pixels, x then y; labels: (N, P) int64;
    previous_logits: (N, 4H, 4W) of the mask being corrected, or None.
    """

    points: Tensor
    labels: Tensor
    previous_logits: Tensor | None = None


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step says of N objects.

    logits: (N, 4H, 4W) fp32, all ABSENT_LOGIT where the object is absent; iou: (N,) in [0, 1];
    object_score: (N,) fp32 logit; pointer: (N, C).
    """

    logits: Tensor
    iou: Tensor
    object_score: Tensor
    pointer: Tensor

    def rows(self, index: Tensor | slice) -> "StepOutput":
        """The output for some objects."""
        return StepOutput(
            self.logits[index], self.iou[index], self.object_score[index], self.pointer[index]
        )


def concatenate(outputs: list[StepOutput]) -> StepOutput:
    """The outputs of several steps as one, in order."""
    return StepOutput(
        torch.cat([o.logits for o in outputs]),
        torch.cat([o.iou for o in outputs]),
        torch.cat([o.object_score for o in outputs]),
        torch.cat([o.pointer for o in outputs]),
    )


@dataclass(frozen=True, slots=True)
class NetworkConstants:
    """Encodings and folded projections of the whole model."""

    fine: FoldedLateral
    middle: FoldedLateral
    query_place: Tensor  # (L, C) a tenth of the sine encoding
    memory_place: Tensor  # (time rows, L, C_mem) where plus when


class Sam2Network(DerivedModule[NetworkConstants]):
    """All layers of a SAM 2 video model under the names of the checkpoints, and its step."""

    def __init__(self, config: Sam2VideoConfig) -> None:
        super().__init__()
        self.config = config
        self._fp32_copy: tuple[Sam2Network] | None = None  # in a tuple: not a part of this module
        hidden, memory = config.hidden_size, config.memory_encoder_output_channels
        prompt = config.prompt_encoder_config
        self.shared_image_embedding = FourierEncoding(prompt.hidden_size, prompt.scale)
        self.vision_encoder = VisionEncoder(
            config.vision_config, Hiera(config.vision_config.backbone_config)
        )
        self.prompt_encoder = PromptEncoder(prompt)
        # Clicks and places of the image are told in one language; checkpoints hold it twice.
        self.prompt_encoder.shared_embedding.load_state_dict(
            self.shared_image_embedding.state_dict()
        )
        self.mask_decoder = MaskDecoder(
            config.mask_decoder_config, self.shared_image_embedding, config.feature_size
        )
        self.memory_attention = MemoryAttention(config)
        self.memory_encoder = MemoryEncoder(config)
        self.no_memory_embedding = nn.Parameter(torch.zeros(1, 1, hidden))
        # Unused in every SAM 2 model, and in every checkpoint.
        self.no_memory_positional_encoding = nn.Parameter(torch.zeros(1, 1, hidden))
        self.memory_temporal_positional_encoding = nn.Parameter(
            torch.zeros(config.num_maskmem, 1, 1, memory)
        )
        self.no_object_pointer = nn.Parameter(torch.zeros(1, hidden))
        self.mask_downsample = nn.Conv2d(1, 1, kernel_size=4, stride=4)
        self.object_pointer_proj = FeedForward(hidden, hidden, hidden, 3)
        self.temporal_positional_encoding_projection_layer = (
            nn.Linear(hidden, memory)
            if config.enable_temporal_pos_encoding_for_object_pointers
            else nn.Identity()
        )
        self.occlusion_spatial_embedding_parameter = (
            nn.Parameter(torch.zeros(1, memory))
            if config.enable_occlusion_spatial_embedding
            else None
        )
        for part in self.modules():
            part.register_load_state_dict_post_hook(self._part_loaded)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.no_memory_embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype; scores, logits and encodings are fp32 whatever it is."""
        return self.no_memory_embedding.dtype

    def for_compute(self) -> "Sam2Network":
        """This network, or its fp32 copy on a processor without products of its dtype.

        The copy holds the same weights, so it differs by less rounding only; it lasts until the
        weights are loaded, moved or trained.
        """
        if self.training or compute_dtype(self.device, self.dtype) == self.dtype:
            return self
        if self._fp32_copy is None:
            copy = Sam2Network(self.config).to(torch.float32).eval()
            copy.load_state_dict(self.state_dict())
            self._fp32_copy = (copy,)
        return self._fp32_copy[0]

    def weights_changed(self) -> None:
        super().weights_changed()
        self._fp32_copy = None

    def _part_loaded(self, part: nn.Module, keys: object) -> None:
        """Forget what is folded across parts: one of them may be loaded alone."""
        del part, keys
        self.weights_changed()
        self.mask_decoder.weights_changed()

    def derive(self) -> NetworkConstants:
        height, width = self.config.feature_size
        neck, decoder = self.vision_encoder.neck, self.mask_decoder
        query_place = sine_encoding(height, width, self.config.hidden_size, self.device)
        where = sine_encoding(
            height, width, self.config.memory_encoder_output_channels, self.device
        )
        when = self.memory_temporal_positional_encoding.float().flatten(1)
        return NetworkConstants(
            fine=fold(neck.lateral(0), decoder.conv_s0),
            middle=fold(neck.lateral(1), decoder.conv_s1),
            query_place=(0.1 * query_place).to(self.dtype),
            memory_place=(where + when.unsqueeze(1)).to(self.dtype),
        )

    def encode_images(self, pixels: Tensor) -> ImageFeatures:
        """Features of B frames: (B, 3, S, S) normalised pixels, S = config.image_size."""
        if pixels.shape[0] > MAX_FRAME_BATCH:
            return join_rows([self.encode_images(part) for part in pixels.split(MAX_FRAME_BATCH)])
        constants = self.derived()
        fine, middle, coarse = self.vision_encoder(
            pixels.to(self.dtype), constants.fine, constants.middle
        )
        tokens, queries = self.memory_attention.prologue(
            coarse.flatten(1, 2) + constants.query_place
        )
        share = self.memory_encoder.project_features(coarse)
        return ImageFeatures(coarse.flatten(1, 2), tokens, queries, fine, middle, share)

    def track_step(self, image: ImageFeatures, memory: Readout) -> StepOutput:
        """Track N objects, each on its row of `image`, from what is remembered of them."""
        ambiguous = self.is_ambiguous(0) and self.config.multimask_output_for_tracking
        return self._decode(image, self.recall(image, memory), None, ambiguous)

    def prompt_step(
        self, image: ImageFeatures, memory: Readout | None, prompt: PromptBatch
    ) -> StepOutput:
        """Segment N prompted objects, each on its row of `image`.

        memory: None for objects that are seen for the first time.
        """
        ambiguous = self.is_ambiguous(prompt.points.shape[1])
        if memory is None:
            return self._decode(image, image.coarse + self.no_memory_embedding, prompt, ambiguous)
        ambiguous = ambiguous and self.config.multimask_output_for_tracking
        return self._decode(image, self.recall(image, memory), prompt, ambiguous)

    def mask_step(self, image: ImageFeatures, masks: Tensor, best_of_three: bool) -> StepOutput:
        """Take masks that a person gave as they are; the decoder only makes the pointers.

        masks: (N, S, S) bool or {0, 1}. best_of_three: the pointer comes from the best of the
        ambiguous masks (transformers), else from the single mask (Meta's code).
        """
        inside = masks.float()
        full = (2 * inside - 1) * MASK_LOGIT
        logits = F.interpolate(
            full[:, None], size=self.config.mask_size, mode="bilinear", antialias=True
        ).squeeze(1)
        dense = self.mask_downsample(inside[:, None].to(self.dtype)).squeeze(1)
        nothing = inside.new_zeros((masks.shape[0], 0, 2))
        decoded = self._decode(
            image,
            image.coarse,
            PromptBatch(nothing, nothing[..., 0].long(), dense),
            best_of_three,
        )
        present = (inside.flatten(1) > 0).any(dim=1)
        pointer = torch.where(present[:, None], decoded.pointer, self.no_object_pointer)
        score = torch.where(present, MASK_LOGIT, -MASK_LOGIT)
        return StepOutput(logits, torch.ones_like(score), score, pointer)

    def encode_memory(
        self, image: ImageFeatures, logits: Tensor, object_score: Tensor, prompted: Tensor
    ) -> Tensor:
        """What to remember of N objects on their frames: (N, L, C_mem) bf16.

        logits: (N, h, w) of any size; object_score: (N,); prompted: (N,) bool, true where a
        person prompted this frame: such masks are remembered hard, others soft.
        """
        height, width = self.config.feature_size
        share = image.memory_share.expand(len(logits), -1, -1, -1)

        def some(objects: slice, places: slice) -> Tensor:
            masks = self._masks_to_remember(logits[objects], prompted[objects])
            return self.memory_encoder(share[objects], masks)[:, places]

        shape = (len(logits), height * width, self.config.memory_encoder_output_channels)
        memory = in_blocks(some, share, shape, height * width)
        if self.occlusion_spatial_embedding_parameter is not None:
            absent = (object_score <= 0).to(memory.dtype)[:, None, None]
            memory = memory + absent * self.occlusion_spatial_embedding_parameter
        return memory.to(REMEMBERED_AS)

    def _masks_to_remember(self, logits: Tensor, prompted: Tensor) -> Tensor:
        """(N, h, w) of any size → (N, 1, S, S) as the memory encoder reads them."""
        size = self.config.image_size
        if logits.shape[-1] != size:
            logits = F.interpolate(logits[:, None], size=(size, size), mode="bilinear")
        else:
            logits = logits[:, None]
        chance = torch.where(prompted[:, None, None, None], (logits > 0).float(), logits.sigmoid())
        scaled = chance * self.config.sigmoid_scale_for_mem_enc
        return (scaled + self.config.sigmoid_bias_for_mem_enc).to(self.dtype)

    def recall(self, image: ImageFeatures, memory: Readout) -> Tensor:
        """Features of the frame, conditioned on the memories of each object: (N, L, C)."""
        dtype = self.dtype
        spatial = memory.masks.to(dtype)
        placed = spatial + self.derived().memory_place[memory.time_rows]
        pointers = memory.pointers.to(dtype)
        splits = pointers.shape[-1] // spatial.shape[-1]  # 4 tokens of 64 for a pointer of 256
        tokens = pointers.unflatten(-1, (splits, -1))  # (N, P, 4, C_mem)
        keys = tokens
        if self.config.enable_temporal_pos_encoding_for_object_pointers:
            when = temporal_encoding(memory.pointer_offsets, self.config.hidden_size).to(dtype)
            keys = tokens + self.temporal_positional_encoding_projection_layer(when).unsqueeze(2)
        count = memory.masks.shape[0]
        conditioned: Tensor = self.memory_attention(
            image.tokens.expand(count, -1, -1),
            image.queries.expand(count, -1, -1),
            MemoryKeys(
                spatial=spatial,
                spatial_keys=placed,
                pointers=tokens.flatten(1, 2),
                pointer_keys=keys.flatten(1, 2),
                pointer_valid=memory.pointer_valid.repeat_interleave(splits, dim=1),
            ),
        )
        return conditioned

    def _decode(
        self,
        image: ImageFeatures,
        conditioned: Tensor,
        prompt: PromptBatch | None,
        multimask: bool,
    ) -> StepOutput:
        """Prompt encoder, mask decoder and pointer; `image` may have 1 row for all objects."""
        if prompt is None:
            nothing = conditioned.new_zeros((conditioned.shape[0], 0, 2))
            prompt = PromptBatch(nothing, nothing[..., 0].long())
        count = prompt.points.shape[0]
        decoded: MaskOutput = self.mask_decoder(
            conditioned.expand(count, -1, -1),
            image.fine,
            image.middle,
            self.prompt_encoder.embed_points(prompt.points, prompt.labels),
            self.prompt_encoder.embed_mask(prompt.previous_logits),
            multimask,
        )
        present = decoded.object_score > 0
        logits = torch.where(present[:, None, None], decoded.logits, ABSENT_LOGIT)
        pointer = self.object_pointer_proj(decoded.token)
        pointer = torch.where(present[:, None], pointer, self.no_object_pointer)
        return StepOutput(logits, decoded.iou, decoded.object_score, pointer)

    def is_ambiguous(self, num_points: int) -> bool:
        """Whether this many points leave several masks to choose from."""
        config = self.config
        few = config.multimask_min_pt_num <= num_points <= config.multimask_max_pt_num
        return config.multimask_output_in_sam and few
