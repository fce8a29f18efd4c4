"""Who may do what: bearer tokens, known by their SHA-256 only. Knows nothing of HTTP servers.

A token is 256 random bits, so its plain hash gives nothing away. All known hashes are compared, in
constant time each, whether one fitted already or not.
"""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from workflows.config import ConfigError
from workflows.service_errors import ServiceError

Scope = Literal["read", "refine", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "refine", "admin")
# what a scope includes: who refines also reads, who administers does both
INCLUDES: Mapping[Scope, Collection[Scope]] = {
    "read": {"read"},
    "refine": {"read", "refine"},
    "admin": {"read", "refine", "admin"},
}
MIN_TOKEN_CHARACTERS = 16


@dataclass(frozen=True, slots=True)
class TokenConfig:
    """One token: its hash here, or the token itself in an environment variable.

    name: the author of what is done with it. sha256: 64 hex digits. env: a variable's name.
    """

    name: str
    scopes: tuple[Scope, ...] = ("read",)
    sha256: str | None = None
    env: str | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name is empty; wanted who the token belongs to")
        if (self.sha256 is None) == (self.env is None):
            raise ValueError(f"token of {self.name}: wanted one of sha256 and env")
        if self.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"token of {self.name}: sha256 is not 64 hex digits in lower case")
        if not self.scopes:
            raise ValueError(f"token of {self.name}: scopes is empty; wanted some of {SCOPES}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody with a token that is known."""

    name: str
    scopes: frozenset[Scope]

    def check(self, scope: Scope) -> None:
        """Raise ServiceError 403 where the token does not reach so far."""
        if scope not in self.scopes:
            has = ", ".join(s for s in SCOPES if s in self.scopes)
            raise ServiceError(
                403, "forbidden", f"the token of {self.name} has scope {has}; wanted {scope}"
            )


class Tokens:
    """The tokens of a configuration. Raises ConfigError for a variable that is not set."""

    def __init__(
        self, configs: Sequence[TokenConfig], environment: Mapping[str, str] = os.environ
    ) -> None:
        if not configs:
            raise ConfigError("tokens is empty; wanted at least one (maskmill serve --make-token)")
        self._known = [(_digest_of(config, environment), _caller(config)) for config in configs]

    def caller(self, authorization: str | None) -> Caller:
        """Whose `Authorization` header it is. Raises ServiceError 401."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise unauthorized("no bearer token; wanted Authorization: Bearer TOKEN")
        digest = sha256_of(token.strip())
        found: Caller | None = None
        for known, caller in self._known:
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            raise unauthorized("the token is not known")
        return found


def make_token() -> tuple[str, str]:
    """A new token, and its hash for the configuration."""
    token = secrets.token_urlsafe(32)
    return token, sha256_of(token)


def sha256_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def unauthorized(message: str) -> ServiceError:
    return ServiceError(401, "unauthorized", message)


def _digest_of(config: TokenConfig, environment: Mapping[str, str]) -> str:
    if config.sha256 is not None:
        return config.sha256
    assert config.env is not None  # TokenConfig has one of the two
    token = environment.get(config.env, "")
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise ConfigError(
            f"tokens: {config.env}, the token of {config.name}, has {len(token)} characters in the "
            f"environment; wanted at least {MIN_TOKEN_CHARACTERS}"
        )
    return sha256_of(token)


def _caller(config: TokenConfig) -> Caller:
    reached = frozenset(scope for given in config.scopes for scope in INCLUDES[given])
    return Caller(config.name, reached)
