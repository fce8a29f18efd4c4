"""Refinement as people rely on it: what a person corrected stays, and nobody's work is lost."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from refining import (
    FRAMES,
    box,
    click,
    label_video,
    labels,
    masks_of,
    preview,
    record_failure,
    refine,
    request,
    sessions,
    version,
    withdrawal,
)

from jobs import compact
from sam2model.prompts import PromptError
from workflows.query import Dataset
from workflows.refine_sessions import RefineSessions
from workflows.refine_types import (
    DraftNotFound,
    PreviewRequest,
    QueueFilter,
    RefinedFrame,
    RefinementConflict,
    RefinementError,
    RefinementResult,
    Span,
    Superseded,
)
from workflows.rows import Review, Source
from workflows.storage import NotFound

CORRECTED = 12  # the frame on which a person finds a mistake
CORRECTION = click(1, CORRECTED, 80.0)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """Objects 1 (first prompted on frame 4) and 2 of a video, labelled in bulk."""
    folder = tmp_path_factory.mktemp("labelled")
    label_video(folder, checkpoint, [click(1, 4, 20.0), click(2, 0, 100.0)])
    return folder


@pytest.fixture
def folder(tmp_path: Path, labelled: Path) -> Path:
    """A copy for one test."""
    shutil.copytree(labelled, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def opened(folder: Path, checkpoint: Path) -> Iterator[RefineSessions]:
    with sessions(folder, checkpoint) as opened:
        yield opened


# Corrections stay.


def test_a_corrected_frame_shows_the_mask_that_was_previewed(
    opened: RefineSessions, folder: Path
) -> None:
    seen = preview(opened, 1, CORRECTION)[1]
    assert seen != labels(folder)[CORRECTED], "the click must change something"
    result = refine(opened, request(1, CORRECTION))
    assert result.revision == 2
    assert labels(folder)[CORRECTED] == seen


def test_a_correction_changes_what_it_reaches_and_nothing_else(
    opened: RefineSessions, folder: Path
) -> None:
    before, other = labels(folder), labels(folder, 2)
    refine(opened, request(1, CORRECTION))
    after = labels(folder)
    assert sorted(after) == list(range(FRAMES))
    assert all(after[t] == before[t] for t in range(4, CORRECTED)), "nothing before it changes"
    assert any(after[t] != before[t] for t in range(CORRECTED + 1, FRAMES)), "later frames profit"
    assert any(after[t] != before[t] for t in range(4)), "so does the pass backwards"
    assert labels(folder, 2) == other
    assert labels(folder, at=1) == before, "what was there can be read"


def test_a_corrected_frame_keeps_its_mask_when_another_is_corrected(
    opened: RefineSessions, folder: Path
) -> None:
    refine(opened, request(1, CORRECTION))
    seen = labels(folder)[CORRECTED]
    base = 2
    for prompt in (click(1, 8, 30.0), click(1, 1, 90.0), box(1, 16, 5, 30, 60, 80)):
        before = labels(folder)
        base = refine(opened, request(base, prompt)).revision or 0
        assert labels(folder)[CORRECTED] == seen
        assert labels(folder) != before
    track = Dataset(str(folder / "labels")).tracks(["v"]).to_pylist()[0]
    assert [p["frame_index"] for p in track["prompts"]] == [1, 4, 8, CORRECTED, 16]
    rows = Dataset(str(folder / "labels")).masks("v", [1]).to_pylist()
    assert [row["frame_index"] for row in rows if row["is_prompt"]] == [1, 4, 8, CORRECTED, 16]


def test_a_corrected_frame_keeps_its_mask_when_the_bulk_job_runs_again(
    opened: RefineSessions, folder: Path, checkpoint: Path
) -> None:
    refine(opened, request(1, CORRECTION))
    corrected, other = labels(folder), labels(folder, 2)
    label_video(folder, checkpoint, [click(1, 4, 60.0), click(2, 0, 30.0)], fingerprint="a" * 32)
    assert labels(folder) == corrected
    assert labels(folder, 2) != other, "what nobody corrected is the bulk job's"


REFINE_ELSEWHERE = """
import sys
from pathlib import Path
from refining import click, refine, request, sessions
folder, checkpoint = map(Path, sys.argv[1:])
with sessions(folder, checkpoint) as opened:
    base = opened.open("v").revision
    print(refine(opened, request(base, click(1, 7, 30.0), author="bob")).revision)
"""


def test_a_corrected_frame_keeps_its_mask_when_another_process_goes_on(
    opened: RefineSessions, folder: Path, checkpoint: Path
) -> None:
    refine(opened, request(1, CORRECTION))
    before = labels(folder)
    ran = subprocess.run(
        [sys.executable, "-c", REFINE_ELSEWHERE, str(folder), str(checkpoint)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "3\n"), ran.stderr
    after = labels(folder)
    assert after[CORRECTED] == before[CORRECTED]
    assert after[7] != before[7]


def test_a_frame_prompted_anew_takes_the_new_mask(opened: RefineSessions, folder: Path) -> None:
    refine(opened, request(1, CORRECTION))
    before = labels(folder)[CORRECTED]
    again = click(1, CORRECTED, 20.0)
    seen = preview(opened, 2, again)[1]
    refine(opened, request(2, again))
    assert labels(folder)[CORRECTED] == seen != before
    track = Dataset(str(folder / "labels")).tracks(["v"]).to_pylist()[0]
    assert [p["frame_index"] for p in track["prompts"]] == [4, CORRECTED]


def test_what_a_person_accepted_keeps_its_prompted_frames_too(
    folder: Path, checkpoint: Path
) -> None:
    prompts = [click(1, 4, 20.0), click(1, 14, 60.0)]
    label_video(folder, checkpoint, prompts, fingerprint="b" * 32)
    with sessions(folder, checkpoint) as opened:
        base = opened.review("v", 2, Review.ACCEPTED, "ann", [1])
        before = labels(folder)
        refine(opened, request(base, click(1, 9, 90.0), author="bob"))
        after = labels(folder)
        assert after[14] == before[14], "what somebody looked at and found right"
        assert after[13] != before[13]


def test_a_withdrawn_correction_leaves_what_was_there_before_it(
    opened: RefineSessions, folder: Path
) -> None:
    before = labels(folder)
    refine(opened, request(1, CORRECTION))
    refine(opened, request(2, withdrawal(1, CORRECTED)))
    assert labels(folder) == before


def test_any_replica_gives_the_same_masks_warm_or_cold(
    opened: RefineSessions, folder: Path, checkpoint: Path
) -> None:
    with sessions(folder, checkpoint, warm_frames=1000) as warm:
        warm.open("v")
        for _ in range(2):  # the second time from what the first left
            assert preview(warm, 1, CORRECTION) == preview(opened, 1, CORRECTION)
        refine(warm, request(1, CORRECTION))
        next_one = click(1, 15, 40.0)
        assert preview(warm, 2, next_one) == preview(opened, 2, next_one)


# Objects and spans.


def test_an_object_can_be_added_to_a_labelled_video(opened: RefineSessions, folder: Path) -> None:
    before = labels(folder)
    prompt = click(7, 3, 60.0)
    prompt["category"] = "dog"
    result = refine(opened, request(1, prompt))
    assert [(o.object_id, o.parent_revision) for o in result.objects] == [(7, None)]
    assert sorted(labels(folder, 7)) == list(range(FRAMES))
    assert labels(folder) == before
    tracks = {track.object_id: track for track in opened.open("v").tracks}
    assert tracks[7].category == "dog"
    assert (tracks[7].source, tracks[7].author) == (Source.REFINE, "ann")
    assert tracks[7].doubt is not None


def test_an_object_can_be_removed_and_restored(opened: RefineSessions, folder: Path) -> None:
    before = labels(folder, 2)
    result = refine(opened, request(1, remove_object_ids=(2,)))
    assert result.objects[0].removed
    assert labels(folder, 2) == {}
    assert [t.object_id for t in opened.open("v").tracks] == [1]
    restored = opened.restore("v", 2, 1, "bob")
    assert [(o.object_id, o.removed) for o in restored.objects] == [(2, False)]
    assert labels(folder, 2) == before


def test_only_the_span_asked_for_is_computed(opened: RefineSessions, folder: Path) -> None:
    before = labels(folder)
    wanted = request(1, CORRECTION, span=Span(10, 14))
    steps = list(opened.refine(wanted))
    assert [s.frame_index for s in steps if isinstance(s, RefinedFrame)] == [12, 13, 14]
    after = labels(folder)
    assert {t for t in after if after[t] != before[t]} <= {12, 13, 14}
    assert sorted(after) == list(range(FRAMES))
    track = opened.open("v").tracks[0]
    assert track.refinement is not None
    assert (track.refinement["first_frame"], track.refinement["last_frame"]) == (12, 14)


def test_objects_can_be_computed_again_with_the_prompts_they_have(
    opened: RefineSessions, folder: Path
) -> None:
    before = labels(folder)
    result = refine(opened, request(1, object_ids=(1,)))
    assert (result.frames_computed, labels(folder)) == (FRAMES, before)


# People beside each other.


def test_of_two_people_on_one_object_one_commits_and_one_is_told_of_it(
    opened: RefineSessions, folder: Path
) -> None:
    first, second = opened.open("v").revision, opened.open("v").revision
    refine(opened, request(first, CORRECTION, author="ann"))
    before, committed = labels(folder), version(folder)
    with pytest.raises(RefinementConflict) as caught:
        refine(opened, request(second, click(1, 9, 30.0), author="bob"))
    conflict = caught.value.conflict
    assert (conflict.object_id, conflict.base_revision, conflict.newest_revision) == (1, 1, 2)
    assert (conflict.author, conflict.source) == ("ann", Source.REFINE)
    assert (labels(folder), version(folder)) == (before, committed)


def test_a_commit_that_comes_in_while_another_computes_makes_that_one_a_conflict(
    opened: RefineSessions, folder: Path
) -> None:
    slow = opened.refine(request(1, CORRECTION, author="ann"))
    next(slow)
    refine(opened, request(1, click(1, 9, 30.0), author="bob"))
    before = labels(folder)
    with pytest.raises(RefinementConflict) as caught:
        list(slow)
    assert caught.value.conflict.author == "bob"
    assert labels(folder) == before


def test_people_on_different_objects_do_not_disturb_each_other(
    opened: RefineSessions, folder: Path
) -> None:
    refine(opened, request(1, CORRECTION, author="ann"))
    result = refine(opened, request(1, click(2, 9, 30.0), author="bob"))
    assert result.revision == 3
    assert {t.object_id: t.author for t in opened.open("v").tracks} == {1: "ann", 2: "bob"}


def test_a_request_sent_twice_is_committed_once(opened: RefineSessions, folder: Path) -> None:
    wanted = request(1, CORRECTION, request_id="r1")
    first = refine(opened, wanted)
    committed = version(folder)
    again = refine(opened, wanted)
    assert (again.revision, again.objects) == (first.revision, first.objects)
    assert version(folder) == committed


def test_a_preview_that_nobody_waits_for_is_dropped(opened: RefineSessions) -> None:
    def ask(sequence: int, client: str = "a") -> RefinedFrame:
        return opened.preview(
            PreviewRequest(
                video_id="v",
                base_revision=1,
                frame_index=CORRECTED,
                prompts=(CORRECTION,),
                client=client,
                sequence=sequence,
            )
        )

    assert ask(2).sequence == 2
    with pytest.raises(Superseded):
        ask(1)
    assert masks_of(ask(1, "b")) == masks_of(ask(3))


# Drafts, cancelling, history.


def test_a_draft_is_seen_by_no_view_and_survives_a_restart(
    opened: RefineSessions, folder: Path, checkpoint: Path
) -> None:
    before, committed = labels(folder), version(folder)
    draft_id = refine(opened, request(1, CORRECTION, draft=True)).draft_id
    assert (labels(folder), version(folder)) == (before, committed)
    with sessions(folder, checkpoint) as restarted:
        (draft,) = restarted.drafts("v")
        assert (draft.draft_id, draft.author, draft.base_revision) == (draft_id, "ann", 1)
        assert [p["frame_index"] for p in draft.prompts] == [CORRECTED]
        assert not draft.is_stale
        assert restarted.drafts("v", author="bob") == restarted.drafts("w") == ()
        drawn = {f.frame_index: masks_of(f)[1] for f in restarted.draft_masks("v", draft.draft_id)}
        result = restarted.commit_draft("v", draft.draft_id)
        assert result.revision == 2
        assert labels(folder) == drawn != before
        assert restarted.drafts("v") == ()
        with pytest.raises(DraftNotFound):
            restarted.commit_draft("v", draft.draft_id)


def test_a_draft_can_be_discarded(opened: RefineSessions, folder: Path) -> None:
    draft_id = refine(opened, request(1, CORRECTION, draft=True)).draft_id
    assert draft_id is not None
    opened.discard_draft("v", draft_id)
    opened.discard_draft("v", draft_id)
    opened.discard_draft("v", "../../v.mp4")
    assert opened.drafts("v") == ()
    assert (folder / "v.mp4").exists()


def test_a_stale_draft_says_so_and_is_not_committed(opened: RefineSessions, folder: Path) -> None:
    draft_id = refine(opened, request(1, CORRECTION, draft=True)).draft_id
    assert draft_id is not None
    refine(opened, request(1, click(1, 9, 30.0), author="bob"))
    before = labels(folder)
    assert opened.drafts("v")[0].is_stale
    with pytest.raises(RefinementConflict):
        opened.commit_draft("v", draft_id)
    assert labels(folder) == before
    assert len(opened.drafts("v")) == 1, "its author may still want to look at it"


def test_compacting_deletes_drafts_that_are_old_and_can_no_longer_be_committed(
    opened: RefineSessions, folder: Path
) -> None:
    ids = {}
    for object_id, age in ((1, "old"), (1, "new"), (2, "old")):
        place = click(object_id, CORRECTED, 30.0)
        draft_id = refine(opened, request(1, place, draft=True)).draft_id
        assert draft_id is not None
        ids[object_id, age] = aged(folder, draft_id) if age == "old" else draft_id
    refine(opened, request(1, click(1, 9, 30.0), author="bob"))
    assert compact.main(["--dataset", str(folder / "labels")]) == 0
    kept = {draft.draft_id for draft in opened.drafts("v")}
    assert kept == {ids[1, "new"], ids[2, "old"]}, "object 2 is as it was"
    assert opened.commit_draft("v", ids[2, "old"]).revision == 3


def aged(folder: Path, draft_id: str) -> str:
    """The same draft as if it had been made years ago."""
    (path,) = (folder / "labels/_drafts").rglob(f"{draft_id}.parquet")
    older = f"2020{draft_id[4:]}"
    path.rename(path.with_name(f"{older}.parquet"))
    return older


@pytest.mark.parametrize("way", ["asked", "closed"])
def test_cancelling_commits_nothing(opened: RefineSessions, folder: Path, way: str) -> None:
    before, committed = labels(folder), version(folder)
    cancel_after(opened, way, draft=False)
    assert (labels(folder), version(folder)) == (before, committed)
    assert opened.drafts("v") == ()


@pytest.mark.parametrize("way", ["asked", "closed"])
def test_cancelling_a_draft_keeps_what_was_computed(
    opened: RefineSessions, folder: Path, way: str
) -> None:
    before = labels(folder)
    frames = cancel_after(opened, way, draft=True)
    (draft,) = opened.drafts("v")
    kept = {f.frame_index: masks_of(f)[1] for f in opened.draft_masks("v", draft.draft_id)}
    assert kept == before | frames
    assert labels(folder) == before


def cancel_after(opened: RefineSessions, way: str, draft: bool) -> dict[int, str]:
    """Stop a refinement after three frames; their masks."""
    frames: dict[int, str] = {}
    steps = opened.refine(request(1, CORRECTION, draft=draft), lambda: len(frames) == 3)
    for step in steps:
        if isinstance(step, RefinementResult):
            assert draft and step.cancelled
            break
        frames[step.frame_index] = masks_of(step)[1]
        if way == "closed" and len(frames) == 3:
            break
    steps.close()
    return frames


def test_an_earlier_revision_can_be_restored(opened: RefineSessions, folder: Path) -> None:
    before = labels(folder)
    refine(opened, request(1, CORRECTION, click(2, 5, 30.0)))
    corrected = labels(folder)
    result = opened.restore("v", 2, 1, "bob", [1])
    assert result.revision == 3
    assert labels(folder) == before
    assert labels(folder, 2) == labels(folder, 2, at=2)
    info = opened.history("v")
    assert [(i.revision, i.author, i.object_ids, i.restored_from) for i in info] == [
        (3, "bob", (1,), 1),
        (2, "ann", (1, 2), None),
        (1, None, (1, 2), None),
    ]
    opened.restore("v", 3, 2, "ann", [1])
    assert labels(folder) == corrected
    with pytest.raises(RefinementError, match="shows what 2 showed"):
        opened.restore("v", 4, 2, "ann", [1])


def test_accepting_keeps_masks_and_takes_an_object_off_the_queue(
    opened: RefineSessions, folder: Path, checkpoint: Path
) -> None:
    before = labels(folder)
    assert {item.object_id for item in opened.queue(QueueFilter())} == {1, 2}
    assert opened.review("v", 1, Review.ACCEPTED, "ann", [1]) == 2
    assert {item.object_id for item in opened.queue(QueueFilter())} == {2}
    assert labels(folder) == before
    with pytest.raises(RefinementConflict):
        opened.review("v", 1, Review.REJECTED, "bob", [1])
    label_video(folder, checkpoint, [click(1, 4, 60.0)], fingerprint="a" * 32)
    assert labels(folder) == before, "what a person accepted is no longer the bulk job's"


# What cannot be done.


@pytest.mark.parametrize(
    ("wanted", "error", "said"),
    [
        (request(1), RefinementError, "nothing to do"),
        (request(1, object_ids=(9,)), RefinementError, r"no objects \[9\].*has \[1, 2\]"),
        (request(1, remove_object_ids=(9,)), RefinementError, r"no objects \[9\]"),
        (request(5, CORRECTION), RefinementError, "base revision 5; its newest is 1"),
        (request(1, withdrawal(1, 4)), RefinementError, "object 1 has no prompt left"),
        (request(1, withdrawal(1, 5)), RefinementError, "no prompt to withdraw"),
        (request(1, CORRECTION, CORRECTION), RefinementError, "given twice"),
        (request(1, CORRECTION, span=Span(0, 5)), RefinementError, "outside the span 0 to 5"),
        (request(1, CORRECTION, remove_object_ids=(1,)), RefinementError, "both to compute"),
        (request(1, click(1, 99, 20.0)), PromptError, "the video has frames 0 to 19"),
        (request(1, click(1, 5, 999.0)), PromptError, r"point \(999.0, 50.0\) outside 128×96"),
        (request(1, click(-1, 5, 9.0)), PromptError, "ids are 0 or more"),
        (request(1, CORRECTION, video_id="w"), NotFound, "no video 'w'"),
    ],
)
def test_a_request_that_cannot_be_carried_out_says_why_and_writes_nothing(
    opened: RefineSessions, folder: Path, wanted: Any, error: type[Exception], said: str
) -> None:
    committed = version(folder)
    with pytest.raises(error, match=said):
        refine(opened, wanted)
    assert version(folder) == committed
    assert opened.drafts("v") == ()


def test_a_video_that_is_not_there_says_so_and_may_come(
    opened: RefineSessions, folder: Path
) -> None:
    record_failure(folder, "w")
    with pytest.raises(NotFound, match=r"w\.mp4"):
        opened.open("w")
    shutil.copy(folder / "v.mp4", folder / "w.mp4")
    assert opened.open("w").num_frames == FRAMES


def test_an_unlabelled_video_can_be_labelled_by_hand(opened: RefineSessions, folder: Path) -> None:
    record_failure(folder, "w")
    shutil.copy(folder / "v.mp4", folder / "w.mp4")
    assert opened.open("w").revision == 0
    result = refine(opened, request(0, click(0, 2, 40.0), video_id="w"))
    assert result.revision == 1
    assert Dataset(str(folder / "labels")).masks("w").num_rows == FRAMES
