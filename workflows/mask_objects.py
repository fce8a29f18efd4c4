"""The masks of one video as one Parquet file, put once. Knows nothing of commits.

An actor writes it; its footer holds the video's whole outcome, so whoever finds the file later can
commit it without labelling again. The path follows from video and fingerprint, and the first put
wins: what lies there never changes.
"""

import base64
import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workflows.data_files import (
    encode_parquet,
    read_files,
    read_footer,
    sorted_rows,
    statistics,
    write_data_file,
)
from workflows.rows import (
    MASKS_SCHEMA,
    DataFile,
    MaskObject,
    Track,
    VideoOutcome,
    outcomes_from_table,
    outcomes_to_table,
)
from workflows.storage import NotFound, Storage
from workflows.uris import join_uri

MASKS = "masks"  # the table's folder under the dataset's root
OUTCOME_KEY = b"maskmill.outcome"  # in the footer: an Arrow stream in base64, for text it must be
READABLE_CHARACTERS = 60  # of a video's name in its paths; the hash beside it tells videos apart


def mask_object_path(video_id: str, labelling: str) -> str:
    """Where the masks of one labelling lie, relative to the masks table.

    video_id may be any text; labelling is a fingerprint or another name of letters and digits.
    """
    digest = hashlib.sha256(video_id.encode()).hexdigest()[:32]
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", video_id)[:READABLE_CHARACTERS].strip("-.")
    return f"{digest[:2]}/{readable or 'video'}-{digest}-{labelling}.parquet"


def write_mask_object(
    storage: Storage,
    root: str,
    outcome: VideoOutcome,
    masks: pa.Table,
    revision: int = 1,
    labelling: str | None = None,
) -> VideoOutcome:
    """Put the masks of one finished video; the outcome to commit, with its mask_object.

    masks: rows of this video in MASKS_SCHEMA (their revision is set here), of the very objects
    whose tracks in outcome bring masks. revision: the one expected, 1 for a video labelled for the
    first time; the commit corrects it if somebody else's labels came between.
    labelling: its name, the fingerprint by default. If another attempt at the same labelling put
    its masks first, the outcome is that one's.
    """
    masks = sorted_rows(with_revision(masks, revision))
    check_rows(outcome.video_id, outcome.tracks, masks)
    path = mask_object_path(outcome.video_id, labelling or outcome.fingerprint)
    written = MaskObject(path=path, size_bytes=0, num_rows=masks.num_rows, stats=statistics(masks))
    tracks = tuple(replace(track, revision=revision) for track in outcome.tracks)
    outcome = replace(outcome, tracks=tracks, mask_object=written)
    data = encode_parquet(masks, {OUTCOME_KEY.decode(): _encode(outcome)})
    if storage.put_if_absent(join_uri(root, MASKS, path), data):
        return replace(outcome, mask_object=replace(written, size_bytes=len(data)))
    return read_mask_object(storage, root, path)


def find_mask_object(
    storage: Storage, root: str, video_id: str, labelling: str
) -> VideoOutcome | None:
    """The outcome of a labelling whose masks were put but perhaps never committed."""
    try:
        return read_mask_object(storage, root, mask_object_path(video_id, labelling))
    except NotFound:
        return None


def read_mask_object(storage: Storage, root: str, path: str) -> VideoOutcome:
    """The outcome whose masks lie there, relative to the masks table. Raises NotFound."""
    folder = join_uri(root, MASKS)
    size_bytes = storage.size(join_uri(folder, path))
    footer = read_footer(storage, folder, path)
    outcome = _decode(footer[OUTCOME_KEY])
    assert outcome.mask_object is not None  # write_mask_object set it
    return replace(outcome, mask_object=replace(outcome.mask_object, size_bytes=size_bytes))


def renumber_masks(
    storage: Storage, root: str, found: MaskObject, revision: int, without: Collection[int]
) -> DataFile:
    """A copy of a mask object as another revision, without the masks of some objects."""
    folder = join_uri(root, MASKS)
    rows = read_files(storage, folder, [found.path], MASKS_SCHEMA)
    if without:
        rows = rows.filter(pc.invert(pc.is_in(rows["object_id"], pa.array(without, pa.int32()))))
    stem = found.path.removesuffix(".parquet")
    dropped = "".join(f"-{object_id}" for object_id in sorted(without))
    digest = hashlib.sha256(dropped.encode()).hexdigest()[:8] if dropped else "all"
    path = f"{stem}-r{revision}-{digest}.parquet"
    return write_data_file(storage, folder, path, with_revision(rows, revision))


def with_revision(masks: pa.Table, revision: int) -> pa.Table:
    """The same rows in MASKS_SCHEMA, all of one revision."""
    column = pa.array(np.full(masks.num_rows, revision, np.int32))
    columns = {name: masks[name] for name in masks.column_names} | {"revision": column}
    return pa.table({name: columns[name] for name in MASKS_SCHEMA.names}).cast(MASKS_SCHEMA)


def check_rows(video_id: str, tracks: Sequence[Track], masks: pa.Table) -> None:
    """Raise ValueError for mistakes of the program that would lose or misplace masks."""
    tracked = {track.object_id for track in tracks if track.brings_masks}
    videos = pc.unique(masks["video_id"]).to_pylist()
    if videos not in ([], [video_id]):
        raise ValueError(f"{video_id}: masks of {videos}")
    objects = pc.unique(masks["object_id"]).to_pylist()
    if set(objects) != set(tracked):
        raise ValueError(f"{video_id}: masks of objects {objects}, tracks of {sorted(tracked)}")
    keys = masks.group_by(["object_id", "frame_index"]).aggregate([])
    if keys.num_rows != masks.num_rows:
        raise ValueError(f"{video_id}: two masks of one object on one frame")


def _encode(outcome: VideoOutcome) -> str:
    table = outcomes_to_table([outcome])
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return base64.b64encode(sink.getvalue()).decode()


def _decode(encoded: bytes) -> VideoOutcome:
    with pa.ipc.open_stream(base64.b64decode(encoded)) as reader:
        (outcome,) = outcomes_from_table(reader.read_all())
    return outcome
