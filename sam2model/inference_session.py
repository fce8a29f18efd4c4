"""What one person is doing with one video: its frames, objects, prompts and answers.

Knows nothing of networks; the model opens the stepper and fills in the outputs.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sam2model.memory_bank import Direction
from sam2model.stepper import ModelPrompt, Stepper
from sam2model.track_step import ImageFeatures, StepOutput


class FrameSource(Protocol):
    """Frames by index as normalised pixels (3, S, S) fp32."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class NormalisedFrames:
    """Frames that are normalised already: (T, 3, S, S)."""

    pixels: Tensor

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index]


class SessionError(ValueError):
    """A call that the session's state does not allow; the message says what would."""


@dataclass(slots=True)
class SessionObject:
    """One object: where it was prompted, tracked and answered."""

    key: int  # in the memory bank
    prompts: dict[int, ModelPrompt]
    pending: set[int]
    tracked: dict[int, Direction]  # frame → the pass that tracked it last
    answers: dict[int, StepOutput]  # of prompted frames, one row each


class Sam2VideoInferenceSession:
    """Frames, objects and prompts of one video; made by the processor's `init_video_session`.

    video: normalised frames (T, 3, S, S), a FrameSource, or None for a stream whose frames
    come one at a time. Frames of a stream are not kept: a frame can be prompted until
    `max_vision_features_cache_size` later frames have come.
    """

    def __init__(
        self,
        video: Tensor | FrameSource | None = None,
        video_height: int | None = None,
        video_width: int | None = None,
        inference_device: torch.device | str = "cpu",
        inference_state_device: torch.device | str | None = None,
        video_storage_device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        max_vision_features_cache_size: int = 1,
    ) -> None:
        del inference_state_device  # memories are small and stay with the model
        if isinstance(video, Tensor):
            video = NormalisedFrames(video.to(video_storage_device or inference_device))
        self.video = video
        self.video_height = video_height
        self.video_width = video_width
        self.inference_device = torch.device(inference_device)
        self.dtype = dtype
        self.stepper: Stepper | None = None
        self._objects: OrderedDict[int, SessionObject] = OrderedDict()
        self._next_key = 0
        self._streamed = 0
        self._stream_frame: tuple[int, Tensor] | None = None
        self._features: OrderedDict[int, ImageFeatures] = OrderedDict()
        self._cache_size = max(1, max_vision_features_cache_size)

    @property
    def obj_ids(self) -> list[int]:
        """The user's ids, in the order in which they were first named."""
        return list(self._objects)

    @property
    def num_frames(self) -> int | None:
        """Frames of the video, or of the stream so far; None before a stream's first."""
        if self.video is not None:
            return len(self.video)
        return self._streamed or None

    def get_obj_num(self) -> int:
        """How many objects there are."""
        return len(self._objects)

    def obj_id_to_idx(self, obj_id: int) -> int:
        """The place of an object in `obj_ids`, adding it when it is new."""
        self._object(obj_id)
        return self.obj_ids.index(obj_id)

    def obj_idx_to_id(self, obj_idx: int) -> int:
        """The user's id of the object at a place in `obj_ids`."""
        return self.obj_ids[obj_idx]

    def add_prompt(self, obj_id: int, frame_idx: int, prompt: ModelPrompt) -> None:
        """Put a prompt on a frame, in place of any other of that object there."""
        self.check_frame(frame_idx)
        if self.video is None and frame_idx < self._streamed and not self.can_read(frame_idx):
            raise self._gone(frame_idx)
        target = self._object(obj_id)
        target.prompts[frame_idx] = prompt
        target.pending.add(frame_idx)

    def prompt_of(self, obj_id: int, frame_idx: int) -> ModelPrompt | None:
        """The prompt of an object on a frame."""
        known = self._objects.get(obj_id)
        return None if known is None else known.prompts.get(frame_idx)

    def remove_object(self, obj_id: int) -> None:
        """Forget an object; the others keep their memories and their masks."""
        if obj_id not in self._objects:
            raise SessionError(f"object {obj_id}: no such object; there are {self.obj_ids}")
        removed = self._objects.pop(obj_id)
        if self.stepper is not None:
            self.stepper.bank.remove_object(removed.key)

    def reset_tracking_data(self) -> None:
        """Forget all objects; keep the video and the features of its frames."""
        for obj_id in self.obj_ids:
            self.remove_object(obj_id)

    def reset_inference_session(self) -> None:
        """Forget all objects and cached features; keep the video."""
        self.reset_tracking_data()
        self.forget_features()

    def forget_features(self) -> None:
        """Drop the cached features of frames."""
        self._features.clear()

    def add_new_frame(self, pixel_values: Tensor, frame_idx: int | None = None) -> int:
        """Give the next frame of a stream, (3, S, S) or (1, 3, S, S); returns its index."""
        if self.video is not None:
            raise SessionError("this session has a whole video; a stream's session has none")
        index = self._streamed if frame_idx is None else frame_idx
        self._streamed = max(self._streamed, index + 1)
        self._stream_frame = (index, pixel_values.reshape(pixel_values.shape[-3:]))
        self._features.pop(index, None)
        return index

    def check_frame(self, frame_idx: int) -> None:
        """Raise SessionError for a frame that the video, or any stream, does not have."""
        if frame_idx < 0 or (self.video is not None and frame_idx >= len(self.video)):
            last = "any later one" if self.video is None else len(self.video) - 1
            raise SessionError(f"frame {frame_idx}: wanted 0 to {last}")

    def can_read(self, frame_idx: int) -> bool:
        """Whether a frame is at hand: any of a video, the newest few of a stream."""
        newest = self._stream_frame is not None and self._stream_frame[0] == frame_idx
        return self.video is not None or newest or frame_idx in self._features

    # For the model.

    def objects(self) -> Iterator[tuple[int, SessionObject]]:
        """Ids and states of all objects."""
        yield from self._objects.items()

    def check_prompted(self) -> None:
        """Raise SessionError unless there are objects, each with a prompt to go by."""
        if not self._objects:
            raise SessionError("no objects; add points, boxes or masks first")
        bare = [obj_id for obj_id, known in self._objects.items() if not known.prompts]
        if bare:
            raise SessionError(f"objects {bare}: no prompt yet; add one, or remove the object")

    def features(self, frame_idx: int, encode: Callable[[Tensor], ImageFeatures]) -> ImageFeatures:
        """The features of one frame, from the cache or by `encode` of (1, 3, S, S)."""
        if frame_idx in self._features:
            self._features.move_to_end(frame_idx)
            return self._features[frame_idx]
        features = encode(self._pixels(frame_idx).unsqueeze(0))
        while len(self._features) >= self._cache_size:
            self._features.popitem(last=False)
        self._features[frame_idx] = features
        return features

    def _pixels(self, frame_idx: int) -> Tensor:
        if self.video is not None:
            return self.video[frame_idx].to(self.inference_device, non_blocking=True)
        if self._stream_frame is not None and self._stream_frame[0] == frame_idx:
            return self._stream_frame[1].to(self.inference_device, non_blocking=True)
        raise self._gone(frame_idx)

    def _gone(self, frame_idx: int) -> SessionError:
        return SessionError(
            f"frame {frame_idx} of the stream is not held; prompt and run a frame while it is "
            "the newest, or give a larger max_vision_features_cache_size"
        )

    def _object(self, obj_id: int) -> SessionObject:
        if obj_id not in self._objects:
            self._objects[obj_id] = SessionObject(self._next_key, {}, set(), {}, {})
            if self.stepper is not None:
                self.stepper.bank.add_object(self._next_key)
            self._next_key += 1
        return self._objects[obj_id]
