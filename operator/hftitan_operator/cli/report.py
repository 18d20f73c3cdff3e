"""Makes the self-contained HTML page of `hftitan report` from a work folder: curves, restarts, checkpoints, config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from hftitan_operator.cli.job_file import BadInput
from hftitan_operator.cli.svg import Mark, chart, number
from hftitan_operator.cli.text import duration, timestamp
from hftitan_operator.core import clock
from hftitan_operator.core.naming import CONFIG_KEY

Record = Mapping[str, Any]

STYLE = """
:root{--bg:#fff;--fg:#1c2430;--dim:#667085;--line:#e4e7ec;--card:#f8f9fb;--c0:#2463eb;--c1:#d9480f;--ok:#18794e;
--bad:#c92a2a;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--bg:#12161d;--fg:#e6e9ef;--dim:#98a2b3;--line:#2b323d;--card:#1a2029;
--c0:#74a9ff;--c1:#ff9f5c;--ok:#4cc38a;--bad:#ff8787}}
*{box-sizing:border-box}body{margin:0 auto;max-width:1240px;padding:28px 24px 60px;background:var(--bg);color:var(--fg);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:26px;margin:0;min-width:0}h1,p,dd{overflow-wrap:anywhere}
h2{font-size:17px;margin:34px 0 10px}header{display:flex;gap:14px;align-items:center}
.phase{padding:2px 12px;border-radius:99px;color:var(--bg);background:var(--dim);font-weight:600}
.phase.Succeeded{background:var(--ok)}.phase.Failed{background:var(--bad)}p{color:var(--dim);margin:6px 0 18px}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:10px;margin:0;grid-auto-flow:dense}
dl div{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:8px 12px;min-width:0}
dl .wide{grid-column:span 2}dt{color:var(--dim);font-size:12px}dd{margin:0;font-weight:600}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(480px,100%),1fr));gap:14px}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px}
figcaption{display:flex;gap:12px;justify-content:space-between;font-weight:600;font-size:14px}
figcaption span{display:flex;gap:12px}
b.c0{color:var(--c0)}b.c1{color:var(--c1)}svg{width:100%;height:auto;display:block}
svg text{fill:var(--dim);font-size:11px}svg .grid{stroke:var(--line)}
polyline{fill:none;stroke-width:1.6;stroke-linejoin:round}polyline.c0{stroke:var(--c0)}polyline.c1{stroke:var(--c1);
stroke-width:2.2}circle.c0{fill:var(--c0)}circle.c1{fill:var(--c1)}
svg .attempt{stroke:var(--bad);stroke-dasharray:4 3}svg .checkpoint{stroke:var(--ok);stroke-width:2}
.key{color:var(--dim);font-size:13px;margin-top:8px}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:5px 14px 5px 0;border-bottom:1px solid var(--line);vertical-align:top}
.scroll{overflow-x:auto}td:last-child{overflow-wrap:anywhere;min-width:9em}
th{color:var(--dim);font-weight:600;font-size:13px}summary{cursor:pointer}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px;overflow:auto;font-size:13px}
@media(max-width:600px){body{padding:20px 12px 40px}svg{overflow:visible}svg text{font-size:15px}
th,td{font-size:12px;padding-right:8px}td:last-child{min-width:7em}}
"""

MOST_ROWS = 12
"""Maximum number of rows of a table that is open at first."""
CURVES = (
    ("Gradient norm", "L2 norm", "gradNorm", 1.0, ""),
    ("Learning rate", "learning rate", "lr", 1.0, ""),
    ("Throughput", "tokens/s", "tokensPerSecond", 1.0, " tokens/s"),
    ("Step time", "seconds", "stepSeconds", 1.0, " s"),
    ("MFU", "% of peak FLOP/s", "mfu", 100.0, " %"),
    ("Peak memory", "GiB", "memoryPeakBytes", 2.0**-30, " GiB"),
)
"""Title, title of the y axis, key of a step record, factor, and unit in the caption."""
CHECKPOINTS, MANIFEST = "checkpoint", "complete.json"
"""Folder of the checkpoints in the work folder, and the last file that the trainer writes into a checkpoint."""


@dataclass(frozen=True, slots=True)
class Run:
    """The content of a work folder. Missing parts are empty."""

    folder: Path
    records: tuple[Record, ...]
    status: Record
    config: Record
    on_disk: Mapping[int, bool] | None
    """Steps whose checkpoint exists, and whether it is complete. None: there is no folder of checkpoints."""


def read(folder: Path) -> Run:
    """Read a work folder. Raises BadInput if no run has written to it."""
    metrics, status = folder / "metrics.jsonl", folder / "status.json"
    try:
        lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines() if metrics.exists() else []
        stored = _object(status.read_text(encoding="utf-8")) if status.exists() else {}
        configs = sorted(folder.glob(f".config/*/{CONFIG_KEY}"))
        config = _object(configs[0].read_text(encoding="utf-8")) if configs else {}
        on_disk = _on_disk(folder / CHECKPOINTS)
    except OSError as error:
        raise BadInput([f"{error.filename}: {error.strerror}"]) from error
    if not lines and not stored:
        raise BadInput(
            [f"{folder}: has neither metrics.jsonl nor status.json; give the work folder of a run, such as runs/<job>"]
        )
    records = tuple(record for line in lines if (record := _object(line)))
    return Run(folder, records, stored.get("status") or {}, config, on_disk)


def _on_disk(folder: Path) -> dict[int, bool] | None:
    if not folder.is_dir():
        return None
    steps = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return {int(path.name.removeprefix("step-")): (path / MANIFEST).exists() for path in steps}


def page(run: Run) -> str:
    """Return the HTML document. It has no script and fetches nothing."""
    steps = last_of_each_step(run.records)
    marks = [*attempts(run.records), *checkpoints(run.records)]
    validations = {int(r["step"]): r.get("loss") for r in run.records if r.get("kind") == "validation" and "step" in r}
    held_out = [(float(step), float(loss)) for step, loss in sorted(validations.items()) if loss is not None]
    figures = [chart("Loss", "loss", [("training", _points(steps, "loss")), ("validation", held_out)], marks)]
    figures += [
        chart(title, axis, [("", _points(steps, key, factor))], marks, unit)
        for title, axis, key, factor, unit in CURVES
    ]
    name = str(run.config.get("jobName") or run.folder.resolve().name)
    phase = str(run.status.get("phase") or "Unknown")
    config = escape(json.dumps(run.config, indent=2, sort_keys=True)) if run.config else ""
    drawn = "".join(figures) or "<p>No step has finished.</p>"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>{escape(name)}: run report</title>'
        f"<style>{STYLE}</style></head><body><header><h1>{escape(name)}</h1>"
        f'<span class="phase {escape(phase)}">{escape(phase)}</span></header>'
        f"<p>{escape(str(run.status.get('message') or ''))}</p>{_facts(run, steps, held_out)}"
        f'<h2>Curves</h2><div class="charts">{drawn}</div>'
        '<div class="key">Green ticks: checkpoints. Red dashed lines: first step of a later attempt.</div>'
        + _table("Restarts", ("attempt", "ended by", "at step", "counted", "time"), _restarts(run))
        + _table("Checkpoints", ("step", "on disk", "attempt", "seconds", "time"), _saves(run))
        + _table("Conditions", ("type", "status", "reason", "message"), _conditions(run))
        + (
            f"<h2>Config</h2><details><summary>configuration of the trainer</summary><pre>{config}</pre></details>"
            if config
            else ""
        )
        + "</body></html>\n"
    )


def last_of_each_step(records: Sequence[Record]) -> list[Record]:
    """Return the step records in the order of their steps. A step that ran again after a restart counts once, the last
    time."""
    found = {int(r["step"]): r for r in records if r.get("kind", "step") == "step" and isinstance(r.get("step"), int)}
    return [found[step] for step in sorted(found)]


def attempts(records: Sequence[Record]) -> list[Mark]:
    """Return a mark at the first step of each attempt except the first."""
    began: dict[int, int] = {}
    for record in records:
        if record.get("kind", "step") == "step" and isinstance(record.get("step"), int):
            began.setdefault(int(record.get("attempt", 1)), int(record["step"]))
    later = sorted(began.items())[1:]
    return [Mark(step, "attempt", f"attempt {attempt} from step {step}") for attempt, step in later]


def checkpoints(records: Sequence[Record]) -> list[Mark]:
    steps = sorted(
        {int(r["step"]) for r in records if r.get("kind") == "checkpoint" and isinstance(r.get("step"), int)}
    )
    return [Mark(step, "checkpoint", f"checkpoint of step {step}") for step in steps]


def _facts(run: Run, steps: Sequence[Record], held_out: Sequence[tuple[float, float]]) -> str:
    last: Record = steps[-1] if steps else {}
    speeds = sorted(float(r["tokensPerSecond"]) for r in steps if r.get("tokensPerSecond") is not None)
    model, dataset = run.config.get("model") or {}, run.config.get("dataset") or {}
    mfu = last.get("mfu")
    facts = {
        "Model": model.get("name"),
        "Data": dataset.get("name") or dataset.get("path"),
        "Mesh": run.status.get("mesh"),
        "Step": f"{last['step']} of {last.get('steps', '?')}" if last else None,
        "Loss": None if last.get("loss") is None else f"{last['loss']:.4f}",
        "Validation loss": f"{held_out[-1][1]:.4f} (best {min(loss for _, loss in held_out):.4f})"
        if held_out
        else None,
        "Median tokens/s": number(round(speeds[len(speeds) // 2], 1)) if speeds else None,
        "Tokens seen": number(last["tokensSeen"]) if last.get("tokensSeen") else None,
        "MFU": None if mfu is None else f"{mfu:.1%}",
        "Restarts": run.status.get("restarts"),
        "Goodput": None if run.status.get("goodput") is None else f"{run.status['goodput']:.1%}",
        "Duration": _took(run),
        "Export": run.status.get("exportPath"),
    }
    shown = "".join(
        f"<div{' class=wide' if len(str(value)) > 16 else ''}><dt>{escape(key)}</dt><dd>{escape(str(value))}</dd></div>"
        for key, value in facts.items()
        if value is not None
    )
    return f"<dl>{shown}</dl>"


def _took(run: Run) -> str | None:
    """Return the time from start to end of the job; without a status, between the first and the last record."""
    ends = [clock.maybe_unix(run.status.get(key)) for key in ("startTime", "completionTime")]
    times = [t for t in ends if t is not None]
    if len(times) < 2:
        times = [float(r["time"]) for r in run.records if isinstance(r.get("time"), int | float)]
    return duration(max(times) - min(times)) if times else None


def _restarts(run: Run) -> list[tuple[Any, ...]]:
    return [
        (r.get("attempt"), r.get("reason"), r.get("step", 0), "yes" if r.get("counted", True) else "no", r.get("time"))
        for r in run.status.get("restartHistory") or ()
    ]


def _saves(run: Run) -> list[tuple[Any, ...]]:
    saved = [r for r in run.records if r.get("kind") == "checkpoint" and "time" in r]
    return [
        (r.get("step"), _kept(run, r.get("step")), r.get("attempt"), r.get("seconds"), timestamp(float(r["time"])))
        for r in saved
    ]


def _kept(run: Run, step: Any) -> str:
    if run.on_disk is None:
        return "unknown"  # for example a copy of the metrics of a cluster job
    if step not in run.on_disk:
        return "deleted"
    return "kept" if run.on_disk[step] else "incomplete"


def _conditions(run: Run) -> list[tuple[Any, ...]]:
    return [
        (c.get("type"), c.get("status"), c.get("reason"), c.get("message")) for c in run.status.get("conditions") or ()
    ]


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape('' if cell is None else str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    rows_of = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    shown = f'<div class="scroll">{rows_of}</div>'
    if len(rows) > MOST_ROWS:
        shown = f"<details><summary>{len(rows)} rows</summary>{shown}</details>"
    return f"<h2>{escape(title)}</h2>{shown}"


def _points(steps: Sequence[Record], key: str, factor: float = 1.0) -> list[tuple[float, float]]:
    return [(float(r["step"]), factor * r[key]) for r in steps if isinstance(r.get(key), int | float)]


def _object(text: str) -> dict[str, Any]:
    """Return the JSON object of a text; empty if it has none, such as a line that a crash cut off."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
