"""What replicas of the tests are made of. Imported by Ray's workers."""

from dataclasses import dataclass, field, replace
from typing import Any

from scripted_refinements import Scene, ScriptedRefinements, ScriptedVideos

from workflows.refine_types import PreviewRequest, RefinedFrame, Refinements
from workflows.service_config import ServeConfig


class Counting(ScriptedRefinements):
    """Previews tell, as their time, how many steps were taken."""

    def preview(self, request: PreviewRequest) -> RefinedFrame:
        return replace(super().preview(request), pts_s=float(self.steps))


@dataclass(frozen=True)
class Scripted:
    """Replicas with a memory of their own: nothing that one commits is seen by another."""

    scenes: dict[str, Scene] = field(default_factory=lambda: {"v1": Scene(), "v2": Scene()})
    step_s: float = 0.0

    def refinements(self, config: ServeConfig, *, with_engine: bool) -> Refinements:
        made = Counting(self.scenes, self.step_s)
        for video_id in self.scenes:
            made.label(video_id)
        return made

    def videos(self, config: ServeConfig, refinements: Any) -> ScriptedVideos:
        return ScriptedVideos(refinements)
