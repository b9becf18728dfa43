"""Super-neurons: degrees of polysemanticity beside those of rotated bases."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polysem.interventions.degrees import SUPER
from polysem.report.source import Run
from polysem.report.text import count, number, p_value, plural, visible

KINDS = {"coordinate": "coordinates of the site", "mlp": "neurons of the MLP"}
QUANTITIES = {
    "tied": "share tied to a feature",
    "mean_degree": "mean degree of those",
    "largest_degree": "largest degree",
    "super_neurons": f"super-neurons (degree above {SUPER})",
    "one_or_two": "share of tied ones with one or two clusters",
    "rank_correlation_variance": "rank correlation with variance of activation",
    "rank_correlation_write_norm": "rank correlation with norm of output",
    "rank_correlation_logit_norm": "rank correlation with norm of output in logits",
}
BINS = ((1, 1), (2, 5), (6, 20), (21, 50), (51, 100), (101, 200), (201, 500), (501, None))
"""of the paper"""


def neurons_section(run: Run) -> dict[str, Any] | None:
    """What the template prints; None where no neuron was judged."""
    degrees, summary = run.table("neurons"), run.table("neuron_degrees").to_pylist()
    if not degrees.num_rows:
        return None
    groups: dict[tuple[str, str], list[int]] = {}
    for row in degrees.select(["sae", "kind", "degree"]).to_pylist():
        groups.setdefault((row["sae"], row["kind"]), []).append(row["degree"])
    parts = []
    for (sae, kind), values in groups.items():
        mine = [r for r in summary if (r["sae"], r["kind"]) == (sae, kind)]
        parts.append(
            {
                "name": f"{visible(sae)}: {plural(len(values), KINDS[kind].split(' ', 1)[0].removesuffix('s'))} "
                f"{KINDS[kind].split(' ', 1)[1]}",
                "bins": _bins(np.array(values)),
                "rows": [_row(r) for name in QUANTITIES for r in mine if r["quantity"] == name],
                "said": _said(mine),
            }
        )
    return {"parts": parts, "n_rotations": count(summary[0]["n_rotations"]) if summary else "0"}


def _bins(degree: np.ndarray) -> list[tuple[str, str]]:
    """How many neurons have a degree in each of the paper's bins."""
    shown = [("0", count(int((degree == 0).sum())))]
    for low, high in BINS:
        inside = (degree >= low) & (degree <= (degree.max() if high is None else high))
        label = f"{low}+" if high is None else f"{low}" if low == high else f"{low}–{high}"
        shown.append((label, count(int(inside.sum()))))
    return shown


def _row(r: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "what": QUANTITIES[r["quantity"]],
        "value": "–" if r["value"] is None else number(r["value"]),
        "null": "–"
        if r["null_mean"] is None
        else f"{number(r['null_mean'])} ({number(r['null_lo'])} to {number(r['null_hi'])})",
        "p": "–" if r["p"] is None else p_value(r["p"]),
    }


def _said(rows: Sequence[Mapping[str, Any]]) -> str:
    """In words, whether the largest degrees need neurons."""
    for r in rows:
        if r["quantity"] == "largest_degree" and r["null_hi"] is not None:
            if r["null_lo"] <= r["value"] <= r["null_hi"]:
                return "Rotated bases have members of as large a degree: nothing here is special to neurons."
            more = "larger" if r["value"] > r["null_hi"] else "smaller"
            return f"The largest degree is {more} than in every rotated basis: this basis is special."
    return ""
