"""What a URI says before anything is touched. Knows nothing of stores or credentials."""

import os
from pathlib import Path
from urllib.parse import unquote


def scheme_of(uri: str) -> str:
    """ "file" for a plain path."""
    scheme, separator, _ = uri.partition("://")
    return scheme.lower() if separator else "file"


def is_local(uri: str) -> bool:
    return scheme_of(uri) == "file"


def local_path(uri: str) -> Path:
    """The absolute path of a local URI; file:// is percent-decoded, a plain path is not."""
    plain = unquote(uri.partition("://")[2]) if "://" in uri else uri
    return Path(os.path.abspath(os.path.expanduser(plain)))


def join_uri(root: str, *parts: str) -> str:
    return "/".join([root.rstrip("/"), *parts])


def lies_under(uri: str, prefix: str) -> bool:
    """Whether a URI is a place or lies in its folder, with links and .. resolved on disk."""
    if scheme_of(uri) != scheme_of(prefix):
        return False
    if is_local(uri):
        return local_path(uri).resolve().is_relative_to(local_path(prefix).resolve())
    return ".." not in uri.split("/") and (uri + "/").startswith(prefix.rstrip("/") + "/")
