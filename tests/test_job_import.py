"""`maskmill import`: options to revisions, exit codes, the last line."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from labelled import label, relabel
from test_export import export
from test_import import separate

from workflows.export_sav import Sav
from workflows.query import Dataset

main = importlib.import_module("jobs.import").main  # a keyword to Python, a word to people


def last_line(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_masks_are_imported_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = str(tmp_path / "dataset"), tmp_path / "out"
    label(root, {"v": separate()})
    export(root, out, Sav(), every=2)
    relabel(root, "v", {2: {0: separate()[1][0]}})
    words = [str(out / "train"), "--dataset", root, "--author", "ann", "--accept"]
    assert main(words) == 0
    summary = last_line(capsys)
    assert (summary["videos_imported"], summary["objects"]) == (1, 1)
    tracks = Dataset(root).tracks().select(["source", "author", "review"]).to_pylist()
    assert tracks[1] == {"source": "import", "author": "ann", "review": "accepted"}
    assert main(words) == 0
    assert last_line(capsys)["videos_unchanged"] == 1


def test_videos_that_nobody_knows_make_exit_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(tmp_path / "other")
    label(other, {"v": separate()})
    export(other, tmp_path / "out", Sav())
    assert main([str(tmp_path / "out/train"), "--dataset", str(tmp_path / "dataset")]) == 3
    assert "--videos-root" in last_line(capsys)["failures"]["v"]


def test_what_cannot_be_read_makes_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--dataset", str(tmp_path / "dataset")]) == 2
    assert "cannot tell what it is" in last_line(capsys)["error"]["message"]
    assert not (tmp_path / "dataset").exists()
