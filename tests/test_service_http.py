"""What holds for every route: tokens, sizes, errors as JSON, the page's headers, counts."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from scripted_refinements import Scene, ScriptedRefinements, ScriptedVideos
from serving import ADMIN, READER, TOKENS, app_over, bearer
from starlette.testclient import TestClient

from workflows.refine_types import QueueFilter, QueueItem
from workflows.service_config import RequestLimits
from workflows.storage import Unreadable

LIMITS = RequestLimits(max_body_bytes=4000, max_prompts=3, max_points=4, max_frames=20, max_page=50)
CLICK = {"object_id": 1, "frame_index": 5, "points": [{"x": 70, "y": 100, "positive": True}]}


class Broken(ScriptedRefinements):
    """Goes wrong where a test wants it."""

    fault: Exception | None = None

    def queue(self, wanted: QueueFilter) -> list[QueueItem]:
        if self.fault is not None:
            raise self.fault
        return super().queue(wanted)


@pytest.fixture
def refinements() -> Broken:
    made = Broken({"v1": Scene(num_frames=30), "a/b": Scene(num_frames=12)})
    made.label("v1")
    return made


@pytest.fixture
def client(refinements: Broken) -> Iterator[TestClient]:
    app = app_over(refinements, ScriptedVideos(refinements), LIMITS)
    with TestClient(app, raise_server_exceptions=False) as made:
        yield made


def error_of(response: Any) -> dict[str, Any]:
    """The one form that all errors have."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"] and set(body["error"]) == {"code", "message", "detail"}
    assert body["error"]["message"]
    return dict(body["error"])


def test_every_route_but_health_and_the_page_wants_a_token(client: TestClient) -> None:
    described = client.get("/v1/openapi.json", headers=bearer()).json()["paths"]
    asked = {(m.upper(), p) for p, methods in described.items() for m in methods}
    assert len(asked) >= 18
    for method, path in asked:
        if path == "/healthz":
            continue
        filled = path.replace("{video_id}", "v1").replace("{frame_index}", "1")
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic x"}):
            response = client.request(method, filled, headers=headers, content=b"not json")
            assert response.status_code == 401, (method, path)
            assert error_of(response)["code"] == "unauthorized"
            assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/", "/healthz", "/web/app.js", "/web/page.css", "/web/mark.svg"):
        assert client.get(path).status_code == 200, path


def test_an_unknown_path_tells_strangers_nothing(client: TestClient) -> None:
    assert client.get("/v1/secrets").status_code == 401
    assert client.get("/docs").status_code == 401
    assert error_of(client.get("/v1/secrets", headers=bearer()))["code"] == "not_found"
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert client.get(path, headers=bearer()).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "scope"),
    [
        ("GET", "/v1/videos", None, "read"),
        ("GET", "/metrics", None, "read"),
        ("GET", "/v1/openapi.json", None, "read"),
        ("POST", "/v1/videos/v1/preview", {"base_revision": 1}, "refine"),
        ("POST", "/v1/videos/v1/refinements", {"base_revision": 1}, "refine"),
        ("POST", "/v1/videos/v1/accept", {"base_revision": 9}, "refine"),
        ("POST", "/v1/videos/v1/restore", {"base_revision": 9, "revision": 9}, "refine"),
        ("POST", "/v1/videos/v1/drafts/d/commit", {}, "refine"),
        ("DELETE", "/v1/videos/v1/drafts/d", None, "refine"),
        ("POST", "/v1/jobs", {"requests": "s3://b/r.parquet"}, "admin"),
        ("GET", "/v1/jobs/refine-0", None, "admin"),
    ],
)
def test_each_route_wants_its_scope(
    client: TestClient, method: str, path: str, body: Any, scope: str
) -> None:
    reached = {"read": READER, "refine": TOKENS["ada"], "admin": ADMIN}
    order = list(reached)
    for name, token in reached.items():
        response = client.request(method, path, headers=bearer(token), json=body)
        if order.index(name) < order.index(scope):
            assert response.status_code == 403, name
            assert f"wanted {scope}" in error_of(response)["message"]
        else:
            assert response.status_code not in (401, 403), name


def test_a_body_that_is_too_long_is_refused_before_it_is_read(client: TestClient) -> None:
    path = "/v1/videos/v1/refinements"
    announced = client.post(path, headers=bearer(), content=b"x" * 4001)
    assert announced.status_code == 413 and error_of(announced)["detail"] == {"limit": 4000}

    def pieces() -> Iterator[bytes]:
        for _ in range(50):
            yield b"x" * 100

    unannounced = client.post(path, headers=bearer(), content=pieces())
    assert unannounced.status_code == 413 and error_of(unannounced)["code"] == "too_large"
    assert client.post(path, headers=bearer(), content=b"x" * 4000).status_code == 422


def test_too_many_prompts_points_or_frames_are_refused(client: TestClient) -> None:
    def ask(**changes: Any) -> Any:
        body = {"base_revision": 1, "prompts": [CLICK], "span": {"last_frame": 10}, **changes}
        return client.post("/v1/videos/v1/refinements", headers=bearer(), json=body)

    many_points = {**CLICK, "points": CLICK["points"] * 5}  # type: ignore[operator]
    for changes in (
        {"prompts": [CLICK] * 4},
        {"prompts": [many_points]},
        {"span": {"first_frame": 0, "last_frame": 20}},
        {"span": {}},  # to the end: 30 frames
    ):
        response = ask(**changes)
        assert response.status_code == 413, changes
        assert error_of(response)["detail"]["limit"] in (3, 4, 20)
    assert ask(span={"first_frame": 10}).status_code == 200
    assert client.get("/v1/videos/v1/masks", headers=bearer()).status_code == 413
    assert client.get("/v1/videos/v1/masks?frames=0:19", headers=bearer()).status_code == 200
    assert client.get("/v1/videos?limit=51", headers=bearer()).status_code == 422


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, "body.base_revision"),
        ({"base_revision": "1"}, "body.base_revision"),
        ({"base_revision": 1.5}, "body.base_revision"),
        ({"base_revision": -1}, "body.base_revision"),
        ({"base_revision": 2**31}, "body.base_revision"),
        ({"base_revision": 1, "promts": []}, "body.promts"),
        ({"base_revision": 1, "prompts": [{**CLICK, "object_id": -1}]}, "body.prompts.0.object_id"),
        ({"base_revision": 1, "prompts": [{**CLICK, "points": [{"x": 1}]}]}, "points.0.y"),
        (
            {"base_revision": 1, "prompts": [{**CLICK, "points": [{"x": -1, "y": 1}]}]},
            "points.0.x",
        ),
        ({"base_revision": 1, "draft": "yes"}, "body.draft"),
        ({"base_revision": 1, "span": {"first_frame": None}}, "body.span.first_frame"),
        ({"base_revision": 1, "request_id": "x" * 201}, "body.request_id"),
    ],
)
def test_a_body_that_is_wrong_is_told_where(
    client: TestClient, body: dict[str, Any], where: str
) -> None:
    response = client.post("/v1/videos/v1/refinements", headers=bearer(), json=body)
    assert response.status_code == 422
    error = error_of(response)
    assert any(where in fault["where"] for fault in error["detail"]["faults"]), error


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b'{"base_revision":NaN}'])
def test_what_is_no_json_is_told_so(client: TestClient, content: bytes) -> None:
    headers = {**bearer(), "content-type": "application/json"}
    response = client.post("/v1/videos/v1/refinements", headers=headers, content=content)
    assert response.status_code == 422 and error_of(response)["code"] == "invalid"


@pytest.mark.parametrize("name", ["\u0085", "\u2028", "\ud800"])
def test_a_character_that_ends_lines_or_is_half_of_one_is_refused_in_one_line(
    client: TestClient, name: str
) -> None:
    response = client.post(
        "/v1/videos/v1/refinements",
        content=json.dumps({"base_revision": 1, "prompts": [], name: 1}),
        headers={**bearer(), "content-type": "application/json"},
    )
    assert response.status_code == 422
    (line,) = response.text.splitlines()
    assert json.loads(line)["error"]["code"] == "invalid"


def test_a_wrong_method_is_an_error_of_the_same_form(client: TestClient) -> None:
    response = client.put("/v1/videos", headers=bearer())
    assert response.status_code == 405 and error_of(response)["code"] == "method_not_allowed"


def test_storage_that_fails_is_a_503_that_may_be_asked_again(
    client: TestClient, refinements: Broken
) -> None:
    refinements.fault = Unreadable("s3://b/x: connection refused")
    response = client.get("/v1/queue", headers=bearer())
    assert response.status_code == 503 and int(response.headers["retry-after"]) >= 1
    assert error_of(response)["code"] == "storage_unavailable"


def test_a_defect_is_a_500_that_gives_nothing_away(
    client: TestClient, refinements: Broken, caplog: pytest.LogCaptureFixture
) -> None:
    refinements.fault = KeyError("a secret path")
    response = client.get("/v1/queue", headers=bearer())
    assert response.status_code == 500 and error_of(response)["code"] == "internal"
    assert "secret" not in response.text
    assert "a secret path" in caplog.text


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy
    for name in ("app.js", "desk.js", "page.css", "mark.svg"):
        answer = client.get(f"/web/{name}")
        assert answer.headers["content-security-policy"] == policy
        assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in answer.text
    assert "style=" not in page.text and "onclick=" not in page.text  # the policy forbids both
    for name in ("index.html", "nothing.js", "..%2fconfig.py", "app.py"):
        assert client.get(f"/web/{name}").status_code == 404


def test_requests_are_counted_by_route_and_status(client: TestClient) -> None:
    for path in ("/v1/videos/v1", "/v1/videos/v1", "/v1/videos/nope", "/v1/queue"):
        client.get(path, headers=bearer())
    client.get("/v1/queue")
    text = client.get("/metrics", headers=bearer(READER)).text

    def count(route: str, status: int) -> float:
        wanted = (f'route="{route}"', f'status="{status}"')
        lines = [line for line in text.splitlines() if line.startswith("maskmill_requests_total{")]
        return sum(float(line.split()[-1]) for line in lines if all(w in line for w in wanted))

    assert count("/v1/videos/{video_id:path}", 200) == 2
    assert count("/v1/videos/{video_id:path}", 404) == 1
    assert count("/v1/queue", 200) == 1
    assert count("none", 401) == 1
    assert 'maskmill_request_seconds_count{method="GET",replica="local",route="/v1/queue"}' in text


def test_the_schema_is_whole_and_holds_examples(client: TestClient) -> None:
    schema = client.get("/v1/openapi.json", headers=bearer()).json()
    from openapi_spec_validator import validate

    validate(schema)
    bodies = schema["components"]["schemas"]
    for name in ("PreviewBody", "RefinementBody", "AcceptBody", "RestoreBody", "JobBody"):
        assert bodies[name]["examples"], name
    stream = schema["paths"]["/v1/videos/{video_id}/refinements"]["post"]["responses"]
    assert "application/x-ndjson" in stream["200"]["content"]
    assert {"401", "403", "404", "409", "413", "422", "503"} <= set(stream)


def test_examples_of_the_schema_are_accepted(client: TestClient) -> None:
    schema = client.get("/v1/openapi.json", headers=bearer()).json()
    for name, path in (("PreviewBody", "preview"), ("RefinementBody", "refinements")):
        for example in schema["components"]["schemas"][name]["examples"]:
            example = json.loads(json.dumps(example))
            response = client.post(f"/v1/videos/v1/{path}", headers=bearer(), json=example)
            assert response.status_code in (200, 413, 422)
            if response.status_code == 422:  # a revision that this video does not have
                assert error_of(response)["code"] == "refinement_invalid"
