"""One video to an outcome, without Ray: every reason code, and what an actor sends home."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bulk import click, config_of, settings_of, video_row
from scripted_engine import NoOpEngine

from sam2model import Prompt
from sam2model.tracked_masks import FrameMasks
from sam2model.video import Video
from workflows import video_labeller
from workflows.config import LabelConfig
from workflows.deadline import call_within
from workflows.label_actor import HOME_SCHEMA, LARGEST_HOME_BYTES, home_row
from workflows.mask_objects import find_mask_object
from workflows.rows import FailureReason, VideoOutcome, VideoRequest, outcomes_from_table
from workflows.storage import Storage
from workflows.video_labeller import LabellingJob, VideoLabeller

FINGERPRINT = "f" * 32


class Failing(NoOpEngine):
    """Raises after two frames."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def label(
        self,
        video: Video,
        prompts: list[Prompt],
        first_frame: int = 0,
        last_frame: int | None = None,
        *,
        deadline_s: float | None = None,
    ) -> Iterator[FrameMasks]:
        for count, frame in enumerate(super().label(video, prompts, first_frame, last_frame)):
            if count == 2:
                raise self._error
            yield frame


class Hanging(NoOpEngine):
    """Gives no frame until a test has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()

    def label(self, *args: Any, **kwargs: Any) -> Iterator[FrameMasks]:
        self.ended.wait()
        return iter(())


def job_of(folder: Path, **changes: Any) -> LabellingJob:
    config = config_of(settings_of(folder, folder / "checkpoint", **changes))
    return LabellingJob(config, "run-1", "0" * 64, "test")


def label(
    folder: Path, request: VideoRequest, engine: NoOpEngine | None = None, **changes: Any
) -> VideoOutcome:
    return VideoLabeller(job_of(folder, **changes), engine or NoOpEngine()).label(
        request, FINGERPRINT
    )


def request_of(folder: Path, **changes: Any) -> VideoRequest:
    return VideoRequest.from_row(video_row(folder, "v", 8, **changes))


def no_masks(config: LabelConfig) -> bool:
    return find_mask_object(Storage(), config.output, "v", FINGERPRINT) is None


def test_a_labelled_video_says_where_its_time_went_and_its_masks_are_put(tmp_path: Path) -> None:
    outcome = label(tmp_path, request_of(tmp_path, prompts=[click(0), click(3)]))
    assert (outcome.status, outcome.objects, outcome.num_frames_decoded) == ("ok", 2, 8)
    assert (outcome.width, outcome.height, outcome.run_id) == (128, 96, "run-1")
    assert set(outcome.seconds_by_stage) == {"open", "track", "write"}
    assert outcome.peak_memory_bytes and outcome.hardware and outcome.code_version == "test"
    found = find_mask_object(Storage(), job_of(tmp_path).config.output, "v", FINGERPRINT)
    assert found is not None and found.mask_object == outcome.mask_object
    assert outcome.mask_object is not None and outcome.mask_object.num_rows == 16


def test_masks_that_are_slow_to_put_hold_up_no_other_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first video's masks are put when the second video is done."""
    labeller, second_is_done = VideoLabeller(job_of(tmp_path), NoOpEngine()), threading.Event()
    put = Storage.put_if_absent

    def put_slowly(self: Storage, uri: str, data: bytes) -> bool:
        if "first" in uri:
            assert second_is_done.wait(60)
        return put(self, uri, data)

    monkeypatch.setattr(Storage, "put_if_absent", put_slowly)
    first, second = (
        VideoRequest.from_row(video_row(tmp_path, name)) for name in ("first", "second")
    )
    with ThreadPoolExecutor(1) as beside:
        waiting = beside.submit(labeller.label, first, FINGERPRINT)
        assert labeller.label(second, FINGERPRINT).status == "ok"
        second_is_done.set()
        assert waiting.result().status == "ok"


def test_masks_that_an_attempt_left_behind_are_found_and_not_made_again(tmp_path: Path) -> None:
    first = label(tmp_path, request_of(tmp_path))
    again = label(tmp_path, request_of(tmp_path), Failing(KeyError("must not be called")))
    assert again.mask_object == first.mask_object
    assert again.status == "ok"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), FailureReason.OUT_OF_MEMORY),
        (MemoryError(), FailureReason.OUT_OF_MEMORY),
        (TimeoutError("too slow"), FailureReason.TIMEOUT),
        (KeyError("a mistake of the program"), FailureReason.INTERNAL),
        (SystemExit(3), FailureReason.INTERNAL),
    ],
)
def test_what_goes_wrong_while_tracking_is_an_outcome_and_leaves_no_masks(
    error: BaseException, reason: FailureReason, tmp_path: Path
) -> None:
    outcome = label(tmp_path, request_of(tmp_path), Failing(error))
    assert (outcome.status, outcome.reason) == ("failed", reason)
    assert outcome.detail and type(error).__name__ in outcome.detail
    assert outcome.tracks == () and outcome.mask_object is None
    assert set(outcome.seconds_by_stage) == {"open", "track"}
    assert no_masks(job_of(tmp_path).config)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    """The first half of a film that tells how long it is at its beginning."""
    from videos import write_moving_square

    write_moving_square(path, 60, container_options={"movflags": "faststart"})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])


@pytest.mark.parametrize(
    ("changes", "settings", "make", "reason"),
    [
        ({"video_uri": "ftp://host/v.mp4"}, {}, None, "uri_not_allowed"),
        ({}, {"storage__allowed_uri_prefixes": "[/elsewhere]"}, None, "uri_not_allowed"),
        ({"video_uri": "/no/such/video.mp4"}, {}, None, "not_found"),
        ({}, {}, lambda path: path.write_bytes(b"no video at all"), "undecodable"),
        ({}, {}, empty, "no_frames"),
        ({}, {}, cut, "truncated"),
        ({}, {"limits__max_pixels": 100}, None, "too_large"),
        ({}, {"limits__max_video_bytes": 100}, None, "too_large"),
        ({"prompts": [click(frame_index=8)]}, {}, None, "prompt_out_of_range"),
        ({"prompts": [click(x=128.5)]}, {}, None, "prompt_out_of_range"),
        ({"prompts": [{**click(), "points": []}]}, {}, None, "prompt_invalid"),
        ({"prompts": [None]}, {}, None, "prompt_invalid"),
    ],
)
def test_what_is_wrong_with_a_video_or_its_prompts_has_a_reason(
    changes: dict[str, Any],
    settings: dict[str, Any],
    make: Callable[[Path], None] | None,
    reason: str,
    tmp_path: Path,
    engine: NoOpEngine,
) -> None:
    request = request_of(tmp_path, **changes)
    if make is not None:
        make(tmp_path / "v.mp4")
    outcome = label(tmp_path, request, engine, **settings)
    assert (outcome.status, outcome.reason) == ("failed", reason), outcome.detail
    assert outcome.detail
    assert no_masks(job_of(tmp_path).config)


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The real one, for it knows what is out of range."""
    from checkpoints import small_checkpoint

    from workflows.label_engine import open_engine

    folder = tmp_path_factory.mktemp("engine")
    small_checkpoint(folder / "checkpoint")
    return open_engine(job_of(folder).config)


def test_a_video_that_gives_no_answer_fails_at_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_labeller, "GRACE_S", 0.1)
    engine = Hanging()
    outcome = label(tmp_path, request_of(tmp_path), engine, limits__video_deadline_s=0.2)
    engine.ended.set()
    assert outcome.reason == FailureReason.TIMEOUT
    assert outcome.detail is not None and outcome.detail.startswith("track: ")
    assert "the deadline is 0.2 s" in outcome.detail
    assert outcome.seconds_by_stage["track"] >= 0.2
    assert no_masks(job_of(tmp_path).config)


def test_a_lost_device_is_nobodys_video(tmp_path: Path) -> None:
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(torch.AcceleratorError):
        label(tmp_path, request_of(tmp_path), Failing(error))


def test_alone_a_video_gets_fewer_slots_and_nothing_that_changes_its_masks(tmp_path: Path) -> None:
    job = job_of(tmp_path, compute__videos_in_flight=4, compute__slots_per_actor=32)
    alone = job.alone(8)
    assert (alone.config.compute.videos_in_flight, alone.config.compute.slots_per_actor) == (1, 8)
    assert alone.config.inference_config == job.config.inference_config
    assert replace(alone.config, compute=job.config.compute) == job.config
    assert job.alone(99).config.compute.slots_per_actor == 32


def test_a_small_outcome_goes_home_whole_and_a_large_one_without_its_tracks(
    tmp_path: Path,
) -> None:
    outcome = label(tmp_path, request_of(tmp_path))
    whole = home_row(outcome, 7)
    assert whole.schema == HOME_SCHEMA
    assert (whole["task"].to_pylist(), whole["rest"].to_pylist()) == ([7], [None])
    assert outcomes_from_table(whole.select(whole.column_names[:-2])) == [outcome]
    many = replace(outcome, tracks=outcome.tracks * 2000)
    assert home_row(many, 7).nbytes < LARGEST_HOME_BYTES
    assert many.mask_object is not None
    assert home_row(many, 7)["rest"].to_pylist() == [many.mask_object.path]


def test_a_call_that_hangs_is_left_behind_and_others_give_what_they_have() -> None:
    hangs = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer in 0.05 s"):
        call_within(0.05, hangs.wait)
    hangs.set()
    assert call_within(60.0, lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        call_within(60.0, lambda: 1 / 0)


def test_a_share_of_the_frames_is_tracked_backwards_and_no_video_is_lost_for_it(
    tmp_path: Path,
) -> None:
    class Counting(NoOpEngine):
        """Asked the second time, for a check, it is late."""

        asked = 0

        def label(self, *args: Any, **kwargs: Any) -> Iterator[FrameMasks]:
            self.asked += 1
            if self.asked == self.late_at:
                raise TimeoutError("late")
            return super().label(*args, **kwargs)

        late_at = 0

    video = video_row(tmp_path, "long", 24)
    engine = Counting()
    request = VideoRequest.from_row(video)
    checked = label(tmp_path, request, engine, quality__backward_share=0.5)
    assert (engine.asked, "check" in checked.seconds_by_stage) == (2, True)
    engine = Counting()
    engine.late_at = 2
    other = VideoLabeller(job_of(tmp_path, quality__backward_share=0.5), engine)
    late = other.label(request, "e" * 32)
    assert late.mask_object is not None and engine.asked == 2
    engine = Counting()
    never = VideoLabeller(job_of(tmp_path, quality__backward_share=0), engine)
    assert "check" not in never.label(request, "d" * 32).seconds_by_stage
    assert engine.asked == 1
