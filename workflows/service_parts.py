"""What the service's replicas are made of: sessions over the dataset, with or without a model.

Knows nothing of HTTP or Ray. Loading it loads torch, which an ingress can do without.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sam2model.engine import EngineOptions
from sam2model.refinement_memory import MemoryBudget
from sam2model.tracked_masks import FrameMasks
from workflows.refine import Maker
from workflows.refine_sessions import RefineSessions, SessionOptions
from workflows.refine_types import Refinements
from workflows.service_config import EngineConfig, ServeConfig
from workflows.service_videos import VideoList
from workflows.storage import Storage


class NoEngine:
    """For replicas that only read: no model is loaded, and nothing can be computed."""

    def refine(self, *args: Any, **kwargs: Any) -> Iterator[FrameMasks]:
        raise RuntimeError("this replica has no model; models replicas compute")

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class DatasetParts:
    """A dataset and the configuration's own model."""

    def refinements(self, config: ServeConfig, *, with_engine: bool) -> Refinements:
        """with_engine: loads the model onto the device that this process was given."""
        if not with_engine:
            return RefineSessions(
                config.dataset,
                NoEngine(),
                Maker(config.model.checkpoint, "", {}, "", f"serve-{uuid.uuid4().hex[:12]}"),
                Storage(config.storage),
                config.limits,
                SessionOptions(videos=config.sessions.videos, warm_frames=0),
            )
        kept = config.sessions
        return RefineSessions.of_model(
            config.dataset,
            config.model,
            config.storage,
            engine_options(config.engine),
            config.limits,
            SessionOptions(
                videos=kept.videos,
                on_device=kept.on_device,
                warm_frames=kept.warm_frames,
                budget=MemoryBudget(
                    device_feature_bytes=kept.device_feature_bytes,
                    host_feature_bytes=kept.host_feature_bytes,
                    snapshot_bytes=kept.snapshot_bytes,
                    snapshot_every=kept.snapshot_every,
                ),
            ),
        )

    def videos(self, config: ServeConfig, refinements: Refinements) -> VideoList:
        return VideoList(config.dataset, Storage(config.storage))


def engine_options(engine: EngineConfig) -> EngineOptions:
    return EngineOptions(
        slots=engine.slots,
        frame_batch=engine.frame_batch,
        graphs=engine.cuda_graphs,
        compile_encoder=engine.compile_encoder,
    )
