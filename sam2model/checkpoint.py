"""Weights on disk or on the hub to a state dict in our names, and back. Knows no layers.

Our names are those of transformers' Sam2VideoModel; Meta's are mapped to them by rule.
Loading is strict: every missing and every unexpected key is listed.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sam2model.configuration import RELEASED_SIZES, Sam2VideoConfig, released_config

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
BUNDLED = {"demo": Path(__file__).parent / "assets" / "demo"}  # names that need no download
PICKLES = (".pt", ".pth", ".bin")


class CheckpointError(ValueError):
    """Weights that cannot be had or do not fit; the message says what, where, got, wanted."""


def locate(source: str | Path, *, revision: str | None, token: str | None) -> Path:
    """A local folder or weights file for a path, a bundled name or a hub id.

    Downloads what is not cached. A path that exists goes before a name of BUNDLED.
    """
    path = Path(source)
    if path.exists():
        return path
    if str(source) in BUNDLED:
        return BUNDLED[str(source)]
    if path.suffix in (".safetensors", *PICKLES) or str(source).startswith((".", "/", "~")):
        raise CheckpointError(f"{source}: no such file or folder")
    return _download(str(source), revision, token)


def _download(repo_id: str, revision: str | None, token: str | None) -> Path:
    from huggingface_hub import snapshot_download

    fix = (
        "check the id and the network, or download the folder elsewhere "
        f"(`hf download {repo_id}`) and give its path"
    )
    try:
        folder = snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            allow_patterns=["*.json", "*.safetensors"],
        )
    except Exception as error:  # its HTTP library's own errors too, whichever that is
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{repo_id}: no local path, and the Hugging Face hub did not give it: {reason}; {fix}"
        ) from error
    return Path(folder)


def read_checkpoint(
    path: Path, config: Sam2VideoConfig | None
) -> tuple[Sam2VideoConfig, dict[str, Tensor]]:
    """Configuration and weights of a folder, a `.safetensors` file or a Meta `.pt` file.

    config: needed for a file without a `config.json` beside it unless its shapes are those of
    a released size.
    """
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        index = path / (WEIGHTS_FILE + ".index.json")
        if index.exists():
            files = [path / name for name in sorted(set(_weight_map(index).values()))]
        if not files:
            raise CheckpointError(f"{path}: no .safetensors file; found {_listing(path)}")
        weights = {name: t for file in files for name, t in _read_safetensors(file).items()}
        config_path = path / CONFIG_FILE
    else:
        read = _read_pickle if path.suffix in PICKLES else _read_safetensors
        weights = read(path)
        config_path = path.parent / CONFIG_FILE
    if any(name.startswith("image_encoder.") for name in weights):
        weights = names_from_meta(weights)
    if config is None:
        has_config = config_path.exists() and (path.is_dir() or path.suffix == ".safetensors")
        config = (
            Sam2VideoConfig.from_json_file(config_path)
            if has_config
            else infer_config(weights, path)
        )
    return config, weights


def weights_sha256(path: Path) -> str:
    """The identity of the weights and their configuration, 64 hex digits, from the files' bytes."""
    names = (CONFIG_FILE, "*.safetensors", "*.safetensors.index.json")
    files = [path] if path.is_file() else sorted(f for name in names for f in path.glob(name))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() if path.is_dir() else b"")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def write_checkpoint(folder: Path, config: Sam2VideoConfig, weights: Mapping[str, Tensor]) -> None:
    """A folder that transformers' Sam2VideoModel.from_pretrained reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in weights.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n")


def check_keys(where: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless names and shapes agree exactly."""
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    shapes = sorted(
        f"{name}: got {tuple(found[name].shape)}, wanted {tuple(expected[name].shape)}"
        for name in expected.keys() & found.keys()
        if expected[name].shape != found[name].shape
    )
    if missing or unexpected or shapes:
        raise CheckpointError(
            f"{where}: the weights do not fit the configuration; "
            f"missing keys ({len(missing)}): {missing}; "
            f"unexpected keys ({len(unexpected)}): {unexpected}; "
            f"other shapes ({len(shapes)}): {shapes}"
        )


def _weight_map(index: Path) -> dict[str, str]:
    try:
        return dict(json.loads(index.read_text())["weight_map"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{index}: not an index of weight files: {error!r}") from error


def _listing(folder: Path) -> str:
    return ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from error
    return weights


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """A `.pt` file that holds tensors and nothing that could run."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what unpickling makes of other bytes has no common class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: not a file of plain tensors, refused: {reason}") from error
    weights = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        raise CheckpointError(f"{path}: wanted a dictionary of tensors, maybe under 'model'")
    return weights


# Patterns in order, each applied to what the ones before it left.
_META_RULES: list[tuple[str, str]] = [
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d+)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"^memory_attention\.norm\.", "memory_attention.layer_norm."),
    # memory encoder; its own out_proj is a convolution, not an attention's output
    (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
    (r"^memory_encoder\.pix_feat_proj\.", "memory_encoder.feature_projection."),
    (r"mask_downsampler\.encoder\.12\.", "mask_downsampler.final_conv."),
    (r"\.fuser\.", ".memory_fuser."),
    (r"(memory_fuser\.layers\.\d+)\.dwconv\.", r"\1.depthwise_conv."),
    (r"(memory_fuser\.layers\.\d+)\.norm\.", r"\1.layer_norm."),
    (r"(memory_fuser\.layers\.\d+)\.pwconv(\d)\.", r"\1.pointwise_conv\2."),
    (r"(memory_fuser\.layers\.\d+)\.gamma$", r"\1.scale"),
    (r"\.out_proj\.", ".o_proj."),
    # prompt encoder
    (r"pe_layer\.positional_encoding_gaussian_matrix$", "shared_embedding.positional_embedding"),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    # mask decoder
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    # perceptrons: two layers in blocks, three in heads
    (r"\.mlp\.layers\.0\.", ".mlp.proj_in."),
    (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
    (
        r"(output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head|obj_ptr_proj)"
        r"\.layers\.0\.",
        r"\1.proj_in.",
    ),
    (
        r"(output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head|obj_ptr_proj)"
        r"\.layers\.2\.",
        r"\1.proj_out.",
    ),
    (
        r"(output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head|obj_ptr_proj)"
        r"\.layers\.1\.",
        r"\1.layers.0.",
    ),
    # the model's own parameters
    (r"^obj_ptr_proj\.", "object_pointer_proj."),
    (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
    (r"^no_obj_ptr$", "no_object_pointer"),
    (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
    (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
]


def names_from_meta(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Meta's parameter names to ours; four point embeddings become one table."""
    ours: dict[str, Tensor] = {}
    points: dict[int, Tensor] = {}
    for name, tensor in weights.items():
        point = re.fullmatch(r"sam_prompt_encoder\.point_embeddings\.(\d+)\.weight", name)
        if point:
            points[int(point.group(1))] = tensor
            continue
        downsampler = re.fullmatch(
            r"memory_encoder\.mask_downsampler\.encoder\.(\d+)\.(weight|bias)", name
        )
        if downsampler and int(downsampler.group(1)) < 12:
            position = int(downsampler.group(1))  # convolution, norm, activation, and again
            part = "conv" if position % 3 == 0 else "layer_norm"
            layer = f"memory_encoder.mask_downsampler.layers.{position // 3}.{part}"
            ours[f"{layer}.{downsampler.group(2)}"] = tensor
            continue
        for pattern, replacement in _META_RULES:
            name = re.sub(pattern, replacement, name)
        ours[name] = tensor
    if points:
        ours["prompt_encoder.point_embed.weight"] = torch.cat([points[i] for i in sorted(points)])
    matrix = ours.get("prompt_encoder.shared_embedding.positional_embedding")
    if matrix is not None:
        ours["shared_image_embedding.positional_embedding"] = matrix
    return ours


def infer_config(weights: Mapping[str, Tensor], path: Path) -> Sam2VideoConfig:
    """The released configuration whose backbone has these shapes."""
    prefix = "vision_encoder.backbone."
    blocks = {int(m.group(1)) for n in weights if (m := re.match(prefix + r"blocks\.(\d+)\.", n))}
    width = weights.get(prefix + "pos_embed", torch.empty(1, 0)).shape[1]
    version = "2.1" if "occlusion_spatial_embedding_parameter" in weights else "2"
    for name, size in RELEASED_SIZES.items():
        if size.width == width and sum(size.blocks) == len(blocks):
            return released_config(name, version)
    raise CheckpointError(
        f"{path}: {len(blocks)} blocks of width {width} are no released size, and there is no "
        f"{CONFIG_FILE} beside it; give config="
    )
