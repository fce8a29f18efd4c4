"""A file too large for memory, written locally and then put at its URI. Knows not what is in it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pyarrow as pa

from workflows.retry import one_line
from workflows.storage import Storage, Unreadable
from workflows.uris import is_local, local_path

UPLOAD_BYTES = 8 * 2**20


@contextmanager
def write_at(storage: Storage, uri: str) -> Iterator[Path]:
    """A path of the URI's own name to write; what is there when the block ends is put at the URI.

    A reader sees all of it or nothing. Raises Unreadable, naming the URI, where nothing can be
    stored.
    """
    name = uri.rpartition("/")[2]
    with _folder(uri) as folder:
        path = Path(folder, name)
        yield path
        try:
            if is_local(uri):
                os.replace(path, local_path(uri))
            else:
                _upload(storage, uri, path)
        except (OSError, pa.ArrowException) as e:
            raise Unreadable(f"{uri}: {one_line(e)}") from e


@contextmanager
def write_large(storage: Storage, uri: str) -> Iterator[IO[bytes]]:
    """As `write_at`, for what is written piece by piece."""
    with write_at(storage, uri) as path, path.open("wb") as sink:
        yield sink


@contextmanager
def _folder(uri: str) -> Iterator[str]:
    """Beside the file where that is on disk: elsewhere there may be no room for it."""
    parent = local_path(uri).parent if is_local(uri) else None
    try:
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=parent, prefix=".unfinished-")
    except OSError as e:
        raise Unreadable(f"{uri}: {one_line(e)}") from e
    with folder as name:
        yield name


def _upload(storage: Storage, uri: str, path: Path) -> None:
    folder, _, name = uri.rpartition("/")
    filesystem = storage.arrow_filesystem(folder)

    def attempt(_: float) -> None:
        unfinished = f".{name}.unfinished"
        with path.open("rb") as source, filesystem.open_output_stream(unfinished) as sink:
            while piece := source.read(UPLOAD_BYTES):
                sink.write(piece)
        filesystem.move(unfinished, name)

    storage.retry.call(uri, attempt)
