"""What is wrong with rows of a manifest, as far as they themselves can tell. Opens nothing.

Prompts are looked at a column at a time: a loop in Python over 10^7 rows would take an hour.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

UNKNOWN = np.iinfo(np.int64).max  # a size or frame that nothing exceeds


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a manifest."""

    message: str
    column: str = ""  # such as prompts[2].box.x0; "" where it is the file's
    row: int | None = None  # from 0, over all files of the manifest; None: the schema's or file's
    video_id: str | None = None

    def __str__(self) -> str:
        row = "" if self.row is None else f"row {self.row}"
        if self.video_id is not None:
            row += f" ({self.video_id!r})"
        return ": ".join(part for part in (row, self.column, self.message) if part)


def validate_batch(batch: pa.RecordBatch, first_row: int = 0) -> list[Fault]:
    """What is wrong with rows of MANIFEST_SCHEMA as far as they themselves can tell, in order.

    Repeated ids are not seen: see ManifestCheck. first_row: index of the batch's first row.
    """
    ids = batch["video_id"]
    faults = [*_row_faults(batch), *_prompt_faults(batch)]
    faults.sort(key=lambda fault: fault.row or 0)
    return [
        replace(fault, row=first_row + fault.row, video_id=ids[fault.row].as_py())
        for fault in faults
        if fault.row is not None
    ]


@dataclass(frozen=True, slots=True, eq=False)
class _Values:
    """Values of one column or of a field inside it, flat, with the way back to their rows."""

    array: pa.Array
    path: str  # such as prompts[{}].points[{}].x
    rows: IntArray  # (len(array),)
    places: tuple[IntArray, ...] = ()  # one number for each {} of the path

    @classmethod
    def of(cls, batch: pa.RecordBatch, column: str) -> "_Values":
        return cls(batch[column], column, np.arange(batch.num_rows))

    def field(self, name: str) -> "_Values":
        return replace(self, array=pc.struct_field(self.array, name), path=f"{self.path}.{name}")

    def elements(self) -> "_Values":
        """The elements of lists."""
        parents = pc.list_parent_indices(self.array).to_numpy().astype(np.int64)
        lengths = _integers(pc.list_value_length(self.array), null=0)
        starts = np.cumsum(lengths) - lengths
        places = np.arange(len(parents)) - starts[parents]
        return _Values(
            self.array.flatten(),
            self.path + "[{}]",
            self.rows[parents],
            (*(place[parents] for place in self.places), places),
        )

    def where(self, chosen: BoolArray) -> "_Values":
        """Only those."""
        return _Values(
            self.array.filter(pa.array(chosen)),
            self.path,
            self.rows[chosen],
            tuple(place[chosen] for place in self.places),
        )

    @property
    def is_null(self) -> BoolArray:
        return _booleans(self.array.is_null())

    def faults(self, bad: BoolArray, wanted: str) -> Iterator[Fault]:
        for index in np.flatnonzero(bad).tolist():
            got = self.array[index].as_py()
            yield self.fault(index, f"got {'null' if got is None else repr(got)}; wanted {wanted}")

    def fault(self, index: int, message: str) -> Fault:
        path = self.path.format(*(place[index] for place in self.places))
        return Fault(message, path, int(self.rows[index]))


def _row_faults(batch: pa.RecordBatch) -> Iterator[Fault]:
    for name in ("video_id", "video_uri"):
        texts = _Values.of(batch, name)
        is_empty = _booleans(pc.fill_null(pc.equal(texts.array, ""), True))
        yield from texts.faults(is_empty, "text that is not empty")
    prompts = _Values.of(batch, "prompts")
    lengths = _integers(pc.list_value_length(prompts.array), null=0)
    yield from prompts.faults(lengths == 0, "at least one prompt")
    first, last = _Values.of(batch, "first_frame"), _Values.of(batch, "last_frame")
    yield from first.faults(_integers(first.array, null=0) < 0, "0 or more")
    ends_early = _integers(last.array, null=UNKNOWN) < _integers(first.array, null=0)
    yield from last.faults(ends_early, "first_frame or more")


def _prompt_faults(batch: pa.RecordBatch) -> Iterator[Fault]:
    every = _Values.of(batch, "prompts").elements()
    yield from every.faults(every.is_null, "a prompt")
    prompts = every.where(~every.is_null)
    yield from _id_faults(prompts, batch)
    sizes = _video_sizes(prompts, batch.num_rows)
    yield from _kind_faults(prompts)
    yield from _point_faults(prompts.field("points").elements(), sizes)
    boxes = prompts.field("box")
    yield from _box_faults(boxes.where(~boxes.is_null), sizes)
    masks = prompts.field("mask")
    yield from _mask_faults(masks.where(~masks.is_null), sizes)


def _id_faults(prompts: _Values, batch: pa.RecordBatch) -> Iterator[Fault]:
    objects, frames = prompts.field("object_id"), prompts.field("frame_index")
    object_ids, frame_indices = _integers(objects.array), _integers(frames.array)
    yield from objects.faults(object_ids < 0, "0 or more")
    yield from frames.faults(frame_indices < 0, "0 or more")
    first = _integers(batch["first_frame"], null=0)[prompts.rows]
    last = _integers(batch["last_frame"], null=UNKNOWN)[prompts.rows]
    last = np.where(last < first, UNKNOWN, last)  # a fault of its own
    outside = (frame_indices >= 0) & ((frame_indices < first) | (frame_indices > last))
    yield from frames.faults(outside, "a frame from first_frame to last_frame")
    keys = np.stack([prompts.rows, object_ids, frame_indices], axis=1)
    _, first_of_kind = np.unique(keys, axis=0, return_index=True)
    repeats = np.ones(len(keys), dtype=np.bool_)
    repeats[first_of_kind] = False
    for index in np.flatnonzero(repeats).tolist():
        _, object_id, frame_index = keys[index].tolist()
        yield prompts.fault(
            index,
            f"object {object_id} has a prompt on frame {frame_index} already; wanted one, "
            "with all of its points",
        )


def _kind_faults(prompts: _Values) -> Iterator[Fault]:
    points = _integers(pc.list_value_length(prompts.field("points").array), null=0) > 0
    box, mask = ~prompts.field("box").is_null, ~prompts.field("mask").is_null
    for index in np.flatnonzero(~(points | box | mask)).tolist():
        yield prompts.fault(index, "empty; wanted points, a box or a mask")
    for index in np.flatnonzero(mask & (points | box)).tolist():
        yield prompts.fault(index, "a mask together with points or a box; wanted one")


def _video_sizes(prompts: _Values, num_rows: int) -> tuple[IntArray, IntArray]:
    """Height and width of each row's video, as far as its first mask tells."""
    height, width = _mask_sizes(prompts.field("mask"))
    heights, widths = np.full(num_rows, UNKNOWN), np.full(num_rows, UNKNOWN)
    known = np.flatnonzero(height > 0)[::-1]  # backwards, so that the first one stays
    heights[prompts.rows[known]], widths[prompts.rows[known]] = height[known], width[known]
    return heights, widths


def _mask_sizes(masks: _Values) -> tuple[IntArray, IntArray]:
    """(height, width) of each mask; −1, −1 where they are not two positive numbers."""
    sizes = masks.field("size").array
    height, width = np.full(len(sizes), -1), np.full(len(sizes), -1)
    pairs = _integers(pc.list_value_length(sizes), null=0) == 2
    numbers = _integers(sizes.filter(pa.array(pairs)).flatten()).reshape(-1, 2)
    numbers = np.where((numbers < 1).any(axis=1, keepdims=True), -1, numbers)
    height[pairs], width[pairs] = numbers[:, 0], numbers[:, 1]
    return height, width


def _point_faults(points: _Values, sizes: tuple[IntArray, IntArray]) -> Iterator[Fault]:
    yield from points.faults(points.is_null, "a point")
    points = points.where(~points.is_null)
    heights, widths = sizes
    for axis, limits in (("x", widths), ("y", heights)):
        numbers = points.field(axis)
        values, limit = _floats(numbers.array), limits[points.rows]
        yield from numbers.faults(~np.isfinite(values), "a number of pixels")
        outside = np.isfinite(values) & ((values < 0) | (values >= limit))
        yield from numbers.faults(outside, "a place inside the frame")
    signs = points.field("positive")
    yield from signs.faults(signs.is_null, "true or false")


def _box_faults(boxes: _Values, sizes: tuple[IntArray, IntArray]) -> Iterator[Fault]:
    corners = {name: boxes.field(name) for name in ("x0", "y0", "x1", "y1")}
    values = {name: _floats(corner.array) for name, corner in corners.items()}
    for name, corner in corners.items():
        limit = sizes[0 if name.startswith("y") else 1][boxes.rows]
        yield from corner.faults(~np.isfinite(values[name]), "a number of pixels")
        outside = np.isfinite(values[name]) & ((values[name] < 0) | (values[name] > limit))
        yield from corner.faults(outside, "a place inside the frame")
    for low, high in (("x0", "x1"), ("y0", "y1")):
        yield from corners[high].faults(values[high] <= values[low], f"more than {low}")


def _mask_faults(masks: _Values, sizes: tuple[IntArray, IntArray]) -> Iterator[Fault]:
    height, width = _mask_sizes(masks)
    yield from masks.field("size").faults(height < 0, "[height, width] in pixels")
    others = (height != sizes[0][masks.rows]) | (width != sizes[1][masks.rows])
    wanted = "the size of the video's first mask"
    yield from masks.field("size").faults((height > 0) & others, wanted)
    texts = masks.field("counts")
    yield from texts.faults(texts.is_null, "COCO run lengths")
    for index, message in _rle_faults(texts.array, height * width):
        if height[index] > 0:
            yield texts.fault(index, message)


def _rle_faults(rles: pa.Array, sizes_px: IntArray) -> Iterator[tuple[int, str]]:
    """(index, message) of the run lengths that are malformed or do not fill their size."""
    if len(rles) == 0:
        return
    # Here, because the model's package loads torch, which a manifest without masks can do without.
    from sam2model.rle import RleError, string_to_counts, strings_to_counts

    known = np.flatnonzero(_booleans(rles.is_valid()))
    texts = rles.drop_null().to_pylist()
    try:  # all at once; one by one only to find which are bad
        counts, num_runs = strings_to_counts(texts)
    except RleError:
        for index, text in zip(known.tolist(), texts, strict=True):
            try:
                total = int(string_to_counts(text).sum())
            except RleError as error:
                yield index, str(error)
            else:
                if total != sizes_px[index]:
                    yield index, _size_message(total, int(sizes_px[index]))
        return
    sums = np.concatenate([[0], np.cumsum(counts)])
    ends = np.cumsum(num_runs)
    totals = sums[ends] - sums[ends - num_runs]
    for place in np.flatnonzero(totals != sizes_px[known]).tolist():
        yield int(known[place]), _size_message(int(totals[place]), int(sizes_px[known[place]]))


def _size_message(got_px: int, wanted_px: int) -> str:
    return f"run lengths add up to {got_px} pixels; wanted height · width = {wanted_px}"


def _integers(array: pa.Array, null: int = -1) -> IntArray:
    filled = pc.fill_null(array.cast(pa.int64()), null)
    return np.asarray(filled.to_numpy(zero_copy_only=False), dtype=np.int64)


def _floats(array: pa.Array) -> FloatArray:
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.float64)  # null → NaN


def _booleans(array: pa.Array) -> BoolArray:
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.bool_)
