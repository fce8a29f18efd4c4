"""What a replica does: labels and frames read from the dataset, or masks computed by a model.

Knows nothing of HTTP or Ray: plain classes with async methods, which a deployment wraps and a test
calls. They hold caches only. What a caller is to be told (ServiceError) is given as an answer like
any other, not raised. Streams are async generators that give bytes, a line of JSON an item:
a generator that is not async would go on when nobody listens any more.
"""

import asyncio
import functools
import itertools
import logging
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Generic, ParamSpec, TypeVar

from workflows.refine_types import (
    PreviewRequest,
    QueueFilter,
    RefinedFrame,
    RefinementRequest,
    Refinements,
    Span,
    Superseded,
)
from workflows.rows import Review
from workflows.service_errors import told, told_last
from workflows.service_frames import FrameShelf
from workflows.service_json import encode, line
from workflows.service_records import frame_json, step_json, video_json
from workflows.service_videos import VideoPages, VideoQuery

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

READERS = 8  # threads of a library: each waits for storage or encodes a picture
LINES_AT_ONCE = 32  # of stored masks; they are there already, so small pieces would only cost
CLIENTS = 10_000  # whose last click is remembered
VIDEOS = 1_000  # of which a fact is remembered


class Library:
    """Everything that needs no model: videos, frames, masks as they are, reviews, drafts."""

    def __init__(self, refinements: Refinements, videos: VideoPages, frames: FrameShelf) -> None:
        self._refinements = refinements
        self._videos = videos
        self._frames = frames
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="library")
        self._lengths = Recent[int](VIDEOS)

    @told
    async def videos(self, wanted: VideoQuery) -> bytes:
        return encode(await self._run(self._videos.page, wanted))

    @told
    async def video(self, video_id: str) -> bytes:
        return encode(video_json(await self._run(self._refinements.open, video_id)))

    @told
    async def num_frames(self, video_id: str) -> int:
        return await self._run(self._length, video_id)

    @told
    async def frame(self, video_id: str, frame_index: int) -> bytes:
        return await self._run(self._jpeg, video_id, frame_index)

    @told_last
    async def masks(
        self,
        video_id: str,
        object_ids: Sequence[int] | None,
        span: Span,
        at: int | datetime | None,
        with_counts: bool,
    ) -> AsyncGenerator[bytes]:
        await self._run(self._length, video_id)  # raises for a video that is not there
        frames = await self._run(self._refinements.masks, video_id, object_ids, span, at)
        async for lines in self._lines(frames, with_counts):
            yield lines

    @told_last
    async def draft_masks(self, video_id: str, draft_id: str) -> AsyncGenerator[bytes]:
        frames = await self._run(self._refinements.draft_masks, video_id, draft_id)
        async for lines in self._lines(frames, with_counts=True):
            yield lines

    @told
    async def queue(self, wanted: QueueFilter) -> bytes:
        return encode({"items": await self._run(self._refinements.queue, wanted)})

    @told
    async def revisions(self, video_id: str) -> bytes:
        return encode({"revisions": await self._run(self._refinements.history, video_id)})

    @told
    async def drafts(self, video_id: str, author: str | None) -> bytes:
        return encode({"drafts": await self._run(self._refinements.drafts, video_id, author)})

    @told
    async def commit_draft(self, video_id: str, draft_id: str) -> bytes:
        return encode(await self._run(self._refinements.commit_draft, video_id, draft_id))

    @told
    async def discard_draft(self, video_id: str, draft_id: str) -> None:
        await self._run(self._refinements.discard_draft, video_id, draft_id)

    @told
    async def review(
        self,
        video_id: str,
        base_revision: int,
        review: Review,
        author: str,
        object_ids: Sequence[int] | None,
    ) -> bytes:
        revision = await self._run(
            self._refinements.review, video_id, base_revision, review, author, object_ids
        )
        return encode({"video_id": video_id, "revision": revision})

    @told
    async def restore(
        self,
        video_id: str,
        base_revision: int,
        revision: int,
        author: str,
        object_ids: Sequence[int] | None,
    ) -> bytes:
        result = await self._run(
            self._refinements.restore, video_id, base_revision, revision, author, object_ids
        )
        return encode(result)

    def close(self) -> None:
        self._frames.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._refinements.close()

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, functools.partial(function, *args, **kwargs))

    async def _lines(
        self, frames: Iterator[RefinedFrame], with_counts: bool
    ) -> AsyncGenerator[bytes]:
        while True:
            some = await self._run(lambda: list(itertools.islice(frames, LINES_AT_ONCE)))
            if not some:
                return
            yield b"".join(line(frame_json(frame, with_counts)) for frame in some)

    def _jpeg(self, video_id: str, frame_index: int) -> bytes:
        return self._frames.jpeg(video_id, frame_index, self._length(video_id))

    def _length(self, video_id: str) -> int:
        """In frames, which do not change."""
        known = self._lengths.get(video_id)
        if known is None:
            known = self._refinements.open(video_id).num_frames
            self._lengths.put(video_id, known)
        return known


class ModelWorker:
    """One engine. Streams take turns, a step at a time; a click does not even wait for that.

    The engine itself does one step at a time, for both at once where both have something to do.
    """

    def __init__(self, refinements: Refinements) -> None:
        self._refinements = refinements
        self._clicks = ThreadPoolExecutor(1, thread_name_prefix="clicks")
        self._steps = ThreadPoolExecutor(1, thread_name_prefix="steps")
        self._newest = Recent[int](CLIENTS)  # click of (video, client)
        self._warmed = Recent[bool](VIDEOS)

    @told
    async def warm(self, video_id: str) -> None:
        """Begin to hold what a first click will need."""
        await self._warm(video_id)

    @told
    async def preview(self, video_id: str, request: PreviewRequest) -> bytes:
        """Dropped, before any work, when the same client has clicked again meanwhile."""
        self._remember(request)
        await self._warm(video_id)
        loop = asyncio.get_running_loop()
        frame = await loop.run_in_executor(self._clicks, self._preview, request)
        return encode(frame_json(frame))

    @told_last
    async def refine(self, video_id: str, request: RefinementRequest) -> AsyncGenerator[bytes]:
        """A line a frame, then the result's. Closing it stops the work within a step."""
        gone = threading.Event()
        await self._warm(video_id)
        loop = asyncio.get_running_loop()
        steps = self._refinements.refine(request, gone.is_set)
        try:
            while True:
                step = await loop.run_in_executor(self._steps, next, steps, None)
                if step is None:
                    return
                yield line(step_json(step))
        finally:
            gone.set()
            self._steps.submit(_close, steps)

    def close(self) -> None:
        for threads in (self._clicks, self._steps):
            threads.shutdown(wait=True, cancel_futures=False)
        self._refinements.close()

    async def _warm(self, video_id: str) -> None:
        """Not as a step, for it may take a while."""
        if self._warmed.get(video_id):
            return
        await asyncio.to_thread(self._refinements.open, video_id)
        self._warmed.put(video_id, True)

    def _preview(self, request: PreviewRequest) -> RefinedFrame:
        if self._is_old(request):
            raise Superseded(f"{request.video_id}: click {request.sequence} was followed by others")
        return self._refinements.preview(request)

    def _remember(self, request: PreviewRequest) -> None:
        if request.sequence is not None:
            key = f"{request.video_id}\0{request.client}"
            newest = self._newest.get(key)
            self._newest.put(key, max(request.sequence, -1 if newest is None else newest))

    def _is_old(self, request: PreviewRequest) -> bool:
        newest = self._newest.get(f"{request.video_id}\0{request.client}")
        return request.sequence is not None and newest is not None and request.sequence < newest


class Recent(Generic[T]):
    """What was put last under each of so many keys; the key used longest ago is forgotten."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[str, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> T | None:
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: str, value: T) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._size:
                self._values.popitem(last=False)


def _close(steps: Iterator[Any]) -> None:
    """Let a generator end now; one that was not begun has nothing to end."""
    close = getattr(steps, "close", None)
    if close is not None:
        close()
