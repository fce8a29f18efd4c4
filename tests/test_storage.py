"""Bytes arrive whole or not at all, faults pass by or are named, allowed places alone are read."""

from __future__ import annotations

import os
import pickle
import threading
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from workflows import storage as storage_module
from workflows.retry import Retry
from workflows.storage import (
    NotFound,
    Storage,
    StorageConfig,
    TooLarge,
    Unreadable,
    UriNotAllowed,
)
from workflows.uris import join_uri, local_path

if TYPE_CHECKING:
    from object_store import ObjectStore

pytest_plugins = ["object_store"]

S3 = "s3://maskmill-test"


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.cluster)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Storage, str]:
    """A storage and an empty folder in it."""
    if request.param == "disk":
        return Storage(), str(tmp_path)
    store: ObjectStore = request.getfixturevalue("object_store")
    return store.storage, f"{S3}/folder"


def test_what_was_put_is_read_listed_and_deleted(place: tuple[Storage, str]) -> None:
    storage, root = place
    uri = join_uri(root, "a b", "ü~%41.bin")
    storage.put(uri, b"first")
    storage.put(uri, b"second")
    storage.put(join_uri(root, "empty"), b"")
    assert storage.read_bytes(uri) == b"second"
    assert storage.read_bytes(join_uri(root, "empty")) == b""
    assert storage.read_range(uri, 1, 4) == b"eco"
    assert storage.size(uri) == 6
    assert sorted((o.uri, o.size_bytes) for o in storage.list(root)) == [
        (uri, 6),
        (join_uri(root, "empty"), 0),
    ]
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)
    assert [o.uri for o in storage.list(join_uri(root, "a b"))] == []


def test_a_second_exclusive_put_says_so_and_changes_nothing(place: tuple[Storage, str]) -> None:
    storage, root = place
    uri = join_uri(root, "once")
    assert storage.put_if_absent(uri, b"mine")
    assert not storage.put_if_absent(uri, b"theirs")
    assert storage.read_bytes(uri) == b"mine"


def test_of_many_racing_exclusive_puts_one_wins(place: tuple[Storage, str]) -> None:
    storage, root = place
    uri = join_uri(root, "race")
    barrier = threading.Barrier(8)
    winners: list[bytes] = []

    def put(data: bytes) -> None:
        barrier.wait()
        if storage.put_if_absent(uri, data):
            winners.append(data)

    threads = [threading.Thread(target=put, args=(b"%d" % n * 1000,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert winners == [storage.read_bytes(uri)]


def test_an_absent_object_is_not_found_by_name(place: tuple[Storage, str]) -> None:
    storage, root = place
    uri = join_uri(root, "nothing")
    for ask in (storage.size, storage.read_bytes):
        with pytest.raises(NotFound, match=uri):
            ask(uri)
    with pytest.raises(NotFound, match=uri), storage.open_video(uri):
        pass
    assert not storage.exists(uri)
    assert list(storage.list(uri)) == []


def test_too_large_an_object_is_refused_before_it_is_read(place: tuple[Storage, str]) -> None:
    storage, root = place
    uri = join_uri(root, "large")
    storage.put(uri, b"x" * 100)
    with pytest.raises(TooLarge, match="100 bytes; wanted at most 99"):
        storage.read_bytes(uri, max_bytes=99)
    with pytest.raises(TooLarge, match=uri), storage.open_video(uri, max_bytes=99):
        pass
    assert storage.read_bytes(uri, max_bytes=100) == b"x" * 100


def test_a_file_uri_is_percent_decoded_and_a_plain_path_is_not(tmp_path: Path) -> None:
    (tmp_path / "a b%20c").write_bytes(b"here")
    storage = Storage()
    assert storage.read_bytes(f"file://{tmp_path}/a%20b%2520c") == b"here"
    assert storage.read_bytes(f"{tmp_path}/a b%20c") == b"here"
    assert local_path("~/x") == Path.home() / "x"


def test_a_folder_is_not_an_object(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="a folder"):
        Storage().size(str(tmp_path))


def test_a_write_cut_short_leaves_no_object_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(Unreadable, match="No space left"):
        Storage().put(str(tmp_path / "x"), b"data")
    assert list(tmp_path.iterdir()) == []


def test_a_local_video_is_opened_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"video")
    with Storage().open_video(f"file://{tmp_path}/v.mp4") as opened:
        assert opened == tmp_path / "v.mp4"
    assert (tmp_path / "v.mp4").exists()


@pytest.mark.parametrize(
    "uri",
    [
        "https://host/v.mp4",
        "S3://other/v.mp4",
        "s3://bucket/videosmore/v.mp4",
        "s3://bucket/videos/../secret.mp4",
        "simplecache::s3://bucket/videos/v.mp4",
        "/data/videos/../secret.mp4",
        "file:///data/videos/%2e%2e/secret.mp4",
        "/data/videos-more/v.mp4",
        "/etc/passwd",
    ],
)
def test_a_uri_outside_what_is_allowed_is_refused(uri: str) -> None:
    config = StorageConfig(allowed_uri_prefixes=("s3://bucket/videos/", "/data/videos"))
    with pytest.raises(UriNotAllowed), Storage(config).open_video(uri):
        pass


def test_a_link_out_of_an_allowed_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    allowed = tmp_path / "videos"
    allowed.mkdir()
    (allowed / "v.mp4").symlink_to(tmp_path / "secret")
    (allowed / "w.mp4").write_bytes(b"video")
    storage = Storage(StorageConfig(allowed_uri_prefixes=(str(allowed),)))
    with pytest.raises(UriNotAllowed, match="wanted a place under"):
        storage.check_allowed(str(allowed / "v.mp4"))
    storage.check_allowed(f"file://{allowed}/w.mp4")


def test_an_unknown_scheme_is_refused_by_name() -> None:
    with pytest.raises(UriNotAllowed, match="scheme s4"):
        Storage().read_bytes("s4://bucket/key")


def test_plain_http_to_an_endpoint_must_be_asked_for() -> None:
    with pytest.raises(ValueError, match="allow_http"):
        StorageConfig(endpoint_url="http://minio:9000")


def test_what_is_no_fault_of_the_store_is_not_dressed_up_as_one(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        Storage().put(str(tmp_path / "x"), "text")  # type: ignore[arg-type]


@pytest.mark.cluster
def test_throttling_passes_by_without_multiplied_retries(object_store: ObjectStore) -> None:
    waits_s: list[float] = []
    storage = Storage(object_store.config, Retry(attempts=5, sleep=waits_s.append))
    storage.put(f"{S3}/key", b"data")
    object_store.misbehave("GET", throttled=3)
    assert storage.read_range(f"{S3}/key", 0, 4) == b"data"
    assert [r for r in object_store.requests if r.startswith("GET")] == [
        "GET /maskmill-test/key"
    ] * 4
    assert len(waits_s) == 3
    assert all(0.1 * 2**n <= wait_s <= 0.2 * 2**n for n, wait_s in enumerate(waits_s))


@pytest.mark.cluster
def test_a_fault_that_stays_is_unreadable_and_named(object_store: ObjectStore) -> None:
    storage = Storage(object_store.config, Retry(attempts=3, sleep=lambda _: None))
    object_store.misbehave("HEAD", throttled=10)
    with pytest.raises(Unreadable, match=f"{S3}/key: OSError.*Service Unavailable"):
        storage.size(f"{S3}/key")
    assert object_store.faults_left == 7, "three attempts, not three times somebody else's"


@pytest.mark.cluster
def test_a_dead_server_is_unreadable_within_the_deadline(object_store: ObjectStore) -> None:
    now_s = [0.0]

    def sleep(wait_s: float) -> None:
        now_s[0] += wait_s

    config = StorageConfig(endpoint_url="http://127.0.0.1:1", allow_http=True, region="us-east-1")
    retry = Retry(attempts=1000, deadline_s=60, sleep=sleep, clock=lambda: now_s[0])
    with pytest.raises(Unreadable, match="s3://bucket/key"):
        Storage(config, retry).size("s3://bucket/key")
    assert 30 < now_s[0] <= 60


@pytest.mark.cluster
def test_an_exclusive_put_knows_its_own_object_when_the_answer_was_lost(
    object_store: ObjectStore,
) -> None:
    storage = Storage(object_store.config, Retry(sleep=lambda _: None))
    object_store.misbehave("PUT", lost=1)
    assert storage.put_if_absent(f"{S3}/key", b"mine")
    assert object_store.faults_left == 0
    assert not storage.put_if_absent(f"{S3}/key", b"mine"), "equal bytes of another are not ours"


@pytest.mark.cluster
def test_a_large_exclusive_put_is_one_request(object_store: ObjectStore) -> None:
    data = os.urandom(1) * (101 * 2**20)  # s3fs would cut it in parts from 100 MiB
    assert object_store.storage.put_if_absent(f"{S3}/large", data)
    assert [r for r in object_store.requests if "PUT" in r] == ["PUT /maskmill-test/large"]


@pytest.mark.cluster
def test_a_small_remote_video_comes_as_bytes_and_a_large_one_as_a_spooled_file(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "SPOOL_PIECE_BYTES", 700)
    storage, small, large = object_store.storage, b"s" * 1000, os.urandom(1500)
    storage.put(f"{S3}/small", small)
    storage.put(f"{S3}/large", large)
    with storage.open_video(f"{S3}/small") as opened:
        assert opened == small
    object_store.misbehave("GET", throttled=1)
    with storage.open_video(f"{S3}/large") as opened:
        assert isinstance(opened, Path)
        assert opened.read_bytes() == large
    assert not opened.exists()


@pytest.mark.cluster
def test_a_large_remote_video_is_never_in_memory_as_a_whole(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece_bytes, video_bytes = 2**20, 24 * 2**20
    monkeypatch.setattr(storage_module, "SPOOL_PIECE_BYTES", piece_bytes)
    storage = object_store.storage
    storage.put(f"{S3}/video", bytes(video_bytes))
    tracemalloc.start()
    try:
        with storage.open_video(f"{S3}/video") as opened:
            assert isinstance(opened, Path) and opened.stat().st_size == video_bytes
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 6 * piece_bytes


@pytest.mark.cluster
def test_a_video_replaced_while_it_is_spooled_is_unreadable(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = object_store.storage
    storage.put(f"{S3}/v", b"a" * 2000)
    read_range = Storage.read_range

    def replace_it(self: Storage, uri: str, start: int, end: int) -> bytes:
        storage.put(f"{S3}/v", b"b" * 2000)
        return read_range(self, uri, start, end)

    monkeypatch.setattr(Storage, "read_range", replace_it)
    with pytest.raises(Unreadable, match="replaced"), storage.open_video(f"{S3}/v"):
        pass


@pytest.mark.cluster
def test_a_pickled_storage_still_works(object_store: ObjectStore) -> None:
    storage = pickle.loads(pickle.dumps(object_store.storage))
    storage.put(f"{S3}/key", b"data")
    assert storage.exists(f"{S3}/key")
