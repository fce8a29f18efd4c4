"""What is said when weights cannot be had, and how a configuration is found for those that can.

That weights survive the way to transformers, to Meta's names and back is in test_weight_files.py.
"""

import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_network import small_config, small_network

from sam2model import (
    CheckpointError,
    ConfigurationError,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VideoProcessor,
    released_config,
)
from sam2model.checkpoint import weights_sha256
from sam2model.configuration import RELEASED_SIZES

HUB_ID = "facebook/sam2.1-hiera-tiny"


@pytest.fixture(scope="module")
def model() -> Sam2VideoModel:
    built: Sam2VideoModel = small_network(3, Sam2VideoModel)
    return built


@pytest.fixture
def folder(tmp_path: Path, model: Sam2VideoModel) -> Path:
    model.save_pretrained(tmp_path)
    return tmp_path


def assert_same_weights(loaded: Sam2VideoModel, wanted: Sam2VideoModel) -> None:
    weights = wanted.state_dict()
    assert loaded.config == wanted.config
    assert all(torch.equal(t, weights[n]) for n, t in loaded.state_dict().items())
    assert not loaded.training


# The hub.


@pytest.mark.parametrize("kind", [Sam2VideoModel, Sam2VideoProcessor])
def test_without_a_network_the_error_names_the_id_and_the_fix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: Any
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(CheckpointError) as caught:
        kind.from_pretrained(HUB_ID)

    message = str(caught.value)
    assert message.startswith(f"{HUB_ID}: no local path, and the Hugging Face hub did not give it")
    assert "HF_HUB_OFFLINE" in message
    assert f"`hf download {HUB_ID}`" in message and "give its path" in message
    assert "\n" not in message


class _HttpError(Exception):
    """As the hub's HTTP library raises in mid-download: of no class that the hub names."""


@pytest.mark.parametrize("error", [_HttpError("the line broke"), OSError("disk full"), KeyError()])
def test_whatever_the_hub_raises_becomes_one_line_with_the_id(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)

    with pytest.raises(CheckpointError, match=rf"^{HUB_ID}: .*hf download {HUB_ID}") as caught:
        Sam2VideoModel.from_pretrained(HUB_ID)

    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)


def test_a_hub_id_is_loaded_from_the_folder_that_the_hub_gives(
    monkeypatch: pytest.MonkeyPatch, folder: Path, model: Sam2VideoModel
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def give(repo_id: str, **options: Any) -> str:
        asked.append((repo_id, options))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", give)

    loaded = Sam2VideoModel.from_pretrained(HUB_ID, revision="v2", token="secret")

    assert_same_weights(loaded, model)
    ((repo_id, options),) = asked
    assert repo_id == HUB_ID and (options["revision"], options["token"]) == ("v2", "secret")
    # Nothing that could run, and no second copy of the weights in another format.
    assert options["allow_patterns"] == ["*.json", "*.safetensors"]


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.safetensors", "./w", "/no/where"])
def test_what_can_only_be_a_path_is_not_asked_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    def asked(*_: Any, **__: Any) -> str:
        raise AssertionError("asked the hub")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)

    with pytest.raises(CheckpointError, match=f"^{name}: no such file or folder"):
        Sam2VideoModel.from_pretrained(name)


# Folders and files.


def test_a_folder_without_weights_is_refused_with_what_is_in_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no \.safetensors file; found nothing"):
        Sam2VideoModel.from_pretrained(tmp_path)

    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"found pytorch_model\.bin"):
        Sam2VideoModel.from_pretrained(tmp_path)


def test_a_lone_safetensors_file_needs_a_configuration(
    tmp_path: Path, folder: Path, model: Sam2VideoModel
) -> None:
    alone = tmp_path / "alone" / "weights.safetensors"
    alone.parent.mkdir()
    (folder / "model.safetensors").rename(alone)

    with pytest.raises(CheckpointError, match=r"5 blocks of width 8 are no released size.*config="):
        Sam2VideoModel.from_pretrained(alone)

    assert_same_weights(Sam2VideoModel.from_pretrained(alone, config=model.config), model)


def test_a_configuration_that_is_given_goes_before_the_one_in_the_folder(folder: Path) -> None:
    config = small_config(max_cond_frame_num=4)

    assert Sam2VideoModel.from_pretrained(folder, config=config).config == config


@pytest.mark.parametrize("content", ["{", "[]", '{"image_size": "large"}', '{"num_maskmem": 0}'])
def test_a_configuration_that_cannot_be_built_is_refused_by_name(
    folder: Path, content: str
) -> None:
    (folder / "config.json").write_text(content)

    with pytest.raises(ConfigurationError, match="config.json|num_maskmem"):
        Sam2VideoModel.from_pretrained(folder)


def shard(folder: Path) -> dict[str, str]:
    """Cut the weights of a folder into two files with an index; gives the index's map."""
    whole = folder / "model.safetensors"
    weights = load_file(whole)
    whole.unlink()
    names = sorted(weights)
    places = {n: f"model-{1 + i % 2:05}-of-00002.safetensors" for i, n in enumerate(names)}
    for file in sorted(set(places.values())):
        part = {n: weights[n] for n in names if places[n] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return places


def test_shards_are_read_by_their_index_and_strangers_beside_them_are_not(
    folder: Path, model: Sam2VideoModel
) -> None:
    shard(folder)
    save_file({"a_stranger": torch.zeros(1)}, folder / "optimizer.safetensors")

    assert_same_weights(Sam2VideoModel.from_pretrained(folder), model)


def test_a_missing_shard_is_named(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()

    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors"):
        Sam2VideoModel.from_pretrained(folder)


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": 3}', "[]"])
def test_a_broken_index_is_named(folder: Path, content: str) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(content)

    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        Sam2VideoModel.from_pretrained(folder)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("content", [b"", b"0", b"\x80", b"PK\x03\x04", b"x" * 100, bytes(64)])
def test_whatever_is_in_a_file_that_is_no_checkpoint_it_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match=name):
        Sam2VideoModel.from_pretrained(path, config=small_config())


@pytest.mark.parametrize("content", [[1, 2], {"model": [1]}, {"model": {"a": 1}}, {"epoch": 3}])
def test_a_file_of_other_things_than_weights_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "w.pt"
    torch.save(content, path)

    with pytest.raises(CheckpointError, match=r"w\.pt: wanted a dictionary of tensors"):
        Sam2VideoModel.from_pretrained(path, config=small_config())


def test_weights_are_read_in_the_dtype_that_is_asked_for(folder: Path) -> None:
    loaded = Sam2VideoModel.from_pretrained(folder, dtype=torch.bfloat16)

    assert loaded.dtype == torch.bfloat16
    assert loaded.shared_image_embedding.positional_embedding.dtype == torch.float32


def test_a_model_saved_in_bf16_and_loaded_is_the_same(tmp_path: Path) -> None:
    half: Sam2VideoModel = small_network(3, Sam2VideoModel).to(torch.bfloat16)
    half.save_pretrained(tmp_path)

    loaded = Sam2VideoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)

    assert_same_weights(loaded, half)


def test_semantics_and_a_cap_on_prompted_frames_are_chosen_on_loading(folder: Path) -> None:
    loaded = Sam2VideoModel.from_pretrained(
        folder, semantics="labelling", max_conditioning_frames=5
    )

    assert loaded.semantics.name == "labelling" and loaded.config.max_cond_frame_num == 5
    assert Sam2VideoModel.from_pretrained(folder).semantics.name == "reference"
    with pytest.raises(ValueError, match="semantics 'labeling'; wanted 'reference' or 'labelling'"):
        Sam2VideoModel.from_pretrained(folder, semantics="labeling")


# Released sizes.


@pytest.mark.parametrize("version", ["2", "2.1"])
@pytest.mark.parametrize("size", RELEASED_SIZES)
def test_the_configuration_of_a_released_size_survives_its_file(
    tmp_path: Path, size: str, version: str
) -> None:
    config = released_config(size, version)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))

    assert Sam2VideoConfig.from_json_file(tmp_path / "config.json") == config


@pytest.mark.parametrize("size", RELEASED_SIZES)
def test_a_model_for_larger_pictures_has_more_features_and_the_same_weights(size: str) -> None:
    config = released_config(size)
    larger = config.at_image_size(1536)

    assert larger.vision_config.backbone_feature_sizes == [[384, 384], [192, 192], [96, 96]]
    assert larger.mask_size == (384, 384) and larger.feature_size == (96, 96)
    assert larger.at_image_size(1024) == config
    with pytest.raises(ConfigurationError, match="image_size: got 1000; wanted a multiple of 16"):
        config.at_image_size(1000)


def test_a_size_that_was_never_released_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigurationError, match=r"'huge'.*base-plus.*tiny"):
        released_config("huge")
    with pytest.raises(ConfigurationError, match=r"version '3'; wanted"):
        released_config("tiny", "3")


# The identity of weights.


def test_the_identity_of_weights_follows_their_bytes_and_not_their_place(
    tmp_path: Path, folder: Path
) -> None:
    identity = weights_sha256(folder)
    moved = tmp_path.parent / (tmp_path.name + " moved")
    folder.rename(moved)
    (moved / "README.md").write_text("not a weight")
    Sam2VideoProcessor().save_pretrained(tmp_path / "elsewhere")
    assert weights_sha256(moved) == identity and len(identity) == 64

    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "num_maskmem": 6}))
    assert weights_sha256(moved) != identity
    (moved / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    assert weights_sha256(moved) == identity

    weights = load_file(moved / "model.safetensors")
    weights["no_object_pointer"][0, 0] += 1e-6
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    assert weights_sha256(moved) != identity
