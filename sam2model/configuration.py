"""The shape of a SAM 2 video model: sizes and switches, no weights, no tensors.

Reads and writes the `config.json` of transformers' Sam2VideoModel. Keys that belong to
transformers itself (`architectures`, `dtype`, …) are passed over.
"""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self


class ConfigurationError(ValueError):
    """A model configuration that cannot be built; the message names the key."""


def _known(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """The entries of `values` that are fields of `cls`, None meaning the default."""
    names = {f.name for f in fields(cls)}
    return {key: value for key, value in values.items() if key in names and value is not None}


def _square(name: str, value: Any) -> int:
    """One side of a square given as a number or as two equal numbers."""
    sides = list(value) if isinstance(value, list | tuple) else [value]
    if len(set(sides)) != 1:
        raise ConfigurationError(f"{name}: got {value}; wanted a square")
    return int(sides[0])


@dataclass(frozen=True, slots=True)
class Sam2HieraDetConfig:
    """The image backbone. Lists run from the first (finest) stage to the last."""

    model_type: str = "sam2_hiera_det_model"
    hidden_size: int = 96
    num_attention_heads: int = 1
    num_channels: int = 3
    image_size: list[int] = field(default_factory=lambda: [1024, 1024])
    patch_kernel_size: list[int] = field(default_factory=lambda: [7, 7])
    patch_stride: list[int] = field(default_factory=lambda: [4, 4])
    patch_padding: list[int] = field(default_factory=lambda: [3, 3])
    query_stride: list[int] = field(default_factory=lambda: [2, 2])
    window_positional_embedding_background_size: list[int] = field(default_factory=lambda: [7, 7])
    num_query_pool_stages: int = 3
    blocks_per_stage: list[int] = field(default_factory=lambda: [1, 2, 7, 2])
    embed_dim_per_stage: list[int] = field(default_factory=lambda: [96, 192, 384, 768])
    num_attention_heads_per_stage: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    window_size_per_stage: list[int] = field(default_factory=lambda: [8, 4, 14, 7])
    global_attention_blocks: list[int] = field(default_factory=lambda: [5, 7, 9])
    mlp_ratio: float = 4.0
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02


@dataclass(frozen=True, slots=True)
class Sam2VisionConfig:
    """Backbone and feature pyramid. `backbone_channel_list` runs from coarse to fine."""

    model_type: str = "sam2_vision_model"
    backbone_config: Sam2HieraDetConfig = field(default_factory=Sam2HieraDetConfig)
    backbone_channel_list: list[int] = field(default_factory=lambda: [768, 384, 192, 96])
    backbone_feature_sizes: list[list[int]] = field(
        default_factory=lambda: [[256, 256], [128, 128], [64, 64]]
    )
    fpn_hidden_size: int = 256
    fpn_kernel_size: int = 1
    fpn_stride: int = 1
    fpn_padding: int = 0
    fpn_top_down_levels: list[int] = field(default_factory=lambda: [2, 3])
    num_feature_levels: int = 3
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02


@dataclass(frozen=True, slots=True)
class Sam2VideoPromptEncoderConfig:
    """Clicks, boxes and masks to tokens. `image_size` and `patch_size` in model pixels."""

    model_type: str = "sam2_video_prompt_encoder"
    hidden_size: int = 256
    image_size: int = 1024
    patch_size: int = 16
    mask_input_channels: int = 16
    num_point_embeddings: int = 4
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    scale: float = 1


@dataclass(frozen=True, slots=True)
class Sam2VideoMaskDecoderConfig:
    """Tokens and image features to masks, IoU predictions and an object score."""

    model_type: str = "sam2_video_mask_decoder"
    hidden_size: int = 256
    hidden_act: str = "gelu"
    mlp_dim: int = 2048
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    attention_downsample_rate: int = 2
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    dynamic_multimask_via_stability: bool = True
    dynamic_multimask_stability_delta: float = 0.05
    dynamic_multimask_stability_thresh: float = 0.98


@dataclass(frozen=True, slots=True)
class Sam2VideoConfig:
    """A whole SAM 2 video model. Defaults are SAM 2.1 tiny.

    max_cond_frame_num: conditioning frames used by one step; -1 means all of them.
    """

    model_type: str = "sam2_video"
    vision_config: Sam2VisionConfig = field(default_factory=Sam2VisionConfig)
    prompt_encoder_config: Sam2VideoPromptEncoderConfig = field(
        default_factory=Sam2VideoPromptEncoderConfig
    )
    mask_decoder_config: Sam2VideoMaskDecoderConfig = field(
        default_factory=Sam2VideoMaskDecoderConfig
    )
    initializer_range: float = 0.02
    num_maskmem: int = 7  # 1 prompted + 6 recent; the released weights have 7 time rows
    image_size: int = 1024
    sigmoid_scale_for_mem_enc: float = 20.0
    sigmoid_bias_for_mem_enc: float = -10.0
    enable_occlusion_spatial_embedding: bool = True
    multimask_output_in_sam: bool = True
    multimask_min_pt_num: int = 0
    multimask_max_pt_num: int = 1
    multimask_output_for_tracking: bool = True
    max_object_pointers_in_encoder: int = 16
    max_cond_frame_num: int = -1
    enable_temporal_pos_encoding_for_object_pointers: bool = True
    memory_attention_hidden_size: int = 256
    memory_attention_num_layers: int = 4
    memory_attention_num_attention_heads: int = 1
    memory_attention_downsample_rate: int = 1
    memory_attention_feed_forward_hidden_size: int = 2048
    memory_attention_feed_forward_hidden_act: str = "relu"
    memory_attention_dropout: float = 0.1
    memory_attention_rope_feat_sizes: list[int] = field(default_factory=lambda: [64, 64])
    memory_attention_rope_dropout: float = 0.1
    rope_parameters: dict[str, Any] = field(
        default_factory=lambda: {"rope_theta": 10000.0, "rope_type": "axial"}
    )
    memory_encoder_hidden_size: int = 256
    memory_encoder_output_channels: int = 64
    mask_downsampler_embed_dim: int = 256
    mask_downsampler_kernel_size: int = 3
    mask_downsampler_stride: int = 2
    mask_downsampler_padding: int = 1
    mask_downsampler_total_stride: int = 16
    mask_downsampler_hidden_act: str = "gelu"
    memory_fuser_num_layers: int = 2
    memory_fuser_embed_dim: int = 256
    memory_fuser_intermediate_dim: int = 1024
    memory_fuser_kernel_size: int = 7
    memory_fuser_padding: int = 3
    memory_fuser_layer_scale_init_value: float = 1e-6
    memory_fuser_hidden_act: str = "gelu"

    def __post_init__(self) -> None:
        if self.num_maskmem < 1:
            raise ConfigurationError(f"num_maskmem: got {self.num_maskmem}; wanted 1 or more")
        cap = self.max_cond_frame_num
        if cap != -1 and cap < 1:
            raise ConfigurationError(
                f"max_cond_frame_num: got {cap}; wanted 1 or more, or -1 for all"
            )
        rows, columns = self.feature_size
        if list(self.memory_attention_rope_feat_sizes) != [columns, rows]:
            raise ConfigurationError(
                f"memory_attention_rope_feat_sizes: got {self.memory_attention_rope_feat_sizes}; "
                f"wanted {[columns, rows]}, the coarsest of backbone_feature_sizes"
            )
        if rows * self.prompt_encoder_config.patch_size != self.image_size:
            raise ConfigurationError(
                f"image_size: got {self.image_size} with {rows} rows of features; wanted "
                f"rows × patch_size = {rows * self.prompt_encoder_config.patch_size}"
            )

    @property
    def hidden_size(self) -> int:
        """Channels C of the coarsest image features."""
        return self.vision_config.fpn_hidden_size

    @property
    def feature_size(self) -> tuple[int, int]:
        """Rows and columns of the coarsest image features (64 × 64 at 1024 px)."""
        rows, columns = self.vision_config.backbone_feature_sizes[-1]
        return int(rows), int(columns)

    @property
    def mask_size(self) -> tuple[int, int]:
        """Rows and columns of the mask logits that the decoder returns."""
        rows, columns = self.feature_size
        return 4 * rows, 4 * columns

    def at_image_size(self, size: int) -> Self:
        """The same model for pictures of size × size pixels; weights of one fit the other.

        Raises ConfigurationError where size is no multiple of a coarsest feature's side.
        """
        side = self.prompt_encoder_config.patch_size
        if size < side or size % side:
            raise ConfigurationError(f"image_size: got {size}; wanted a multiple of {side}")
        rows = size // side
        strides = [self.image_size // row for row, _ in self.vision_config.backbone_feature_sizes]
        backbone = replace(self.vision_config.backbone_config, image_size=[size, size])
        features = [[size // stride] * 2 for stride in strides]
        return replace(
            self,
            image_size=size,
            prompt_encoder_config=replace(self.prompt_encoder_config, image_size=size),
            vision_config=replace(
                self.vision_config, backbone_config=backbone, backbone_feature_sizes=features
            ),
            memory_attention_rope_feat_sizes=[rows, rows],
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The configuration that a transformers `config.json` describes."""
        top = _known(cls, values)
        vision = dict(top.pop("vision_config", {}))
        backbone = _known(Sam2HieraDetConfig, dict(vision.get("backbone_config") or {}))
        for name in (
            "image_size",
            "patch_kernel_size",
            "patch_stride",
            "patch_padding",
            "query_stride",
        ):
            if isinstance(backbone.get(name), int):
                backbone[name] = [backbone[name]] * 2
        vision = _known(Sam2VisionConfig, vision)
        vision["backbone_config"] = Sam2HieraDetConfig(**backbone)
        prompt = _known(Sam2VideoPromptEncoderConfig, dict(top.pop("prompt_encoder_config", {})))
        decoder = _known(Sam2VideoMaskDecoderConfig, dict(top.pop("mask_decoder_config", {})))
        for part, name in ((prompt, "image_size"), (prompt, "patch_size"), (top, "image_size")):
            if name in part:
                part[name] = _square(name, part[name])
        if "memory_attention_rope_theta" in values:  # written by transformers before 5
            theta = float(values["memory_attention_rope_theta"])
            top.setdefault("rope_parameters", {"rope_theta": theta, "rope_type": "axial"})
        return cls(
            vision_config=Sam2VisionConfig(**vision),
            prompt_encoder_config=Sam2VideoPromptEncoderConfig(**prompt),
            mask_decoder_config=Sam2VideoMaskDecoderConfig(**decoder),
            **top,
        )

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary in the words of transformers' `config.json`."""
        return {"architectures": ["Sam2VideoModel"], **asdict(self)}

    @classmethod
    def from_json_file(cls, path: Path) -> Self:
        """Read `config.json`; raises ConfigurationError naming the file."""
        try:
            return cls.from_dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"{path}: not a model configuration: {error}") from error


@dataclass(frozen=True, slots=True)
class _Size:
    """What tells the four released sizes apart."""

    width: int
    heads: int
    blocks: tuple[int, int, int, int]
    windows: tuple[int, int, int, int]
    global_blocks: tuple[int, int, int]
    background: int


RELEASED_SIZES = {
    "tiny": _Size(96, 1, (1, 2, 7, 2), (8, 4, 14, 7), (5, 7, 9), 7),
    "small": _Size(96, 1, (1, 2, 11, 2), (8, 4, 14, 7), (7, 10, 13), 7),
    "base-plus": _Size(112, 2, (2, 3, 16, 3), (8, 4, 14, 7), (12, 16, 20), 14),
    "large": _Size(144, 2, (2, 6, 36, 4), (8, 4, 16, 8), (23, 33, 43), 7),
}


def released_config(size: str, version: str = "2.1") -> Sam2VideoConfig:
    """The configuration of a released model.

    size: one of RELEASED_SIZES; version: "2" or "2.1". SAM 2 has neither the temporal
    encoding of pointers nor the occlusion embedding.
    """
    if size not in RELEASED_SIZES or version not in ("2", "2.1"):
        raise ConfigurationError(
            f"size {size!r} version {version!r}; wanted one of {sorted(RELEASED_SIZES)} "
            "and version '2' or '2.1'"
        )
    spec = RELEASED_SIZES[size]
    widths = [spec.width * 2**stage for stage in range(4)]
    newer = version == "2.1"
    return Sam2VideoConfig(
        vision_config=Sam2VisionConfig(
            backbone_config=Sam2HieraDetConfig(
                hidden_size=spec.width,
                num_attention_heads=spec.heads,
                blocks_per_stage=list(spec.blocks),
                embed_dim_per_stage=widths,
                num_attention_heads_per_stage=[spec.heads * 2**stage for stage in range(4)],
                window_size_per_stage=list(spec.windows),
                global_attention_blocks=list(spec.global_blocks),
                window_positional_embedding_background_size=[spec.background] * 2,
            ),
            backbone_channel_list=widths[::-1],
        ),
        enable_occlusion_spatial_embedding=newer,
        enable_temporal_pos_encoding_for_object_pointers=newer,
    )
