"""Two runs side by side: what was asked differently, how large each is, what each found, and the pairs that both have.

Nothing is tested here. Two runs may share model, prompts and pairs, so their estimates are not independent, and an interval
of their difference cannot be had from the two: it is only said whether the intervals overlap.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from polysem.report import panels
from polysem.report.findings import as_told, finding
from polysem.report.html import MISSING, Column, interval, table
from polysem.report.source import Run, where
from polysem.report.text import count, number, plural, visible
from polysem.stats import HYPOTHESES, POOLED

LEAST = 3
"""pairs for a rank correlation"""


def findings(run: Run) -> list[dict[str, Any]]:
    """What a run has to say to the declared hypotheses at its first locus: question, claim and numbers as told; empty
    where effects are not estimated."""
    found = panels.loci(run)
    told = []
    for contrast, parts in HYPOTHESES if found else ():
        row, of = found[0].row(contrast, sae=POOLED, **parts), found[0].told(contrast, **parts)
        if row and of:
            one = finding(row, of, of["lines"], margin=run.study.effects.margin)
            known = {
                "contrast": contrast,
                "token_set": parts["tokens"],
                "locus": found[0].name,
                "dose": found[0].dose,
            }
            _, share, what = as_told(contrast, reach=of["reach"] or float("nan"))
            unit = "share beyond one half" if share else "nats"
            numbers = {"estimate": one.estimate, "lo": one.lo, "hi": one.hi, "unit": unit, "what": what}
            told.append(known | {"question": one.question, "claim": one.claim} | numbers)
    return told


def compare(a: Run, b: Run) -> dict[str, Any]:
    """Both runs, as plain values: `settings` {key: [a, b]} that differ, `sizes`, `findings` and `pairs`."""
    asked = [flat(run.study.model_dump(mode="json")) for run in (a, b)]
    keys = sorted(set(asked[0]) | set(asked[1]))
    differ = {k: [own.get(k) for own in asked] for k in keys if asked[0].get(k) != asked[1].get(k)}
    sizes = [_sizes(run) for run in (a, b)]
    told = [{(f["contrast"], f["token_set"]): f for f in findings(run)} for run in (a, b)]
    names = list(dict.fromkeys([*told[0], *told[1]]))
    return {
        "runs": [str(run.folder) for run in (a, b)],
        "settings": differ,
        "sizes": {k: [own[k] for own in sizes] for k in sizes[0]},
        "findings": [_beside(*(own.get(name) for own in told)) for name in names],
        "pairs": _shared(a, b),
    }


def body(found: Mapping[str, Any]) -> Markup:
    """What `compare` found, as HTML."""
    parts = [Path(name).parts for name in found["runs"]]
    last = 1 if parts[0][-1:] != parts[1][-1:] else 2  # two folders of one name are told by what they lie in
    a, b = (f"{side}: {visible('/'.join(own[-last:]))}" for side, own in zip("AB", parts, strict=True))
    sizes = [{"what": k, "a": count(v[0]), "b": count(v[1])} for k, v in found["sizes"].items()]
    settings = [{"what": k, "a": str(v[0]), "b": str(v[1])} for k, v in found["settings"].items()]
    told: list[Column] = [
        ("question", lambda r: f"{r['question']} ({r['unit']})"),
        (a, lambda r: _told(r["a"])),
        (b, lambda r: _told(r["b"])),
        ("intervals overlap", lambda r: {None: MISSING, True: "yes", False: "no"}[r["intervals_overlap"]]),
    ]
    sides: list[Column] = [("", "what"), (a, "a"), (b, "b")]
    pairs = found["pairs"]
    rank, same = pairs["rank_correlation"], pairs["same_sign"]
    said = (
        f"{plural(pairs['listed_in_both'], 'pair')} listed in both; {plural(pairs['effects_in_both'], 'effect')} of a pair on "
        "a token set measured in both"
        + ("" if rank is None else f", rank correlation {number(rank)}")
        + ("" if same is None else f", {100 * same:.0f} % of the same sign")
        + ". Nothing is tested: the runs may share model, prompts and pairs."
    )
    return Markup("<h2>Two runs</h2>{}{}{}<p>{}</p>").format(
        table(told, found["findings"], caption="findings"),
        table(sides, sizes, caption="sizes"),
        table(sides, settings, caption="settings that differ")
        if settings
        else Markup("<p>No setting differs.</p>"),
        said,
    )


def _told(row: Mapping[str, Any] | None) -> str:
    return MISSING if row is None else f"{row['claim']}: {interval(row)}"


def flat(value: object, at: str = "") -> dict[str, object]:
    """Nested settings or facts by dotted key."""
    if isinstance(value, Mapping):
        parts = [(f"{at}.{name}" if at else str(name), own) for name, own in value.items()]
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        parts = [(f"{at}[{n}]", own) for n, own in enumerate(value)]
    else:
        return {at: value}
    return {k: v for name, own in parts for k, v in flat(own, name).items()}


def _sizes(run: Run) -> dict[str, int | None]:
    missing = run.table("missing") if "effects" in run.manifests else None
    planned = None if missing is None else sum(missing["n_trials"].to_pylist())
    ok = None if missing is None else sum(where(missing, status="ok")["n_trials"].to_pylist())
    counts = {name: _rows(run, name) for name in ("features", "pairs")}
    return {"SAEs": len(run.study.saes), **counts, "trials": planned, "trials with an outcome": ok}


def _rows(run: Run, name: str) -> int | None:
    return run.table(name, columns=("sae",)).num_rows if name in run.tables() else None


def _beside(a: dict[str, Any] | None, b: dict[str, Any] | None) -> dict[str, Any]:
    """One question in both; None where a run does not ask it."""
    ends = [(f["lo"], f["hi"]) for f in (a, b) if f and f["lo"] is not None and f["hi"] is not None]
    known = a or b or {}
    overlap = None if len(ends) < 2 else ends[0][0] <= ends[1][1] and ends[1][0] <= ends[0][1]
    return {
        **{k: known[k] for k in ("contrast", "token_set", "question", "unit")},
        "a": a and {k: a[k] for k in ("claim", "estimate", "lo", "hi", "dose")},
        "b": b and {k: b[k] for k in ("claim", "estimate", "lo", "hi", "dose")},
        "intervals_overlap": overlap,
    }


def _shared(a: Run, b: Run) -> dict[str, Any]:
    """Listed pairs of SAEs that have the same label in both, and the effects of those that both steered."""
    listed = [
        set(
            zip(
                *(run.table("pairs", columns=("sae", "i", "j"))[k].to_pylist() for k in ("sae", "i", "j")),
                strict=True,
            )
        )
        for run in (a, b)
    ]
    steered = [_effects(run) for run in (a, b)]
    both = sorted(steered[0].keys() & steered[1].keys())
    x, y = (np.array([own[key] for key in both]) for own in steered)
    return {
        "listed": [len(own) for own in listed],
        "listed_in_both": len(listed[0] & listed[1]),
        "effects": [len(own) for own in steered],
        "effects_in_both": len(both),
        "rank_correlation": _rank_correlation(x, y),
        "same_sign": None if not len(both) else float((np.sign(x) == np.sign(y)).mean()),
    }


def _effects(run: Run) -> dict[tuple[Any, ...], float]:
    """Change in log-odds of every steered pair at the headline dose of the first locus, by (sae, source, target, tokens)."""
    found = panels.loci(run)
    rows = where(found[0].pair_effects, relation="pair").to_pylist() if found else []
    return {(r["sae"], r["source"], r["target"], r["token_set"]): r["logodds"] for r in rows}


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Spearman's; None for few pairs, or where one side does not vary."""
    from scipy.stats import rankdata

    if len(x) < LEAST or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
