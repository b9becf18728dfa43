"""The paper's estimates beside the strict ones, the way from one to the other, and what selection adds."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa

from polysem.config import Study
from polysem.paper.degree import PATHS, SIDES
from polysem.paper.estimators import stars
from polysem.report import words
from polysem.report.charts import Bar, dot_plot
from polysem.report.html import Figure
from polysem.report.neurons import bin_name
from polysem.report.source import Tables
from polysem.report.text import count, interval, number, p_value, plural, visible
from polysem.report.words import CHOICES, QUESTIONS
from polysem.vocabulary import DOSE_UNITS, LOCI, POSITIONS, RELATIONS

Row = Mapping[str, Any]
_ALL_POSITIONS = ("feature", "gradient", "neuron")
"""what the paper does at all positions"""
_TOPS = {"prompt": DOSE_UNITS["paper_injection"].top, "neuron": DOSE_UNITS["paper_factor"].top}
_FORMS = {
    "prefix": "plain and in front",
    "suffix": "plain and behind",
    "wrapped": "between asterisks",
    "parenthesised": "in brackets",
}
NOTABLE = 0.1
"""a step is told if it moves the estimate by this share of the larger of the two, or p across the limit"""


def presets_section(run: Tables) -> dict[str, Any] | None:
    """What the template prints; None where the study asks for strict estimates only, or has no effects yet."""
    if run.study.preset == "strict":
        return None
    table = run.table("presets")
    if not table.num_rows:
        return None
    return {
        "both": run.study.preset == "both",
        "level": f"{100 * run.study.effects.level:g}",
        "parts": [
            _part(rows, locus, tokens, steered=_steered(run.study, locus))
            for (locus, tokens), rows in _grouped(table).items()
        ],
    }


def _steered(study: Study, locus: str) -> str:
    """How the study steers where it differs from the paper; said with the change to its own doses."""
    plan, found = study.plan, []
    if locus in _ALL_POSITIONS and plan.positions != "all":
        found.append(
            f"at {POSITIONS[plan.positions].label}, not at every one, with BOS where the SAE was trained with it"
        )
    if locus == "gradient" and plan.probe != "ones":
        found.append(
            "along the gradient of the feature's own pre-activation, not of the sum of all coordinates"
        )
    if locus == "gradient" and plan.gradient_positions != "firing":
        found.append("of the token on which it fires most, not summed over all on which it fires")
    if locus in _TOPS:
        found.append(f"c over the whole vocabulary, not over the {_TOPS[locus]} likeliest tokens")
    if locus == "prompt" and plan.snippet_form != "wrapped":
        found.append(f"the snippet {_FORMS[plan.snippet_form]}, not between asterisks")
    return f" ({', and '.join(found)})" if found else ""


def _grouped(table: pa.Table) -> dict[tuple[str, str], list[Row]]:
    """Rows by locus and token set; what activates the target comes first."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in table.to_pylist():
        found.setdefault((row["locus"], row["token_set"]), []).append(row)
    order = words.in_order(LOCI, (locus for locus, _ in found))
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1])))


def _part(rows: Sequence[Row], locus: str, tokens: str, *, steered: str) -> dict[str, Any]:
    walks: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda r: (r["path"], r["step"])):
        if row["relation"] == "pair" or row["question"] == "mean":
            walks.setdefault((row["question"], row["relation"]), []).append(row)
    asked = [(q, walks[q, "pair"]) for q in QUESTIONS if (q, "pair") in walks]
    tried = rows[0]["n_doses"]
    return {
        "name": f"{words.locus(locus)}: {words.tokens(tokens)}",
        "tried": tried,
        "questions": [_question(question, mine, steered=steered) for question, mine in asked],
        "optimism": _optimism(walks) if tried > 1 else [],
        "null": _null(walks) if tried > 1 else "",
        "degree": _degree(rows),
        "notes": sorted(
            {visible(n) for r in rows if (r["path"], r["choice"]) == ("walk", "paper") for n in _notes(r)}
        ),
    }


def _degree(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The paper's own neurons by bin of degree; the slope over bins comes last."""
    at = {(r["question"], r["path"], r["step"]): r for r in rows if r["path"] in PATHS}
    found = []
    for step in sorted({step for _, _, step in at}, key=lambda k: (k == 0, k)):
        told = {f"{side}_{path}": _cell(at[side, path, step]) for side, _ in SIDES for path in PATHS}
        n = at["rise", PATHS[0], step]
        found.append(
            {"bin": bin_name(step) if step else "slope, per bin"}
            | {"neurons": count(n["n_rows"]), "features": count(n["n_pairs"])}
            | told
        )
    return found


def _notes(row: Row) -> list[str]:
    """What is said next to a number, without what its own cell says."""
    said = str(row["note"] or "").split("; ")
    return [n for n in said if n and " against " not in n and not n.startswith("not estimated")]


def _counts(row: Row, otherwise: str) -> str:
    """What a difference compares, from its note; of anything else what is given."""
    against = [n for n in str(row["note"] or "").split("; ") if " against " in n]
    if not against:
        return otherwise
    pairs, _, control = visible(against[0]).rpartition(" ")
    return f"{pairs} {words.relation(control).label}"


def _question(question: str, rows: Sequence[Row], *, steered: str) -> dict[str, Any]:
    walk = [r for r in rows if r["path"] == "walk"]
    alone = {r["choice"]: r for r in rows if r["path"] == "alone"}
    paper, strict = walk[0], walk[-1]
    return {
        "asked": QUESTIONS[question],
        "paper": _cell(paper, mark=stars(paper["p"])),
        "paper_n": f"; {plural(paper['n_rows'], 'trial')} of {_counts(paper, plural(paper['n_pairs'], 'pair'))}"
        if paper["n_rows"]
        else "",
        "strict": _cell(strict),
        "strict_n": f"; {_counts(strict, plural(strict['n_pairs'], 'pair'))}, "
        f"{plural(strict['n_targets'], 'target')}",
        "why": _why(question, walk, steered=steered),
        "way": _way(question, walk),
        "steps": [
            {
                "what": _words(question, row, steered=steered),
                "so_far": _cell(row),
                "alone": _cell(alone[row["choice"]]) if row["choice"] in alone else None,
            }
            for row in walk
        ],
    }


def _way(question: str, walk: Sequence[Row]) -> Figure:
    """The walk as a picture. Units change on the way, so every estimate is told in its own standard errors."""
    shown = []
    for row in walk:
        known = row["estimate"] is not None and row["se"]
        ends = [
            row[k] / row["se"] if known and row[k] is not None else None for k in ("estimate", "lo", "hi")
        ]
        kind = "pair" if row["step"] else "random_feature"
        shown.append(
            (CHOICES[row["choice"]][0], [Bar(kind, ends[0], ends[1], ends[2], _value(row) if known else "")])
        )
    title = QUESTIONS[question]
    return Figure(title, dot_plot(shown, title=title, x_label="estimate over its standard error"), "")


def _words(question: str, row: Row, *, steered: str) -> str:
    paper = "c after" if question == "slope_a" else "relative change of c"
    return CHOICES[row["choice"]][1].format(
        paper=paper, strict=words.outcome(row["outcome"]), steered=steered
    )


def _cell(row: Row, *, mark: str = "") -> dict[str, str]:
    """Estimate, interval and p of a row, in its unit."""
    if row["estimate"] is None:
        return {"estimate": "–", "mark": "", "interval": visible(row["note"] or ""), "p": ""}
    between = "(no interval)"
    if row["lo"] is not None:
        scale = _scale(row)
        between = f"({interval(scale * row['lo'], scale * row['hi'])})"
    said = "" if row["p"] is None else p_value(row["p"], name="p")
    return {"estimate": _value(row), "mark": mark, "interval": between, "p": said}


def _scale(row: Row) -> float:
    """Relative changes are told in per cent."""
    return 100.0 if row["unit"].startswith("relative change") else 1.0


def _value(row: Row, *, unit: bool = True) -> str:
    """The estimate of a row with its unit; that of a slope is per 1.0 of interference."""
    shown = {"relative change": "%", "cosine": "of c"}
    per = row["unit"].removesuffix(" per cosine").removesuffix(" per bin")
    text = number(_scale(row) * row["estimate"], sign=row["choice"] != "kl_of_best")
    return f"{text} {shown.get(per, per)}" if unit else text


def _why(question: str, walk: Sequence[Row], *, steered: str) -> list[str]:
    """The steps that matter, in words; a walk without its ends has none."""
    said = []
    for before, now in pairwise(walk):
        if before["estimate"] is None or now["estimate"] is None:
            continue
        flips = _excludes(before) != _excludes(now)
        what = _words(question, now, steered=steered)
        if now["choice"] == "errors":
            said.append(f"{what}: {_wider(before, now)}")
        elif before["unit"] != now["unit"]:
            clear = f"; estimate over its error {_t(before)} → {_t(now)}"
            said.append(f"{what}: now {_value(now)}{clear}")
        elif flips or abs(now["estimate"] - before["estimate"]) > NOTABLE * max(
            abs(before["estimate"]), abs(now["estimate"])
        ):
            tail = f" ({p_value(before['p'], name='p')} → {p_value(now['p'])})" if flips else ""
            said.append(f"{what}: {_value(before, unit=False)} → {_value(now)}{tail}")
    return said


def _wider(before: Row, now: Row) -> str:
    if before["se"] is None or now["se"] is None or not before["se"]:
        return "no interval to compare"
    ratio = (now["hi"] - now["lo"]) / (before["hi"] - before["lo"])
    return f"the interval is {number(ratio, digits=2)} times as wide ({p_value(before['p'], name='p')} → {p_value(now['p'])})"


def _excludes(row: Row) -> bool:
    return row["p"] is not None and row["p"] < 1 - row["level"]


def _t(row: Row) -> str:
    return "–" if not row["se"] else number(row["estimate"] / row["se"], digits=2, sign=True)


def _optimism(walks: Mapping[tuple[str, str], Sequence[Row]]) -> list[dict[str, str]]:
    """By relation: what the paper's plots would show, and what is left when the choice is made elsewhere."""
    order = words.in_order(RELATIONS, (relation for _, relation in walks))
    found = []
    for (question, relation), rows in walks.items():
        at = {r["choice"]: r for r in rows if r["path"] == "optimism"}
        plotted = next(r for r in rows if r["path"] == "walk" and r["step"] == 0)
        if question != "mean" or at["same_on_confirm"]["estimate"] is None:
            continue
        gap = at["optimism_per_prompt"]
        row = {
            "relation": words.relation(relation).label,
            "plotted": "–" if plotted["estimate"] is None else _value(plotted),
            **{name: _value(at[name]) for name in ("best_per_prompt", "best_on_select", "same_on_confirm")},
            "gap": _cell(gap)["estimate"],
            "gap_interval": _cell(gap)["interval"],
            "kl": _value(at["kl_of_best"]) if at["kl_of_best"]["estimate"] is not None else "–",
            "n": count(gap["n_pairs"]),
        }
        found.append((order.index(relation), row))
    return [row for _, row in sorted(found, key=lambda item: item[0])]


def _null(walks: Mapping[tuple[str, str], Sequence[Row]]) -> str:
    """What the search finds for directions that aim at nothing; "" where none was run."""
    at = {r["choice"]: r for r in walks.get(("mean", "isotropic"), ()) if r["path"] == "optimism"}
    if not at or at["best_per_prompt"]["estimate"] is None:
        return ""
    return (
        f"Isotropic random directions aim at nothing. The paper's search still gives them a mean “effect” of "
        f"{_value(at['best_per_prompt'])}; with the strength chosen on other prompts it is "
        f"{_value(at['same_on_confirm'])}."
    )
