"""The suites of `maskmill bench` on a small model: every row is there and means what it says."""

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from test_weight_files import meta_weights

from jobs.bench import main
from sam2model import released_config
from sam2model.checkpoint import names_from_meta
from workflows import benchmark_objects, benchmark_stages
from workflows.benchmark import SUITES
from workflows.benchmark_config import BenchConfig, Row, SuiteName
from workflows.benchmark_meta import MetaPredictor, names_to_meta
from workflows.benchmark_models import lowest_iou, random_model
from workflows.benchmark_objects import operations
from workflows.benchmark_page import page_of
from workflows.benchmark_rle import masks
from workflows.benchmark_timing import Turns
from workflows.config import ConfigError, load_config, to_tree

BENCH_YAML = Path(__file__).parents[1] / "configs/bench.yaml"
SMALL = BenchConfig(
    dtype="float32",
    objects=(1, 2),
    frames=9,
    videos=2,
    video_frames=3,
    lengths=(4, 8),
    pipeline_videos=3,
    query_rows=(2_000,),
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # tensors so small lose more to handing over than they gain


@pytest.fixture
def demo_model_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suites that take a released size take the demo's small model."""
    for suite in (benchmark_objects, benchmark_stages):
        small = lambda _, device, dtype: random_model("demo", device, dtype)  # noqa: E731
        monkeypatch.setattr(suite, "random_model", small)


def rows_of(suite: SuiteName, **changes: Any) -> list[Row]:
    return list(SUITES[suite].measure(dataclasses.replace(SMALL, **changes)))


def test_bench_yaml_holds_every_key_at_its_default_with_a_reason() -> None:
    assert to_tree(BenchConfig()) == yaml.safe_load(BENCH_YAML.read_text())
    assert load_config(BenchConfig, BENCH_YAML) == BenchConfig()
    lines = BENCH_YAML.read_text().splitlines()
    for before, line in zip(lines, lines[1:], strict=False):
        if line and not line.startswith("#"):
            assert before.startswith("#"), f"no comment above {line!r}"


def test_every_suite_that_a_configuration_may_name_is_there_and_named_by_default() -> None:
    assert set(SUITES) == set(get_args(SuiteName)) == set(BenchConfig().suites)
    for suite in SUITES.values():
        suite.title.format_map(to_tree(BenchConfig()))  # of keys that exist


def test_a_suite_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="speed"):
        load_config(BenchConfig, overrides=["suites=[speed]"])


@pytest.mark.usefixtures("demo_model_everywhere")
def test_objects_have_a_row_each_with_masks_compared_and_our_share_of_the_products() -> None:
    one, two = rows_of("objects")

    assert (one["objects"], two["objects"]) == (1, 2)
    for row in (one, two):
        assert row["transformers_iou"] >= 0.999  # type: ignore[operator]  # fp32 on both sides
        assert row["transformers_ratio"] == pytest.approx(
            float(row["transformers_s"]) / float(row["ours_s"]), rel=0.02
        )
        assert 0 < float(row["share_of_products"]) < 1.5
    assert float(one["TFLOP"]) <= float(two["TFLOP"])


@pytest.mark.usefixtures("demo_model_everywhere")
def test_a_reference_that_disagrees_shows_in_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = benchmark_objects.twin_of_transformers

    def other(ours: Any) -> Any:
        theirs = twin(ours)
        theirs.memory_encoder.projection.weight.data.mul_(-1)
        return theirs

    monkeypatch.setattr(benchmark_objects, "twin_of_transformers", other)

    (row,) = rows_of("objects", objects=(1,))

    assert float(row["transformers_iou"]) < 0.98


@pytest.mark.usefixtures("demo_model_everywhere")
def test_stages_add_up_to_a_frame() -> None:
    rows = rows_of("stages", frames=10)

    stages = [row["stage"] for row in rows]
    assert stages[:3] == ["decode", "resize", "vision_encoder"]
    assert {"memory_attention", "mask_decoder", "memory_encoder", "run lengths"} < {*stages}
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1, abs=0.01)
    assert all(float(row["ms"]) > 0 for row in rows if row["stage"] != "rest of the network")


def test_videos_are_counted_on_both_sides() -> None:
    (row,) = rows_of("videos", objects=(2, 1))

    assert (row["videos"], row["frames"], row["objects"]) == (2, 6, 2)
    assert float(row["transformers_ratio"]) == pytest.approx(
        float(row["ours_frames_per_s"]) / float(row["transformers_frames_per_s"]), rel=0.02
    )


def test_masks_whose_run_lengths_are_timed_range_from_nothing_to_torn() -> None:
    runs = [int(row["runs"]) for row in rows_of("rle")]

    assert len(runs) == len(masks())
    assert min(runs) == 1 and max(runs) > 20_000
    assert sum(1_000 < count < 10_000 for count in runs) >= 2


def test_a_reference_with_other_run_lengths_ends_the_measurement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pycocotools import mask as coco

    monkeypatch.setattr(coco, "encode", lambda mask: {"counts": b"0"})
    with pytest.raises(AssertionError, match="differ from pycocotools"):
        rows_of("rle")


def test_questions_are_asked_of_as_many_rows_as_wanted() -> None:
    rows = rows_of("queries")

    assert {row["rows"] for row in rows} <= set(range(1_000, 3_000))
    assert [row["what"] for row in rows][:2] == ["make", "compact"] and len(rows) == 7
    peaks = [int(str(row["peak_MB"])) for row in rows]
    assert peaks == sorted(peaks) and peaks[0] > 50


def test_sides_take_turns_and_every_turn_is_kept() -> None:
    turns = Turns(torch.device("cpu"))
    for i in range(3):
        assert turns.time("a", lambda i=i: i) == i  # type: ignore[misc]
        turns.time("b", sum, [1, 2])

    assert len(turns.wall_s["a"]) == len(turns.cpu_s["b"]) == 3
    assert turns.best_s("a") <= turns.median_s("a")


def test_the_lowest_overlap_is_that_of_the_worst_object() -> None:
    a, b = torch.full((3, 1, 4, 4), -1.0), torch.full((3, 1, 4, 4), -1.0)
    a[0], b[0] = 1, 1  # the same
    a[1, :, :2], b[1, :, 1:3] = 1, 1  # a third; the last is empty in both

    assert lowest_iou(a, b) == pytest.approx(1 / 3)


def test_our_weights_under_metas_names_are_read_back_as_ours() -> None:
    ours = random_model("demo", "cpu", "float32").state_dict()
    names = {name: torch.zeros_like(t) for name, t in meta_weights(ours).items()}

    theirs = names_to_meta(names, ours)

    assert theirs.keys() == names.keys()
    back = names_from_meta(theirs)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)


def test_operations_are_those_of_the_published_layers_less_the_exact_rewrites() -> None:
    # Without rewrites a frame of tiny is 914 GFLOP with one object and 2,776 with four.
    one, four = (operations(released_config("tiny"), count) / 1e9 for count in (1, 4))

    assert one == pytest.approx(727, rel=0.02)  # more rewrites than those, each of 1%
    assert four == pytest.approx(1970, rel=0.02)


def test_a_folder_without_metas_predictor_is_named(tmp_path: Path) -> None:
    model = random_model("demo", "cpu", "float32")
    with pytest.raises(ConfigError, match=r"no sam2/build_sam\.py; wanted a checkout"):
        MetaPredictor(str(tmp_path), "tiny", model, compiled=False)


def test_the_job_prints_tables_and_keeps_them_with_the_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--set", "suites=[products, rle]", "--set", f"results={tmp_path / 'kept'}"]

    assert main(argv) == 0

    *table, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert json.loads(Path(result.pop("kept_in")).read_text()) == result
    assert result["machine"]["torch"] == torch.__version__
    assert result["config"]["suites"] == ["products", "rle"]
    assert [row["dtype"] for row in result["products"]] == ["float32", "bfloat16"]
    assert any(line.startswith("mask ") and "pycocotools_ms" in line for line in table)
    (page,) = (tmp_path / "kept").glob("*.md")
    titles = [line for line in page.read_text().splitlines() if line.startswith("## ")]
    assert titles == [f"## {SUITES[n].title.format(device='cpu')}" for n in ("products", "rle")]


def test_a_page_has_what_repeats_it_and_every_row() -> None:
    config = dataclasses.replace(SMALL, suites=("products",), meta="~/sam2")
    rows: list[Row] = [{"dtype": "float32", "TFLOP/s": 0.25}, {"dtype": "half", "more": 1}]

    page = page_of({"processor": "some", "cores": 2}, config, {"products": rows})

    assert "| dtype | TFLOP/s | more |\n| --- | --- | --- |\n| float32 | 0.25 |  |" in page
    assert "| half |  | 1 |" in page and "| some | 2 |" in page
    (command,) = re.findall(r"```\n(maskmill bench.*?)\n```", page, re.DOTALL)
    words = shlex.split(command.replace("\\\n", " "))[2:]
    assert load_config(BenchConfig, overrides=words[1::2]) == config


def test_the_configuration_for_gpus_measures_what_has_targets() -> None:
    config = load_config(BenchConfig, BENCH_YAML.with_name("bench-gpu.yaml"))

    assert config.device == "cuda" and {1, 10, 32} <= {*config.objects}
    assert (config.video_model, config.videos) == ("tiny", 32)
    assert set(config.suites) == set(SUITES)


@pytest.mark.slow
def test_lengths_are_weighed_in_processes_of_their_own() -> None:
    first, second = rows_of("length")

    assert (first["frames"], second["frames"]) == (4, 8)
    assert first["against_the_first"] == 1.0
    assert 100 < float(first["peak_MB"]) < 10_000
    assert float(second["against_the_first"]) == pytest.approx(1, abs=0.2)


@pytest.mark.slow
def test_clicks_are_timed_with_and_without_what_was_kept() -> None:
    rows = rows_of("clicks")

    assert [row["what"] for row in rows] == [
        "label all",
        "click to mask",
        "click to mask, nothing kept",
        "click to all changed masks",
        "label the object anew",
    ]
    assert all(float(row["ms"]) > 0 and row["frames"] == 48 for row in rows)


@pytest.mark.slow
def test_the_pipeline_is_timed_without_its_start(tmp_path: Path) -> None:
    (row,) = rows_of("pipeline")

    assert row["videos"] == 3
    assert float(row["start_s"]) > 0
    assert float(row["driver_cpu_ms_per_video"]) > 0
