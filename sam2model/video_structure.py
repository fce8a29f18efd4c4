"""Whether a video file is whole, by its container's own lengths. Knows no decoder, frame or codec.

Demuxers are lenient: a file cut short ends like any other, and after a damaged length they look for
the next thing they know, so frames go missing in silence. Containers that write down how long they
are give both away. Those that do not (MPEG-TS and PS, FLV, Ogg, raw streams) may end anywhere.
"""

from collections.abc import Callable, Iterator
from itertools import islice

from sam2model.video_source import VideoReason, VideoSource

ISO_FIRST_BOXES = {b"ftyp", b"moov", b"mdat", b"moof", b"styp", b"sidx", b"free", b"skip", b"wide"}
EBML_HEADER = 0x1A45DFA3
SEGMENT = 0x18538067
CLUSTER = 0x1F43B675
MATROSKA_ELEMENTS = {
    # SeekHead, Info, Tracks, Cluster, Cues, Attachments, Chapters, Tags, Void, CRC-32
    *(0x114D9B74, 0x1549A966, 0x1654AE6B, CLUSTER, 0x1C53BB6B, 0x1941A469, 0x1043A770),
    *(0x1254C367, 0xEC, 0xBF),
    # of a cluster: Timestamp, Position, PrevSize, SimpleBlock, BlockGroup, EncryptedBlock, …
    *(0xE7, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF, 0x5854),
}
# Nine hours of Matroska blocks at 30 frames/s; a forged file of tiny elements ends here too.
MAX_ELEMENTS = 1_000_000


def find_fault(
    source: VideoSource, last_sample_end: Callable[[], int | None]
) -> VideoReason | None:
    """`truncated`: media data are promised beyond the last byte; `undecodable`: lengths are wrong.

    last_sample_end: gives the offset after the last sample of an MP4's index, None without one; is
    asked only where boxes leave doubt. What is missing behind the last picture does no harm.
    """
    head = source.read_at(0, 12)
    if head[4:8] in ISO_FIRST_BOXES:
        return "truncated" if _is_iso_cut(source, last_sample_end) else None
    if head[:4] == EBML_HEADER.to_bytes(4, "big"):
        return _matroska_fault(source)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "truncated" if _is_avi_cut(source) else None
    return None


def _is_iso_cut(source: VideoSource, last_sample_end: Callable[[], int | None]) -> bool:
    kinds: set[bytes] = set()
    in_doubt = False
    for kind, end in islice(_iso_boxes(source), MAX_ELEMENTS):
        kinds.add(kind)
        # Among fragments a damaged length hides the kinds after it; mfra is an index nobody needs.
        matters = kind in (b"moov", b"mdat") or (b"moof" in kinds and kind != b"mfra")
        in_doubt |= matters and (end is None or end > source.size_bytes)
    if b"moof" in kinds:
        return in_doubt
    if b"moov" not in kinds:
        return b"mdat" in kinds  # the index is written last
    sample_end = last_sample_end() if in_doubt else None
    return in_doubt if sample_end is None else sample_end > source.size_bytes


def _iso_boxes(source: VideoSource) -> Iterator[tuple[bytes, int | None]]:
    """(kind, end) of an MP4's or MOV's boxes; end None: "to the end of the file", so the last."""
    offset = 0
    while len(header := source.read_at(offset, 16)) >= 8:
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:  # 64 bits follow
            length = int.from_bytes(header[8:16], "big")
        if length == 0:
            yield kind, None
        if length < 8:
            return
        offset += length
        yield kind, offset


def _matroska_fault(source: VideoSource) -> VideoReason | None:
    """Of MKV and WebM. Clusters are gone into: what follows a wrong length is no known element."""
    _, offset, end = _ebml_element(source, 0) or (0, 0, None)
    segment = _ebml_element(source, end or offset)
    if segment is None or segment[0] != SEGMENT:
        return None
    _, offset, end = segment
    end = source.size_bytes if end is None else end
    if end > source.size_bytes:
        return "truncated"
    for _ in range(MAX_ELEMENTS):
        if offset >= end:
            return "truncated" if offset > end else None
        element = _ebml_element(source, offset)
        if element is None or element[0] not in MATROSKA_ELEMENTS:
            return "truncated" if end - offset < 12 else "undecodable"
        element_id, start, element_end = element
        if element_id == CLUSTER:
            offset = start
        elif element_end is None:
            return "undecodable"
        else:
            offset = element_end
    return None


def _ebml_element(source: VideoSource, offset: int) -> tuple[int, int, int | None] | None:
    """(id, start of content, end of content); end None: length not written. None: no element."""
    header = source.read_at(offset, 12)
    if not header or (id_width := _vint_width(header[0])) > 4 or len(header) <= id_width:
        return None
    length_width = _vint_width(header[id_width])
    start = id_width + length_width
    if length_width > 8 or len(header) < start:
        return None
    unknown = (1 << 7 * length_width) - 1  # all ones: not written
    length = int.from_bytes(header[id_width:start], "big") & unknown
    end = None if length == unknown else offset + start + length
    return int.from_bytes(header[:id_width], "big"), offset + start, end


def _vint_width(first_byte: int) -> int:
    """Bytes of a variable-length integer: one more than the leading zero bits of its first byte."""
    return 9 - first_byte.bit_length()


def _is_avi_cut(source: VideoSource) -> bool:
    """AVI: RIFF chunks that hold chunks; the pictures are in lists called `movi`."""
    offset = 0
    for _ in range(MAX_ELEMENTS):
        header = source.read_at(offset, 12)
        if len(header) < 12:
            return False
        kind, length, name = header[:4], int.from_bytes(header[4:8], "little"), header[8:12]
        end = offset + 8 + length + length % 2
        if kind == b"LIST" and name == b"movi" and end > source.size_bytes:
            return True
        offset = offset + 12 if kind == b"RIFF" else end  # go into a RIFF: its chunks follow
    return False
