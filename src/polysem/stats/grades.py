"""Which word a finding deserves: *predicts* where it is significant, robust and predictive, *associated* where it is
significant and another grade does not agree.

A small p of one regression says that luck alone does not make such a slope. It does not say that the slope is there under
other choices, in each SAE, without the pairs of one bin, as a straight line, or that it tells anything of a target or a
source that the regression has not seen. Each of these is a line (`vocabulary_findings.GRADE_LINES`), computed here once,
with its sentence; a grade agrees where all of its lines do, and the report, the explorer and the Python session only repeat.

A line that cannot be asked (a single SAE; no curve for a mean) is `untested` and neither helps nor hurts; a grade without
any tested line is `untested` itself and withholds the word *predicts*. Nothing is told beyond the 95th percentile of
|interference| of the pairs used (`reach`). How often each grade is given where there is nothing, and where there is
something, stands in docs/effects.md. Cost: about twenty regressions per finding.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from polysem.seeds import rng_for
from polysem.stats.contrasts import (
    GEOMETRY,
    RECORD,
    bins_of,
    coefficient,
    differences,
    sign_agreement,
    slopes,
)
from polysem.stats.explain import held_out_r2
from polysem.stats.multiple import adjust_p
from polysem.stats.rows import POOLED, Row, Rows, View, parse_group, reach
from polysem.vocabulary_findings import CLAIMS, GRADE_LINES, GRADES, Verdict

SLOPE = "slope_interference"
MIN_BEYOND = 8
"""pairs on either side of a bend; with fewer it is not looked for"""


class GradedLine(NamedTuple):
    """One line of GRADED."""

    line: str
    verdict: Verdict
    said: str
    estimate: float | None = None
    lo: float | None = None
    hi: float | None = None
    p: float | None = None


def graded(
    view: View, rows: Rows, tested: Rows, *, declared: bool, specification: Rows, explained: Rows, seed: int
) -> tuple[Rows, Rows]:
    """FINDINGS and GRADED of one locus.

    Args:
        rows: EFFECTS of the view, with `p_adj`.
        tested: those of them that answer a declared question, or would in the first locus.
        declared: whether this is the first locus.
        specification: SPECIFICATION of the view.
        explained: EXPLAINED of the view; empty where no models were compared.
        seed: of the intervals of held-out R2.
    """
    findings: Rows = []
    lines: Rows = []
    for row in tested:
        tokens = parse_group(str(row["group"]))["tokens"]
        given = [_declared(row, declared)]
        if isinstance(row["p"], float):
            own = [r for r in specification if r["token_set"] == tokens]
            given += [*_robust(view, row, rows, own), *_predictive(view, row, tokens, explained, seed=seed)]
        key = {"contrast": row["contrast"], "group": row["group"]}
        lines += [key | line._asdict() | {"grade": GRADE_LINES[line.line].grade} for line in given]
        grades: dict[str, Verdict] = {
            name: grade_of([x for x in given if GRADE_LINES[x.line].grade == name]) for name in GRADES
        }
        against = "; ".join(
            x.said for x in given if grades[GRADE_LINES[x.line].grade] == x.verdict != "agrees"
        )
        pairs = view.known(_outcome(row), "interference", relation="pair", token_set=tokens)
        # A slope's margin rests on the reach of the very pairs that entered it.
        margin = row["margin"] if row["contrast"] == SLOPE else None
        own_reach = reach(view.columns["interference"][pairs])
        far = view.margin / margin if isinstance(margin, float) else own_reach
        findings.append(
            key
            | {"locus": view.locus, "token_set": tokens, "declared": declared}
            | {"claim": claim_of(row, grades, declared=declared), **grades}
            | {"reach": far if np.isfinite(far) else None, "against": against or None}
        )
    return findings, lines


def grade_of(lines: Iterable[GradedLine]) -> Verdict:
    """disagrees where a line does; agrees where one does and none disagrees; untested otherwise."""
    seen = {line.verdict for line in lines}
    return "disagrees" if "disagrees" in seen else "agrees" if "agrees" in seen else "untested"


def claim_of(row: Mapping[str, object], grades: Mapping[str, Verdict], *, declared: bool = True) -> str:
    """The member of CLAIMS that a row of EFFECTS and its grades allow."""
    alpha = _alpha(row)
    equal = _below(row["p_equivalent"], alpha)
    if row["estimate"] is None or row["p"] is None:
        name = "not_estimated" if row["estimate"] is None else "no_interval"
    elif not declared:
        name = "undeclared"
    elif not _below(row["p_adj"], alpha):
        name = "no_effect" if equal else "not_resolved"
    elif equal:
        name = "too_small"
    else:
        name = "predicts" if all(v == "agrees" for v in grades.values()) else "associated"
    return CLAIMS[name].name


def _declared(row: Row, declared: bool) -> GradedLine:
    p = row["p_adj"]
    if not isinstance(p, float):
        return GradedLine(
            "adjusted_p", "untested", "there is no p value" if declared else "not a declared question"
        )
    if not p < _alpha(row):
        return GradedLine("adjusted_p", "disagrees", f"adjusted {_p(p)}", p=p)
    if _below(row["p_equivalent"], _alpha(row)):
        return GradedLine("adjusted_p", "disagrees", "shown to be too small to matter", p=p)
    return GradedLine("adjusted_p", "agrees", f"adjusted {_p(p)}", p=p)


def _robust(view: View, row: Row, rows: Rows, specification: Rows) -> Iterator[GradedLine]:
    if row["contrast"] == SLOPE:
        yield _specification(row, specification)
        yield _linearity(view, row)
    yield _each_sae(row, rows)
    yield _without_a_bin(view, row)


def _predictive(view: View, row: Row, tokens: str, explained: Rows, *, seed: int) -> Iterator[GradedLine]:
    for column, unseen in enumerate(("targets", "sources")):
        found = next(
            (
                r
                for r in explained
                if (r["token_set"], r["model"], r["unseen"]) == (tokens, "cosine", unseen)
                and row["contrast"] == SLOPE
            ),
            None,
        ) or _held_out(view, row, column, seed=seed)
        yield _r2(f"unseen_{unseen}", found, unseen)


def _r2(line: str, found: Mapping[str, object], unseen: str) -> GradedLine:
    r2, lo, hi = (found[k] for k in ("r2", "lo", "hi"))
    if not (isinstance(r2, float) and isinstance(lo, float) and isinstance(hi, float)):
        return GradedLine(line, "untested", f"R² for unseen {unseen} cannot be had: {found['note']}")
    ahead = lo > 0
    said = f"R² for unseen {unseen} is {_signed(r2)} ({_signed(lo)} to {_signed(hi)}){'' if ahead else ', not above zero'}"
    return GradedLine(line, "agrees" if ahead else "disagrees", said, r2, lo, hi)


def _held_out(view: View, row: Row, column: int, *, seed: int) -> Row:
    """Held-out R2 of what the contrast is about: interference, its sign, or which of two kinds of arms an arm is of."""
    c, contrast, outcome = view.columns, str(row["contrast"]), _outcome(row)
    tokens = parse_group(str(row["group"]))["tokens"]
    sides = {"geometry_effect": GEOMETRY}.get(contrast, ("pair", contrast.removeprefix("pair_minus_")))
    mine, other = (view.known(outcome, token_set=tokens, relation=name) for name in sides)
    if contrast == SLOPE:
        used = mine & np.isfinite(c["interference"])
        x = c["interference"][used]
    elif contrast == "sign_agreement":
        both = mine | view.known(outcome, token_set=tokens, relation="negative_pair")
        used = both & np.isfinite(c["interference"])
        x = np.sign(c["interference"][used])
    else:
        used = mine | other
        x = mine[used].astype(np.float64)
    if not len(x) or not np.ptp(x) > 0:
        return {
            "r2": None,
            "lo": None,
            "hi": None,
            "note": "there is nothing to tell apart, all are of one kind",
        }
    rng = rng_for(seed, "explained", view.locus, tokens, ("targets", "sources")[column])
    design = np.column_stack([np.ones(len(x)), x])
    return held_out_r2(c[outcome][used], design, view.clusters[used, column], level=view.level, rng=rng)


def _specification(row: Row, specification: Rows) -> GradedLine:
    slopes_ = [float(str(r["estimate"])) for r in specification if r["estimate"] is not None]
    p = specification[0]["p_joint"] if specification else None
    if not isinstance(p, float) or not slopes_:
        return GradedLine("specification", "untested", "too few pairs for a specification curve")
    if np.median(slopes_) * _estimate(row) <= 0:
        return GradedLine(
            "specification", "disagrees", "most other choices of pairs give the other sign", p=p
        )
    if not p < _alpha(row):
        return GradedLine(
            "specification",
            "disagrees",
            f"other choices of pairs, taken together, are within chance (joint {_p(p)})",
            p=p,
        )
    return GradedLine("specification", "agrees", f"other choices of pairs say the same (joint {_p(p)})", p=p)


def _linearity(view: View, row: Row) -> GradedLine:
    """A hinge at the lower end of each bin but the first, one at a time; Holm over them."""
    parts = parse_group(str(row["group"]))
    planned = view.where(sae=parts["sae"], token_set=parts["tokens"], relation="pair")
    c = view.columns
    size = np.abs(c["interference"])
    known = planned & np.isfinite(size) & np.isfinite(c[parts["outcome"]])
    bends: list[tuple[float, Row]] = []
    for _, own in bins_of(view, known)[1:]:
        knot = float(size[own].min())
        beyond = known & (size > knot)
        if min(beyond.sum(), (known & ~beyond).sum()) < MIN_BEYOND:
            continue
        hinge = np.sign(c["interference"]) * np.maximum(size - knot, 0.0)
        bent = coefficient(
            replace(view, columns={**c, "hinge": hinge}),
            "linearity",
            str(row["group"]),
            planned=planned,
            outcome=parts["outcome"],
            regressors=(*RECORD, "hinge"),
            wanted="hinge",
            factor="target",
            unit=str(row["unit"]),
        )
        if isinstance(bent["p"], float):
            bends.append((knot, bent))
    if not bends:
        return GradedLine("linearity", "untested", "too few pairs to look for a bend")
    adjusted = adjust_p(np.array([float(str(b["p"])) for _, b in bends]), method="holm")
    worst = int(np.argmin(adjusted))
    knot, bent = bends[worst]
    p = float(adjusted[worst])
    numbers = {k: v for k in ("estimate", "lo", "hi") if isinstance(v := bent[k], float)}
    if p < _alpha(row):
        said = f"the line bends at {knot:.2f} ({_p(p)})"
        return GradedLine("linearity", "disagrees", said, **numbers, p=p)
    return GradedLine("linearity", "agrees", f"no bend is seen ({_p(p)})", **numbers, p=p)


def _each_sae(row: Row, rows: Rows) -> GradedLine:
    parts = parse_group(str(row["group"]))
    own = [(s, r) for r in rows if r["contrast"] == row["contrast"] and (s := _same_but(r, parts, "sae"))]
    own = [(sae, r) for sae, r in own if sae != POOLED]
    if len(own) < 2:
        return GradedLine("each_sae", "untested", "there is one SAE")
    weak = _weakest(row, own)
    if weak is None:
        return GradedLine("each_sae", "agrees", f"each of {len(own)} SAEs shows it alone")
    sae, found, why = weak
    return GradedLine("each_sae", "disagrees", f"not in every SAE: {sae} alone {why}", **_numbers(found))


def _without_a_bin(view: View, row: Row) -> GradedLine:
    parts = parse_group(str(row["group"]))
    pairs = view.where(token_set=parts["tokens"], relation="pair")
    pairs &= np.isfinite(view.columns["interference"])
    bins = bins_of(view, pairs)
    if len(bins) < 2:
        return GradedLine("without_a_bin", "untested", "the pairs are of one bin of interference")
    found: list[tuple[str, Row]] = []
    for _, own in bins:
        size = np.abs(view.columns["interference"][own])
        rest = _again(view.kept_only(~own), str(row["contrast"]), str(row["group"]))
        found.append((f"{size.min():.2f} to {size.max():.2f}", rest))
    weak = _weakest(row, found)
    if weak is None:
        return GradedLine("without_a_bin", "agrees", "it stands without the pairs of any one bin")
    name, rest, why = weak
    return GradedLine("without_a_bin", "disagrees", f"without the pairs at {name} it {why}", **_numbers(rest))


def _weakest(row: Row, found: Iterable[tuple[str, Row]]) -> tuple[str, Row, str] | None:
    """The one that is furthest from showing what the row shows, and what it shows; None where all show it."""
    against: list[tuple[float, str, Row, str]] = []
    for name, other in found:
        p = other["p"]
        if not isinstance(p, float):
            against.append((2.0, name, other, "cannot be judged"))
        elif (_estimate(other) - _null(row)) * (_estimate(row) - _null(row)) <= 0:
            against.append((3.0 - p, name, other, f"has the other sign ({_p(p)})"))
        elif not p < _alpha(row):
            against.append((p, name, other, f"has {_p(p)}"))
    if not against:
        return None
    _, name, other, why = max(against, key=itemgetter(0))
    return name, other, why


def _again(view: View, contrast: str, group: str) -> Row:
    """The row of the same contrast and group, estimated on this view."""
    parts = parse_group(group)
    asked = {"sae": parts["sae"], "tokens": parts["tokens"], "outcome": parts["outcome"]}
    if contrast.startswith("slope_"):
        made = slopes(view, **asked)
    elif contrast == "sign_agreement":
        made = iter([sign_agreement(view, **asked)])
    else:
        made = differences(view, **asked, only=contrast)
    nothing: Row = {"estimate": None, "lo": None, "hi": None, "p": None}
    return next((r for r in made if (r["contrast"], r["group"]) == (contrast, group)), nothing)


def _same_but(row: Row, parts: Mapping[str, str], free: str) -> str:
    """The value of `free` in the row's group where all else is as in `parts`; "" where something differs."""
    own = parse_group(str(row["group"]))
    same = {k: v for k, v in own.items() if k != free} == {k: v for k, v in parts.items() if k != free}
    return own.get(free, "") if same else ""


def _numbers(row: Row) -> dict[str, float]:
    return {k: v for k in ("estimate", "lo", "hi", "p") if isinstance(v := row[k], float)}


def _estimate(row: Row) -> float:
    return float(str(row["estimate"]))


def _outcome(row: Row) -> str:
    return parse_group(str(row["group"]))["outcome"]


def _null(row: Row) -> float:
    return 0.5 if row["contrast"] == "sign_agreement" else 0.0


def _alpha(row: Mapping[str, object]) -> float:
    return 1 - float(str(row["level"]))


def _below(p: object, alpha: float) -> bool:
    return isinstance(p, float) and p < alpha


def _p(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
