"""Whether a video file has its end. Reads lengths in containers; knows no decoder, frame or codec.

A demuxer reports a file that was cut short as an ordinary end. Containers that write down how long
they are give it away; those that do not (MPEG-TS and PS, FLV, Ogg, raw streams) may end anywhere.
"""

from collections.abc import Iterator

from sam2model.video_source import VideoSource

ISO_FIRST_BOXES = {b"ftyp", b"moov", b"mdat", b"moof", b"styp", b"sidx", b"free", b"skip", b"wide"}
EBML_HEADER = 0x1A45DFA3
SEGMENT = 0x18538067
CLUSTER = 0x1F43B675


def is_cut_short(source: VideoSource, last_sample_end: int | None) -> bool:
    """True when the container promises media data beyond the last byte.

    last_sample_end: the offset after the last sample in the index of an opened MP4, or None when
    there is no such index. It decides where it is known: what is missing after the last frame of
    the picture (sound, say) does no harm.
    """
    head = source.read_at(0, 12)
    if head[4:8] in ISO_FIRST_BOXES:
        return _is_iso_cut(source, last_sample_end)
    if head[:4] == EBML_HEADER.to_bytes(4, "big"):
        return _is_matroska_cut(source)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _is_avi_cut(source)
    return False


def _is_iso_cut(source: VideoSource, last_sample_end: int | None) -> bool:
    """MP4, MOV: a chain of boxes, each of 32-bit length and kind (length 1: 64 bits follow)."""
    kinds: set[bytes] = set()
    offset = 0
    overruns = False
    while len(header := source.read_at(offset, 16)) >= 8:
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        elif length == 0:  # "to the end of the file"
            length = source.size_bytes - offset
        if length < 8:
            break  # rubbish after the last box
        kinds.add(kind)
        offset += length
        overruns |= offset > source.size_bytes and kind in (b"moov", b"moof", b"mdat")
    if b"moof" in kinds:
        return overruns
    if b"moov" not in kinds:
        return b"mdat" in kinds  # the index is written last
    return overruns if last_sample_end is None else last_sample_end > source.size_bytes


def _is_matroska_cut(source: VideoSource) -> bool:
    """MKV, WebM: a header, then a segment of known length, or an open-ended one of whole elements."""
    for element_id, start, end in _ebml_elements(source, 0):
        if element_id == SEGMENT:
            if end is not None:
                return end > source.size_bytes
            children = _ebml_elements(source, start)
            return any(end is not None and end > source.size_bytes for _, _, end in children)
    return False


def _ebml_elements(source: VideoSource, offset: int) -> Iterator[tuple[int, int, int | None]]:
    """(id, start of content, end of content) one after the other; end None: length not written.

    An open-ended cluster is gone into: its blocks follow as if they were its siblings.
    """
    while header := source.read_at(offset, 12):
        id_width = _vint_width(header[0])
        if id_width > 4 or len(header) <= id_width:
            return
        length_width = _vint_width(header[id_width])
        start = id_width + length_width
        if length_width > 8 or len(header) < start:
            return
        unknown = (1 << 7 * length_width) - 1  # all ones: not written
        length = int.from_bytes(header[id_width:start], "big") & unknown
        end = None if length == unknown else offset + start + length
        element_id = int.from_bytes(header[:id_width], "big")
        yield element_id, offset + start, end
        if end is None and element_id != CLUSTER:
            return
        offset = offset + start if end is None else end


def _vint_width(first_byte: int) -> int:
    """Bytes of a variable-length integer: one more than the leading zero bits of its first byte."""
    return 9 - first_byte.bit_length()


def _is_avi_cut(source: VideoSource) -> bool:
    """AVI: RIFF chunks that hold chunks; the pictures are in lists called `movi`."""
    offset = 0
    while len(header := source.read_at(offset, 12)) == 12:
        kind, length, name = header[:4], int.from_bytes(header[4:8], "little"), header[8:12]
        end = offset + 8 + length + length % 2
        if kind == b"RIFF":
            offset += 12  # go in: its chunks follow
            continue
        if kind == b"LIST" and name == b"movi" and end > source.size_bytes:
            return True
        offset = end
    return False
