"""Corrections of a dataset on S3, through each door: they come out as on disk, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bulk import config_of, contents, settings_of
from refining import ALONE, click, masks_of, refine, request
from serve_cluster import Client, serving_dataset
from videos import write_moving_square

from workflows.config import RefineConfig, load_config
from workflows.label_engine import open_engine
from workflows.manifest import write_manifest
from workflows.query import Dataset
from workflows.refine_batch import refine_requests
from workflows.refine_requests import write_requests
from workflows.refine_sessions import RefineSessions, SessionOptions
from workflows.refine_types import QueueFilter
from workflows.results import DatasetWriter
from workflows.rows import Review, Status, VideoRequest
from workflows.storage import Storage
from workflows.video_labeller import LabellingJob, VideoLabeller

if TYPE_CHECKING:
    from object_store import ObjectStore

pytest_plugins = ["local_ray", "object_store"]

VIDEOS = ("v", "w")
PROMPTS = [click(1, 4, 20.0), click(2, 0, 100.0)]
CORRECTION = click(1, 8, 80.0)


@dataclass(frozen=True)
class Place:
    """Where a dataset lies, with its videos and requests; settings: of storage, by key."""

    root: str
    checkpoint: Path
    storage: Storage
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        return f"{self.root}/labels"

    def job(self, **changes: Any) -> dict[str, Any]:
        alone = {"compute__slots_per_actor": 1, "compute__frame_batch": 1}
        made = settings_of(Path(self.root), self.checkpoint, **alone, **changes) | self.settings
        return made | {"manifest": f"{self.root}/manifest.parquet", "output": self.dataset}

    def rows(self, folder: Path) -> list[dict[str, Any]]:
        """Of the manifest, whose videos are put here."""
        found = []
        for video_id in VIDEOS:
            path, uri = folder / f"{video_id}.mp4", f"{self.root}/videos/{video_id}.mp4"
            if not path.exists():
                write_moving_square(path, 12)
            self.storage.put(uri, path.read_bytes())
            found.append({"video_id": video_id, "video_uri": uri, "prompts": PROMPTS})
        return found

    @contextmanager
    def sessions(self) -> Iterator[RefineSessions]:
        config = config_of(self.job())
        options = SessionOptions(warm_frames=0)
        opened = RefineSessions.of_model(
            self.dataset, config.model, config.storage, ALONE, config.limits, options
        )
        with closing(opened):
            yield opened

    def contents(self) -> dict[str, Any]:
        found = contents(self.dataset, self.storage)
        for track in found["tracks"]:
            for name in ("model_sha256", "fingerprint"):  # of weights named by their place
                track.pop(name)
        return found


@pytest.fixture
def places(object_store: ObjectStore, checkpoint: Path, tmp_path: Path) -> tuple[Place, Place]:
    """On disk and on S3."""
    on_s3 = {
        "storage.endpoint_url": object_store.endpoint_url,
        "storage.region": "us-east-1",
        "storage.allow_http": True,
        "storage.spool_folder": tmp_path,
    }
    return (
        Place(str(tmp_path / "disk"), checkpoint, Storage()),
        Place("s3://maskmill-test/r", checkpoint, object_store.storage, on_s3),
    )


@pytest.mark.cluster
def test_on_an_object_store_a_refinement_is_what_it_is_on_disk(
    places: tuple[Place, Place], tmp_path: Path
) -> None:
    told = []
    for place in places:
        label_here(place, tmp_path)
        with place.sessions() as opened:
            told.append(correct(opened))
    assert told[0] == told[1]
    assert places[0].contents() == places[1].contents()


def label_here(place: Place, folder: Path) -> None:
    """As the bulk job does, without Ray."""
    config = config_of(place.job())
    engine = open_engine(config)
    labeller = VideoLabeller(LabellingJob(config, "label-run", "0" * 64, "test"), engine)
    outcomes = [
        labeller.label(VideoRequest.from_row(row), f"{number:032x}")
        for number, row in enumerate(place.rows(folder))
    ]
    engine.close()
    assert [outcome.status for outcome in outcomes] == [Status.OK] * 2, outcomes
    DatasetWriter(place.storage, place.dataset).commit(outcomes)


def correct(opened: RefineSessions) -> dict[str, Any]:
    """A draft that is committed, a commit that is taken back, a review; what was told."""
    draft_id = refine(opened, request(1, CORRECTION, draft=True)).draft_id
    assert draft_id is not None
    (draft,) = opened.drafts("v")
    drawn = [masks_of(frame) for frame in opened.draft_masks("v", draft_id)]
    committed = opened.commit_draft("v", draft_id)
    assert (draft.draft_id, committed.revision, opened.drafts("v")) == (draft_id, 2, ())
    refine(opened, request(2, click(2, 6, 30.0), remove_object_ids=(1,)))
    opened.restore("v", 3, 2, "ann")
    opened.review("v", 4, Review.ACCEPTED, "ann", [1])
    queue = opened.queue(QueueFilter())
    return {
        "draft": drawn,
        "history": [(r.revision, r.object_ids, r.review) for r in opened.history("v")],
        "queue": [(item.video_id, item.object_id, item.doubt, item.flags) for item in queue],
        "masks": [masks_of(frame) for frame in opened.masks("v")],
    }


@pytest.mark.slow
@pytest.mark.cluster
def test_on_an_object_store_labelling_a_batch_and_the_service_go_one_after_another(
    local_ray: None, places: tuple[Place, Place], tmp_path: Path
) -> None:
    from workflows.label_run import label

    for place in places:
        write_manifest(place.rows(tmp_path), f"{place.root}/manifest.parquet", place.storage)
        summary = label(config_of(place.job()))
        assert (summary.ok, summary.failed) == (2, 0)

        uri = f"{place.root}/requests.parquet"
        write_requests([{"video_id": "w", "prompts": [CORRECTION]}], uri, place.storage)
        summary = refine_requests(refine_config(place, uri))
        assert (summary.ok, summary.failed) == (1, 0)
        assert refine_requests(refine_config(place, uri)).skipped == 1

        settings = [f"{name}={value}" for name, value in place.settings.items()]
        with serving_dataset(place.dataset, place.checkpoint, settings) as url:
            click_by_http(Client(url), place)
    disk, store = (place.contents() for place in places)
    assert disk["videos"] == store["videos"]
    for name in ("tracks", "masks"):
        assert len(disk[name]) == len(store[name])
    assert disk["masks"] == store["masks"]


def refine_config(place: Place, requests: str) -> RefineConfig:
    values = place.job()
    del values["manifest"]
    values |= {"dataset": values.pop("output"), "requests": requests}
    return load_config(RefineConfig, overrides=[f"{k}={v}" for k, v in values.items()])


def click_by_http(ada: Client, place: Place) -> None:
    """What was shown of a click is what lies in the store afterwards."""
    assert ada.get("videos/v/frames/3.jpg").content[:3] == b"\xff\xd8\xff"
    (shown,) = ada.preview("v", 1, CORRECTION)["masks"]
    *_, last = ada.refine("v", 1, CORRECTION, draft=True)
    draft_id = last["result"]["draft_id"]
    assert ada.post(f"videos/v/drafts/{draft_id}/commit").json()["revision"] == 2
    (row,) = Dataset(place.dataset, place.storage).masks("v", [1], (8, 8)).to_pylist()
    assert row["counts"] == shown["counts"]
    assert ada.revision("w") == 2, "of the batch"
