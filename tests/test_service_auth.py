"""Bearer tokens: known by hash or from the environment, with scopes that include one another."""

import pytest

from workflows.config import ConfigError
from workflows.service_auth import Caller, TokenConfig, Tokens, make_token, sha256_of
from workflows.service_errors import ServiceError

TOKEN = "a token of the tests, long enough"


def status_of(tokens: Tokens, header: str | None) -> int:
    try:
        tokens.caller(header)
    except ServiceError as error:
        return error.status
    return 200


def test_a_made_token_is_known_by_its_hash() -> None:
    token, digest = make_token()
    tokens = Tokens([TokenConfig("ada", ("refine",), sha256=digest)])
    assert tokens.caller(f"Bearer {token}") == Caller("ada", frozenset({"read", "refine"}))
    assert token not in repr(tokens.__dict__)
    assert make_token()[0] != token and len(token) >= 43


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}", TOKEN, "Bearer é"],
)
def test_anything_else_is_unauthorized(header: str | None) -> None:
    tokens = Tokens([TokenConfig("ada", ("read",), sha256_of(TOKEN))])
    assert status_of(tokens, header) == 401


def test_the_scheme_is_read_in_any_case_and_the_right_one_of_several_tokens_counts() -> None:
    configs = [TokenConfig(name, ("read",), sha256_of(TOKEN + name)) for name in ("a", "b", "c")]
    tokens = Tokens(configs)
    for name in ("a", "b", "c"):
        assert tokens.caller(f"bEaReR {TOKEN}{name}").name == name


def test_a_token_may_come_from_the_environment() -> None:
    config = TokenConfig("ada", ("read",), env="THE_TOKEN")
    assert status_of(Tokens([config], {"THE_TOKEN": TOKEN}), f"Bearer {TOKEN}") == 200
    for environment in ({}, {"THE_TOKEN": ""}, {"THE_TOKEN": "short"}):
        with pytest.raises(ConfigError, match="THE_TOKEN, the token of ada, has . characters"):
            Tokens([config], environment)


def test_nobody_is_let_in_without_tokens() -> None:
    with pytest.raises(ConfigError, match="tokens is empty"):
        Tokens([])


@pytest.mark.parametrize(
    ("given", "reached"),
    [("read", {"read"}), ("refine", {"read", "refine"}), ("admin", {"read", "refine", "admin"})],
)
def test_each_scope_includes_those_before_it(given: str, reached: set[str]) -> None:
    tokens = Tokens([TokenConfig("ada", (given,), sha256_of(TOKEN))])  # type: ignore[arg-type]
    caller = tokens.caller(f"Bearer {TOKEN}")
    for scope in ("read", "refine", "admin"):
        if scope in reached:
            caller.check(scope)  # type: ignore[arg-type]
        else:
            with pytest.raises(ServiceError, match=f"403 forbidden: .* wanted {scope}"):
                caller.check(scope)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("token", "complaint"),
    [
        ({"name": ""}, "name is empty"),
        ({"name": "ada"}, "wanted one of sha256 and env"),
        ({"name": "ada", "sha256": "0" * 64, "env": "X"}, "wanted one of sha256 and env"),
        ({"name": "ada", "sha256": "abc"}, "not 64 hex digits"),
        ({"name": "ada", "sha256": "A" * 64}, "not 64 hex digits in lower case"),
        ({"name": "ada", "env": "X", "scopes": ()}, "scopes is empty"),
    ],
)
def test_a_token_that_cannot_be_used_is_refused(token: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        TokenConfig(**token)  # type: ignore[arg-type]
