"""What a run says of itself: counts, stages, idle share, cost; and that no row is missing."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from labels import failed, ok

from workflows.config import LabelConfig, PriceConfig
from workflows.label_summary import LostVideos, Summary
from workflows.rows import FailureReason, MaskObject

CONFIG = LabelConfig("m", "o", price=PriceConfig(per_actor_hour=3.6, currency="EUR"))
MASKS = MaskObject(path="a", size_bytes=1, num_rows=6, stats="{}")


def summary_of_three() -> Summary:
    """Two labelled videos, one of them adopted, and a failure, on a device for 1,000 s."""
    summary = Summary("r", videos=5, skipped=2, device_s=1000.0, device_busy_s=750.0)
    labelled = replace(
        ok("a"),
        mask_object=MASKS,
        duration_s=10.0,
        seconds_by_stage={"open": 1.0, "track": 2.0},
        peak_memory_bytes=100,
        hardware="H100",
    )
    summary.add(labelled)
    summary.add(replace(labelled, video_id="b", run_id="the one before", peak_memory_bytes=900))
    summary.add(replace(failed("c"), seconds_by_stage={"open": 0.5}, peak_memory_bytes=200))
    return summary


def test_what_this_run_did_is_counted_apart_from_what_it_found() -> None:
    summary = summary_of_three()
    assert (summary.labelled, summary.adopted, summary.failed_now, summary.done_now) == (1, 1, 1, 3)
    assert summary.failures == {FailureReason.TIMEOUT: 1}
    assert (summary.frames, summary.object_frames, summary.video_s) == (3, 6, 10.0)
    assert summary.stage_s == {"open": 1.5, "track": 2.0}
    assert summary.peak_memory_bytes == 200


def test_the_row_of_the_run_has_stages_idle_share_memory_and_cost() -> None:
    now = datetime.now(UTC)
    row = summary_of_three().to_row(CONFIG, "1.0", now, now)
    assert row["device_idle_share"] == 0.25
    assert dict(row["seconds_by_stage"]) == {"open": 1.5, "track": 2.0}
    assert (row["peak_memory_bytes"], row["peak_device_memory_bytes"]) == (200, None)
    assert row["cost"] == pytest.approx(1.0)  # 1,000 s at 3.60 an hour
    assert row["cost_per_video_hour"] == pytest.approx(360.0)  # for 10 s of video
    assert row["cost_per_1000_frames"] == pytest.approx(1000 / 3)
    assert row["currency"] == "EUR"


def test_without_a_price_there_is_no_cost() -> None:
    now = datetime.now(UTC)
    config = LabelConfig("m", "o")
    row = summary_of_three().to_row(config, "1.0", now, now)
    names = ("cost", "cost_per_video_hour", "cost_per_1000_frames", "currency")
    assert [row[name] for name in names] == [None] * 4
    assert "cost" not in summary_of_three().to_json(config)


def test_a_run_that_labelled_nothing_shares_its_cost_with_nobody() -> None:
    line = Summary("r", device_s=10.0).to_json(CONFIG)
    assert line["cost"] == pytest.approx(0.01)
    assert (line["cost_per_video_hour"], line["cost_per_1000_frames"]) == (None, None)


@pytest.mark.parametrize(("ok_rows", "failed_rows"), [(2, 1), (4, 1), (None, None)])
def test_a_row_that_is_missing_or_too_many_is_a_defect(
    ok_rows: int | None, failed_rows: int | None
) -> None:
    summary = Summary("r", videos=4, ok=ok_rows, failed=failed_rows)
    with pytest.raises(LostVideos, match="4 rows in the manifest"):
        summary.check()


def test_a_manifest_that_adds_up_is_none() -> None:
    Summary("r", videos=4, ok=3, failed=1).check()
