"""The command line: names, options, exit codes, and the JSON object that ends stdout."""

import argparse
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import _cli
from jobs.__main__ import commands, main
from jobs._cli import JobParser, Result, UsageError, job_parser, run
from sam2model.checkpoint import CheckpointError
from sam2model.prompts import PromptError
from sam2model.rle import RleError
from sam2model.video_source import VideoError
from workflows.config import ConfigError
from workflows.manifest import ManifestError
from workflows.revisions import StaleRevision
from workflows.storage import NotFound, Unreadable, UriNotAllowed

ROOT = Path(__file__).parents[1]


def last_line(text: str) -> dict[str, object]:
    parsed = json.loads(text.splitlines()[-1])
    assert isinstance(parsed, dict)
    return parsed


def run_python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, **options
    )


def test_help_lists_every_job_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, purpose in commands().items():
        assert purpose, f"{name} has no docstring"
        assert f"  {name}" in printed and purpose in printed


def test_only_existing_modules_are_commands() -> None:
    for name in commands():
        assert (ROOT / "jobs" / f"{name}.py").exists()
        assert not name.startswith("_")


def test_every_command_is_also_a_module_that_runs_by_itself() -> None:
    for name in commands():
        source = (ROOT / "jobs" / f"{name}.py").read_text()
        assert "def main(argv: " in source, name
        assert 'if __name__ == "__main__":' in source, name


def test_help_imports_no_job() -> None:
    code = (
        "import sys; from jobs.__main__ import main; main(['--help'])\n"
        "heavy = {'torch', 'ray', 'pyarrow', 'deltalake', 'duckdb'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    ran = run_python(code)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_an_unknown_command_exits_2_and_names_the_choices(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["manifset"]) == 2
    out, err = capsys.readouterr()
    assert "unknown command manifset (did you mean manifest?)" in err
    assert "Traceback" not in err
    error = last_line(out)["error"]
    assert isinstance(error, dict) and error["code"] == "UsageError"
    assert "choices are" in error["message"]


def test_no_command_exits_2_and_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert "usage: maskmill NAME" in err
    assert "error" in last_line(out)


def test_a_job_ends_with_its_summary_and_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    def work(options: argparse.Namespace) -> Result:
        print("on the way")
        return Result({"videos": 3, "failed": 1}, exit_code=3)

    assert run(job_parser("fake", "fakes"), work, []) == 3
    out = capsys.readouterr().out
    assert out.splitlines() == ["on the way", '{"videos": 3, "failed": 1}']


def test_options_reach_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[argparse.Namespace] = []

    def work(options: argparse.Namespace) -> Result:
        seen.append(options)
        return Result({})

    argv = ["--config", "a.yaml", "--set", "a.b=1", "--set", "c=2", "--log-level", "debug"]
    assert run(job_parser("fake", "fakes"), work, argv) == 0
    assert seen[0].config == "a.yaml"
    assert seen[0].overrides == ["a.b=1", "c=2"]
    assert logging.getLogger().level == logging.DEBUG
    assert capsys.readouterr().out == "{}\n"


def test_a_fault_of_the_input_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    def work(options: argparse.Namespace) -> Result:
        raise PromptError("row 3:\n  object -1: ids are 0 or more")

    assert run(job_parser("fake", "fakes"), work, []) == 2
    out, err = capsys.readouterr()
    assert err == "maskmill: PromptError: row 3: object -1: ids are 0 or more\n"
    assert last_line(out) == {
        "error": {"code": "PromptError", "message": "row 3: object -1: ids are 0 or more"}
    }


def test_an_unexpected_exception_shows_its_traceback_and_exits_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(options: argparse.Namespace) -> Result:
        raise KeyError("masks")

    assert run(job_parser("fake", "fakes"), work, []) == 1
    out, err = capsys.readouterr()
    assert "Traceback" in err and "KeyError: 'masks'" in err
    assert last_line(out) == {"error": {"code": "KeyError", "message": "'masks'"}}


def test_a_name_alike_from_elsewhere_is_not_blamed_on_the_input(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class ConfigError(Exception):  # of this test's module, not of our packages
        pass

    def work(options: argparse.Namespace) -> Result:
        raise ConfigError("from a library")

    assert run(job_parser("fake", "fakes"), work, []) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def work(options: argparse.Namespace) -> Result:
        raise KeyboardInterrupt

    assert run(job_parser("fake", "fakes"), work, []) == 1
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert last_line(out)["error"]


def test_a_summary_that_is_no_json_is_reported_as_broken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(job_parser("fake", "fakes"), lambda _: Result({"fps": float("nan")}), []) == 1
    assert last_line(capsys.readouterr().out)["error"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--confg", "x"], "unknown option --confg (did you mean --config?); choices are"),
        (["--conf", "x"], "unknown option --conf (did you mean --config?)"),
        (["--log-level", "loud"], "invalid choice: 'loud' (choose from"),
        (["stray"], "unexpected argument 'stray'"),
        (["--set"], "expected one argument"),
    ],
)
def test_a_misspelt_option_exits_2_and_names_the_choices(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(options: argparse.Namespace) -> Result:
        raise AssertionError("must not run")

    assert run(job_parser("fake", "fakes"), work, argv) == 2
    out, err = capsys.readouterr()
    assert message in err
    error = last_line(out)["error"]
    assert isinstance(error, dict) and message in error["message"]


def test_a_subcommand_names_its_own_options() -> None:
    parser = JobParser(prog="maskmill fake")
    parser.add_argument("--outer")
    inner = parser.add_subparsers().add_parser("part")
    inner.add_argument("--inner")
    with pytest.raises(UsageError, match=r"fake part: unknown option --iner \(did you mean --inn"):
        parser.parse_args(["part", "--iner=3"])


def test_logs_go_to_stderr_only() -> None:
    code = (
        "import logging, sys; from jobs._cli import *\n"
        "def work(options):\n    logging.getLogger('x').info('hello'); return Result({})\n"
        "sys.exit(run(job_parser('fake', 'fakes'), work, []))"
    )
    ran = run_python(code)
    assert ran.stdout == "{}\n"
    assert "INFO x: hello" in ran.stderr


def test_a_reader_that_leaves_is_met_with_silence(tmp_path: Path) -> None:
    code = (
        "import sys; from jobs._cli import *\n"
        "def work(options):\n"
        "    for row in range(100_000): print(row)\n"
        "    return Result({})\n"
        "sys.exit(run(job_parser('fake', 'fakes'), work, []))"
    )
    script = tmp_path / "many_rows.py"
    script.write_text(code)
    ran = subprocess.run(
        ["bash", "-c", f"'{sys.executable}' '{script}' | head -n 1"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == ("0\n", "")


def test_a_broken_pipe_of_someone_else_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    def work(options: argparse.Namespace) -> Result:
        raise BrokenPipeError("storage hung up")

    assert run(job_parser("fake", "fakes"), work, []) == 1
    out, err = capsys.readouterr()
    assert "storage hung up" in err and "Traceback" in err
    assert last_line(out)["error"]


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (CheckpointError("no such folder"), 2),
        (ConfigError("unknown key"), 2),
        (ManifestError("row 3"), 2),
        (NotFound("s3://b/m.parquet"), 2),
        (RleError("too short"), 2),
        (StaleRevision("v7", 1, 3, 4), 2),
        (UriNotAllowed("ftp://h/v"), 2),
        (VideoError("no_frames", "v.mp4: empty"), 2),
        (Unreadable("s3://b/m.parquet: connection refused"), 1),
        (ValueError("of nobody in particular"), 1),
    ],
)
def test_errors_of_the_input_exit_2_and_of_the_machine_1(
    error: Exception, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(options: argparse.Namespace) -> Result:
        raise error

    assert run(job_parser("fake", "fakes"), work, []) == exit_code
    out, err = capsys.readouterr()
    assert last_line(out) == {"error": {"code": type(error).__name__, "message": str(error)}}
    is_defect = exit_code == 1 and not isinstance(error, Unreadable)
    assert ("Traceback" in err) == is_defect


def test_every_input_error_that_goes_by_name_exists() -> None:
    sources = [
        path.read_text() for package in _cli.OUR_PACKAGES for path in (ROOT / package).rglob("*.py")
    ]
    for name in _cli.INPUT_ERRORS:
        assert any(f"class {name}(" in source for source in sources), name
