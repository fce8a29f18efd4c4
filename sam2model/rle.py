"""COCO run-length masks, made on the device or on the host. Knows no model, file or table.

One mask has three forms, all column-major (down the first column, then down the next):
mask (H, W) bool; counts, 1-D run lengths in pixels, alternating and starting with a run of zeros
(its first may be 0); rle, the compressed ASCII string of those counts, as pycocotools writes it.

On the device `encode_runs` makes counts without waiting for the device. The string is made on the
host, of many masks at once, by `runs_to_strings`. `encode_masks` does both for masks anywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# 32 KiB a mask. An outline crosses each column of 1920 twice, which is 3,841 runs; the busiest of
# 605 hand-drawn SA-V masks of 480×848 has 1,213.
DEFAULT_CAPACITY = 8192
MAX_PIXELS = 2**31 - 1  # positions are int32 on the device and uint32 in pycocotools
MAX_CHARS_PER_RUN = 7  # 35 bits: a difference of two run lengths below 2^32, with its sign


class RleError(ValueError):
    """A mask or string that is not valid COCO RLE; the message says what, got and wanted."""


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Counts of N masks in buffers of one fixed capacity, on any device.

    counts: (N, capacity) int32; row n holds run lengths in its first num_runs[n] places, then 0.
    num_runs: (N,) int32, the true number, also where it exceeds the capacity.
    """

    counts: Tensor
    num_runs: Tensor

    @property
    def overflowed(self) -> Tensor:
        """(N,) bool; True where the row holds only the first runs of its mask."""
        return self.num_runs > self.counts.shape[1]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Runs":
        """The same runs elsewhere; read a non-blocking copy only after its stream has passed it."""
        return Runs(
            self.counts.to(device, non_blocking=non_blocking),
            self.num_runs.to(device, non_blocking=non_blocking),
        )


def encode_runs(masks: Tensor, capacity: int = DEFAULT_CAPACITY) -> Runs:
    """Counts of every mask, on the masks' device, with no wait for that device.

    masks: (N, H, W) bool; takes about 12 bytes a pixel while it runs.
    A pixel that differs from the one before it starts a run; a running count ranks those pixels,
    and where rank k first occurs is found by bisection, so every shape is known in advance.
    Raises RleError if the masks are not bool, have no pixels, or 2^31 and more together.
    """
    num_masks, height, width = _checked_shape(masks)
    size_px = height * width
    if num_masks * size_px + capacity > MAX_PIXELS:
        raise RleError(
            f"{num_masks} masks of {height}×{width}, capacity {capacity}: "
            f"wanted pixels and capacity below {MAX_PIXELS} together"
        )
    columns = masks.transpose(1, 2).reshape(num_masks, size_px)
    starts_run = torch.cat([columns[:, :1], columns[:, 1:] ^ columns[:, :-1]], dim=1)
    # Ranks run on through all masks: a 1-D scan uses the whole device, a scan of rows does not.
    ranks = starts_run.flatten().cumsum(0, dtype=torch.int32)
    last_rank = ranks.view(num_masks, size_px)[:, -1]  # (N,)
    rank_before = torch.cat([last_rank.new_zeros(1), last_rank])[:-1]
    num_runs = last_rank - rank_before + 1
    next_rank = torch.arange(1, capacity + 1, dtype=torch.int32, device=masks.device)
    ends = torch.searchsorted(ranks, rank_before[:, None] + next_rank, out_int32=True)
    first_px = torch.arange(num_masks, dtype=torch.int32, device=masks.device) * size_px
    ends = (ends - first_px[:, None]).clamp(max=size_px)  # (N, capacity); past the last run: size
    counts = ends.diff(dim=1, prepend=ends.new_zeros(num_masks, 1))
    return Runs(counts, num_runs)


def runs_to_strings(runs: Runs, masks: Tensor | None = None) -> list[str]:
    """The rle of every mask; waits for the device that holds the runs.

    masks: what the runs were made of, (N, H, W) bool, needed only if a mask overflowed: those are
    encoded again where they lie, now with room for all their runs.
    Raises RleError naming the first mask that overflowed when masks is None.
    """
    num_runs = runs.num_runs.cpu().numpy().astype(np.int64)
    num_masks, capacity = runs.counts.shape
    if masks is not None and len(masks) != num_masks:
        raise RleError(f"runs of {num_masks} masks with {len(masks)} masks: wanted the same masks")
    overflowed = np.flatnonzero(num_runs > capacity)
    kept = np.minimum(num_runs, capacity)
    most = int(kept.max(initial=0))
    counts = runs.counts[:, :most].cpu().numpy()
    strings = counts_to_strings(counts[np.arange(most) < kept[:, None]], kept)
    if overflowed.size:
        if masks is None:
            raise RleError(
                f"mask {overflowed[0]}: {num_runs[overflowed[0]]} runs, capacity {capacity}; "
                "wanted the masks too, or a larger capacity"
            )
        again = encode_runs(masks[torch.from_numpy(overflowed)], int(num_runs.max()))
        for index, string in zip(overflowed, runs_to_strings(again), strict=True):
            strings[index] = string
    return strings


def encode_masks(masks: Tensor | BoolArray) -> list[str]:
    """The rle of every mask (N, H, W) bool, wherever it lies. Raises RleError if not bool."""
    _checked_shape(masks)
    if isinstance(masks, Tensor):
        if masks.device.type != "cpu":
            return runs_to_strings(encode_runs(masks), masks)
        masks = masks.numpy()
    counts = [_host_counts(mask) for mask in masks]
    num_runs = np.array([len(c) for c in counts], dtype=np.int64)
    return counts_to_strings(np.concatenate([*counts, np.empty(0, np.int32)]), num_runs)


def encode_mask(mask: Tensor | BoolArray) -> str:
    """The rle of one mask (H, W) bool. Raises RleError if it is not bool."""
    return encode_masks(mask[None])[0]


def decode(rle: str, height: int, width: int) -> BoolArray:
    """The mask (height, width), column-major in memory like the string.

    Raises RleError if the string is malformed or does not hold height · width pixels.
    """
    counts = _counts_for_size(rle, height, width)
    is_set = np.arange(len(counts)) % 2 == 1
    return np.repeat(is_set, counts).reshape(width, height).T


def area(rle: str) -> int:
    """Set pixels of the mask. Raises RleError if the string is malformed."""
    return int(string_to_counts(rle)[1::2].sum())


def box_xyxy(rle: str, height: int, width: int) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) in pixels, ends exclusive; zeros for an empty mask. Raises like decode."""
    counts = _counts_for_size(rle, height, width)
    ends = np.cumsum(counts)
    is_set = (np.arange(len(counts)) % 2 == 1) & (counts > 0)
    if not is_set.any():
        return 0, 0, 0, 0
    first_column, first_row = np.divmod((ends - counts)[is_set], height)
    last_column, last_row = np.divmod(ends[is_set] - 1, height)
    if (first_column < last_column).any():  # a run that turns a column's end has both edge rows
        first_row, last_row = np.array([0]), np.array([height - 1])
    return (
        int(first_column[0]),
        int(first_row.min()),
        int(last_column[-1]) + 1,
        int(last_row.max()) + 1,
    )


def intersection_px(rle_a: str, rle_b: str) -> int:
    """Pixels set in both masks, found from the runs. Raises RleError if their sizes differ."""
    counts_a, counts_b = string_to_counts(rle_a), string_to_counts(rle_b)
    if counts_a.sum() != counts_b.sum():
        raise RleError(f"masks of {counts_a.sum()} and {counts_b.sum()} px: wanted one size")
    ends_a, ends_b = np.cumsum(counts_a), np.cumsum(counts_b)
    is_set = np.arange(len(counts_a)) % 2 == 1
    set_up_to_end = np.cumsum(np.where(is_set, counts_a, 0))

    def set_before(position: IntArray) -> IntArray:
        """Set pixels of mask a before each position."""
        run = np.searchsorted(ends_a, position)
        unread: IntArray = np.where(is_set[run], ends_a[run] - position, 0)
        return set_up_to_end[run] - unread

    starts_b = (ends_b - counts_b)[1::2]
    return int((set_before(ends_b[1::2]) - set_before(starts_b)).sum())


def iou(rle_a: str, rle_b: str) -> float:
    """Intersection over union of two masks of one size, in [0, 1]; 1 if both are empty."""
    both_px = intersection_px(rle_a, rle_b)
    either_px = area(rle_a) + area(rle_b) - both_px
    return both_px / either_px if either_px else 1.0


def counts_to_string(counts: npt.ArrayLike) -> str:
    """The rle of one mask's counts. Raises RleError if a count is negative or above 2^31 - 1."""
    counts = np.asarray(counts, dtype=np.int64)
    return counts_to_strings(counts, np.array([len(counts)]))[0]


def counts_to_strings(counts: npt.NDArray[np.integer], num_runs: npt.ArrayLike) -> list[str]:
    """The rles of N masks, given their counts end to end and how many each of them has.

    A run is written as its difference from the run two before it (the first three as they are),
    5 bits a character from the lowest, until the rest is only the sign.
    """
    num_runs = np.asarray(num_runs, dtype=np.int64)
    if counts.size and not 0 <= counts.min() <= counts.max() <= MAX_PIXELS:
        bad = counts[(counts < 0) | (counts > MAX_PIXELS)][0]
        raise RleError(f"run of {bad} px: wanted 0 to {MAX_PIXELS}")
    mask_ends = np.cumsum(num_runs)
    whole = (mask_ends - num_runs)[:, None] + np.arange(3)
    whole = whole[np.arange(3) < num_runs[:, None]]
    rest = counts.astype(np.int32)  # a difference of two of them fits too
    rest[2:] -= rest[:-2].copy()
    rest[whole] = counts[whole]
    num_chars = _chars_needed(rest)
    run_ends = np.cumsum(num_chars, dtype=np.int64)
    text = np.empty(run_ends[-1] if len(run_ends) else 0, dtype=np.uint8)
    place = run_ends - num_chars
    while place.size:
        more = num_chars > 1
        text[place] = (rest & 31).astype(np.uint8) + np.uint8(48) + (more.view(np.uint8) << 5)
        longer = np.flatnonzero(more)
        place, rest, num_chars = place[longer] + 1, rest[longer] >> 5, num_chars[longer] - 1
    joined = text.tobytes().decode("ascii")
    string_ends = np.concatenate([[0], run_ends])[mask_ends].tolist()
    return [joined[a:b] for a, b in zip([0, *string_ends], string_ends, strict=False)]


def _chars_needed(values: npt.NDArray[np.int32]) -> npt.NDArray[np.int8]:
    """How many groups of 5 bits, the last with the sign, hold each value."""
    magnitude = values ^ (values >> 31)
    largest = int(magnitude.max(initial=0))
    num_chars = np.ones(len(values), dtype=np.int8)
    bound = 16  # one group holds -16 to 15
    while largest >= bound:
        num_chars += magnitude >= bound
        bound <<= 5
    return num_chars


def string_to_counts(rle: str) -> IntArray:
    """Run lengths in pixels, zeros first. Raises RleError if the string is malformed."""
    return strings_to_counts([rle])[0]


def strings_to_counts(rles: Sequence[str]) -> tuple[IntArray, IntArray]:
    """The counts of N rles end to end, and how many counts each has, (N,).

    Raises RleError naming the first string with a foreign character, cut off inside a run, or
    with a run that is negative or above 2^31 - 1 pixels.
    """
    joined = "".join(rles)
    coding, dtype = ("ascii", "u1") if joined.isascii() else ("utf-32-le", "<u4")
    codes = (
        np.frombuffer(joined.encode(coding, "surrogatepass"), dtype) - 48
    )  # below 48 wraps round
    string_ends = np.cumsum([len(rle) for rle in rles], dtype=np.int64)
    _refuse(np.flatnonzero(codes > 63), "a character outside ASCII 48 to 111", rles)
    is_last = codes < 32  # bit 5: the run goes on in the next character
    finals = string_ends[np.diff(string_ends, prepend=0) > 0] - 1
    _refuse(finals[~is_last[finals]], "an end inside a run", rles)
    run_ends = np.flatnonzero(is_last) + 1
    num_chars = np.diff(run_ends, prepend=0)
    too_long = run_ends[num_chars > MAX_CHARS_PER_RUN] - 1
    _refuse(too_long, f"a run of more than {MAX_CHARS_PER_RUN} characters", rles)
    counts = np.zeros(len(run_ends), dtype=np.int64)
    for place in range(num_chars.max(initial=0)):
        runs = np.flatnonzero(num_chars > place)
        code = codes[run_ends[runs] - num_chars[runs] + place]
        counts[runs] |= (code & 31).astype(np.int64) << (5 * place)
    negative = (codes[run_ends - 1] & 16) != 0
    counts[negative] -= 1 << (5 * num_chars[negative])
    num_runs = np.diff(np.searchsorted(run_ends, string_ends, side="right"), prepend=0)
    _add_run_two_before(counts, num_runs)
    out_of_range = run_ends[(counts < 0) | (counts > MAX_PIXELS)] - 1
    _refuse(out_of_range, f"a run outside 0 to {MAX_PIXELS} px", rles)
    return counts, num_runs


def _add_run_two_before(counts: IntArray, num_runs: IntArray) -> None:
    """Turn differences into run lengths in place: a running sum over every second run of a mask.

    One sum starts at run 1, the other at run 2; run 0 stands alone.
    """
    place = np.arange(len(counts)) - np.repeat(np.cumsum(num_runs) - num_runs, num_runs)
    for start in (1, 2):
        runs = np.flatnonzero((place >= start) & ((place - start) % 2 == 0))
        sums = np.cumsum(counts[runs])
        heads = np.flatnonzero(place[runs] == start)
        of_masks_before = sums[heads] - counts[runs[heads]]
        counts[runs] = sums - np.repeat(of_masks_before, np.diff(heads, append=len(runs)))


def _refuse(characters: IntArray, what: str, rles: Sequence[str]) -> None:
    """Raise RleError for the first of these characters, counted through all strings, if any."""
    if characters.size:
        character, index = int(characters[0]), 0
        while character >= len(rles[index]):
            character, index = character - len(rles[index]), index + 1
        near = rles[index][max(0, character - 8) : character + 8]
        where = f"rle {index} of {len(rles)}, character {character}, near {near!r}"
        raise RleError(f"{where}: got {what}")


def _counts_for_size(rle: str, height: int, width: int) -> IntArray:
    """The counts, or RleError unless they add up to height · width."""
    counts = string_to_counts(rle)
    if height < 1 or width < 1 or counts.sum() != height * width:
        raise RleError(
            f"rle {rle[:16]!r}: got {counts.sum()} px; wanted {height}×{width} = {height * width}"
        )
    return counts


def _checked_shape(masks: Tensor | BoolArray) -> tuple[int, int, int]:
    """(N, H, W), or RleError unless the masks are three-dimensional, bool and not empty."""
    shape = tuple(masks.shape)
    if masks.dtype not in (torch.bool, np.bool_) or len(shape) != 3 or 0 in shape[1:]:
        raise RleError(f"masks {shape} of {masks.dtype}: wanted (N, H, W) bool, H and W at least 1")
    return shape


def _host_counts(mask: BoolArray) -> npt.NDArray[np.integer]:
    """Counts of one mask (H, W) in host memory, row-major or column-major, without transposing it.

    Row by row, a pixel starts a run if it differs from the one above it; the first of a column, if
    it differs from the last of the column before.
    """
    height, width = mask.shape
    if mask.flags.f_contiguous:
        pixels = mask.T.reshape(-1)
        starts: npt.NDArray[np.integer] = _where_different(pixels[1:], pixels[:-1]) + 1
        starts = starts if not pixels[0] else np.concatenate([[0], starts])
    else:
        tops = mask[0].copy()
        tops[1:] ^= mask[-1, :-1]
        below = _starts_below_tops(mask)
        starts = np.concatenate([(np.flatnonzero(tops) * height).astype(below.dtype), below])
        starts.sort()
    return np.diff(starts, prepend=starts.dtype.type(0), append=starts.dtype.type(height * width))


def _starts_below_tops(mask: BoolArray) -> npt.NDArray[np.integer]:
    """Where in column order a pixel of (H, W) differs from the one above it, unsorted.

    On bits, 64 pixels of a row in a word: most words equal the one above.
    """
    height, width = mask.shape
    words_a_row = -(-width // 64)
    packed = np.packbits(mask, axis=1, bitorder="little")
    if packed.shape[1] < 8 * words_a_row:
        packed = np.pad(packed, ((0, 0), (0, 8 * words_a_row - packed.shape[1])))
    words = packed.view(np.uint64)
    changes = (words[1:] ^ words[:-1]).reshape(-1)
    busy_words = np.flatnonzero(changes != 0)
    eights = changes[busy_words].view(np.uint8)
    busy = np.flatnonzero(eights != 0)
    bits = np.flatnonzero(np.unpackbits(eights[busy], bitorder="little").view(np.bool_))
    row_px = 64 * words_a_row
    place_of = np.int32 if height * row_px <= MAX_PIXELS else np.int64  # half the bytes to sort
    eight = (busy_words[busy >> 3] * 8 + (busy & 7)).astype(place_of)
    place = eight[bits >> 3] * 8 + (bits & 7).astype(place_of)
    row = place // row_px
    return (place - row * row_px) * height + row + 1


def _where_different(a: BoolArray, b: BoolArray) -> IntArray:
    """Indices at which two flat arrays differ, comparing 8 pixels at once: most are equal."""
    whole = len(a) // 8 * 8
    a_eights, b_eights = a[:whole].view(np.uint64), b[:whole].view(np.uint64)
    busy = np.flatnonzero(a_eights != b_eights)
    within = np.flatnonzero((a_eights[busy] ^ b_eights[busy]).view(np.bool_))
    tail = np.flatnonzero(a[whole:] != b[whole:]) + whole
    return np.concatenate([busy[within >> 3] * 8 + (within & 7), tail])
