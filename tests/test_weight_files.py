"""Weights go to and fro between ours, transformers and Meta's files, strictly, running no code.

Meta's names are made here from ours by rules written for this test alone.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from reference import hf_side, small_hf_model, synthetic_frames
from safetensors.torch import load_file, save_file
from scenarios import TWO_CLICKED, our_model, our_side
from script import Add, Propagate, Run, largest_error
from torch import Tensor
from transformers.models.sam2_video.configuration_sam2_video import Sam2VideoConfig
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoModel

import sam2model
from sam2model.checkpoint import read_checkpoint

SCRIPT = [TWO_CLICKED, Run(0), Add(0, [3], boxes=[(20, 10, 60, 50)]), Run(0), Propagate()]
FRAMES = synthetic_frames(4)
ROUNDING = 1e-5  # kernels add up in another order where the same weights lie otherwise in memory
# Millions of parameters of the released models, as their authors count them.
RELEASED = {"tiny": 39.0, "small": 46.1, "base-plus": 80.9, "large": 224.4}


@pytest.fixture
def model() -> sam2model.Sam2VideoModel:
    return our_model(small_hf_model())


def assert_same_masks(a: sam2model.Sam2VideoModel, b: sam2model.Sam2VideoModel) -> None:
    """The two models have the same weights and say the same of one video."""
    assert_same_weights(a, b)
    said = [our_side(m.requires_grad_(False), FRAMES).play(SCRIPT) for m in (a, b)]
    assert largest_error(*said) < ROUNDING


def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_folder_that_we_save_loads_in_transformers_with_the_same_logits(
    tmp_path: Path, model: sam2model.Sam2VideoModel
) -> None:
    model.save_pretrained(tmp_path)

    loaded, info = Sam2VideoModel.from_pretrained(tmp_path, output_loading_info=True)

    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    saved = small_hf_model()
    assert_same_weights(loaded, saved)
    before = hf_side(saved, FRAMES).play(SCRIPT)
    assert largest_error(hf_side(loaded.eval(), FRAMES).play(SCRIPT), before) < ROUNDING


@pytest.mark.parametrize("shard_size", ["5GB", "1MB"])
def test_a_folder_that_transformers_saves_loads_in_ours_whole_or_in_shards(
    tmp_path: Path, model: sam2model.Sam2VideoModel, shard_size: str
) -> None:
    small_hf_model().save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "1MB")

    loaded = sam2model.Sam2VideoModel.from_pretrained(tmp_path)

    assert loaded.config == model.config
    assert_same_masks(loaded, model)


def test_a_safetensors_file_loads_by_its_own_path(
    tmp_path: Path, model: sam2model.Sam2VideoModel
) -> None:
    model.save_pretrained(tmp_path)

    assert_same_masks(
        sam2model.Sam2VideoModel.from_pretrained(tmp_path / "model.safetensors"), model
    )


# From ours to Meta's, the special cases first; every rule is applied once, in order.
HEADS = r"(output_hypernetworks_mlps\.\d|iou_prediction_head|pred_obj_score_head|obj_ptr_proj)"
TO_META = [
    (r"^object_pointer_proj", "obj_ptr_proj"),
    (HEADS + r"\.layers\.0\.", r"\1.layers.1."),
    (HEADS + r"\.proj_in\.", r"\1.layers.0."),
    (HEADS + r"\.proj_out\.", r"\1.layers.2."),
    (r"\.mlp\.proj_in\.", ".mlp.layers.0."),
    (r"\.mlp\.proj_out\.", ".mlp.layers.1."),
    (r"\.o_proj\.", ".out_proj."),
    (r"^memory_encoder\.projection\.", "memory_encoder.out_proj."),
    (r"feature_projection", "pix_feat_proj"),
    (r"memory_fuser\.layers\.(\d)\.layer_norm\.", r"fuser.layers.\1.norm."),
    (r"memory_fuser", "fuser"),
    (r"depthwise_conv", "dwconv"),
    (r"pointwise_conv", "pwconv"),
    (r"(fuser\.layers\.\d)\.scale", r"\1.gamma"),
    (r"mask_downsampler\.final_conv", "mask_downsampler.encoder.12"),
    (r"mask_embed\.conv1", "mask_downscaling.0"),
    (r"mask_embed\.layer_norm1", "mask_downscaling.1"),
    (r"mask_embed\.conv2", "mask_downscaling.3"),
    (r"mask_embed\.layer_norm2", "mask_downscaling.4"),
    (r"mask_embed\.conv3", "mask_downscaling.6"),
    (r"upscale_conv1", "output_upscaling.0"),
    (r"upscale_layer_norm", "output_upscaling.1"),
    (r"upscale_conv2", "output_upscaling.3"),
    (r"layer_norm_final_attn", "norm_final_attn"),
    (r"^memory_attention\.layer_norm\.", "memory_attention.norm."),
    (r"layer_norm(\d)", r"norm\1"),
    (r"^vision_encoder\.backbone", "image_encoder.trunk"),
    (r"patch_embed\.projection", "patch_embed.proj"),
    (r"^vision_encoder\.neck\.convs\.(\d)", r"image_encoder.neck.convs.\1.conv"),
    (r"shared_embedding\.positional_embedding", "pe_layer.positional_encoding_gaussian_matrix"),
    (r"^prompt_encoder", "sam_prompt_encoder"),
    (r"^mask_decoder", "sam_mask_decoder"),
    (r"^temporal_positional_encoding_projection_layer", "obj_ptr_tpos_proj"),
    (r"^no_object_pointer", "no_obj_ptr"),
    (r"^occlusion_spatial_embedding_parameter", "no_obj_embed_spatial"),
    (r"^memory_temporal_positional_encoding", "maskmem_tpos_enc"),
    (r"^no_memory_embedding", "no_mem_embed"),
    (r"^no_memory_positional_encoding", "no_mem_pos_enc"),
]


def meta_weights(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names of Meta's checkpoints."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        if name == "shared_image_embedding.positional_embedding":
            continue  # Meta has this matrix once
        if name == "prompt_encoder.point_embed.weight":
            for kind, row in enumerate(tensor):
                theirs[f"sam_prompt_encoder.point_embeddings.{kind}.weight"] = row[None]
            continue
        layer = re.fullmatch(
            r"(memory_encoder\.mask_downsampler)\.layers\.(\d)\.(conv|layer_norm)\.(\w+)", name
        )
        if layer:
            start, index, part, kind_of = layer.groups()
            theirs[f"{start}.encoder.{3 * int(index) + (part == 'layer_norm')}.{kind_of}"] = tensor
            continue
        for pattern, replacement in TO_META:
            name = re.sub(pattern, replacement, name)
        theirs[name] = tensor
    return theirs


def test_a_meta_checkpoint_gives_the_same_masks(
    tmp_path: Path, model: sam2model.Sam2VideoModel
) -> None:
    path = tmp_path / "sam2.1_small_test.pt"
    torch.save({"model": meta_weights(model.state_dict())}, path)

    loaded = sam2model.Sam2VideoModel.from_pretrained(path, config=model.config)

    assert_same_masks(loaded, model)


def empty_released(size: str, version: str) -> dict[str, Tensor]:
    """Names and shapes of a released model, its values all zero and taking no room."""
    config = sam2model.released_config(size, version)
    with torch.device("meta"):
        shapes = sam2model.Sam2VideoModel(config).state_dict()
    return {name: torch.zeros(1).expand(t.shape) for name, t in shapes.items()}


@pytest.mark.parametrize("version", ["2", "2.1"])
@pytest.mark.parametrize("size", RELEASED)
def test_a_released_meta_checkpoint_needs_no_configuration(
    tmp_path: Path, size: str, version: str
) -> None:
    path = tmp_path / "checkpoint.pt"
    weights = empty_released(size, version)
    torch.save({"model": meta_weights(weights)}, path)

    config, read = read_checkpoint(path, None)

    assert config == sam2model.released_config(size, version)
    assert {n: t.shape for n, t in read.items()} == {n: t.shape for n, t in weights.items()}


@pytest.mark.parametrize("size", RELEASED)
def test_a_released_size_has_transformers_names_and_its_authors_parameter_count(size: str) -> None:
    ours = empty_released(size, "2.1")
    with torch.device("meta"):
        config = Sam2VideoConfig(**sam2model.released_config(size).to_dict())
        theirs = Sam2VideoModel(config).state_dict()

    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    matrices = ("positional_embedding",)
    count = sum(t.numel() for n, t in ours.items() if not n.endswith(matrices))
    assert count / 1e6 == pytest.approx(RELEASED[size], abs=0.06)
    if size == "tiny":
        assert (len(ours), len(meta_weights(ours))) == (469, 471)


def test_a_small_meta_checkpoint_without_a_configuration_is_refused_with_its_shape(
    tmp_path: Path, model: sam2model.Sam2VideoModel
) -> None:
    path = tmp_path / "odd.pt"
    torch.save({"model": meta_weights(model.state_dict())}, path)

    with pytest.raises(sam2model.CheckpointError, match=r"odd\.pt.*8 blocks of width 16.*config="):
        sam2model.Sam2VideoModel.from_pretrained(path)


class _Touch:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["torch.save", "pickle.dump"])
def test_a_checkpoint_with_code_in_it_is_refused_and_nothing_runs(
    tmp_path: Path, model: sam2model.Sam2VideoModel, how: str
) -> None:
    path, ran = tmp_path / "evil.pt", tmp_path / "ran"
    content = {"model": {**meta_weights(model.state_dict()), "extra": _Touch(ran)}}
    if how == "torch.save":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))

    with pytest.raises(sam2model.CheckpointError, match=r"evil\.pt.*refused"):
        sam2model.Sam2VideoModel.from_pretrained(path, config=model.config)

    assert not ran.exists()


def test_missing_unexpected_and_misshapen_weights_are_all_named(
    tmp_path: Path, model: sam2model.Sam2VideoModel
) -> None:
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["no_object_pointer"], weights["mask_decoder.conv_s0.bias"]
    weights["a_stranger"] = torch.zeros(3)
    weights["no_memory_embedding"] = torch.zeros(2, 2)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(sam2model.CheckpointError) as caught:
        sam2model.Sam2VideoModel.from_pretrained(tmp_path)

    message = str(caught.value)
    assert str(tmp_path) in message
    missing, rest = message.split("unexpected keys")
    assert "mask_decoder.conv_s0.bias" in missing and "no_object_pointer" in missing
    unexpected, shapes = rest.split("other shapes")
    assert "a_stranger" in unexpected and "no_memory_embedding: got (2, 2)" in shapes


@pytest.mark.parametrize("name", ["nowhere", "weights.safetensors", "weights.pt"])
def test_a_path_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(sam2model.CheckpointError, match=name):
        sam2model.Sam2VideoModel.from_pretrained(tmp_path / name)


def test_a_file_that_is_not_a_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.safetensors"
    path.write_text("not weights")

    with pytest.raises(sam2model.CheckpointError, match=r"notes\.safetensors"):
        sam2model.Sam2VideoModel.from_pretrained(path, config=sam2model.Sam2VideoConfig())
