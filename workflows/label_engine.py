"""The engine of one actor: weights, device, options. Knows nothing of videos or clusters."""

import logging
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from sam2model import Prompt, Sam2VideoModel, Sam2VideoProcessor
from sam2model.attention import force_kernel
from sam2model.engine import Engine, EngineOptions, Lane
from sam2model.labelling_plan import Span
from sam2model.refinement_memory import VideoMemory
from sam2model.semantics import semantics_named
from sam2model.tracked_masks import FrameMasks
from sam2model.video import Video
from workflows.checkpoints import Checkpoint, local_checkpoint
from workflows.config import ComputeConfig, ModelConfig, PipelineConfig
from workflows.storage import Storage

log = logging.getLogger(__name__)

OTHERS_SHARE = 0.1  # of a device's memory: a desktop, not somebody's model
# A killed process gives its memory back in seconds, at times minutes; whoever is refused is started
# again, five times if nobody else works.
DIRTY_DEVICE_WAIT_S = 60.0
DIRTY_DEVICE_LOOKS = 12
ANSWER_S = 60.0


class RefineEngine(Protocol):
    """What refining needs of an engine."""

    def refine(
        self,
        video: Video,
        prompts: Sequence[Prompt],
        memory: VideoMemory | None,
        *,
        before: Sequence[Prompt] | None = None,
        first_frame: int = 0,
        last_frame: int | None = None,
        told: Span | None = None,
        lane: Lane = "interactive",
        deadline_s: float | None = None,
    ) -> Iterator[FrameMasks]: ...

    def close(self) -> None: ...


class MaskEngine(RefineEngine, Protocol):
    """What labelling and refining need of an engine; sam2model.engine.Engine is the real one."""

    def label(
        self,
        video: Video,
        prompts: list[Prompt],
        first_frame: int = 0,
        last_frame: int | None = None,
        *,
        deadline_s: float | None = None,
    ) -> Iterator[FrameMasks]: ...


EngineFactory = Callable[[PipelineConfig, str], MaskEngine]  # of a configuration and its weights


class DirtyDevice(RuntimeError):
    """Somebody else holds the memory of the device that this process was given."""


def open_engine(config: PipelineConfig, weights_sha256: str | None = None) -> Engine:
    """The model of a configuration on the device that this process was given.

    weights_sha256: raises CheckpointError if the weights here are others.
    """
    if torch.cuda.is_available() and config.compute.gpus_per_actor >= 1:
        wait_for_free_device(torch.cuda.mem_get_info)
    checkpoint = local_checkpoint(config.model.checkpoint, Storage(config.storage), weights_sha256)
    return engine_of(config.model, checkpoint, options_of(config.compute))


def options_of(compute: ComputeConfig) -> EngineOptions:
    """What a configuration says of one actor's engine."""
    return EngineOptions(
        slots=compute.slots_per_actor,
        frame_batch=compute.frame_batch,
        graphs=compute.cuda_graphs,
        compile_encoder=compute.compile_encoder,
    )


def engine_of(wanted: ModelConfig, checkpoint: Checkpoint, options: EngineOptions) -> Engine:
    """An engine of weights that are here, on the device that this process was given."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    force_kernel(None if wanted.attention == "auto" else wanted.attention)
    semantics = replace(
        semantics_named(wanted.semantics),
        hole_area_px=wanted.hole_area_px,
        sprinkle_area_px=wanted.sprinkle_area_px,
    )
    model = Sam2VideoModel.from_pretrained(
        checkpoint.path, semantics=semantics, max_conditioning_frames=wanted.max_conditioning_frames
    )
    model = model.to(device, dtype=getattr(torch, wanted.dtype))
    return Engine(model, Sam2VideoProcessor.from_pretrained(checkpoint.path), semantics, options)


def wait_for_free_device(
    memory_info: Callable[[], tuple[int, int]],
    wait_s: float = DIRTY_DEVICE_WAIT_S,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until nobody else holds much of a device that is ours alone.

    memory_info: (free, total) bytes. Raises DirtyDevice after wait_s.
    """
    for look in range(DIRTY_DEVICE_LOOKS + 1):
        free, total = memory_info()
        if total - free <= OTHERS_SHARE * total:
            return
        held = f"{(total - free) / 2**30:.1f} of {total / 2**30:.1f} GiB are held by others"
        if look == 0:
            log.warning("%s; waiting up to %.0f s", held, wait_s)
        if look < DIRTY_DEVICE_LOOKS:
            sleep(wait_s / DIRTY_DEVICE_LOOKS)
    raise DirtyDevice(
        f"{held} after {wait_s:.0f} s; end those processes, or share the device by "
        "compute.gpus_per_actor below 1"
    )


def use_threads(cpus: float) -> None:
    """Compute on as many threads as this process has processors to itself.

    torch would take all of the machine, with every actor that shares it.
    """
    torch.set_num_threads(max(1, int(cpus)))


def device_answers(answer_s: float = ANSWER_S) -> bool:
    """Whether the device still completes work; a hung one never does."""
    if not torch.cuda.is_available():
        return True
    answered = threading.Event()

    def ask() -> None:
        torch.zeros(1, device="cuda").add_(1).cpu()
        answered.set()

    threading.Thread(target=ask, daemon=True).start()
    return answered.wait(answer_s)


def hardware() -> str:
    """The device's name, or the processor's architecture and the threads used."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def peak_device_memory_bytes() -> int | None:
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else None


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError))


def is_device_lost(error: BaseException) -> bool:
    """An error after which CUDA refuses everything until the process ends."""
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)


def free_device_memory() -> None:
    """Give back what only the allocator holds."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
