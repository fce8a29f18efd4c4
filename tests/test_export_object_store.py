"""Exports, imports and reports read from and write to an object store as they do on disk."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from labelled import label, scene
from test_import import separate

from workflows.export import Outcome, export_videos, finish_export, plan_export
from workflows.export_coco import Coco
from workflows.import_masks import ImportOptions, ImportOutcome
from workflows.import_sources import import_all, open_source
from workflows.labelled_videos import Selection
from workflows.query import Dataset

if TYPE_CHECKING:
    from object_store import ObjectStore

pytest_plugins = ["object_store"]
pytestmark = pytest.mark.cluster


def test_an_export_to_an_object_store_is_whole_and_resumes(object_store: ObjectStore) -> None:
    storage, root, out = object_store.storage, "s3://maskmill-test/e/d", "s3://maskmill-test/e/out"
    dataset = label(root, {"a": separate(), "b b": scene()}, storage=storage)
    dataset.refresh()
    plan, videos = plan_export(dataset, out, Coco(), Selection())
    next(export_videos(plan, videos, storage))
    results = list(export_videos(plan, videos, storage))
    assert [result.outcome for result in results] == [Outcome.SKIPPED, Outcome.EXPORTED]
    assert finish_export(plan, videos, results).videos == 2
    document = json.loads(storage.read_bytes(f"{out}/annotations/instances_train.json"))
    assert [video["name"] for video in document["videos"]] == ["a", "b b"]
    names = [stored.uri for stored in storage.list(out)]
    assert not [name for name in names if "unfinished" in name]

    source = open_source(f"{out}/annotations/instances_train.json", storage)
    options = ImportOptions(run_id="i")
    imported = list(import_all(source, root, storage, options))
    assert [result.outcome for result in imported] == [ImportOutcome.UNCHANGED] * 2

    only_b = Selection(video_ids=("b b",))
    plan, videos = plan_export(Dataset(root, storage), out, Coco(), only_b)
    results = list(export_videos(plan, videos, storage))
    assert finish_export(plan, videos, results).removed == 1
    assert not [
        stored.uri for stored in storage.list(f"{out}/.maskmill/videos") if "a.json" in stored.uri
    ]
