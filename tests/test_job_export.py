"""`maskmill export`: options to files, exit codes, the last line; alone and on Ray."""

import json
from pathlib import Path
from typing import Any

import pytest
from labelled import label, scene

from jobs.export import main

pytest_plugins = ["local_ray"]


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "dataset")


def last_line(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_dataset_becomes_files_and_a_summary(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label(root, {"a": scene(), "b": scene()}, categories={1: "wheel"})
    out = tmp_path / "out"
    words = ["--dataset", root, "--output", str(out), "--format", "ytvis", "--split", "val"]
    more = ["--option", "counts=string", "--every", "2", "--video", "b", "--where", "object_id = 1"]
    assert main([*words, *more]) == 0
    summary = last_line(capsys)
    assert (summary["videos"], summary["objects"], summary["frames"]) == (1, 1, 3)
    assert summary["not_expressed"] and summary["lost_px"] == 0
    document = json.loads((out / "val/instances.json").read_text())
    assert [video["name"] for video in document["videos"]] == ["b"]
    assert isinstance(document["annotations"][0]["segmentations"][0]["counts"], str)


def test_failed_videos_make_exit_code_3(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label(root, {"a": scene()}, video_uri=str(tmp_path / "absent.mp4"))
    words = ["--dataset", root, "--output", str(tmp_path / "out"), "--format", "coco"]
    assert main([*words, "--frames", "jpeg"]) == 3
    assert last_line(capsys)["failures"]["a"].startswith("NotFound")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "coco2"], "choices are coco, ytvis, davis"),
        (["--format", "davis", "--option", "size=1"], "unknown key size; choices are resolution"),
        (["--format", "mots", "--option", "first_frame=x"], "format mots: --option first_frame=x"),
        (["--format", "coco", "--where", "colour = 1"], "colour"),
        (["--format", "coco", "--video", "b"], "no labels of video 'b'"),
        (["--format", "coco", "--jpeg-quality", "101"], "--jpeg-quality 101: wanted 1 to 100"),
        (["--format", "coco", "--every", "0"], "--every 0: wanted 1 or more"),
        (["--format", "coco", "--at", "yesterday"], "wanted an ISO time"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    root: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    label(root, {"a": scene()})
    out = tmp_path / "out"
    assert main(["--dataset", root, "--output", str(out), *words]) == 2
    assert message in last_line(capsys)["error"]["message"]
    assert not out.exists()


@pytest.mark.cluster
def test_an_export_on_ray_is_the_same_as_one_made_here(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], local_ray: None
) -> None:
    from test_export import content

    label(root, {f"v{number:02}": scene(4) for number in range(40)})
    here, there = tmp_path / "here", tmp_path / "there"
    words = ["--dataset", root, "--format", "ytvis", "--output"]
    assert main([*words, str(here)]) == 0
    assert main([*words, str(there), "--workers", "2"]) == 0
    assert content(here) == content(there)
    assert last_line(capsys)["videos"] == 40
