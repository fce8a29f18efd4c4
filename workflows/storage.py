"""Bytes at a URI: local disk or an object store. Knows nothing of videos, tables or Ray.

The only module that touches fsspec. Every call is retried here (see retry.py) and not again below:
s3fs and botocore are told to try once, for their retries multiply. Credentials come from the
environment variables that each store's own tools read.
"""

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
import pyarrow.fs
from fsspec.asyn import AsyncFileSystem, sync

from workflows.retry import Retry, one_line
from workflows.uris import is_local, lies_under, local_path, scheme_of

Result = TypeVar("Result")

SPOOL_PIECE_BYTES = 32 * 2**20  # one ranged read; each piece is retried alone
MAX_SINGLE_PUT_BYTES = 5 * 2**30  # S3's limit for one PUT, the only kind that is safely conditional
# what the stores' own clients raise beside OSError; anything else is a defect of ours
CLIENT_PACKAGES = {"botocore", "aiobotocore", "aiohttp", "fsspec", "gcsfs", "google", "azure"}


class StorageError(Exception):
    """A URI that could not be read or written; the message names it."""


class NotFound(StorageError):
    """Nothing is stored there."""


class Unreadable(StorageError):
    """It cannot be had or stored: permissions, a broken connection, a fault of the store."""


class TooLarge(StorageError):
    """It is larger than the caller allows."""


class UriNotAllowed(StorageError):
    """The configuration does not let videos be read from there."""


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """Where and how to reach storage; one block serves fsspec, pyarrow and deltalake."""

    endpoint_url: str | None = None  # of an S3 service other than AWS
    region: str | None = None
    allow_http: bool = False
    anonymous: bool = False
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    attempts: int = 8
    deadline_s: float = 600.0
    allowed_uri_schemes: tuple[str, ...] = ("file", "s3", "gs", "az", "abfs")
    allowed_uri_prefixes: tuple[str, ...] = ()  # where videos may lie; empty = everywhere
    max_video_bytes_in_memory: int = 64 * 2**20
    spool_folder: str | None = None  # for larger videos; null: the system's temporary folder

    def __post_init__(self) -> None:
        if (self.endpoint_url or "").startswith("http:") and not self.allow_http:
            raise ValueError(
                f"endpoint_url is {self.endpoint_url}; wanted https://, or allow_http: true"
            )


@dataclass(frozen=True, slots=True)
class StoredObject:
    uri: str
    size_bytes: int


class Storage:
    """Reads and writes whole objects at plain paths, file://, s3:// and fsspec's other stores.

    Raises NotFound, Unreadable, TooLarge or UriNotAllowed, naming the URI. Safe to share among
    threads and to pickle.
    """

    def __init__(self, config: StorageConfig | None = None, retry: Retry | None = None) -> None:
        self.config = config or StorageConfig()
        self.retry = retry or Retry(self.config.attempts, self.config.deadline_s)

    def check_allowed(self, uri: str) -> None:
        """Raise UriNotAllowed unless the configuration lets a video be read from there."""
        scheme, config = scheme_of(uri), self.config
        if scheme not in config.allowed_uri_schemes or "::" in uri:
            allowed = ", ".join(config.allowed_uri_schemes)
            raise UriNotAllowed(f"{uri}: scheme {scheme}; wanted one of {allowed}")
        prefixes = config.allowed_uri_prefixes
        if prefixes and not any(lies_under(uri, prefix) for prefix in prefixes):
            raise UriNotAllowed(f"{uri}: wanted a place under {' or '.join(prefixes)}")

    def size(self, uri: str) -> int:
        """Of one object, in bytes."""
        info = self._call(uri, "info")
        if info["type"] == "directory":
            raise NotFound(f"{uri}: a folder; wanted a file")
        return int(info["size"])

    def exists(self, uri: str) -> bool:
        try:
            self.size(uri)
        except NotFound:
            return False
        return True

    def read_bytes(self, uri: str, max_bytes: int | None = None) -> bytes:
        """The whole object. Raises TooLarge, before reading, beyond max_bytes."""
        if max_bytes is not None:
            self._size_within(uri, max_bytes)
        return bytes(self._call(uri, "cat_file"))

    def read_range(self, uri: str, start: int, end: int) -> bytes:
        """Bytes [start, end). Raises Unreadable when there are fewer: it changed meanwhile."""
        data = bytes(self._call(uri, "cat_file", start=start, end=end))
        if len(data) != end - start:
            raise Unreadable(f"{uri}: {len(data)} bytes from {start}; wanted {end - start}")
        return data

    @contextmanager
    def open_video(self, uri: str, max_bytes: int | None = None) -> Iterator[bytes | Path]:
        """A video to decode: its bytes when small, else a local file gone when the block ends.

        A local video is its own file. Raises UriNotAllowed before anything is touched.
        """
        self.check_allowed(uri)
        size_bytes = self._size_within(uri, max_bytes)
        if is_local(uri):
            yield local_path(uri)
        elif size_bytes <= self.config.max_video_bytes_in_memory:
            yield self.read_range(uri, 0, size_bytes) if size_bytes else b""
        else:
            with tempfile.NamedTemporaryFile(dir=self.config.spool_folder) as spool:
                self._spool(uri, size_bytes, spool)
                yield Path(spool.name)

    def put(self, uri: str, data: bytes) -> None:
        """Store complete bytes in one step: a reader sees the old object or the new one."""
        if is_local(uri):
            self._guarded(uri, lambda _: _write_local(local_path(uri), data, os.replace))
        else:
            self._call(uri, "pipe_file", data)

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        """Store complete bytes unless something is there; whether these bytes are there now.

        One conditional PUT. When an answer was lost, what is stored is compared with data.
        """
        attempts = 0

        def attempt(seconds_left: float) -> bool:
            nonlocal attempts
            attempts += 1
            try:
                self._create(uri, data, seconds_left)
            except OSError as e:
                if not _says_exists(e):
                    raise
                return attempts > 1 and self.read_bytes(uri) == data
            return True

        return self._guarded(uri, attempt)

    def list(self, folder: str) -> Iterator[StoredObject]:
        """Every object below a folder, as the store orders them; none if there is no folder."""
        scheme = "" if is_local(folder) else scheme_of(folder) + "://"
        for path, info in self._call(folder, "find", detail=True).items():
            yield StoredObject(scheme + path, int(info["size"]))

    def delete(self, uri: str) -> None:
        """Remove it; nothing there is as good."""
        if self.exists(uri):  # S3 says yes either way, disks do not
            self._call(uri, "rm_file")

    def delta_options(self, uri: str) -> dict[str, str]:
        """`storage_options` of deltalake, from the same configuration."""
        if is_local(uri):
            return {}
        config = self.config
        options = {
            "timeout": f"{config.read_timeout_s}s",
            "connect_timeout": f"{config.connect_timeout_s}s",
            # opening a table is many requests: a few retries of each, or one fault repeats all
            "max_retries": "2",
            "retry_timeout": f"{config.read_timeout_s}s",
            "allow_http": str(config.allow_http).lower(),
        }
        if config.region:
            options["aws_region"] = config.region
        if config.endpoint_url:
            options["aws_endpoint_url"] = config.endpoint_url
        if config.anonymous:
            options["aws_skip_signature"] = "true"
        return options

    def arrow_filesystem(self, uri: str) -> pyarrow.fs.FileSystem:
        """A pyarrow file system whose root is the folder at this URI."""
        config = self.config
        if is_local(uri):
            return pyarrow.fs.SubTreeFileSystem(str(local_path(uri)), pyarrow.fs.LocalFileSystem())
        filesystem = self._filesystem(uri)
        path = filesystem._strip_protocol(uri)
        if scheme_of(uri) != "s3":
            handler = pyarrow.fs.FSSpecHandler(filesystem)
            return pyarrow.fs.SubTreeFileSystem(path, pyarrow.fs.PyFileSystem(handler))
        native = pyarrow.fs.S3FileSystem(  # reads ranges in parallel, outside Python
            anonymous=config.anonymous,
            region=config.region,
            endpoint_override=config.endpoint_url,
            connect_timeout=config.connect_timeout_s,
            request_timeout=config.read_timeout_s,
            retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=config.attempts),
        )
        return pyarrow.fs.SubTreeFileSystem(path, native)

    def _size_within(self, uri: str, max_bytes: int | None) -> int:
        size_bytes = self.size(uri)
        if max_bytes is not None and size_bytes > max_bytes:
            raise TooLarge(f"{uri}: {size_bytes} bytes; wanted at most {max_bytes}")
        return size_bytes

    def _spool(self, uri: str, size_bytes: int, spool: IO[bytes]) -> None:
        """Piece by piece to disk. Raises Unreadable if the object was replaced meanwhile."""
        identity = self._identity(uri)
        for start in range(0, size_bytes, SPOOL_PIECE_BYTES):
            end = min(start + SPOOL_PIECE_BYTES, size_bytes)
            spool.write(self.read_range(uri, start, end))
        spool.flush()
        if self._identity(uri) != identity:
            raise Unreadable(f"{uri}: was replaced while it was read")

    def _identity(self, uri: str) -> tuple[object, ...]:
        info = self._call(uri, "info")
        return tuple(info.get(key) for key in ("size", "ETag", "etag", "LastModified", "mtime"))

    def _create(self, uri: str, data: bytes, seconds_left: float) -> None:
        if is_local(uri):
            _write_local(local_path(uri), data, os.link)
        elif len(data) > MAX_SINGLE_PUT_BYTES:
            raise TooLarge(f"{uri}: {len(data)} bytes; one PUT takes {MAX_SINGLE_PUT_BYTES}")
        else:
            single = {"chunksize": MAX_SINGLE_PUT_BYTES} if scheme_of(uri) == "s3" else {}
            self._once(uri, "pipe_file", seconds_left, data, mode="create", **single)

    def _call(self, uri: str, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._guarded(
            uri, lambda seconds_left: self._once(uri, method, seconds_left, *args, **kwargs)
        )

    def _once(self, uri: str, method: str, seconds_left: float, *args: Any, **kwargs: Any) -> Any:
        filesystem = self._filesystem(uri)
        path = str(local_path(uri)) if is_local(uri) else filesystem._strip_protocol(uri)
        if isinstance(filesystem, AsyncFileSystem):
            function = getattr(filesystem, "_" + method)
            return sync(filesystem.loop, function, path, *args, timeout=seconds_left, **kwargs)
        return getattr(filesystem, method)(path, *args, **kwargs)

    def _guarded(self, uri: str, attempt: Callable[[float], Result]) -> Result:
        """Retry what passes by; a client's error becomes ours and names the URI."""
        try:
            return self.retry.call(uri, attempt)
        except FileNotFoundError as e:
            raise NotFound(f"{uri}: not found") from e
        except Exception as e:
            package = type(e).__module__.split(".")[0]
            if isinstance(e, OSError) or package in CLIENT_PACKAGES:
                raise Unreadable(f"{uri}: {one_line(e)}") from e
            raise

    def _filesystem(self, uri: str) -> Any:
        """fsspec keeps one instance per set of options, so asking again is cheap."""
        scheme, config = scheme_of(uri), self.config
        if scheme not in fsspec.available_protocols():
            raise UriNotAllowed(f"{uri}: scheme {scheme}; wanted a path, s3://, gs:// or az://")
        if scheme != "s3":
            return fsspec.filesystem(scheme, use_listings_cache=False)
        filesystem = fsspec.filesystem(
            "s3",
            anon=config.anonymous,
            endpoint_url=config.endpoint_url,
            client_kwargs={"region_name": config.region} if config.region else {},
            config_kwargs={
                "connect_timeout": config.connect_timeout_s,
                "read_timeout": config.read_timeout_s,
                "retries": {"total_max_attempts": 1},
            },
            use_listings_cache=False,
        )
        filesystem.retries = 1
        return filesystem


def _says_exists(error: OSError) -> bool:
    """A failed precondition; s3fs knows it only from servers that name the condition."""
    response = getattr(error.__cause__, "response", None) or {}
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return isinstance(error, FileExistsError) or status == 412


def _write_local(path: Path, data: bytes, publish: Callable[[Path, Path], None]) -> None:
    """Write beside the final name, then publish in one step, so nobody sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    spool = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        spool.write_bytes(data)
        publish(spool, path)
    finally:
        spool.unlink(missing_ok=True)
