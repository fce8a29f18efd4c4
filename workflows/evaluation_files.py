"""An evaluation as files: scores in JSON and CSV, plots in SVG. Knows nothing of masks."""

import io
import json
from typing import Any

import pyarrow.csv

from workflows.evaluation_scores import Evaluation
from workflows.plots import bars, histogram, scatter
from workflows.storage import Storage
from workflows.uris import join_uri

WORST_SHOWN = 20


def write_evaluation(
    evaluation: Evaluation, output: str, storage: Storage, about: dict[str, Any]
) -> list[str]:
    """Put scores.json, objects.csv, videos.csv, omissions.csv and the plots; their names.

    about: further values for scores.json, such as what was compared.
    """
    files = {
        "objects.csv": _csv(evaluation.objects_table()),
        "videos.csv": _csv(evaluation.videos_table()),
        "omissions.csv": _csv(evaluation.omissions_table()),
        **{f"{name}.svg": svg.encode() for name, svg in plots(evaluation).items()},
        "scores.json": json.dumps({**about, **evaluation.summary()}, indent=1).encode(),
    }
    for name, data in files.items():
        storage.put(join_uri(output, name), data)
    return list(files)


def plots(evaluation: Evaluation) -> dict[str, str]:
    """Name → SVG."""
    objects = evaluation.objects
    worst = sorted(objects, key=lambda score: score.j_and_f)[:WORST_SHOWN]
    names = [(f"{score.video_id} · {score.object_id}", score.j_and_f) for score in worst]
    return {
        "j_and_f": histogram(
            [score.j_and_f for score in objects], "J&F of objects", "J&F", low=0, high=1
        ),
        "j_against_f": scatter(
            [(score.j.mean, score.f.mean) for score in objects],
            "Region and boundary",
            "J (region, mean IoU)",
            "F (boundary)",
        ),
        "decay": histogram(
            [score.j.decay for score in objects],
            "Decay of J",
            "first quarter less last",
            low=-1,
            high=1,
        ),
        "worst": bars(names, "Lowest J&F", most=1.0),
    }


def _csv(table: Any) -> bytes:
    sink = io.BytesIO()
    pyarrow.csv.write_csv(table, sink)
    return sink.getvalue()
