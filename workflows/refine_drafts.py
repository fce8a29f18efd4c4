"""Refinements kept aside: objects in the dataset's folder that no table names.

Knows nothing of engines or commits. A draft is one Parquet file of masks whose footer holds the
rest, put in one step: it is there whole or not at all, and survives whoever made it.
"""

import base64
import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from workflows.data_files import encode_parquet, read_files, read_footer, sorted_rows
from workflows.prompt_rows import PromptRow
from workflows.query import Dataset
from workflows.refine import Labels
from workflows.refine_types import DraftNotFound
from workflows.rows import MASKS_SCHEMA, Track, tracks_from_table, tracks_to_table
from workflows.storage import NotFound, Storage
from workflows.uris import join_uri

FOLDER = "_drafts"  # under the dataset's root, beside the tables
TRACKS_KEY, ABOUT_KEY = b"maskmill.draft.tracks", b"maskmill.draft.about"
ID = re.compile(r"\d{8}-\d{6}-\d{6}-[0-9a-f]{8}")  # when it was made, so that names sort by time


@dataclass(frozen=True, slots=True, eq=False)
class KeptDraft:
    """A draft without its masks. tracks: as they would be committed."""

    draft_id: str
    video_id: str
    base_revision: int
    author: str
    created_at: datetime
    prompts: tuple[PromptRow, ...]
    tracks: tuple[Track, ...]

    def is_stale(self, newest: Mapping[int, int]) -> bool:
        """Whether one of its objects has a newer revision. newest: object → revision."""
        return any(newest.get(track.object_id, 0) > self.base_revision for track in self.tracks)


class DraftStore:
    """The drafts of one dataset. Safe among threads and processes."""

    def __init__(self, storage: Storage, root: str) -> None:
        self._storage = storage
        self._folder = join_uri(root, FOLDER)

    def put(
        self,
        video_id: str,
        base_revision: int,
        author: str,
        prompts: tuple[PromptRow, ...],
        labels: Labels,
    ) -> KeptDraft:
        """Keep a refinement. prompts: those of its request."""
        now = datetime.now(UTC)
        draft_id = f"{now:%Y%m%d-%H%M%S-%f}-{uuid.uuid4().hex[:8]}"
        about = {
            "video_id": video_id,
            "base_revision": base_revision,
            "author": author,
            "created_at": now.isoformat(),
            "prompts": prompts,
        }
        footer = {
            ABOUT_KEY.decode(): json.dumps(about),
            TRACKS_KEY.decode(): _encode(labels.tracks),
        }
        data = encode_parquet(sorted_rows(labels.masks.cast(MASKS_SCHEMA)), footer)
        self._storage.put(join_uri(self._folder, _path(video_id, draft_id)), data)
        return self.get(video_id, draft_id)

    def of_video(self, video_id: str) -> Iterator[KeptDraft]:
        """Oldest first."""
        found = self._storage.list(join_uri(self._folder, _video_folder(video_id)))
        names = sorted(entry.uri.rpartition("/")[2] for entry in found)
        for name in names:
            try:
                yield self.get(video_id, name.removesuffix(".parquet"))
            except DraftNotFound:  # committed or discarded since it was listed
                continue

    def get(self, video_id: str, draft_id: str) -> KeptDraft:
        """Raises DraftNotFound."""
        if not ID.fullmatch(draft_id):
            raise DraftNotFound(f"{video_id}: no draft {draft_id!r}")
        try:
            return self._read(_path(video_id, draft_id))
        except NotFound as e:
            raise DraftNotFound(f"{video_id}: no draft {draft_id!r}") from e

    def labels(self, draft: KeptDraft) -> Labels:
        """What a draft would commit. Raises DraftNotFound."""
        path = _path(draft.video_id, draft.draft_id)
        try:
            masks = read_files(self._storage, self._folder, [path], MASKS_SCHEMA)
        except NotFound as e:
            raise DraftNotFound(f"{draft.video_id}: no draft {draft.draft_id!r}") from e
        return Labels(draft.tracks, masks)

    def discard(self, video_id: str, draft_id: str) -> None:
        """Delete a draft; one that is gone is as good."""
        if ID.fullmatch(draft_id):
            self._storage.delete(join_uri(self._folder, _path(video_id, draft_id)))

    def discard_stale(self, dataset: Dataset, older_than: timedelta) -> int:
        """Delete drafts that can no longer be committed and are so old; how many.

        What still can be is somebody's work, however old.
        """
        before = datetime.now(UTC) - older_than
        deleted = 0
        for entry in self._storage.list(self._folder):
            folder, _, name = entry.uri.rpartition("/")
            draft_id = name.removesuffix(".parquet")
            if not ID.fullmatch(draft_id) or _made_at(draft_id) > before:
                continue
            try:
                kept = self._read(f"{folder.rpartition('/')[2]}/{name}")
            except NotFound:  # committed or discarded since it was listed
                continue
            if kept.is_stale(newest_revisions(dataset, kept.video_id)):
                self._storage.delete(entry.uri)
                deleted += 1
        return deleted

    def _read(self, path: str) -> KeptDraft:
        """Raises NotFound."""
        footer = read_footer(self._storage, self._folder, path)
        about = json.loads(footer[ABOUT_KEY])
        return KeptDraft(
            draft_id=path.rpartition("/")[2].removesuffix(".parquet"),
            video_id=about["video_id"],
            base_revision=about["base_revision"],
            author=about["author"],
            created_at=datetime.fromisoformat(about["created_at"]),
            prompts=tuple(about["prompts"]),
            tracks=_decode(footer[TRACKS_KEY]),
        )


def newest_revisions(dataset: Dataset, video_id: str) -> dict[int, int]:
    """Object → its newest revision; removed objects have one too."""
    rows = dataset.tracks([video_id], with_removed=True).select(["object_id", "revision"])
    return {row["object_id"]: row["revision"] or 0 for row in rows.to_pylist()}


def _made_at(draft_id: str) -> datetime:
    return datetime.strptime(draft_id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)


def _video_folder(video_id: str) -> str:
    return hashlib.sha256(video_id.encode()).hexdigest()[:32]


def _path(video_id: str, draft_id: str) -> str:
    return f"{_video_folder(video_id)}/{draft_id}.parquet"


def _encode(tracks: tuple[Track, ...]) -> str:
    table = tracks_to_table(tracks)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return base64.b64encode(sink.getvalue()).decode()


def _decode(encoded: bytes) -> tuple[Track, ...]:
    with pa.ipc.open_stream(base64.b64decode(encoded)) as reader:
        return tuple(tracks_from_table(reader.read_all()))
