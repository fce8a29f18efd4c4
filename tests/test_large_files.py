"""Files too large for memory appear whole or not at all, on disk and in an object store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from workflows.large_files import write_at, write_large
from workflows.storage import Storage, Unreadable

if TYPE_CHECKING:
    from object_store import ObjectStore

pytest_plugins = ["object_store"]


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.cluster)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Storage, str]:
    if request.param == "disk":
        return Storage(), str(tmp_path / "new/folder")
    store: ObjectStore = request.getfixturevalue("object_store")
    return store.storage, "s3://maskmill-test/new/folder"


def names(storage: Storage, folder: str) -> list[str]:
    """What lies there, but for the marks of folders that object stores keep."""
    found = (stored.uri.rpartition("/")[2] for stored in storage.list(folder))
    return sorted(name for name in found if name)


def test_what_is_written_is_there_when_the_block_ends(place: tuple[Storage, str]) -> None:
    storage, folder = place
    for text in (b"first", b"second"):
        with write_large(storage, f"{folder}/a.bin") as sink:
            sink.write(text)
    with write_at(storage, f"{folder}/b.mp4") as path:
        assert path.name == "b.mp4"
        path.write_bytes(b"video")
    assert storage.read_bytes(f"{folder}/a.bin") == b"second"
    assert storage.read_bytes(f"{folder}/b.mp4") == b"video"
    assert names(storage, folder) == ["a.bin", "b.mp4"]


def test_an_error_leaves_what_was_there(place: tuple[Storage, str]) -> None:
    storage, folder = place
    storage.put(f"{folder}/a.bin", b"before")
    with pytest.raises(ZeroDivisionError), write_large(storage, f"{folder}/a.bin") as sink:
        sink.write(b"half of it" * 1000)
        1 / 0  # noqa: B018
    assert storage.read_bytes(f"{folder}/a.bin") == b"before"
    assert names(storage, folder) == ["a.bin"]


def test_where_nothing_can_be_stored_the_uri_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unreadable, match=str(tmp_path / "file/a.bin")):
        with write_large(Storage(), str(tmp_path / "file/a.bin")):
            pass
