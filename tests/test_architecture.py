"""The arrows between the modules, read from their imports; and that importing does nothing."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("sam2model", "workflows", "jobs")

MAY_IMPORT = {
    "sam2model": {"sam2model"},
    "workflows": {"sam2model", "workflows"},
    "jobs": {"sam2model", "workflows", "jobs"},
}
UNKNOWN_TO_THE_MODEL = {
    *("boto3", "deltalake", "duckdb", "fastapi", "fsspec", "pandas", "pyarrow", "pydantic"),
    *("ray", "s3fs", "starlette", "yaml"),
}
# module or package → the only files that may import it
ONLY = {
    "fsspec": {"workflows/storage.py"},
    "ray.data": {"workflows/label.py", "workflows/ray_datasets.py"},
    "ray.job_submission": {"workflows/submission.py"},
    "ray.train": {"workflows/train_ray.py"},
    "ray.serve": {"workflows/refine_app.py"},
    "fastapi": {"workflows/service_http.py", "workflows/service_routes.py"},
    "requests": {"workflows/client.py"},
}
LAYERS = {
    *("position_encoding", "attention", "hiera", "fpn_neck", "prompt_encoder", "mask_decoder"),
    *("memory_attention", "memory_encoder", "memory_bank", "track_step"),
}
ABOVE_THE_LAYERS = {
    *("engine", "modeling", "inference_session", "processing", "stepper", "tracker", "schedule"),
    *("labelling_plan", "prompt_effect", "resumption", "recorder", "snapshots"),
    *("feature_cache", "refinement_memory", "graphs", "frame_encoder", "transfers"),
}
LEAVES = {
    "rle",
    "mask_ops",
    "prefetch",
    "prompts",
}  # and the files of video: video_source, video_decoder, …


def is_video(module: str) -> bool:
    return module.partition("_")[0] == "video"


def sources(*packages: str) -> list[Path]:
    found = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    assert found, f"no sources under {packages}"
    return found


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Every module that a file names in an import, at the top or inside a function.

    `from a.b import c` gives both a.b and a.b.c: c may be a module or a name in one.
    """
    return set(_imported(ast.parse(path.read_text()), name_of(path), path.name == "__init__.py"))


def _imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_the_reader_of_imports_sees_every_spelling() -> None:
    code = "import a.b as x\nfrom c import d\ndef f():\n    from . import e\n    from .g import h\n"
    names = set(_imported(ast.parse(code), "pkg.module", is_package=False))
    assert names == {"a.b", "c", "c.d", "pkg", "pkg.e", "pkg.g", "pkg.g.h"}
    package = set(_imported(ast.parse("from .g import h"), "pkg", is_package=True))
    assert package == {"pkg.g", "pkg.g.h"}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_downwards(package: str) -> None:
    for path in sources(package):
        ours = {name.partition(".")[0] for name in imports_of(path)} & set(PACKAGES)
        assert ours <= MAY_IMPORT[package], f"{path.relative_to(ROOT)} imports {ours}"


def test_the_model_knows_no_cluster_tables_storage_or_yaml() -> None:
    for path in sources("sam2model"):
        roots = {name.partition(".")[0] for name in imports_of(path)}
        assert not roots & UNKNOWN_TO_THE_MODEL, path.relative_to(ROOT)


@pytest.mark.parametrize("guarded", sorted(ONLY))
def test_each_outside_system_has_one_door(guarded: str) -> None:
    for path in sources(*PACKAGES):
        if any(within(name, guarded) for name in imports_of(path)):
            assert str(path.relative_to(ROOT)) in ONLY[guarded], f"{path} imports {guarded}"


def modules_of_the_model(path: Path) -> set[str]:
    """Names of the modules of sam2model that a file imports."""
    found = {name.split(".")[1] for name in imports_of(path) if name.startswith("sam2model.")}
    return {module for module in found if (ROOT / "sam2model" / f"{module}.py").exists()}


def test_the_layers_do_not_know_what_stands_above_them() -> None:
    for path in sources("sam2model"):
        if path.stem in LAYERS:
            above = {
                module
                for module in modules_of_the_model(path)
                if module in ABOVE_THE_LAYERS | LEAVES - {"prompts"} or is_video(module)
            }
            assert not above, f"{path.name} imports {above}"


def test_the_leaves_of_the_model_import_nothing_of_it() -> None:
    for path in sources("sam2model"):
        ours = modules_of_the_model(path)
        if path.stem in LEAVES:
            assert not ours, f"{path.name} imports {ours}"
        elif is_video(path.stem):
            others = {module for module in ours - LEAVES if not is_video(module)}
            assert not others, f"{path.name} imports {others}"


def test_no_file_is_named_after_nothing() -> None:
    for path in [*sources(*PACKAGES), *(ROOT / "tests").glob("*.py")]:
        assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc"}, path


def test_every_module_starts_with_a_docstring() -> None:
    for path in sources(*PACKAGES):
        assert ast.get_docstring(ast.parse(path.read_text())), path.relative_to(ROOT)


# One process imports all modules, one after the other, and says which of them did something:
# a process each would cost torch's start-up thirty times over. What the libraries do (importing
# ray sets RAY_CLIENT_MODE) is theirs, so they come first.
IMPORT_ALL = """
import importlib, logging, os, sys, threading

def state():
    return {
        "started a thread": set(threading.enumerate()),
        "changed the environment": set(os.environ.items()),
        "configured logging": set(logging.getLogger().handlers),
    }

libraries, modules = (argument.split() for argument in sys.argv[1:])
for name in libraries:
    importlib.import_module(name)
for name in modules:
    before = state()
    importlib.import_module(name)
    for what, now in state().items():
        if now != before[what]:
            sys.exit(f"{name} {what}: {now ^ before[what]}")
"""


def libraries() -> set[str]:
    """What our modules import from elsewhere as they are imported themselves."""
    found: set[str] = set()
    for path in sources(*PACKAGES):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module or "")
    ours_or_pythons = {*PACKAGES, *sys.stdlib_module_names}
    return {name for name in found if name.partition(".")[0] not in ours_or_pythons}


def import_all(libraries: set[str], modules: list[str], folder: Path) -> tuple[int, str, str]:
    arguments = [" ".join(sorted(libraries)), " ".join(modules)]
    ran = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.returncode, ran.stdout, ran.stderr


def test_nothing_happens_at_import(tmp_path: Path) -> None:
    modules = [name_of(path) for path in sources(*PACKAGES)]
    assert import_all(libraries(), modules, tmp_path) == (0, "", "")
    assert not list(tmp_path.iterdir()), "an import wrote a file"


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        (
            "import threading, time; threading.Thread(target=time.sleep, args=[1]).start()",
            "a thread",
        ),
        ("import os; os.environ['X'] = '1'", "changed the environment"),
        ("import logging; logging.basicConfig()", "configured logging"),
    ],
)
def test_what_happens_at_import_would_be_seen(code: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(code)
    code_of_exit, _, said = import_all(set(), ["busy"], tmp_path)
    assert code_of_exit == 1 and complaint in said


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("needs a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def test_no_tracked_file_names_the_machine_it_was_written_on() -> None:
    # Spelt in two halves, so that this file does not accuse itself.
    forbidden = [
        left + right for left, right in (("/wo", "rk/"), ("/ro", "ot/"), ("work", "place"))
    ]
    for path in tracked_files():
        if not path.is_file():
            continue
        content = path.read_bytes()
        for words in forbidden:
            assert words.encode() not in content, f"{path.relative_to(ROOT)} mentions {words!r}"
