"""Whatever is sent, the service answers as its published schema says, and never with a 500."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from checkpoints import small_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refining import click, label_video, sessions
from scripted_refinements import Scene, ScriptedRefinements, ScriptedVideos
from serving import ADMIN, app_over, bearer
from starlette.testclient import TestClient

from workflows.service_videos import VideoList
from workflows.storage import Storage

VIDEO = "v1"
HEADERS = bearer(ADMIN)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3)
    ),
    max_leaves=8,
)
NUMBERS = st.integers(-2, 2**33) | st.floats(allow_nan=False) | ANYTHING
POINT = st.fixed_dictionaries({"x": NUMBERS, "y": NUMBERS, "positive": st.booleans() | ANYTHING})
PROMPT = st.fixed_dictionaries(
    {"object_id": st.integers(0, 3) | NUMBERS, "frame_index": st.integers(0, 9) | NUMBERS},
    optional={
        "points": st.lists(POINT, max_size=3) | ANYTHING,
        "box": ANYTHING,
        "mask": st.fixed_dictionaries({"size": ANYTHING, "counts": st.text(max_size=9)}) | ANYTHING,
        "category": st.text(max_size=5) | ANYTHING,
    },
)
BODY = st.fixed_dictionaries(
    {},
    optional={
        "base_revision": st.integers(0, 2) | NUMBERS,
        "frame_index": st.integers(0, 9) | NUMBERS,
        "prompts": st.lists(PROMPT, max_size=2) | ANYTHING,
        "object_ids": ANYTHING,
        "remove_object_ids": ANYTHING,
        "review": st.sampled_from(["accepted", "rejected", "no"]) | ANYTHING,
        "revision": NUMBERS,
        "span": ANYTHING,
        "draft": st.booleans(),
        "request_id": ANYTHING,
        "sequence": NUMBERS,
        "requests": ANYTHING,
    },
)


@pytest.fixture(scope="module")
def app() -> Any:
    refinements = ScriptedRefinements({VIDEO: Scene(height=32, width=48, num_frames=10)})
    refinements.label(VIDEO)
    return app_over(refinements, ScriptedVideos(refinements))


@pytest.fixture(scope="module")
def client(app: Any) -> Iterator[TestClient]:
    with TestClient(app, headers=HEADERS, raise_server_exceptions=False) as made:
        yield made


@pytest.mark.parametrize(
    "path",
    [
        *(f"videos/{VIDEO}/{what}" for what in ("preview", "refinements", "accept", "restore")),
        "jobs",
    ],
)
def test_no_body_makes_the_service_fail(client: TestClient, path: str) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(body=BODY | ANYTHING)
    def try_it(body: Any) -> None:
        text = json.dumps(body)  # with NaN and Infinity, as Python writes them
        response = client.post(
            f"/v1/{path}", content=text, headers={"content-type": "application/json"}
        )
        assert response.status_code in (200, 202, 404, 409, 413, 422), response.text
        for line in response.text.splitlines():
            answer = json.loads(line)
            assert answer.get("error", {}).get("code") != "internal"

    try_it()


@pytest.fixture(scope="module")
def real_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Over a dataset on disk and a model of random weights."""
    folder = tmp_path_factory.mktemp("labelled")
    checkpoint = small_checkpoint(folder)
    label_video(folder, checkpoint, [click(1, 4, 20.0), click(2, 0, 100.0)], VIDEO, frames=10)
    with sessions(folder, checkpoint) as opened:
        yield app_over(opened, VideoList(str(folder / "labels"), Storage()))


@pytest.mark.slow
def test_schemathesis_finds_no_answer_that_the_schema_does_not_tell(real_app: Any) -> None:
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    wanted = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
        checks.unsupported_method,
    ]
    schema = schemathesis.openapi.from_asgi("/v1/openapi.json", real_app, headers=HEADERS)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 18
    for operation in operations:

        @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def try_it(case: Any) -> None:
            if case.path_parameters and "video_id" in case.path_parameters:
                case.path_parameters["video_id"] = VIDEO  # else all would be a 404
            response = case.call(headers=HEADERS)
            assert response.status_code != 500, response.text
            case.validate_response(response, checks=wanted)

        try_it()
