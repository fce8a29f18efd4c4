"""One picture for all objects of a frame: pixel = object. Knows nothing of formats or files.

Where masks overlap, the object with the lowest id has the pixel, as in SAM 2's own tools.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sam2model import rle

LabelMap = npt.NDArray[np.uint16]  # (H, W), 0 background


def paint(
    rows: Sequence[Mapping[str, Any]], labels: Mapping[int, int], height: int, width: int
) -> tuple[LabelMap, dict[int, int]]:
    """The picture, and for each object that is there how many of its pixels others cover.

    rows: object_id, counts, area_px of one frame. labels: object_id → pixel value from 1.
    Raises RleError for run lengths of another size.
    """
    picture = np.zeros((width, height), np.uint16).T  # column-major, as run lengths are
    covered: dict[int, int] = {}
    for row in sorted(rows, key=lambda row: row["object_id"]):
        if row["area_px"]:
            free = rle.decode(row["counts"], height, width) & (picture == 0)
            picture[free] = labels[row["object_id"]]
            covered[row["object_id"]] = row["area_px"] - int(np.count_nonzero(free))
    return picture, covered


def palette_png(picture: LabelMap) -> bytes:
    """PNG of mode P with the colours of PASCAL VOC and DAVIS; values up to 255."""
    image = Image.fromarray(np.ascontiguousarray(picture.astype(np.uint8)))
    image.putpalette(VOC_PALETTE)
    return _png(image)


def grey16_png(picture: LabelMap) -> bytes:
    """16-bit grey PNG."""
    return _png(Image.fromarray(np.ascontiguousarray(picture)))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _voc_palette() -> list[int]:
    """256 colours as r, g, b, …: the bits of the label, three by three, from the channels' top."""
    palette = []
    for label in range(256):
        channels = [0, 0, 0]
        for place in range(8):
            for channel in range(3):
                bit = label >> (3 * place + channel) & 1
                channels[channel] |= bit << (7 - place)
        palette += channels
    return palette


VOC_PALETTE = _voc_palette()
