"""`maskmill overlay`: a dataset's layers drawn on its video, whole files or none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled import label, relabel
from PIL import Image
from videos import square_mask, write_moving_square

from jobs.overlay import main
from sam2model.video import Video
from workflows.drawing import FILL_OPACITY, object_colour
from workflows.overlay import PANEL_GAP_PX

HEIGHT, WIDTH, FRAMES = 96, 128, 8


@pytest.fixture
def root(tmp_path: Path) -> str:
    path = write_moving_square(tmp_path / "v.mp4", FRAMES, HEIGHT, WIDTH)
    objects = {1: {t: square_mask(t, HEIGHT, WIDTH) for t in range(FRAMES)}}
    label(str(tmp_path / "dataset"), {"v": objects}, categories={1: "box"}, video_uri=str(path))
    return str(tmp_path / "dataset")


def last_line(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def tinted(picture: Any) -> Any:
    """Pixels coloured as the inside of object 1 on the red square."""
    red = np.array((220, 40, 40)) * (1 - FILL_OPACITY)
    wanted = red + np.array(object_colour(1)) * FILL_OPACITY
    return (np.abs(picture.astype(int) - wanted).max(axis=2) < 45).sum()


def test_an_overlay_video_has_the_frames_asked_for(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o/overlay.mp4"
    words = ["v", "--dataset", root, "--output", str(out), "--start", "2", "--stop", "7"]
    assert main(words) == 0
    assert last_line(capsys) == {"output": str(out), "frames": 5, "layers": ["current"]}
    with Video(out, name="overlay") as video:
        frames = list(video.frames())
    assert len(frames) == 5
    assert all(tinted(frame.rgb) > 200 for frame in frames)


def test_layers_stand_side_by_side(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = {1: {t: np.zeros((HEIGHT, WIDTH), bool) for t in range(FRAMES)}}
    relabel(root, "v", empty)
    out = tmp_path / "sheet.png"
    words = ["v", "--dataset", root, "--output", str(out), "--layer", "auto", "--layer", "current"]
    assert main([*words, "--frames", "1"]) == 0
    assert last_line(capsys)["layers"] == ["auto", "current"]
    with Image.open(out) as opened:
        sheet = np.asarray(opened)
    assert sheet.shape[1] == 2 * WIDTH + PANEL_GAP_PX
    assert tinted(sheet[:, :WIDTH]) > 200 and tinted(sheet[:, WIDTH:]) < 20


def test_an_earlier_revision_can_be_drawn(root: str, tmp_path: Path) -> None:
    relabel(root, "v", {1: {0: np.zeros((HEIGHT, WIDTH), bool)}})
    out = tmp_path / "sheet.png"
    assert main(["v", "--dataset", root, "--output", str(out), "--layer", "1"]) == 0
    with Image.open(out) as opened:
        assert tinted(np.asarray(opened)) > 200


def test_a_video_elsewhere_is_found_where_one_says(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "v.mp4").rename(tmp_path / "moved.mp4")
    words = ["v", "--dataset", root, "--output", str(tmp_path / "o.png")]
    assert main(words) == 2
    assert "v.mp4: not found" in last_line(capsys)["error"]["message"]
    assert main([*words, "--video-uri", str(tmp_path / "moved.mp4")]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["v", "--output", "o.gif"], "wanted .mp4, .webm, .png"),
        (["w", "--output", "o.png"], "no video 'w'"),
        (["v", "--output", "o.png", "--layer", "newest"], "wanted current, corrected, auto"),
        (["v", "--output", "o.png", "--layer", "corrected"], "no masks in layer corrected"),
        (["v", "--output", "o.mp4", "--start", "3", "--stop", "3"], "wanted more than --start 3"),
        (["v", "--output", "o.png", "--columns", "0"], "--columns 0: wanted 1 or more"),
    ],
)
def test_mistakes_are_named_and_nothing_is_drawn(
    root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--dataset", root]) == 2
    assert message in last_line(capsys)["error"]["message"]
    assert not list(tmp_path.glob("o.*"))


def test_where_nothing_can_be_written_one_line_says_so(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    output = str(tmp_path / "file/o.mp4")
    assert main(["v", "--dataset", root, "--output", output]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert output in line
