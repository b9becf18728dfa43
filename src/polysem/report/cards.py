"""The drawings of an opened row: change over dose of its pair at every locus, and how strongly its features fire."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from polysem.config import Study
from polysem.report.charts import Curve
from polysem.report.pairs import Key, PairRow
from polysem.report.panels import LOCI, RELATIONS, TOKENS, Locus
from polysem.report.small_charts import Floor, histogram, pair_doses
from polysem.report.source import Run
from polysem.report.text import plural

MAX_CURVES = 360
"""drawings of pairs in one report, about 2 kB each; the explorer draws the others"""
BINS = 20
FLOORS = ("random_direction", "isotropic", "rotated", "random_feature")
"""controls that say what any push does, the best first; the first that a locus has is its floor"""
_CENTRAL = (0.025, 0.975)
Pair = tuple[str, int, int]


class Drawn(NamedTuple):
    """One drawing of an opened row."""

    of: str
    """`sae/i/j` or `sae/feature`: the row or column that shows it"""
    title: str
    drawing: Markup
    caption: str
    keys: list[tuple[str, str]]
    """of the lines: (kind, words)"""


def curves(
    loci: Sequence[Locus], rows: Sequence[PairRow], *, study: Study, units: Mapping[str, str]
) -> tuple[list[Drawn], int]:
    """Drawings of measured pairs in the order of the table, and how many pairs have them.

    Args:
        units: locus -> what its dose counts, in words.
    """
    measured = [_by_pair(locus) for locus in loci]
    found: list[Drawn] = []
    n_pairs = 0
    for row in rows:
        own = [
            drawn
            for locus, by_pair in zip(loci, measured, strict=True)
            for drawn in _of_pair(row, locus, by_pair, study=study, unit=units[locus.name])
        ]
        if own and len(found) + len(own) > MAX_CURVES:
            break
        found += own
        n_pairs += bool(own)
    return found, n_pairs


def _by_pair(locus: Locus) -> dict[Pair, list[dict[str, Any]]]:
    """Measured effects of pairs at all doses."""
    found: dict[Pair, list[dict[str, Any]]] = {}
    for r in locus.kl.filter(pc.equal(locus.kl["relation"], "pair")).to_pylist():
        key = (r["sae"], min(r["source"], r["target"]), max(r["source"], r["target"]))
        found.setdefault(key, []).append(r)
    return found


def _of_pair(
    row: PairRow, locus: Locus, by_pair: Mapping[Pair, list[dict[str, Any]]], *, study: Study, unit: str
) -> list[Drawn]:
    found = []
    own = by_pair.get((row.sae, row.i, row.j), [])
    for tokens in locus.token_sets:
        lines, keys = [], []
        for source, target, kind in ((row.i, row.j, "pair"), (row.j, row.i, "self")):
            points = [
                (r["dose"], r["logodds"], *_ends(r, study.effects.level))
                for r in own
                if (r["source"], r["target"], r["token_set"]) == (source, target, tokens)
            ]
            if points:
                keys.append((kind, f"{source} pushed, {target} read"))
                lines.append(Curve(keys[-1][1], kind, points))
        if not lines:
            continue
        relation, floor, n = noise_floor(locus, sae=row.sae, tokens=tokens)
        title = f"{LOCI[locus.name]}: {TOKENS[tokens]}"
        drawing = pair_doses(
            lines,
            floor=floor,
            title=title,
            x_label=f"dose ({unit})",
            headline=locus.dose,
            by_root=study.plan.dose_unit == "kl" and locus.name not in ("prompt", "clamp"),
        )
        caption = f"Bars: {100 * study.effects.level:g} % intervals over prompts."
        if floor:
            caption += f" Shaded: the noise floor, where 95 % of {n} {RELATIONS[relation]} lie."
        found.append(Drawn(f"{row.sae}/{row.i}/{row.j}", title, drawing, caption, keys))
    return found


def _ends(row: Mapping[str, Any], level: float) -> tuple[float | None, float | None]:
    """The interval of a pair's effect over its prompts (Student's t)."""
    half = half_width(row["logodds_se"], row["n_prompts"], level=level)
    return (None, None) if half is None else (row["logodds"] - half, row["logodds"] + half)


def half_width(se: float | None, n: int, *, level: float) -> float | None:
    """Half the width of the interval of a mean of `n` values with standard error `se`; None without one."""
    from scipy.special import stdtrit

    return None if se is None or n < 2 else float(stdtrit(n - 1, 0.5 + level / 2)) * se


def noise_floor(locus: Locus, *, sae: str, tokens: str) -> tuple[str, list[Floor], int]:
    """Which control it is, the central 95 % of its effects at every dose, and how many effects there are at one."""
    table = locus.kl.filter(
        pc.and_(pc.equal(locus.kl["sae"], sae), pc.equal(locus.kl["token_set"], tokens))
    ).select(["relation", "dose", "logodds"])
    for relation in FLOORS:
        rows: pa.Table = table.filter(pc.equal(table["relation"], relation))
        if rows.num_rows:
            doses, effects = rows["dose"].to_numpy(), rows["logodds"].to_numpy()
            at = [effects[doses == dose] for dose in np.unique(doses)]
            ends = [np.quantile(values, _CENTRAL) for values in at]
            floor = [
                Floor(float(d), float(e[0]), float(e[1])) for d, e in zip(np.unique(doses), ends, strict=True)
            ]
            return relation, floor, max(len(values) for values in at)
    return "", [], 0


def activations(run: Run, wanted: set[Key]) -> list[Drawn]:
    """A histogram of the activations above 0 in the stored contexts of every feature that has any."""
    ids = sorted({feature for _, feature in wanted})
    table = run.table("contexts", columns=("sae", "feature", "values"), where=pc.field("feature").isin(ids))
    values: dict[Key, list[float]] = {}
    for row in table.to_pylist():
        key = (row["sae"], row["feature"])
        if key in wanted:
            values.setdefault(key, []).extend(v for v in row["values"] if v is not None and v > 0)
    found = []
    for (sae, feature), seen in sorted(values.items()):
        if not seen:
            continue
        counts, edges = np.histogram(seen, bins=BINS, range=(0.0, max(seen)))
        title = "How strongly it fires"
        drawing = histogram(edges.tolist(), counts.tolist(), title=title, x_label="activation")
        caption = f"{plural(len(seen), 'activation')} above 0 in the stored top contexts."
        found.append(Drawn(f"{sae}/{feature}", title, drawing, caption, []))
    return found
