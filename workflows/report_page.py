"""A report as one HTML file that needs nothing else. Knows nothing of datasets: numbers come in.

No script, no font, no address of anything: it can be mailed, archived and opened anywhere. Every
text is escaped, for ids and messages come from strangers.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

from workflows.plots import bars, histogram_of_counts, line, number
from workflows.report import SCORES

Json = Mapping[str, Any]
Pictures = Mapping[tuple[str, int], tuple[int, bytes]]

STYLE = """
:root { color-scheme: light dark; --edge: #8885; --soft: #8882; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1080px; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p.about { margin: 0; opacity: .75; overflow-wrap: anywhere; }
ul.numbers { display: flex; flex-wrap: wrap; gap: .7rem; padding: 0; list-style: none; }
ul.numbers li { border: 1px solid var(--edge); border-radius: .5rem; padding: .5rem .9rem; }
ul.numbers b { display: block; font-size: 1.3rem; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--edge); }
td.n, th.n { text-align: right; } th, td { vertical-align: bottom; white-space: nowrap; }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 16rem; }
div.plots { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start; }
div.plots + div.plots { margin-top: 1.6rem; }
svg { max-width: 100%; height: auto; }
ol.tracks { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1rem;
  padding: 0; list-style: none; }
ol.tracks li { border: 1px solid var(--edge); border-radius: .5rem; overflow: hidden; }
ol.tracks img { width: 100%; display: block; }
ol.tracks div { padding: .5rem .8rem; overflow-wrap: anywhere; }
ol.tracks .none { background: var(--soft); padding: 2.5rem 1rem; text-align: center; }
"""
UNITS = (("days", 86_400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))
LONG_TEXT = 36  # characters, above which a cell may break its lines
_NUMBER = ' class="n"'
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render(report: Json, worst: Sequence[Json], pictures: Pictures) -> str:
    """The page. worst: tracks as workflows/report.py lists them."""
    of = f"run {report['run_id']}" if report["run_id"] else "dataset"
    body = [
        f"<h1>Labels: report of {'a run' if report['run_id'] else 'a dataset'}</h1>",
        f'<p class="about">{escape(str(report["dataset"]))} · {escape(of)} · version '
        f"{report['dataset_version']} · {escape(report['made_at'])}</p>",
        _section("Progress", _numbers(_progress(report)), _time_plot(report)),
        _section("Throughput and cost", _numbers(_throughput(report)), _stages(report)),
        _section("Runs", _runs(report["runs"])),
        _section("Failures", _failures(report["failures"])),
        _section("Scores and doubt", _plots(_scores(report)), _flags(report)),
        _section("Worst tracks", _tracks(worst, pictures)),
        _section("Slowest videos", _slowest(report["slowest"])),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Labels: {escape(of)}</title><style>{STYLE}</style></head>\n"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _progress(report: Json) -> list[tuple[str, str]]:
    progress = report["progress"]
    in_manifest = progress["videos_in_manifest"]
    return [
        ("videos labelled", _n(progress["videos_ok"])),
        ("videos failed", _n(progress["videos_failed"])),
        *([("videos in the manifest", _n(in_manifest))] if in_manifest else []),
        ("of video", _duration(3600 * progress["video_hours"])),
        ("frames labelled", _n(progress["frames"])),
        ("objects", _n(progress["objects"])),
        ("masks", _n(progress["object_frames"])),
        ("masks not empty", _n(progress["masks_not_empty"])),
        ("objects reviewed", _n(progress["objects_reviewed"])),
        ("objects corrected or imported", _n(progress["objects_corrected"])),
    ]


def _throughput(report: Json) -> list[tuple[str, str]]:
    totals = report["totals"]
    if not totals["wall_s"]:
        return []
    cost, currency = totals["cost"], totals["currency"] or ""
    priced = [
        (f"{currency} in all", _n(cost)),
        (f"{currency} an hour of video", _n(totals["cost_per_video_hour"])),
    ]
    return [
        ("frames a second", _n(totals["frames_per_s"])),
        ("masks a second", _n(totals["masks_per_s"])),
        ("times real time", _n(totals["times_real_time"])),
        ("by the clock", _duration(totals["wall_s"])),
        ("of devices", _duration(totals["device_s"])),
        *(priced if cost is not None else [("cost: price.per_actor_hour was not set", "–")]),
    ]


def _time_plot(report: Json) -> str:
    points = report["over_time"]
    if len(points) < 3:
        return ""
    times = [datetime.fromisoformat(point["at"]).timestamp() for point in points]
    if times[-1] <= times[0]:
        return ""
    unit, unit_s = _unit(times[-1] - times[0])
    since = f"{unit} since {_minute(points[0]['at'])} UTC"
    ended = [
        ((time - times[0]) / unit_s, p["videos"]) for time, p in zip(times, points, strict=True)
    ]
    return _plots([line(ended, "Videos ended", since, "videos", counts=True)])


def _stages(report: Json) -> str:
    stages = [(stage["stage"], stage["seconds"]) for stage in report["stages"]]
    return _plots([bars(stages, "Seconds by stage", " s")]) if stages else ""


def _runs(runs: Sequence[Json]) -> str:
    names = (
        ("run", "run_id"),
        ("job", "job"),
        ("ended, UTC", "finished_at"),
        ("videos", "videos_requested"),
        ("done before", "videos_skipped"),
        ("ok", "videos_ok"),
        ("failed", "videos_failed"),
        ("frames/s", "frames_per_s"),
        ("× real time", "times_real_time"),
        ("cost", "cost"),
        ("per video hour", "cost_per_video_hour"),
        ("currency", "currency"),
        ("hardware", "hardware"),
    )
    rows = [{**run, "finished_at": _minute(run["finished_at"])} for run in runs]
    told = [(name, key) for name, key in names if any(run[key] is not None for run in rows)]
    return _table([name for name, _ in told], [[run[key] for _, key in told] for run in rows])


def _failures(failures: Sequence[Json]) -> str:
    names = ("reason", "videos", "example_video", "example_detail")
    rows = [[failure[name] for name in names] for failure in failures]
    return _table(("reason", "videos", "for example", "because"), rows)


def _scores(report: Json) -> list[str]:
    plots = []
    for name, (title, *_) in SCORES.items():
        score = report["scores"][name]
        if score["tracks"]:
            what = f"{score['tracks']:,} tracks, mean {number(score['mean'] or 0)}"
            plots.append(
                histogram_of_counts(
                    score["counts"], score["low"], score["high"], title, what, "tracks"
                )
            )
    return plots


def _flags(report: Json) -> str:
    groups = [
        ("Flags", "flags"),
        ("Judged", "reviews"),
        ("Made by", "sources"),
        ("Categories", "categories"),
    ]
    plots = [bars(list(report[key].items()), title) for title, key in groups if report[key]]
    return _plots(plots)


def _tracks(worst: Sequence[Json], pictures: Pictures) -> str:
    items = []
    for track in worst:
        key = track["video_id"], track["object_id"]
        name = f"{track['video_id']} · object {track['object_id']}"
        if key in pictures:
            frame_index, jpeg = pictures[key]
            data = base64.b64encode(jpeg).decode()
            what = escape(f"{name}, frame {frame_index}, its mask drawn", quote=True)
            picture = f'<img alt="{what}" src="data:image/jpeg;base64,{data}">'
        else:
            picture = '<p class="none">no picture</p>'
        flags = ", ".join(f"{flag['kind']} at {flag['frame_index']}" for flag in track["flags"][:4])
        facts = [
            track["category"],
            f"frames {track['first_frame']} to {track['last_frame']}",
            f"doubt {_n(track['doubt'])}",
            f"predicted IoU {_n(track['iou_pred_mean'])}, lowest {_n(track['iou_pred_min'])}",
            f"{track['source']}, {track['review']}",
            flags,
        ]
        text = "<br>".join(escape(fact) for fact in facts if fact)
        items.append(f"<li>{picture}<div><b>{escape(name)}</b><br>{text}</div></li>")
    return f'<ol class="tracks">{"".join(items)}</ol>' if items else ""


def _slowest(videos: Sequence[Json]) -> str:
    names = ("video_id", "seconds", "frames", "objects", "duration_s")
    rows = [[video[name] for name in names] for video in videos]
    return _table(("video", "seconds", "frames", "objects", "seconds of video"), rows)


def _section(title: str, *parts: str) -> str:
    content = "".join(parts)
    return f"<section><h2>{escape(title)}</h2>{content or '<p>nothing</p>'}</section>\n"


def _numbers(values: Iterable[tuple[str, str]]) -> str:
    items = "".join(f"<li><b>{escape(text)}</b>{escape(name)}</li>" for name, text in values)
    return f'<ul class="numbers">{items}</ul>' if items else ""


def _plots(plots: Sequence[str]) -> str:
    return f'<div class="plots">{"".join(plots)}</div>' if plots else ""


def _table(names: Iterable[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    numeric = [any(isinstance(row[n], int | float) for row in rows) for n in range(len(rows[0]))]
    head = "".join(
        f"<th{_NUMBER if is_number else ''}>{escape(name)}</th>"
        for is_number, name in zip(numeric, names, strict=True)
    )
    cells = ["".join(map(_cell, row)) for row in rows]
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _cell(value: Any) -> str:
    if isinstance(value, int | float):
        return f"<td{_NUMBER}>{_n(value)}</td>"
    text = escape(str(value or "–"))
    return f'<td class="long">{text}</td>' if len(text) > LONG_TEXT else f"<td>{text}</td>"


def _unit(seconds: float) -> tuple[str, float]:
    """The largest unit of which there are two or more, and its seconds."""
    return next((unit for unit in UNITS if seconds >= 2 * unit[1]), UNITS[-1])


def _duration(seconds: float) -> str:
    unit, unit_s = _unit(seconds)
    return f"{number(seconds / unit_s)} {unit}"


def _minute(moment: str | None) -> str | None:
    return moment and moment[:16].replace("T", " ")


def _n(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else number(value)
