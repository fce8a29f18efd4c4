from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from videos import RgbArray, frame_index_from_pixels, moving_square

from sam2model.video import Video, write_video


@pytest.mark.parametrize("name", ["v.mp4", "v.webm"])
def test_written_frames_are_read_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert write_video(path, (moving_square(i) for i in range(12)), fps=12.5) == 12
    with Video(path, name=name) as video:
        assert (video.info.width, video.info.height) == (128, 96)
        frames = list(video.frames())
    assert [frame_index_from_pixels(f.rgb) for f in frames] == list(range(12))
    assert [f.pts_s for f in frames] == pytest.approx([i / 12.5 for i in range(12)], abs=1e-3)
    difference = np.abs(frames[5].rgb.astype(int) - moving_square(5))
    assert difference.mean() < 3
    assert list(tmp_path.iterdir()) == [path]


def test_what_browsers_need_is_there(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    write_video(path, [moving_square(0)] * 3, fps=29.97)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "plays before it is loaded"
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.codec_context.colorspace == 1, "BT.709, said and done"
        assert float(stream.average_rate) == pytest.approx(29.97)


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40)])
def test_colours_survive(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    flat = np.full((64, 64, 3), colour, np.uint8)
    write_video(tmp_path / "v.mp4", [flat] * 3, fps=10)
    with Video(tmp_path / "v.mp4", name="v") as video:
        np.testing.assert_allclose(video.frame(1).rgb.mean((0, 1)), colour, atol=4)


def test_odd_sizes_repeat_their_last_row_and_column(tmp_path: Path) -> None:
    odd = moving_square(3)[:95, :127]
    write_video(tmp_path / "v.mp4", [odd] * 2, fps=10, crf=1)
    with Video(tmp_path / "v.mp4", name="v") as video:
        rgb = video.frame(0).rgb
    assert rgb.shape == (96, 128, 3)
    np.testing.assert_allclose(rgb[:95, :127].mean((0, 1)), odd.mean((0, 1)), atol=2)
    np.testing.assert_allclose(rgb[95].mean(0), rgb[94].mean(0), atol=4)


def test_quality_can_be_chosen(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    write_video(tmp_path / "fine.mp4", [noise] * 3, fps=10, crf=5)
    write_video(tmp_path / "coarse.mp4", [noise] * 3, fps=10, crf=45)
    assert (tmp_path / "fine.mp4").stat().st_size > 2 * (tmp_path / "coarse.mp4").stat().st_size


def test_a_codec_can_be_chosen(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", [moving_square(0)] * 2, fps=10, codec="mpeg4")
    with Video(tmp_path / "v.mp4", name="v") as video:
        assert video.info.codec == "mpeg4"


def broken() -> Iterator[RgbArray]:
    yield from (moving_square(i) for i in range(5))
    raise RuntimeError("no more masks")


def test_after_an_error_there_is_no_file_and_an_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    with pytest.raises(RuntimeError, match="no more masks"):
        write_video(path, broken(), fps=10)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"the old one")
    with pytest.raises(ValueError, match=r"v.mp4: frame 1 is uint8 \(48, 64, 3\); wanted uint8"):
        write_video(path, [moving_square(0), moving_square(0, 48, 64)], fps=10)
    assert path.read_bytes() == b"the old one" and list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="suffix '.gif'; wanted .mp4 or .webm"):
        write_video(tmp_path / "v.gif", [moving_square(0)], fps=10)
    with pytest.raises(ValueError, match="no frames to write"):
        write_video(tmp_path / "v.mp4", [], fps=10)
    with pytest.raises(ValueError, match="frame 0 is float64"):
        write_video(tmp_path / "v.mp4", [np.zeros((4, 4, 3))], fps=10)  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []
