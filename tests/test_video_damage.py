"""What happens to videos that were cut short or changed: noticed, named, and never a silent end."""

import io
import pickle
from pathlib import Path

import av
import numpy as np
import pytest
from videos import frame_index_from_pixels, write_moving_square

from sam2model.video import Frame, Video, VideoError

FASTSTART = {"movflags": "faststart"}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


def read_until_error(content: bytes) -> tuple[list[Frame], VideoError]:
    frames: list[Frame] = []
    with pytest.raises(VideoError) as caught, Video(content, name="b/v7") as video:
        frames.extend(video.frames())
    with pytest.raises(VideoError) as again, Video(content, name="b/v7") as video:
        list(video.frames())
    assert str(again.value) == str(caught.value), "the same damage is found in the same place"
    assert str(caught.value).startswith("b/v7: ")
    return frames, caught.value


def packets(content: bytes) -> list[tuple[int, int, int]]:
    """(offset, bytes, index of its frame) of every packet, in the order of the file."""
    with av.open(io.BytesIO(content)) as container:
        found = [(p.pos, p.size, p.pts) for p in container.demux(video=0) if p.size]
    order = sorted(pts for _, _, pts in found)
    return [(pos, size, order.index(pts)) for pos, size, pts in found]


def are_right(frames: list[Frame]) -> bool:
    return [frame_index_from_pixels(f.rgb) for f in frames] == list(range(len(frames)))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_an_mp4_whose_index_was_cut_off_is_truncated(folder: Path, share: float) -> None:
    content = write_moving_square(folder / "late.mp4", 36).read_bytes()
    assert content.rindex(b"moov") > len(content) / 2
    frames, error = read_until_error(content[: int(content.rindex(b"moov") * share)])
    assert (frames, error.reason) == ([], "truncated")
    assert str(error) == "b/v7: cannot be opened: the file is cut short"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("early.mp4", {"container_options": FASTSTART}),
        ("pieces.mp4", {"container_options": FRAGMENTS}),
        ("sized.mkv", {}),
        ("live.mkv", {"container_options": {"live": "1"}}),
        ("vp9.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}),
        ("old.avi", {"codec": "mpeg4", "fps": 25, "options": {"qmin": "2"}}),
    ],
)
def test_a_file_cut_in_its_pictures_gives_those_before_and_is_truncated(
    folder: Path, name: str, options: dict
) -> None:
    content = write_moving_square(folder / name, 36, **options).read_bytes()
    position, size, _ = packets(content)[20]
    for end in (position, position + 1, position + size // 2, position + size - 1):
        frames, error = read_until_error(content[:end])
        assert error.reason == "truncated", end
        # At most the pictures that wait for those shown before them are held back.
        assert 16 <= len(frames) <= 20 and are_right(frames)
        assert f"frame {len(frames)}" in str(error)
        if name == "early.mp4":
            assert f"frame {len(frames)} of 36 (header) " in str(error)


@pytest.mark.parametrize("container_options", [{}, FRAGMENTS], ids=["whole", "fragments"])
def test_a_cut_behind_the_last_picture_does_no_harm(
    folder: Path, container_options: dict[str, str]
) -> None:
    path = write_moving_square(folder / "tail.mp4", 36, container_options=container_options)
    with Video(path.read_bytes()[:-10], name="v") as video:  # inside tags or the second index
        assert len(list(video.frames())) == 36


def test_a_cut_between_two_packets_is_found_without_decoding(folder: Path) -> None:
    path = write_moving_square(folder / "between.mp4", 36, container_options=FASTSTART)
    content = path.read_bytes()
    with Video(content[: packets(content)[20][0]], name="v") as video:
        with pytest.raises(VideoError, match="is not to be had: the file is cut short"):
            video.count_frames()
        assert frame_index_from_pixels(video.frame(15).rgb) == 15


def test_a_transport_stream_may_end_anywhere(folder: Path) -> None:
    # It has no length: this cut cannot be told from a recording that was stopped.
    content = write_moving_square(folder / "stream.ts", 36, b_frames=0).read_bytes()
    with Video(content[: len(content) // 188 // 2 * 188], name="v") as video:
        assert 12 <= len(list(video.frames())) < 36


def test_a_packet_that_cannot_be_decoded_is_named_by_its_frame(folder: Path) -> None:
    content = write_moving_square(folder / "packet.mp4", 36, b_frames=0).read_bytes()
    for number in (0, 1, 17, 34, 35):  # 35: the decoder must not take it for the end
        position, size, index = packets(content)[number]
        frames, error = read_until_error(
            content[:position] + bytes(size) + content[position + size :]
        )
        assert error.reason == "undecodable" and len(frames) == index and are_right(frames)
        wanted = f"b/v7: frame {index} of 36 (header) failed to decode: Invalid data found when "
        assert str(error).startswith(wanted)


def test_a_lost_slice_of_a_picture_is_noticed(folder: Path) -> None:
    # With slice threads FFmpeg hides exactly this.
    slices = {"x264-params": "slices=4"}
    path = write_moving_square(folder / "slices.mp4", 36, b_frames=0, options=slices)
    content = bytearray(path.read_bytes())
    position, size, index = packets(bytes(content))[20]
    assert content[position + 4] & 0x1F == 1, "a slice of an ordinary picture"
    content[position + 4] = 0xFF
    frames, error = read_until_error(bytes(content))
    assert error.reason == "undecodable" and len(frames) == index
    assert str(error) == "b/v7: frame 20 of 36 (header) failed to decode: damaged picture"


def test_changed_bytes_are_noticed_as_often_as_the_codec_can(folder: Path) -> None:
    path = write_moving_square(folder / "bits.mp4", 36, container_options=FASTSTART)
    content = path.read_bytes()
    begin = packets(content)[0][0]
    random = np.random.default_rng(0)
    noticed = 0
    for _ in range(40):
        changed = bytearray(content)
        at = int(random.integers(begin, len(content) - 40))
        changed[at : at + 40] = random.bytes(40)
        try:
            with Video(bytes(changed), name="v") as video:
                assert len(list(video.frames())) == 36, "a frame was lost without an error"
        except VideoError as error:
            assert error.reason == "undecodable"
            noticed += 1
    assert noticed >= 30


@pytest.mark.parametrize("name", ["any.mp4", "any.mkv", "any.ts", "any.avi", "any.webm"])
def test_any_damage_ends_in_frames_or_in_a_video_error(folder: Path, name: str) -> None:
    codec = {"any.webm": "libvpx", "any.avi": "mpeg4"}.get(name, "libx264")
    content = write_moving_square(folder / name, 12, codec=codec, fps=25).read_bytes()
    random = np.random.default_rng(0)
    outcomes = set()
    for _ in range(60):
        changed = bytearray(content)
        for at in random.integers(len(content), size=random.integers(1, 30)):
            changed[at] = random.integers(256)
        begin, length = random.integers(len(content)), random.integers(2000)
        del changed[begin : begin + length * random.integers(2)]
        try:
            with Video(bytes(changed), name="v") as video:
                num_frames = len(list(video.frames()))
                assert video.count_frames() == video.num_frames_decoded == num_frames
                assert len(list(video.frames_backwards())) == num_frames
            outcomes.add("read")
        except VideoError as error:
            outcomes.add(error.reason)
    assert len(outcomes) > 1


@pytest.mark.parametrize("header", [b"\x00\x00\x00", b"\xa4", b"\xa3\x40\x05"])
def test_frames_lost_in_a_damaged_matroska_are_not_a_clean_end(folder: Path, header: bytes) -> None:
    # The demuxer skips to the next thing it knows; VP9 goes on decoding without what was skipped.
    path = write_moving_square(folder / "skip.webm", 36, codec="libvpx-vp9", gop=100)
    content = bytearray(path.read_bytes())
    position = packets(bytes(content))[20][0]
    block = content.rindex(b"\xa3", 0, position)  # a block's kind; then comes its length
    content[block : block + len(header)] = header
    frames, error = read_until_error(bytes(content))
    assert error.reason == "undecodable" and len(frames) < 36
    assert str(error).endswith("is not to be had: the container is damaged")


def test_packets_that_give_no_picture_are_not_a_clean_end(folder: Path) -> None:
    path = write_moving_square(folder / "swallowed.mp4", 36, codec="libx265", b_frames=0)
    content = bytearray(path.read_bytes())
    position, size, _ = packets(bytes(content))[-1]
    content[position + 4] = 38 << 1  # from here: "filler data", which a decoder passes over
    frames, error = read_until_error(bytes(content))
    assert error.reason == "undecodable" and are_right(frames)
    assert len(frames) == 35
    assert str(error).endswith("frame 35 of 36 (header) is the end, but 1 packets gave no picture")


def test_the_good_part_of_a_damaged_video_can_be_read_at_random(folder: Path) -> None:
    path = write_moving_square(folder / "half.mp4", 36, container_options=FASTSTART)
    content = path.read_bytes()
    content = content[: packets(content)[24][0] + 3]
    with Video(content, name="v") as video:
        assert frame_index_from_pixels(video.frame(14).rgb) == 14
        backwards = list(video.frames_backwards(5, 20))
        assert [frame_index_from_pixels(f.rgb) for f in backwards] == list(range(19, 4, -1))
        for attempt in (
            video.count_frames,
            lambda: video.frame(30),
            lambda: list(video.frames(30)),
            lambda: next(video.frames_backwards()),
        ):
            with pytest.raises(VideoError, match="of 36 .header. ") as caught:
                attempt()
            assert caught.value.reason == "truncated"
            assert frame_index_from_pixels(video.frame(15).rgb) == 15
        assert video.num_frames_decoded is None


def test_frames_after_damage_keep_their_index_and_are_reached_without_it(folder: Path) -> None:
    path = write_moving_square(folder / "first_group.mp4", 36, gop=12, b_frames=0)
    content = bytearray(path.read_bytes())
    position, size, _ = packets(bytes(content))[3]
    content[position : position + size] = bytes(size)
    with Video(bytes(content), name="v") as video:
        assert [frame_index_from_pixels(f.rgb) for f in video.frames(12)] == list(range(12, 36))
        assert frame_index_from_pixels(video.frame(25).rgb) == 25
        with pytest.raises(VideoError, match="frame 3 of 36"):
            list(video.frames())
        with pytest.raises(VideoError, match="frame 3 of 36"):
            video.frame(5)


def test_a_video_error_survives_the_way_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(VideoError("truncated", "v: frame 3 is missing")))
    assert (error.reason, str(error)) == ("truncated", "v: frame 3 is missing")
    assert isinstance(error, ValueError)
