"""What leaves the service as JSON: records as objects, times in ISO 8601, no NaN.

Knows nothing of what the records mean.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any


def plain(value: Any) -> Any:
    """Dataclasses, times and enums as JSON's own kinds. A number that is none becomes null."""
    if value is None or isinstance(value, (bool, int, str)):
        return value if type(value) in (bool, int, str, type(None)) else _of_enum(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.isoformat()
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    raise TypeError(f"{value!r}: a {type(value).__name__} is not JSON")


def encode(value: Any) -> bytes:
    """One JSON value in ASCII: some readers of lines end one at U+0085 or U+2028 as well."""
    return json.dumps(plain(value), allow_nan=False, separators=(",", ":")).encode()


def line(value: Any) -> bytes:
    """One line of NDJSON."""
    return encode(value) + b"\n"


def _of_enum(value: Any) -> Any:
    """StrEnum and the like are strings and numbers already, with a name on top."""
    return str(value) if isinstance(value, str) else int(value)
