"""Rows of masks as one array of pixels. Knows nothing of tables or where rows come from."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sam2model import rle


@dataclass(frozen=True, slots=True, eq=False)
class DecodedMasks:
    """Objects of one video on some of its frames.

    object_ids (N,) and frame_indices (T,): int32, ascending. masks (N, T, H, W): bool.
    labelled (N, T): bool, whether there is a mask, if only an empty one; elsewhere masks are False.
    """

    object_ids: npt.NDArray[np.int32]
    frame_indices: npt.NDArray[np.int32]
    masks: npt.NDArray[np.bool_]
    labelled: npt.NDArray[np.bool_]


def decode_masks(
    rows: pa.Table, frame_indices: npt.NDArray[np.int32] | None = None
) -> DecodedMasks:
    """Rows of one video and one revision of each object, in N·T·H·W bytes.

    frame_indices: those wanted, ascending; by default those that have rows. Rows of others are left
    out. Raises RleError for run lengths of another size, ValueError for masks of two sizes or two
    masks of an object on one frame.
    """
    sizes = rows.group_by(["height", "width"]).aggregate([]).to_pylist()
    if len(sizes) > 1:
        raise ValueError(f"masks of sizes {sizes}; wanted one")
    height, width = (sizes[0]["height"], sizes[0]["width"]) if sizes else (0, 0)
    frames = rows["frame_index"].to_numpy().astype(np.int32)
    object_ids, object_places = np.unique(rows["object_id"].to_numpy(), return_inverse=True)
    wanted = np.unique(frames) if frame_indices is None else frame_indices
    masks = np.zeros((len(object_ids), len(wanted), height, width), np.bool_)
    labelled = np.zeros(masks.shape[:2], np.bool_)
    places = np.searchsorted(wanted, frames)
    for row, (place, counts) in enumerate(zip(places, rows["counts"].to_pylist(), strict=True)):
        if place == len(wanted) or wanted[place] != frames[row]:
            continue
        at = object_places[row], place
        if labelled[at]:
            raise ValueError(f"object {object_ids[at[0]]} has two masks on frame {frames[row]}")
        labelled[at] = True
        masks[at] = rle.decode(counts, height, width)
    return DecodedMasks(object_ids.astype(np.int32), wanted, masks, labelled)
