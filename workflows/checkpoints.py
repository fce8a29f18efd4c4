"""A checkpoint on the disk of this machine, wherever it is kept, and its identity.

Knows nothing of layers. What lies in an object store is fetched once a machine, whoever of its
processes comes first, and is known there by its hash: a checkpoint replaced under the same name is
another one.
"""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sam2model.checkpoint import CheckpointError, locate, weights_sha256
from workflows.storage import NotFound, Storage
from workflows.uris import is_local, join_uri, local_path

FILES = (".json", ".safetensors", ".pt")
SINGLE_FILES = (".safetensors", ".pt")
PIECE_BYTES = 32 * 2**20  # of a download; each is retried alone


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder or file that `from_pretrained` reads, and the hash of what is in it."""

    path: Path
    sha256: str


def local_checkpoint(name: str, storage: Storage, sha256: str | None = None) -> Checkpoint:
    """A checkpoint named by hub id, path or URI, on this machine's disk.

    sha256: the one wanted, where it is known. Raises CheckpointError if this is another, or
    there is none.
    """
    if is_local(name):
        source = str(local_path(name)) if "://" in name else name
        return _checked(name, locate(source, revision=None, token=None), sha256)
    cache = Path(storage.config.spool_folder or tempfile.gettempdir(), "maskmill-weights")
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock"):
        if sha256 is None or not (cache / sha256).exists():
            sha256 = _fetch(name, storage, cache, sha256)
        return _checked(name, _entry(cache / sha256, name), sha256)


def _checked(name: str, path: Path, sha256: str | None) -> Checkpoint:
    found = weights_sha256(path)
    if sha256 not in (None, found):
        raise CheckpointError(f"{name}: its hash on this machine is {found}; wanted {sha256}")
    return Checkpoint(path, found)


def _fetch(name: str, storage: Storage, cache: Path, sha256: str | None) -> str:
    """Download to the cache; the hash of what came."""
    with tempfile.TemporaryDirectory(dir=cache, prefix=".incoming-") as incoming:
        folder = Path(incoming, "checkpoint")
        folder.mkdir()
        for uri in _files(name, storage):
            _download(uri, storage, folder / uri.rpartition("/")[2])
        found = _checked(name, _entry(folder, name), sha256).sha256
        if not (cache / found).exists():
            os.replace(folder, cache / found)
        return found


def _download(uri: str, storage: Storage, path: Path) -> None:
    size_bytes = storage.size(uri)
    with path.open("wb") as file:
        for start in range(0, size_bytes, PIECE_BYTES):
            file.write(storage.read_range(uri, start, min(start + PIECE_BYTES, size_bytes)))


def _files(name: str, storage: Storage) -> Iterator[str]:
    """The URIs that make up a checkpoint. Raises CheckpointError where there are none."""
    if name.endswith(SINGLE_FILES):
        yield name
        beside = join_uri(name.rpartition("/")[0], "config.json")
        if storage.exists(beside):
            yield beside
        return
    try:
        found = [o.uri for o in storage.list(name) if o.uri.endswith(FILES)]
    except NotFound:
        found = []
    if not any(uri.endswith(SINGLE_FILES) for uri in found):
        raise CheckpointError(f"{name}: no .safetensors file there; found {found or 'nothing'}")
    yield from found


def _entry(folder: Path, name: str) -> Path:
    """The folder, or the file in it where the name is a file's."""
    return folder / name.rpartition("/")[2] if name.endswith(SINGLE_FILES) else folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process of this machine at a time; a process that dies lets go."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
