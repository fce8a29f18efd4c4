"""Weights kept elsewhere come to a machine once, whoever of its processes asks for them."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from checkpoints import small_checkpoint

from sam2model.checkpoint import CheckpointError, weights_sha256
from workflows.checkpoints import local_checkpoint
from workflows.storage import Storage

if TYPE_CHECKING:
    from object_store import ObjectStore

pytest_plugins = ["object_store"]

URI = "s3://maskmill-test/models/small"
PROCESS = """
import json, sys
from workflows.checkpoints import local_checkpoint
from workflows.storage import Storage, StorageConfig
config, name, sha256 = json.loads(sys.argv[1])
print(local_checkpoint(name, Storage(StorageConfig(**config)), sha256).path)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_checkpoint(tmp_path / "checkpoint")


def upload(folder: Path, storage: Storage, uri: str = URI) -> None:
    for path in folder.iterdir():
        storage.put(f"{uri}/{path.name}", path.read_bytes())


def on_this_machine(store: ObjectStore, cache: Path) -> Storage:
    cache.mkdir(exist_ok=True)
    return Storage(replace(store.config, spool_folder=str(cache)))


def downloads(store: ObjectStore) -> Counter[str]:
    gets = (request.split() for request in store.requests)
    return Counter(path.rpartition("/")[2] for method, path in gets if method == "GET")


def test_a_local_checkpoint_stays_where_it_is(folder: Path) -> None:
    found = local_checkpoint(str(folder), Storage())
    assert (found.path, found.sha256) == (folder, weights_sha256(folder))
    assert local_checkpoint(folder.as_uri(), Storage()) == found


def test_other_weights_than_those_wanted_are_refused(folder: Path, tmp_path: Path) -> None:
    other = weights_sha256(small_checkpoint(tmp_path / "other", seed=1))
    with pytest.raises(CheckpointError, match=f"wanted {other}"):
        local_checkpoint(str(folder), Storage(), other)


@pytest.mark.cluster
def test_many_processes_of_a_machine_download_once(
    object_store: ObjectStore, folder: Path, tmp_path: Path
) -> None:
    import dataclasses
    import json

    upload(folder, object_store.storage)
    storage = on_this_machine(object_store, tmp_path / "machine")
    sha256 = weights_sha256(folder)
    object_store.behave()
    words = json.dumps([dataclasses.asdict(storage.config), URI, sha256])
    started = [
        subprocess.Popen([sys.executable, "-c", PROCESS, words], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    paths = {process.communicate()[0].strip() for process in started}
    assert len(paths) == 1
    assert weights_sha256(Path(paths.pop())) == sha256
    assert downloads(object_store)["model.safetensors"] == 1
    # Another machine has nothing yet.
    local_checkpoint(URI, on_this_machine(object_store, tmp_path / "another"), sha256)
    assert downloads(object_store)["model.safetensors"] == 2


@pytest.mark.cluster
def test_a_checkpoint_replaced_under_its_name_is_another_one(
    object_store: ObjectStore, folder: Path, tmp_path: Path
) -> None:
    storage = on_this_machine(object_store, tmp_path / "machine")
    upload(folder, object_store.storage)
    first = local_checkpoint(URI, storage)
    upload(small_checkpoint(tmp_path / "other", seed=1), object_store.storage)
    second = local_checkpoint(URI, storage)
    assert first.sha256 != second.sha256
    assert first.path != second.path and first.path.exists()
    # Whoever wants the first gets it as long as it is on this machine, and no other for it.
    assert local_checkpoint(URI, storage, first.sha256) == first
    with pytest.raises(CheckpointError, match=f"wanted {first.sha256}"):
        local_checkpoint(URI, on_this_machine(object_store, tmp_path / "another"), first.sha256)


@pytest.mark.cluster
def test_a_download_cut_short_leaves_nothing_that_looks_whole(
    object_store: ObjectStore, folder: Path, tmp_path: Path
) -> None:
    upload(folder, object_store.storage)
    storage = on_this_machine(object_store, tmp_path / "machine")
    object_store.storage.put(f"{URI}/model.safetensors", b"half")
    with pytest.raises(CheckpointError):
        local_checkpoint(URI, storage, weights_sha256(folder))
    kept = [p for p in (tmp_path / "machine/maskmill-weights").iterdir() if p.suffix != ".lock"]
    assert not kept


@pytest.mark.cluster
def test_a_place_without_weights_is_named(object_store: ObjectStore, tmp_path: Path) -> None:
    storage = on_this_machine(object_store, tmp_path / "machine")
    with pytest.raises(CheckpointError, match="no .safetensors file there; found nothing"):
        local_checkpoint("s3://maskmill-test/nothing", storage)
