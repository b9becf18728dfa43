"""docs/performance.md from the results that were kept."""

from itertools import groupby
from typing import Any

HEAD = """# Performance

Made by `make bench` from what it measured; do not edit. `make bench ARGS="--only mining"` measures one part again,
`ARGS=--json` prints records, `ARGS=--quick` only sees that everything runs.

Machine: {machine}. One thread. Contestants take turns in one process; a figure is the least CPU time of at least three
rounds (memory: the peak of a process of its own while it works, beyond what it held with the input made). The ratio is other / ours.
Every line was checked in the same run: what the two ways give is equal as the last column says. "Possible" is the ratio that
ours would have if it were nothing but its arithmetic, at the rate of bare products measured in the same run.

## Against others

| what | against | ours | other | ratio | must | aim | possible | reached | equal |
|---|---|---|---|---|---|---|---|---|---|
"""


def document(results: dict[str, Any]) -> str:
    """The document. `results`: as kept in benchmarks/results.json."""
    rows = [row for rows in results["benchmarks"].values() for row in rows]
    lines = [row for row in rows if row["kind"] == "line"]
    text = HEAD.format(machine=results["machine"]) + "".join(_line(row) for row in lines)
    notes = [f"- {row['name']}, {row['against']}: {row['note']}\n" for row in lines if row["note"]]
    if notes:
        text += "\nNotes:\n\n" + "".join(dict.fromkeys(notes))
    points = [row for row in rows if row["kind"] == "point"]
    if points:
        text += "\n## Growth\n"
    for name, group in groupby(points, key=lambda row: row["curve"]):
        text += _curve(name, list(group))
    return text


def _line(row: dict[str, Any]) -> str:
    unit, check = row["unit"], row["check"].replace("|", "\\|")
    bars = " | ".join("-" if row[bar] is None else f"{row[bar]:g}x" for bar in ("must", "aim"))
    most = "-" if row.get("possible") is None else f"{row['possible']:.2f}x"
    return (
        f"| {row['name']} | {row['against']} | {row['ours']:.4g} {unit} | {row['other']:.4g} {unit} "
        f"| {row['ratio']:.2f}x | {bars} | {most} | {row['verdict']} | {check} |\n"
    )


def _curve(name: str, points: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for point in points for column in point["values"]))
    text = f"\n{name}:\n\n| {points[0]['axis']} | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}\n"
    for point in points:
        cells = [f"{point['values'][c]:.4g}" if c in point["values"] else "" for c in columns]
        at = point["at"] if isinstance(point["at"], str) else f"{point['at']:,g}"
        text += f"| {at} | {' | '.join(cells)} |\n"
    return text
