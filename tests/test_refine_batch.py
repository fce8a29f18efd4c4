"""Refinements of many videos: each request once, failures as rows, over Ray and by options."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bulk import settings_of, words_of
from refining import click, label_config, label_video, labels, refine, request, sessions

from jobs import refine as refine_job
from jobs._cli import job_parser
from workflows.config import RefineConfig, load_config
from workflows.finished import FinishedVideos
from workflows.key_index import KeyIndex
from workflows.label_engine import open_engine, options_of
from workflows.query import Dataset
from workflows.refine_requests import (
    RefinePlan,
    RequestsError,
    read_requests,
    write_requests,
)
from workflows.results import DatasetWriter
from workflows.rows import Status, VideoOutcome
from workflows.service_config import serve_config
from workflows.service_jobs import RefineJobs
from workflows.service_parts import engine_options
from workflows.storage import Storage
from workflows.video_refiner import RefiningJob

pytest_plugins = ["local_ray"]

CORRECTION = click(1, 8, 80.0)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """Videos v, w and x with an object 1 each."""
    folder = tmp_path_factory.mktemp("labelled")
    for video_id in "vwx":
        label_video(folder, checkpoint, [click(1, 4, 20.0)], video_id, frames=12)
    return folder


@pytest.fixture
def folder(tmp_path: Path, labelled: Path) -> Path:
    shutil.copytree(labelled, tmp_path, dirs_exist_ok=True)
    return tmp_path


def row(video_id: str, **more: Any) -> dict[str, Any]:
    return {"video_id": video_id, "prompts": [CORRECTION], **more}


# The plan.


def plan_of(rows: list[dict[str, Any]], folder: Path, done: RefinePlan | None = None) -> RefinePlan:
    uri = str(folder / "requests.parquet")
    write_requests(rows, uri, Storage())
    finished = KeyIndex()
    for ids, prints in done.keys() if done else ():
        finished.add(zip(ids, prints, strict=True))
    return RefinePlan(read_requests(uri, Storage()), FinishedVideos(finished, KeyIndex()))


def test_a_request_is_known_by_its_id_else_by_what_it_says(tmp_path: Path) -> None:
    first = plan_of([row("v"), row("w", request_id="r1")], tmp_path)
    assert (first.videos, first.skipped, first.num_tasks) == (2, 0, 2)
    again = plan_of([row("v"), row("w", request_id="r1", priority=3)], tmp_path, first)
    assert (again.skipped, again.num_tasks) == (2, 0)
    other = plan_of([row("v", until_converged=True), row("w", request_id="r2")], tmp_path, first)
    assert (other.skipped, other.num_tasks) == (0, 2)


def test_the_first_to_be_done_are_those_of_priority_then_those_with_most_objects(
    tmp_path: Path,
) -> None:
    rows = [row("a"), row("b", object_ids=[2, 3]), row("c", priority=1)]
    plan = plan_of(rows, tmp_path)
    assert plan.order.tolist() == [2, 1, 0]


def test_a_second_row_of_a_video_is_at_fault_and_the_first_is_not(tmp_path: Path) -> None:
    plan = plan_of([row("v"), row("v", until_converged=True), row("")], tmp_path)
    faults = [f for piece in plan.at_fault() for f in piece["detail"].to_pylist()]
    assert len(faults) == 2 and "an earlier row has the same" in faults[0]
    assert len(plan.order) == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.jsonl", '{"video_id": "v", "promts": []}', "line 1: unknown key promts; choices"),
        ("r.jsonl", '{"video_id": "v"}\n[1]', "line 2: .*wanted an object"),
        ("r.jsonl", "not json", "line 1: not JSON"),
        ("r.jsonl", '{"video_id": 3}', "r.jsonl: "),
        ("r.parquet", "not parquet", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_cannot_be_used_says_where_and_why(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RequestsError, match=said):
        read_requests(str(tmp_path / name), Storage())


def test_lines_and_parquet_say_the_same(tmp_path: Path) -> None:
    rows = [row("v", base_revision=1, object_ids=[2]), row("w", author="ann")]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_requests(rows, str(tmp_path / "r.parquet"), Storage())
    both = [read_requests(str(tmp_path / f"r.{kind}"), Storage()) for kind in ("jsonl", "parquet")]
    assert both[0].equals(both[1])


# One request, without Ray.


@pytest.fixture
def work(folder: Path, checkpoint: Path) -> Any:
    """Carries out one row, as an actor does."""
    labelling = label_config(folder, checkpoint)
    config = RefineConfig(
        labelling.output, model=labelling.model, compute=labelling.compute, limits=labelling.limits
    )
    engine = open_engine(config)
    refiner = RefiningJob(config, "refine-run", "0" * 64, "test").worker(engine, lambda f: None)

    def carry_out(wanted: dict[str, Any]) -> VideoOutcome:
        plan = plan_of([wanted], folder)
        (task,) = next(plan.tasks(np.arange(1))).to_pylist()
        return refiner.work({**task, "revision": 2})

    yield carry_out
    engine.close()


Work = Callable[[dict[str, Any]], VideoOutcome]


def commit(folder: Path, *outcomes: VideoOutcome) -> None:
    DatasetWriter(Storage(), str(folder / "labels")).commit(outcomes)


def refinements(folder: Path) -> list[dict[str, Any]]:
    query = "SELECT video_id, request_id, status, reason FROM refinements ORDER BY finished_at"
    return Dataset(str(folder / "labels")).sql(query).to_pylist()


def test_a_request_gives_what_the_same_refinement_gives_by_hand(
    work: Work, folder: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    by_hand = tmp_path_factory.mktemp("by_hand")
    shutil.copytree(folder, by_hand, dirs_exist_ok=True)
    with sessions(by_hand, checkpoint) as opened:
        refine(opened, request(1, CORRECTION))
    commit(folder, work(row("v", author="ann")))
    assert labels(folder) == labels(by_hand) != labels(folder, at=1)
    tracks = [Dataset(str(f / "labels")).tracks(["v"]).to_pylist()[0] for f in (folder, by_hand)]
    for track in tracks:
        for name in ("run_id", "created_at", "model_sha256", "fingerprint"):
            track.pop(name)
        track["refinement"].pop("request_id")
    assert tracks[0] == tracks[1]


def test_what_became_of_requests_is_a_row_and_no_attempt_at_labelling(
    work: Work, folder: Path
) -> None:
    outcomes = [
        work(row("v", request_id="good")),
        work(row("nowhere", request_id="unknown")),
        work(row("w", request_id="outside", prompts=[click(1, 99, 5.0)])),
        work(row("x", request_id="empty", prompts=[])),
        work(row("x", request_id="stale", base_revision=0)),
    ]
    commit(folder, *outcomes)
    assert {r["request_id"]: r["reason"] for r in refinements(folder)} == {
        "good": None,
        "unknown": "not_found",
        "outside": "prompt_out_of_range",
        "empty": "request_invalid",
        "stale": "stale_revision",
    }
    assert all(o.detail for o in outcomes if o.status == Status.FAILED)
    dataset = Dataset(str(folder / "labels"))
    assert dataset.videos()["status"].to_pylist() == ["ok"] * 3
    assert dataset.sql("SELECT count(*) FROM videos")[0][0].as_py() == 3


def test_one_that_somebody_overtook_before_the_commit_fails_and_changes_nothing(
    work: Work, folder: Path, checkpoint: Path
) -> None:
    outcome = work(row("v", request_id="late"))
    with sessions(folder, checkpoint) as opened:
        refine(opened, request(1, click(1, 6, 30.0), author="bob"))
    before = labels(folder)
    commit(folder, outcome)
    assert refinements(folder)[0]["reason"] == "stale_revision"
    assert labels(folder) == before
    retried = work(row("v", request_id="late"))
    commit(folder, replace(retried, run_id="another"))
    assert [r["status"] for r in refinements(folder)] == ["failed", "ok"]
    assert labels(folder) != before


def test_a_request_that_was_put_but_not_committed_is_not_computed_again(
    work: Work, folder: Path
) -> None:
    first, again = work(row("v", request_id="r")), work(row("v", request_id="r"))
    assert again.finished_at == first.finished_at
    commit(folder, first)
    commit(folder, again)
    assert len(refinements(folder)) == 1
    assert work(row("v", request_id="r")).tracks == (), "by now it is there"


def test_a_request_may_only_remove(work: Work, folder: Path) -> None:
    commit(folder, work(row("v", prompts=[], remove_object_ids=[1])))
    assert labels(folder) == {}
    assert Dataset(str(folder / "labels")).masks("w").num_rows == 12


# The job.


def settings(folder: Path, checkpoint: Path, **changes: Any) -> dict[str, Any]:
    alone = {"compute__slots_per_actor": 1, "compute__frame_batch": 1}  # as it was labelled
    values = settings_of(folder, checkpoint, **alone, **changes)
    del values["manifest"]
    values["dataset"] = values.pop("output")
    return values


def run_job(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = refine_job.main(words)
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.cluster
def test_a_file_of_requests_is_carried_out_once(
    local_ray: None, folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row("v"), row("w", until_converged=True), row("x", base_revision=0), row("nowhere")]
    write_requests(rows, str(folder / "r.parquet"), Storage())
    words = ["--requests", str(folder / "r.parquet"), *words_of(settings(folder, checkpoint))]
    before = labels(folder)
    code, summary = run_job(words, capsys)
    assert (code, summary["videos"], summary["ok"], summary["failed"]) == (3, 4, 2, 2)
    assert summary["failures"] == {"stale_revision": 1, "not_found": 1}
    assert labels(folder) != before
    dataset = Dataset(str(folder / "labels"))
    assert dataset.tracks()["revision"].to_pylist() == [2, 2, 1]
    jobs = dataset.sql("SELECT job, videos_ok, videos_failed FROM runs").to_pylist()
    assert jobs == [{"job": "refine", "videos_ok": 2, "videos_failed": 2}]

    version = dataset.version
    code, summary = run_job(words, capsys)
    assert (code, summary["skipped"], summary["ok"]) == (3, 4, 2)
    assert dataset.refresh().version == version
    code, summary = run_job([*words, "--retry", "reason=not_found"], capsys)
    assert (summary["skipped"], summary["failures"]) == (3, {"not_found": 1})


def test_one_video_is_refined_by_options(
    folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--video", "v", *words_of(settings(folder, checkpoint))]
    more = ["--click", "1,8,80,50", "--no-click", "1,8,20,50", "--box", "5,2,10,30,60,80"]
    code, summary = run_job([*words, *more, "--author", "ann"], capsys)
    assert (code, summary["revision"], len(summary["objects"])) == (0, 2, 2)
    tracks = Dataset(str(folder / "labels")).tracks(["v"]).to_pylist()
    assert [(t["object_id"], t["author"]) for t in tracks] == [(1, "ann"), (5, "ann")]
    assert [len(p["points"]) for p in tracks[0]["prompts"]] == [1, 2]
    code, summary = run_job([*words, "--withdraw", "1,8", "--remove", "5"], capsys)
    assert summary["revision"] == 3
    assert labels(folder) == labels(folder, at=1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--click", "1,8,80,50"], "--click is for one video, which --video names"),
        (["--video", "v", "--click", "1,8,80"], "wanted 4 numbers"),
        (["--video", "v", "--click", "1,8.5,80,1"], "object and frame whole ones"),
        (["--video", "v", "--frames", "3"], "wanted FIRST:LAST"),
        (["--video", "v"], "nothing to do"),
        (["--video", "nowhere", "--again", "1"], "no video 'nowhere'"),
        ([], "requests is not given"),
        (["--requests", "nowhere.parquet"], "nowhere.parquet"),
        (["--retry", "reason=no"], "unknown|choices"),
    ],
)
def test_what_the_caller_can_mend_exits_2_and_writes_nothing(
    folder: Path,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    version = Dataset(str(folder / "labels")).version
    code, summary = run_job([*words, *words_of(settings(folder, checkpoint))], capsys)
    assert code == 2
    assert re.search(said, summary["error"]["message"])
    assert Dataset(str(folder / "labels")).version == version


def test_requests_without_a_dataset_make_none(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_requests([row("v")], str(tmp_path / "r.parquet"), Storage())
    words = ["--requests", str(tmp_path / "r.parquet"), *words_of(settings(tmp_path, checkpoint))]
    code, _ = run_job(words, capsys)
    assert code == 2
    assert not (tmp_path / "labels").exists()


def test_the_service_submits_what_this_job_understands() -> None:
    model = {"checkpoint": "m.safetensors", "dtype": "float32"}
    models = {"gpus": 0.0, "cpus": 2.0}
    engine = {"slots": 3, "cuda_graphs": False, "compile_encoder": True}
    served = serve_config(
        {"dataset": "s3://b/set", "model": model, "models": models, "engine": engine}
    )
    parser = job_parser("refine", "")
    refine_job.add_options(parser)
    words = RefineJobs(served).words("s3://b/r.parquet")
    config = refine_job.config_of(parser.parse_args(list(words[1:])))
    assert (words[0], config.dataset, config.requests) == (
        "refine",
        "s3://b/set",
        "s3://b/r.parquet",
    )
    assert (config.model, config.limits) == (served.model, served.limits)
    assert (config.compute.gpus_per_actor, config.compute.cpus_per_actor) == (0.0, 2.0)
    assert engine_options(served.engine) == options_of(config.compute)


def test_the_configuration_travels_without_its_folder(folder: Path, checkpoint: Path) -> None:
    overrides = [f"{k}={v}" for k, v in settings(folder, checkpoint).items()]
    config = load_config(RefineConfig, overrides=[*overrides, "requests=r.parquet"])
    anchored = refine_job.anchored(config)
    assert anchored.requests == str(Path("r.parquet").absolute())
