"""Sam2VideoModel, the public face: load, prompt, track, in the words of transformers.

Knows nothing of layers; sessions hold the state, the stepper does the work.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from sam2model.checkpoint import check_keys, locate, read_checkpoint, write_checkpoint
from sam2model.configuration import Sam2VideoConfig
from sam2model.inference_session import (
    Sam2VideoInferenceSession,
    SessionError,
    SessionObject,
)
from sam2model.mask_ops import upsample_logits
from sam2model.memory_bank import Direction
from sam2model.rle import encode_masks
from sam2model.semantics import Semantics, semantics_named
from sam2model.stepper import Ask, Stepper
from sam2model.track_step import ImageFeatures, Sam2Network, StepOutput, concatenate


@dataclass(frozen=True, slots=True)
class Sam2VideoSegmentationOutput:
    """The masks of one frame.

    pred_masks: (N, 1, 4H, 4W) fp32 logits; object_score_logits: (N, 1), above 0 where the
    object is in the frame; iou_scores: (N,) predicted, in [0, 1]; rows as in object_ids.
    """

    object_ids: list[int]
    pred_masks: Tensor
    object_score_logits: Tensor
    iou_scores: Tensor
    frame_idx: int
    _video_size: tuple[int, int] | None = field(default=None, repr=False)

    @property
    def rle(self) -> list[str]:
        """COCO compressed run lengths of the masks at the video's size."""
        if self._video_size is None:
            raise SessionError("the session does not know the video's height and width")
        logits = upsample_logits(self.pred_masks.squeeze(1), self._video_size)
        return encode_masks(logits > 0)


class Sam2VideoModel(Sam2Network):
    """A SAM 2 video model that tracks prompted objects through a session's video.

    semantics: "reference" (transformers' where it is sound) or "labelling", or one of your own.
    slots: the most objects of one step.
    """

    def __init__(
        self,
        config: Sam2VideoConfig,
        semantics: str | Semantics = "reference",
        slots: int = 16,
    ) -> None:
        super().__init__(config)
        self.semantics = semantics_named(semantics) if isinstance(semantics, str) else semantics
        self.slots = slots
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        config: Sam2VideoConfig | None = None,
        semantics: str | Semantics = "reference",
        dtype: torch.dtype | None = None,
        max_conditioning_frames: int | None = None,
        device_map: str | torch.device | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> Self:
        """Load weights: a hub id, a folder, a `.safetensors` file or a Meta `.pt` file.

        dtype: of the weights; None keeps fp32. max_conditioning_frames: prompted frames that one
        step reads; None reads what the configuration says, by default all. device_map: a device
        for the whole model, "auto" for a GPU where there is one.
        Raises CheckpointError, listing missing and unexpected keys, when the weights do not fit.
        """
        config, weights = read_checkpoint(locate(source, revision=revision, token=token), config)
        if max_conditioning_frames is not None:
            config = replace(config, max_cond_frame_num=max_conditioning_frames)
        model = cls(config, semantics)
        check_keys(str(source), model.state_dict(), weights)
        model.load_state_dict(weights)
        if device_map == "auto":
            device_map = "cuda" if torch.cuda.is_available() else "cpu"
        return model.to(device=device_map, dtype=dtype)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that this class and transformers' both read."""
        write_checkpoint(Path(folder), self.config, self.state_dict())

    @torch.inference_mode()
    def forward(
        self,
        inference_session: Sam2VideoInferenceSession,
        frame_idx: int | None = None,
        frame: Tensor | None = None,
        reverse: bool = False,
    ) -> Sam2VideoSegmentationOutput:
        """The masks of all objects on one frame.

        frame: the next frame of a stream, normalised (3, S, S) or (1, 3, S, S). A prompted
        frame answers with the mask of its prompt, computed once.
        """
        session = inference_session
        session.check_prompted()
        if frame is not None:
            frame_idx = session.add_new_frame(frame, frame_idx)
        if frame_idx is None:
            raise SessionError("frame_idx or frame is needed")
        session.check_frame(frame_idx)
        direction: Direction = -1 if reverse else 1
        self._answer_pending(session, direction, first=frame_idx, streaming=frame is not None)
        return self._frame_output(session, frame_idx, direction, streaming=frame is not None)

    @torch.inference_mode()
    def propagate_in_video_iterator(
        self,
        inference_session: Sam2VideoInferenceSession,
        start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None,
        reverse: bool = False,
        show_progress_bar: bool = False,
    ) -> Iterator[Sam2VideoSegmentationOutput]:
        """Masks frame by frame from a start to the end, or to the beginning.

        start_frame_idx: None starts where the first prompt is (labelling, in reverse: the last
        of the objects' first prompts). max_frame_num_to_track: frames after the start. Prompts
        not yet answered are answered first, each on its own frame.
        """
        del show_progress_bar  # the caller sees every frame
        session = inference_session
        if session.video is None:
            raise SessionError("a stream has no frames to go through; call the model on each")
        session.check_prompted()
        direction: Direction = -1 if reverse else 1
        last = len(session.video) - 1
        start = (
            self._default_start(session, reverse) if start_frame_idx is None else start_frame_idx
        )
        if not 0 <= start <= last:
            raise SessionError(f"start_frame_idx {start}: wanted 0 to {last}")
        reach = len(session.video) if max_frame_num_to_track is None else max_frame_num_to_track
        if reverse:
            frames = range(start, max(start - reach, 0) - 1, -1) if start > 0 else range(0)
        else:
            frames = range(start, min(start + reach, last) + 1)
        self._answer_pending(session, direction, first=start, streaming=False)
        for frame_idx in frames:
            yield self._frame_output(session, frame_idx, direction, streaming=False)

    def _default_start(self, session: Sam2VideoInferenceSession, reverse: bool) -> int:
        firsts = [min(o.prompts) for _, o in session.objects() if o.prompts]
        late = reverse and not self.semantics.emit_before_first_prompt
        return max(firsts) if late else min(firsts)

    def _stepper(self, session: Sam2VideoInferenceSession) -> Stepper:
        """The session's stepper, opened on first use."""
        mine = session.stepper is not None and session.stepper.network is self.for_compute()
        if not mine and any(known.answers for _, known in session.objects()):
            raise SessionError(
                "this session was begun by another model, or before this one was moved or "
                "loaded; reset it or make a new one"
            )
        if not mine:
            session.forget_features()
            # A pass through a video may start anywhere again; a stream only goes on.
            keep_all = session.video is not None
            session.stepper = Stepper(self, self.semantics, keep_all=keep_all, slots=self.slots)
            for _, known in session.objects():
                session.stepper.bank.add_object(known.key)
        assert session.stepper is not None
        return session.stepper

    def _features(self, session: Sam2VideoInferenceSession, frame_idx: int) -> ImageFeatures:
        return session.features(frame_idx, self._stepper(session).network.encode_images)

    def _answer_pending(
        self,
        session: Sam2VideoInferenceSession,
        direction: Direction,
        first: int,
        streaming: bool,
    ) -> None:
        """Answer every prompt not yet answered, each on its own frame, `first` last.

        An earlier answer is a memory for a later one only as the object's tracking made it so.
        """
        pending = {f for _, o in session.objects() for f in o.pending}
        frames = sorted(f for f in pending if session.can_read(f))  # not a stream's future ones
        frames.sort(key=lambda f: f == first)
        for frame in frames:
            self._answer_frame(session, frame, direction, streaming)

    def _answer_frame(
        self,
        session: Sam2VideoInferenceSession,
        frame: int,
        direction: Direction,
        streaming: bool,
    ) -> None:
        stepper = self._stepper(session)
        image = self._features(session, frame)
        num_frames = None if streaming else session.num_frames
        fresh: list[tuple[SessionObject, Ask]] = []
        corrections: list[tuple[SessionObject, Ask]] = []
        for _, known in session.objects():
            if frame not in known.pending:
                continue
            previous = known.answers.get(frame)
            ask = Ask(
                known.key,
                0,
                frame,
                known.tracked.get(frame, direction),
                num_frames,
                known.prompts[frame],
                previous_logits=previous.logits[0]
                if previous is not None and self.semantics.feed_previous_logits
                else None,
            )
            (corrections if frame in known.tracked else fresh).append((known, ask))
        for group, run in ((fresh, stepper.prompt), (corrections, stepper.correct)):
            if not group:
                continue
            output = run(image, [ask for _, ask in group])
            for row, (known, _) in enumerate(group):
                known.answers[frame] = output.rows(slice(row, row + 1))
                known.pending.discard(frame)

    def _frame_output(
        self,
        session: Sam2VideoInferenceSession,
        frame_idx: int,
        direction: Direction,
        streaming: bool,
    ) -> Sam2VideoSegmentationOutput:
        stepper = self._stepper(session)
        ids: list[int] = []
        answers: list[StepOutput | None] = []
        asks: list[Ask] = []
        for obj_id, known in session.objects():
            if not self._is_emitted(known.prompts, frame_idx, direction):
                continue
            ids.append(obj_id)
            answers.append(known.answers.get(frame_idx))
            if answers[-1] is None:
                num_frames = None if streaming else session.num_frames
                asks.append(Ask(known.key, 0, frame_idx, direction, num_frames))
                known.tracked[frame_idx] = direction
        tracked = stepper.track(self._features(session, frame_idx), asks) if asks else None
        return self._output(session, frame_idx, ids, _in_order(answers, tracked))

    def _is_emitted(self, prompts: dict[int, Any], frame_idx: int, direction: Direction) -> bool:
        """Whether a pass in this direction speaks of an object on this frame.

        Labelling splits them at the object's first prompt; a prompted frame is in both.
        """
        if self.semantics.emit_before_first_prompt or frame_idx in prompts:
            return True
        return bool(prompts) and direction * (frame_idx - min(prompts)) > 0

    def _output(
        self,
        session: Sam2VideoInferenceSession,
        frame_idx: int,
        ids: list[int],
        rows: StepOutput | None,
    ) -> Sam2VideoSegmentationOutput:
        if rows is None:
            height, width = self.config.mask_size
            logits = torch.empty((0, height, width), device=self.device)
            nothing = torch.empty(0, device=self.device)
            rows = StepOutput(logits, nothing, nothing, nothing)
        size = None
        if session.video_height is not None and session.video_width is not None:
            size = (session.video_height, session.video_width)
        return Sam2VideoSegmentationOutput(
            object_ids=ids,
            pred_masks=rows.logits.unsqueeze(1),
            object_score_logits=rows.object_score.unsqueeze(1),
            iou_scores=rows.iou,
            frame_idx=frame_idx,
            _video_size=size,
        )


def _in_order(
    answers: Sequence[StepOutput | None], tracked: StepOutput | None
) -> StepOutput | None:
    """Stored answers and tracked rows as one output, the tracked ones filling the gaps."""
    if tracked is not None and all(a is None for a in answers):
        return tracked
    rows: list[StepOutput] = []
    position = 0
    for answer in answers:
        if answer is None:
            assert tracked is not None
            answer = tracked.rows(slice(position, position + 1))
            position += 1
        rows.append(answer)
    return concatenate(rows) if rows else None
