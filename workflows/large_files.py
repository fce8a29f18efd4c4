"""A file too large for memory, written to a URI piece by piece. Knows nothing of what is in it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pyarrow as pa

from workflows.retry import one_line
from workflows.storage import Storage, Unreadable
from workflows.uris import is_local, local_path

UPLOAD_BYTES = 8 * 2**20


@contextmanager
def write_large(storage: Storage, uri: str) -> Iterator[IO[bytes]]:
    """Appears when the block ends without an error; a reader sees all of it or nothing.

    Raises Unreadable, naming the URI, where nothing can be stored.
    """
    with _spool(uri) as spool:
        yield spool
        spool.flush()
        _upload(storage, uri, spool.name)


@contextmanager
def _spool(uri: str) -> Iterator[IO[bytes]]:
    """Beside the file where that is on disk: elsewhere there may be no room for it."""
    folder = local_path(uri).parent if is_local(uri) else None
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        spool = tempfile.NamedTemporaryFile("wb", dir=folder, prefix=".")
    except OSError as e:
        raise Unreadable(f"{uri}: {one_line(e)}") from e
    with spool:
        yield spool


def _upload(storage: Storage, uri: str, spool: str) -> None:
    folder, _, name = uri.rpartition("/")
    filesystem = storage.arrow_filesystem(folder or ".")

    def attempt(_: float) -> None:
        unfinished = f".{name}.unfinished"
        with open(spool, "rb") as source, filesystem.open_output_stream(unfinished) as sink:
            while piece := source.read(UPLOAD_BYTES):
                sink.write(piece)
        filesystem.move(unfinished, name)

    try:
        storage.retry.call(uri, attempt)
    except (OSError, pa.ArrowException) as e:
        raise Unreadable(f"{uri}: {one_line(e)}") from e
