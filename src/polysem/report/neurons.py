"""Super-neurons: degrees of polysemanticity beside those of rotated bases, and what they say of a neuron's effect."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from polysem.plan.degrees import BINS, SUPER
from polysem.report import words
from polysem.report.charts import Bar, dot_plot
from polysem.report.source import Run
from polysem.report.text import count, interval, number, p_value, plural, visible

OPERATIONS = {"mask": "masked (0)", "ablate": "ablated (mean)", "amplify": "amplified (×2)"}
MARKS = {"mask": "pair", "ablate": "random_feature", "amplify": "self"}
"""operation -> the relation whose mark it has"""
OUTCOMES = {"kl": "how far the next token moves", "tied": "how far its feature's tokens move as they should"}
TERMS = {
    "degree": "per doubling of 1 + degree",
    "degree_adjusted": "the same, variance and norm held fixed",
    "degree_rotated": "the same for directions of a rotated basis",
    "degree_minus_rotated": "neurons minus rotated directions",
    "super": f"degree above {SUPER} against the rest",
    "super_scale_free": "degree above that of every rotated basis against the rest",
}
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


def neurons_section(run: Run) -> dict[str, Any] | None:
    """What the template prints; None where no neuron was judged."""
    degrees, summary = run.table("neurons"), run.table("neuron_degrees").to_pylist()
    if not degrees.num_rows:
        return None
    groups: dict[tuple[str, str], list[int]] = {}
    own = degrees.filter(pc.equal(degrees["basis"], 0))
    for row in own.select(["sae", "kind", "degree"]).to_pylist():
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
    return {
        "parts": parts,
        "n_rotations": count(summary[0]["n_rotations"]) if summary else "0",
        "effects": list(_effects(run)),
        "level": f"{100 * run.study.effects.level:g}",
    }


def _effects(run: Run) -> Iterator[dict[str, Any]]:
    """Degree against effect, one part per locus and outcome."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in run.table("neuron_slopes").to_pylist():
        found.setdefault((row["locus"], row["outcome"]), []).append(row)
    for (locus, outcome), rows in found.items():
        at = {(r["operation"], r["term"]): r for r in rows}
        terms = [term for term in TERMS if any(r["term"] == term for r in rows)]
        bins = sorted({int(r["term"][4:]) for r in rows if r["term"].startswith("bin:")})
        title = f"{words.locus(locus)}: {OUTCOMES[outcome]}, by degree"
        shown = [(bin_name(k), [_bar(r) for o in OPERATIONS if (r := at.get((o, f"bin:{k}")))]) for k in bins]
        unit = "log10 of KL, nats" if outcome == "kl" else "nats"
        yield {
            "name": f"{words.locus(locus)}: {OUTCOMES[outcome]}",
            "figure": dot_plot(shown, title=title, x_label=unit),
            "marks": [(MARKS[o], said) for o, said in OPERATIONS.items()],
            "operations": list(OPERATIONS.values()),
            "rows": [
                {"what": TERMS[term], "cells": [_slope(at.get((o, term))) for o in OPERATIONS]}
                for term in terms
            ],
            "said": _verdict(at),
        }


def _bar(r: Mapping[str, Any]) -> Bar:
    said = f"{OPERATIONS[r['operation']]}, {plural(r['n_neurons'], 'neuron')}"
    return Bar(MARKS[r["operation"]], r["estimate"], r["lo"], r["hi"], said)


def bin_name(k: int) -> str:
    """A bin of degree: 0, or the k-th of the paper."""
    return f"degree {_degrees(*BINS[k - 1]) if k else 0}"


def _degrees(low: int, high: int | None) -> str:
    return f"{low}+" if high is None else f"{low}" if low == high else f"{low}–{high}"


def _slope(row: Mapping[str, Any] | None) -> dict[str, str]:
    """A cell: estimate, interval, p, and how many neurons."""
    if row is None or row["estimate"] is None:
        return {"value": "–", "more": "" if row is None else visible(row["note"] or "")}
    more = f"{interval(row['lo'], row['hi'])}; {p_value(row['p'], name='p')}; {plural(row['n_neurons'], 'neuron')}"
    return {"value": number(row["estimate"], sign=True), "more": more}


def _verdict(at: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """In words, what the masked neurons say: does degree go with the effect, and more so than in a rotated basis?"""
    own, minus = at.get(("mask", "degree_adjusted")), at.get(("mask", "degree_minus_rotated"))
    if own is None or own["lo"] is None:
        return "Masked: no slope can be estimated."
    if own["lo"] <= 0 <= own["hi"]:
        return "Masked: no slope on degree is resolved once variance and norm are held fixed (a description, not adjusted)."
    way = "rises" if own["estimate"] > 0 else "falls"
    if minus is None or minus["lo"] is None or minus["lo"] <= 0 <= minus["hi"]:
        return f"Masked: it {way} with degree, but directions of a rotated basis do not differ: not a property of neurons."
    return f"Masked: it {way} with degree, otherwise than for directions of a rotated basis (a description, not adjusted)."


def _bins(degree: np.ndarray) -> list[tuple[str, str]]:
    """How many neurons have a degree in each of the paper's bins."""
    shown = [("0", count(int((degree == 0).sum())))]
    for low, high in BINS:
        inside = (degree >= low) & (degree <= (degree.max() if high is None else high))
        shown.append((_degrees(low, high), count(int(inside.sum()))))
    return shown


def _row(r: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "what": QUANTITIES[r["quantity"]],
        "value": number(r["value"]),
        "null": "–"
        if r["null_mean"] is None
        else f"{number(r['null_mean'])} ({number(r['null_lo'])} to {number(r['null_hi'])})",
        "p": p_value(r["p"]),
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
