"""What became of a manifest: counts of one run, its row in `runs`, its JSON line.

Knows nothing of how videos are labelled. `ok` and `failed` are read back from the dataset at the
end; what is counted on the way is only this run's share of them.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from workflows.config import PipelineConfig, RefineConfig, to_tree
from workflows.rows import Status, VideoOutcome


class LostVideos(RuntimeError):
    """Rows of the manifest of which the dataset says nothing after a run: a defect."""


@dataclass(slots=True)
class Summary:
    """Counts of a run. All are of videos unless the name says otherwise.

    videos = ok + failed over the whole manifest; None before the dataset was asked.
    skipped: recorded by earlier runs. adopted: masks of an earlier run, found and committed.
    device_s: seconds in which actors held their devices; device_busy_s: in which those worked.
    """

    run_id: str
    videos: int = 0
    ok: int | None = None
    failed: int | None = None
    skipped: int = 0
    labelled: int = 0
    adopted: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    reruns: int = 0
    frames: int = 0
    object_frames: int = 0
    video_s: float = 0.0
    wall_s: float = 0.0
    device_s: float = 0.0
    device_busy_s: float = 0.0
    stage_s: Counter[str] = field(default_factory=Counter)
    peak_memory_bytes: int = 0
    peak_device_memory_bytes: int = 0
    hardware: set[str] = field(default_factory=set)
    stopped: bool = False

    def add(self, outcome: VideoOutcome) -> None:
        """Count one outcome that this run commits."""
        if outcome.status == Status.FAILED:
            assert outcome.reason is not None
            self.failures[outcome.reason] += 1
        elif outcome.run_id != self.run_id:
            self.adopted += 1
        else:
            self.labelled += 1
            self.frames += frames_of(outcome)
            self.object_frames += outcome.mask_object.num_rows if outcome.mask_object else 0
            self.video_s += outcome.duration_s or 0.0
        if outcome.run_id == self.run_id:
            self.stage_s.update(outcome.seconds_by_stage)
            self.peak_memory_bytes = max(self.peak_memory_bytes, outcome.peak_memory_bytes or 0)
            self.peak_device_memory_bytes = max(
                self.peak_device_memory_bytes, outcome.peak_device_memory_bytes or 0
            )
            self.hardware |= {outcome.hardware} if outcome.hardware else set()

    @property
    def failed_now(self) -> int:
        return self.failures.total()

    @property
    def done_now(self) -> int:
        return self.labelled + self.adopted + self.failed_now

    @property
    def device_idle_share(self) -> float | None:
        if self.device_s <= 0:
            return None
        return min(max(1 - self.device_busy_s / self.device_s, 0.0), 1.0)

    def check(self) -> None:
        """Raise LostVideos unless every row of the manifest ended, in this run or before."""
        if self.ok is None or self.failed is None or self.videos != self.ok + self.failed:
            raise LostVideos(
                f"{self.videos} rows in the manifest, but the dataset has {self.ok} of them as ok "
                f"and {self.failed} as failed"
            )

    def cost(self, config: PipelineConfig) -> float | None:
        price = config.price.per_actor_hour
        return None if price is None else price * self.device_s / 3600

    def to_json(self, config: PipelineConfig) -> dict[str, Any]:
        """For the last line of standard output."""
        idle = self.device_idle_share
        line = {
            "run_id": self.run_id,
            "dataset": config.output,
            "videos": self.videos,
            "ok": self.ok,
            "failed": self.failed,
            "skipped": self.skipped,
            "labelled": self.labelled,
            "adopted": self.adopted,
            "failures": dict(self.failures),
            "reruns": self.reruns,
            "frames": self.frames,
            "masks": self.object_frames,
            "video_s": round(self.video_s, 2),
            "wall_s": round(self.wall_s, 2),
            "frames_per_s": round(self.frames / self.wall_s, 2) if self.wall_s else 0.0,
            "stage_s": {name: round(seconds, 2) for name, seconds in self.stage_s.items()},
            "device_idle_share": None if idle is None else round(idle, 3),
            "peak_memory_bytes": self.peak_memory_bytes or None,
            "peak_device_memory_bytes": self.peak_device_memory_bytes or None,
            "stopped": self.stopped,
        }
        costs = self._costs(config)
        return line | (costs if costs["cost"] is not None else {})

    def to_row(
        self, config: PipelineConfig, code_version: str, started_at: datetime, finished_at: datetime
    ) -> dict[str, Any]:
        """In RUNS_SCHEMA's columns."""
        return {
            "run_id": self.run_id,
            "job": "refine" if isinstance(config, RefineConfig) else "label",
            "started_at": started_at,
            "finished_at": finished_at,
            "config": json.dumps(to_tree(config), sort_keys=True),
            "manifest_uri": config.requests
            if isinstance(config, RefineConfig)
            else config.manifest,
            "code_version": code_version,
            "hardware": ", ".join(sorted(self.hardware)) or None,
            "videos_requested": self.videos,
            "videos_skipped": self.skipped,
            "videos_ok": self.labelled + self.adopted,
            "videos_failed": self.failed_now,
            "failures": list(self.failures.items()),
            "frames": self.frames,
            "object_frames": self.object_frames,
            "video_s": self.video_s,
            "wall_s": self.wall_s,
            "device_s": self.device_s,
            "device_idle_share": self.device_idle_share,
            "seconds_by_stage": list(self.stage_s.items()),
            "peak_memory_bytes": self.peak_memory_bytes or None,
            "peak_device_memory_bytes": self.peak_device_memory_bytes or None,
            **self._costs(config),
        }

    def _costs(self, config: PipelineConfig) -> dict[str, Any]:
        """Nulls where the price is not known, or nothing was labelled to share it."""
        cost = self.cost(config)

        def share(of: float) -> float | None:
            return None if cost is None or not of else cost / of

        return {
            "cost": cost,
            "cost_per_video_hour": share(self.video_s / 3600),
            "cost_per_1000_frames": share(self.frames / 1000),
            "currency": None if cost is None else config.price.currency,
        }


def frames_of(outcome: VideoOutcome) -> int:
    """Frames labelled, each counted once however many objects it has; of a refinement, those that
    it computed again, and any between them."""
    if not outcome.tracks:
        return 0 if outcome.request_id else outcome.num_frames_decoded or 0
    spans = [
        (track.first_frame, track.last_frame)
        if track.refinement is None
        else (track.refinement["first_frame"], track.refinement["last_frame"])
        for track in outcome.tracks
    ]
    firsts = [first for first, _ in spans if first is not None]
    lasts = [last for _, last in spans if last is not None]
    return max(lasts) - min(firsts) + 1 if firsts and lasts else 0
