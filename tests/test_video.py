import gc
import io
import itertools
import struct
import wave
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from videos import (
    frame_index_from_pixels,
    moving_square,
    square_mask,
    write_moving_square,
)

import sam2model.video
from sam2model.video import Frame, Video, VideoError, VideoLimits
from sam2model.video_decoder import VideoDecoder

VFR_MS = [0, *itertools.accumulate([10, 500, 33, 40, 7] * 7)]
X264_PYRAMID = "bframes=8:b-adapt=0:b-pyramid=normal"
X264_OPEN_GOP = "open-gop=1:bframes=3:b-adapt=0:scenecut=0:keyint=8:min-keyint=8"
X265 = "log-level=none:bframes=4:b-adapt=0:keyint=10:min-keyint=10"
X265_OPEN_GOP = f"{X265}:open-gop=1"  # pictures before a key frame that need the group before
X265_LEADING = f"{X265}:open-gop=0:radl=2"  # pictures before a key frame that need only it
# name → arguments of write_moving_square; each is a structure that has its own way to go wrong
STREAMS: dict[str, dict] = {
    "plain.mp4": {},
    "no_b_frames.mp4": {"b_frames": 0},
    "all_key_frames.mp4": {"gop": 1, "b_frames": 0},
    "groups_of_2.mp4": {"gop": 2, "b_frames": 3, "options": {"x264-params": "b-adapt=0"}},
    "pyramid.mp4": {"gop": 24, "options": {"preset": "veryfast", "x264-params": X264_PYRAMID}},
    "one_group.mp4": {"gop": 1000},
    "open_groups.mp4": {"options": {"preset": "veryfast", "x264-params": X264_OPEN_GOP}},
    "intra_refresh.mkv": {"options": {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}},
    "variable_rate.mp4": {"pts_ms": VFR_MS},
    "fragments.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "live.mkv": {"container_options": {"live": "1"}},
    "no_index.ts": {},
    "flash.flv": {},
    "old.avi": {"codec": "mpeg4", "fps": 25},
    "old.ts": {"codec": "mpeg4"},
    "no_times.h264": {},
    "open_groups_hevc.mp4": {"codec": "libx265", "options": {"x265-params": X265_OPEN_GOP}},
    "leading_hevc.mp4": {"codec": "libx265", "options": {"x265-params": X265_LEADING}},
    "hevc.ts": {"codec": "libx265"},
    "vp8.webm": {"codec": "libvpx", "options": {"lag-in-frames": "16", "auto-alt-ref": "1"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"lag-in-frames": "16", "cpu-used": "8"}},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "12"}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def square(folder: Path) -> Path:
    return write_moving_square(folder / "square.mp4", 36)


def indices(frames: list[Frame]) -> list[int]:
    """As counted and as written into the pixels, which must agree."""
    assert [frame_index_from_pixels(f.rgb) for f in frames] == [f.index for f in frames]
    return [f.index for f in frames]


def same(got: Frame, wanted: Frame) -> bool:
    return (
        (got.index, got.pts_s) == (wanted.index, wanted.pts_s)
        and got.rgb.shape == wanted.rgb.shape
        and got.rgb.tobytes() == wanted.rgb.tobytes()
    )


@pytest.mark.parametrize("name", STREAMS)
def test_every_way_of_reading_gives_the_same_frames(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_moving_square(folder / name, 36, **STREAMS[name])
    monkeypatch.setattr(sam2model.video, "BACKWARDS_BYTES", 7 * 96 * 128 * 2)
    with Video(path, name=name) as video:
        forwards = list(video.frames())
        assert indices(forwards) == list(range(36))
        assert video.num_frames_decoded == 36
    with Video(path, name=name) as video:  # another, which knows nothing from a pass before
        for index in np.random.default_rng(0).permutation(36).tolist():
            assert same(video.frame(index), forwards[index]), index
    with Video(path, name=name) as video:
        assert all(same(got, forwards[got.index]) for got in video.frames(19, 30))
        assert [frame.index for frame in video.frames(19, 30)] == list(range(19, 30))
    with Video(path, name=name) as video:
        backwards = list(video.frames_backwards(3))
        assert [frame.index for frame in backwards] == list(range(35, 2, -1))
        assert all(same(got, forwards[got.index]) for got in backwards)
        assert video.count_frames() == 36


@pytest.mark.parametrize(
    ("name", "num_frames", "size"),
    [
        ("bedroom.mp4", 200, (540, 960)),
        ("02_cups.mp4", 300, (720, 1280)),
        ("05_default_juggle.mp4", 247, (720, 1280)),
    ],
)
def test_real_videos_are_read_alike_forwards_backwards_and_at_random(
    real_data: Callable[[str], Path], name: str, num_frames: int, size: tuple[int, int]
) -> None:
    late = num_frames - 60  # backwards from the end to there: what is before costs the most
    sampled = {0, 1, num_frames // 2, late, late + 1, late + 33, num_frames - 2, num_frames - 1}
    with Video(real_data(name), name=name) as video:
        assert (video.info.height, video.info.width) == size
        assert video.info.num_frames_header == num_frames == video.count_frames()
        forwards = {f.index: f for f in video.frames() if f.index in sampled}
        assert video.num_frames_decoded == num_frames
        assert forwards[0].rgb.std() > 20 and forwards[0].rgb.tobytes() != forwards[1].rgb.tobytes()
        assert set(forwards) == sampled
        backwards = list(video.frames_backwards(late))
        assert [frame.index for frame in backwards] == list(range(num_frames - 1, late - 1, -1))
        assert all(same(f, forwards[f.index]) for f in backwards if f.index in sampled)
        assert all(same(video.frame(index), frame) for index, frame in forwards.items())


def test_the_square_is_where_the_mask_says(square: Path) -> None:
    with Video(square, name="v") as video:
        frame = video.frame(17)
    red = (frame.rgb[..., 0] > 150) & (frame.rgb[..., 1] < 110) & (frame.rgb[..., 2] < 110)
    mask = square_mask(17)
    assert (red & mask).sum() / (red | mask).sum() > 0.9


def test_info_tells_what_the_file_claims(square: Path) -> None:
    with Video(square, name="v") as video:
        info = video.info
    assert (info.width, info.height, info.rotation_deg, info.codec) == (128, 96, 0, "h264")
    assert (info.fps, info.num_frames_header) == (10.0, 36)
    assert info.duration_s == pytest.approx(3.6)


def test_bytes_path_and_file_object_are_read_alike(square: Path) -> None:
    content = square.read_bytes()
    with square.open("rb") as file:
        file.seek(100)  # the position is nobody's business
        for source in (content, square, io.BytesIO(content), file):
            with Video(source, name="v") as video:
                assert indices(list(video.frames(4, 9))) == [4, 5, 6, 7, 8]
        assert not file.closed, "the caller's file is the caller's"


def test_iterators_over_one_file_object_do_not_disturb_each_other(square: Path) -> None:
    with square.open("rb") as file, Video(file, name="v") as video:
        mixed = zip(video.frames(), video.frames_backwards(), video.frames(20), strict=False)
        for expected, (forward, backward, late) in enumerate(mixed):
            assert indices([forward, backward, late]) == [expected, 35 - expected, 20 + expected]
            assert frame_index_from_pixels(video.frame(7).rgb) == 7


def test_a_string_is_refused_because_it_might_be_a_uri(square: Path) -> None:
    with pytest.raises(TypeError, match="bytes, pathlib.Path or a binary file, not str"):
        Video(str(square), name="v")  # type: ignore[arg-type]


def test_ranges_are_half_open_and_end_with_the_video(square: Path) -> None:
    with Video(square, name="v") as video:
        assert [f.index for f in video.frames(34, 99)] == [34, 35]
        assert [f.index for f in video.frames_backwards(34, 99)] == [35, 34]
        for start, stop in ((5, 5), (9, 3), (36, None), (500, 600)):
            assert list(video.frames(start, stop)) == []
            assert list(video.frames_backwards(start, stop)) == []
        with pytest.raises(ValueError, match="counted from 0"):
            video.frames(-1)
        with pytest.raises(ValueError, match="counted from 0"):
            video.frames_backwards(0, -1)
        with pytest.raises(IndexError, match="v: frame 36; it has frames 0 to 35"):
            video.frame(36)


def test_the_next_frames_cost_no_new_start(square: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Video(square, name="v") as video:
        video.frame(13)
        monkeypatch.delattr(VideoDecoder, "frames_from")
        assert [frame_index_from_pixels(video.frame(i).rgb) for i in (14, 15, 19)] == [14, 15, 19]
        with pytest.raises(AttributeError):
            video.frame(24)  # a key frame


def test_a_frame_that_is_not_there_does_not_hurt_the_others(square: Path) -> None:
    with Video(square, name="v") as video:
        for index in (13, 35, 12):
            with pytest.raises(IndexError):
                video.frame(36)
            assert frame_index_from_pixels(video.frame(index).rgb) == index


def test_the_count_is_known_only_after_a_pass_to_the_end(square: Path) -> None:
    with Video(square, name="v") as video:
        list(video.frames(0, 20))
        assert video.num_frames_decoded is None
        assert video.count_frames() == 36
        assert video.num_frames_decoded is None, "counting packets is not decoding"
        list(video.frames(30))
        assert video.num_frames_decoded == 36


def test_variable_frame_times_are_kept(folder: Path) -> None:
    path = write_moving_square(folder / "times.mp4", 36, pts_ms=VFR_MS)
    with Video(path, name="v") as video:
        assert [f.pts_s for f in video.frames()] == pytest.approx([ms / 1000 for ms in VFR_MS])


def test_frames_without_times_are_spaced_by_the_frame_rate(folder: Path) -> None:
    path = write_moving_square(folder / "raw.h264", 6)
    with Video(path, name="v") as video:
        fps = video.info.fps
        assert fps and [f.pts_s for f in video.frames()] == [i / fps for i in range(6)]


def test_frames_that_share_a_time_are_told_apart(folder: Path) -> None:
    original = write_moving_square(folder / "distinct.mkv", 36, b_frames=0)
    path = folder / "repeated.mkv"
    with av.open(original) as source, av.open(path, "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        previous = 0
        for packet in source.demux(video=0):
            if packet.pts is not None:
                if packet.pts // 100 in (5, 20, 21, 24, 35):  # 24 is a key frame
                    packet.pts = packet.dts = previous
                previous = packet.pts
                packet.stream = stream
                target.mux(packet)
    with Video(path, name="v") as video:
        assert video.count_frames() == 36
        for index in (35, 21, 4, 20, 5, 25, 24, 23, 22):
            assert frame_index_from_pixels(video.frame(index).rgb) == index
        assert indices(list(video.frames())) == list(range(36))
        assert video.frame(20).pts_s == video.frame(21).pts_s == video.frame(19).pts_s
        assert indices(list(video.frames_backwards())) == list(range(35, -1, -1))


@pytest.mark.parametrize("b_frames", [0, 3])
@pytest.mark.parametrize("num_shown", [20, 21])
def test_a_trimmed_video_has_the_frames_its_edit_list_shows(
    folder: Path, b_frames: int, num_shown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"preset": "veryfast", "x264-params": "b-adapt=0"}
    path = write_moving_square(folder / "trimmed.mp4", 36, b_frames=b_frames, options=options)
    content = bytearray(path.read_bytes())
    entry = content.index(b"elst") + 12  # after kind, version and flags, count
    _, media_start = struct.unpack_from(">Ii", content, entry)
    # from the fifth frame on: 100 ms and 1,600 ticks each
    struct.pack_into(">Ii", content, entry, num_shown * 100, media_start + 5 * 1600)
    shown = list(range(5, 5 + num_shown))
    with Video(bytes(content), name="v") as video:
        assert [frame_index_from_pixels(f.rgb) for f in video.frames()] == shown
    with Video(bytes(content), name="v") as video:
        for index in (0, 19, 6, 7, 13):
            assert frame_index_from_pixels(video.frame(index).rgb) == shown[index]
    with Video(bytes(content), name="v") as video:
        monkeypatch.delattr(VideoDecoder, "_decode")
        assert video.count_frames() == num_shown, "the packets tell, without decoding"


def test_pictures_that_are_never_shown_are_not_counted(folder: Path) -> None:
    original = write_moving_square(folder / "shown.webm", 36, codec="libvpx")
    path = folder / "hidden.webm"
    with av.open(original) as source, av.open(path, "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(list(source.demux(video=0))[:-1]):
            data = bytearray(bytes(packet))
            if number in (10, 20):
                data[0] &= ~0x10  # VP8's show_frame: encoders hide pictures that only help others
            changed = av.Packet(bytes(data))
            changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
            changed.is_keyframe, changed.stream = packet.is_keyframe, stream
            target.mux(changed)
    shown = [index for index in range(36) if index not in (10, 20)]
    with Video(path, name="v") as video:
        for index in (33, 9, 10, 18, 19, 22):
            assert frame_index_from_pixels(video.frame(index).rgb) == shown[index]
        assert [frame_index_from_pixels(f.rgb) for f in video.frames()] == shown
        assert video.count_frames() == video.num_frames_decoded == 34


@pytest.mark.parametrize("num_dropped", [5, 12, 13])
@pytest.mark.parametrize("name", ["open_groups_hevc", "intra_refresh", "plain"])
def test_a_video_that_begins_in_the_middle_begins_with_what_can_be_decoded(
    folder: Path, name: str, num_dropped: int
) -> None:
    options = next(options for key, options in STREAMS.items() if key.startswith(f"{name}."))
    original = write_moving_square(folder / "whole.mkv", 36, **options)
    path = folder / "middle.mkv"
    with av.open(original) as source, av.open(path, "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in list(source.demux(video=0))[num_dropped:-1]:
            packet.stream = stream
            target.mux(packet)
    with Video(path, name="v") as video:
        shown = [frame_index_from_pixels(f.rgb) for f in video.frames()]
        assert shown == list(range(shown[0], 36)) and 10 <= shown[0] < 36
    with Video(path, name="v") as video:
        assert video.count_frames() == len(shown)
        for index in reversed(range(len(shown))):
            assert frame_index_from_pixels(video.frame(index).rgb) == shown[index]


@pytest.mark.parametrize("name", sorted(set(STREAMS) - {"no_times.h264", "intra_refresh.mkv"}))
def test_a_late_frame_is_reached_from_a_key_frame_near_it(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_moving_square(folder / name, 36, **STREAMS[name])
    with Video(path, name=name) as video:
        video.count_frames()
        if name != "one_group.mp4":
            monkeypatch.delattr(VideoDecoder, "_rewind")  # no way to start from the first frame
        for index in (35, 30, 26):
            assert frame_index_from_pixels(video.frame(index).rgb) == index


def test_a_header_with_a_wrong_count_is_no_error(folder: Path) -> None:
    path = write_moving_square(folder / "liar.avi", 12, codec="mpeg4", fps=25)
    content = bytearray(path.read_bytes())
    length = content.index(b"strh") + 8 + 32
    struct.pack_into("<I", content, length, 999)
    with Video(bytes(content), name="v") as video:
        assert indices(list(video.frames())) == list(range(12))
        assert (video.info.num_frames_header, video.num_frames_decoded) == (999, 12)


@pytest.mark.parametrize("ccw_deg", [0, 90, 180, -90])
@pytest.mark.parametrize("mirrored", [False, True])
def test_pictures_are_turned_as_the_display_matrix_says(
    folder: Path, ccw_deg: int, mirrored: bool
) -> None:
    upright = write_moving_square(folder / "upright.mp4", 6)
    turned = write_moving_square(
        folder / "turned.mp4", 6, rotation_ccw_deg=ccw_deg, mirrored=mirrored
    )
    with Video(upright, name="u") as plain, Video(turned, name="t") as video:
        for stored, shown in zip(plain.frames(), video.frames(), strict=True):
            expected = np.rot90(stored.rgb, ccw_deg // 90)
            expected = expected[:, ::-1] if mirrored else expected
            np.testing.assert_array_equal(shown.rgb, expected)
            assert shown.rgb.flags.c_contiguous and shown.rgb.flags.writeable
        assert (video.info.height, video.info.width) == expected.shape[:2]
        assert mirrored or video.info.rotation_deg == -ccw_deg % 360
        assert same(video.frame(3), list(video.frames_backwards(3, 4))[0])


def count_alive() -> tuple[int, int]:
    """How many frames and how many decoded pictures exist, in whoever's hands."""
    kinds = [type(thing) for thing in gc.get_objects()]
    return kinds.count(Frame), kinds.count(av.VideoFrame)


def most_alive(frames: Iterator[Frame], expected: Iterable[int]) -> tuple[int, int]:
    """The most frames and pictures alive at once in a pass that must give the expected indices."""
    gc.collect()
    before = count_alive()
    most_frames = most_pictures = 0
    for frame, index in zip(frames, expected, strict=True):
        assert frame.index == index
        if index % 97 == 50:
            now = count_alive()
            most_frames = max(most_frames, now[0] - before[0])
            most_pictures = max(most_pictures, now[1] - before[1])
    return most_frames, most_pictures


@pytest.fixture(scope="module")
def long_video(folder: Path) -> Path:
    return write_moving_square(folder / "long.mp4", 2000, height=48, width=64, gop=250)


def test_going_forwards_keeps_few_frames_alive(long_video: Path) -> None:
    with Video(long_video, name="v") as video:
        num_frames, num_pictures = most_alive(video.frames(), range(2000))
    assert 1 <= num_frames <= 2 and num_pictures <= 6


def test_going_backwards_keeps_a_bounded_number_of_pictures_alive(
    long_video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Video(long_video, name="v") as video:
        monkeypatch.setattr(sam2model.video, "BACKWARDS_BYTES", 40 * video._picture_bytes)
        num_frames, num_pictures = most_alive(video.frames_backwards(), range(1999, -1, -1))
    assert 1 <= num_frames <= 2 and 10 <= num_pictures <= 46


PLAYLISTS = {
    "ffconcat": b"ffconcat version 1.0\nfile square.mp4\n",
    "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsquare.mp4\n#EXT-X-ENDLIST\n",
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_does_not_reach_other_files(
    square: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(square.parent)
    with pytest.raises(VideoError, match="v: cannot be opened") as caught:
        Video(PLAYLISTS[kind], name="v")
    assert caught.value.reason == "undecodable"


def test_a_playlist_would_reach_other_files_if_it_were_let(
    square: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the test above protects against is real in this version of FFmpeg.
    monkeypatch.chdir(square.parent)
    with av.open(io.BytesIO(PLAYLISTS["ffconcat"])) as container:
        assert container.streams.video


def sound_only() -> bytes:
    target = io.BytesIO()
    with wave.open(target, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    with av.open(io.BytesIO(target.getvalue())) as source:
        mp4 = io.BytesIO()
        with av.open(mp4, "w", format="mp4") as container:
            stream = container.add_stream("aac", rate=8000)
            for frame in source.decode(audio=0):
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return mp4.getvalue()


class BrokenFile(io.BytesIO):
    """Reads that begin behind an offset fail, as those of a disk or a network would."""

    def __init__(self, content: bytes, good_bytes: int) -> None:
        super().__init__(content)
        self._good_bytes = good_bytes

    def read(self, size: int | None = -1) -> bytes:
        if size and self.tell() >= self._good_bytes:
            raise OSError("the cable was pulled")
        return super().read(min(size or 0, self._good_bytes - self.tell()))


def refusal(source: bytes | Path | io.BytesIO, **limits: float) -> VideoError:
    """The error of reading all of it, which must name the video."""
    with (
        pytest.raises(VideoError) as caught,
        Video(source, name="s3://b/v.mp4", limits=VideoLimits(**limits)) as video,
    ):
        list(video.frames())
    assert str(caught.value).startswith("s3://b/v.mp4: ")
    return caught.value


def test_what_is_no_video_is_refused_with_its_reason(square: Path, tmp_path: Path) -> None:
    garbage = np.random.default_rng(0).bytes(50_000)
    assert refusal(b"").reason == "no_frames"
    assert refusal(garbage).reason == "undecodable"
    assert refusal(sound_only()).reason == "no_frames"
    assert refusal(tmp_path / "absent.mp4").reason == "unreadable"
    assert refusal(tmp_path).reason == "unreadable"


@pytest.mark.parametrize("name", ["late.mp4", "early.mp4", "stream.ts", "live.mkv"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.4, 0.8, 1.0])
def test_a_read_that_fails_is_not_taken_for_the_end(
    folder: Path, name: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sam2model.video_decoder, "READ_BYTES", 512)
    options = {"early.mp4": {"movflags": "faststart"}, "live.mkv": {"live": "1"}}.get(name)
    path = write_moving_square(folder / name, 36, container_options=options)
    content = path.read_bytes()
    if name.endswith("mp4") and share == 1.0:
        pytest.skip("an MP4 says where it ends, so nobody reads on")
    error = refusal(BrokenFile(content, int(len(content) * share)))
    assert error.reason == "unreadable" and "the cable was pulled" in str(error)
    assert isinstance(error.__cause__, OSError)


def test_limits_are_applied_to_the_header_before_decoding(square: Path) -> None:
    size_bytes = square.stat().st_size
    for limit, message in (
        ({"max_bytes": size_bytes - 1}, f"{size_bytes} bytes (header); the limit is"),
        ({"max_pixels": 96 * 128 - 1}, "12288 pixels (header)"),
        ({"max_frames": 35}, "36 frames (header); the limit is 35"),
        ({"max_seconds": 3.5}, "3.6 seconds (header); the limit is 3.5"),
    ):
        error = refusal(square, **limit)
        assert error.reason == "too_large" and message in str(error)
    exactly = VideoLimits(size_bytes, 96 * 128, 36, 3.6)
    with Video(square, name="v", limits=exactly) as video:
        assert len(list(video.frames())) == 36


def test_limits_are_applied_to_what_a_silent_header_hid(folder: Path) -> None:
    path = write_moving_square(folder / "silent.mkv", 36, container_options={"live": "1"})
    with Video(path, name="v") as video:
        assert video.info.num_frames_header is None and video.info.duration_s is None
    error = refusal(path, max_frames=20)
    assert error.reason == "too_large" and "frame 20 is beyond the limit of 20 frames" in str(error)
    error = refusal(path, max_seconds=2.0)
    assert error.reason == "too_large" and "frame 21 is beyond the limit of 2.0 s" in str(error)


def test_a_picture_that_outgrows_the_limit_on_the_way_is_stopped_by_the_decoder(
    folder: Path,
) -> None:
    small = write_moving_square(folder / "small.h264", 4).read_bytes()
    large = write_moving_square(folder / "large.h264", 4, 960, 1280).read_bytes()
    error = refusal(small + large)
    assert error.reason == "undecodable"
    assert "frame 4 is 1280×960 px where the first is 128×96" in str(error)
    error = refusal(small + large, max_pixels=500_000)
    assert error.reason == "undecodable" and "failed to decode" in str(error)


def test_moving_square_is_what_the_helpers_say() -> None:
    for index in (0, 1, 255, 256, 40_000, 65_535):
        assert frame_index_from_pixels(moving_square(index)) == index
