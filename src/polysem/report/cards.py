"""The drawings of an opened row: change over dose of its pair at every locus, and how strongly its features fire."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyarrow.compute as pc
from markupsafe import Markup

from polysem.report import words
from polysem.report.charts import Curve, Floor, histogram, pair_doses
from polysem.report.pairs import Key
from polysem.report.panels import LocusSection
from polysem.report.source import Run, where
from polysem.report.text import plural

MAX_CURVES = 360
"""drawings of pairs in one report, about 2 kB each; the explorer draws the others"""
BINS = 20
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


@runtime_checkable
class OfPair(Protocol):
    """Whatever names a pair, i < j."""

    @property
    def sae(self) -> str: ...
    @property
    def i(self) -> int: ...
    @property
    def j(self) -> int: ...


def curves(loci: Sequence[LocusSection], rows: Sequence[OfPair], *, level: float) -> tuple[list[Drawn], int]:
    """Drawings of measured pairs in the order of the table, and how many pairs have them; intervals at `level`."""
    effects = [_by_pair(locus) for locus in loci]
    found: list[Drawn] = []
    n_pairs = 0
    for row in rows:
        own = [
            drawn
            for locus, by_pair in zip(loci, effects, strict=True)
            for drawn in _of_pair(row, locus, by_pair.get((row.sae, row.i, row.j), []), level=level)
        ]
        if own and len(found) + len(own) > MAX_CURVES:
            break
        found += own
        n_pairs += bool(own)
    return found, n_pairs


def _by_pair(locus: LocusSection) -> dict[Pair, list[dict[str, Any]]]:
    """Measured effects of pairs at all doses."""
    found: dict[Pair, list[dict[str, Any]]] = {}
    for r in where(locus.kl, relation="pair").to_pylist():
        key = (r["sae"], min(r["source"], r["target"]), max(r["source"], r["target"]))
        found.setdefault(key, []).append(r)
    return found


def _of_pair(
    row: OfPair, locus: LocusSection, effects: Sequence[Mapping[str, Any]], *, level: float
) -> Iterator[Drawn]:
    for tokens in locus.token_sets:
        lines, keys = [], []
        for source, target, kind in ((row.i, row.j, "pair"), (row.j, row.i, "self")):
            points = [
                (r["dose"], r["logodds"], *interval_of(r, level=level))
                for r in effects
                if (r["source"], r["target"], r["token_set"]) == (source, target, tokens)
            ]
            if points:
                keys.append((kind, f"{source} steered, {target} read"))
                lines.append(Curve(keys[-1][1], kind, points))
        if not lines:
            continue
        relation, floor, n = noise_floor(locus, sae=row.sae, tokens=tokens)
        title = f"{words.locus(locus.name)}: {words.tokens(tokens)}"
        drawing = pair_doses(
            lines,
            floor=floor,
            title=title,
            x_label=f"dose ({locus.axis})",
            headline=locus.dose,
            by_root=locus.unit.name == "kl",
        )
        caption = f"Bars: {100 * level:g} % intervals over prompts."
        if floor:
            caption += f" Shaded: the noise floor, where 95 % of {n} {words.relation(relation).label} lie."
        yield Drawn(f"{row.sae}/{row.i}/{row.j}", title, drawing, caption, keys)


def interval_of(row: Mapping[str, Any], *, level: float) -> tuple[float | None, float | None]:
    """The interval of a pair's effect over its prompts (Student's t); none without a standard error."""
    from scipy.special import stdtrit

    n, se = row["n_prompts"], row["logodds_se"]
    if se is None or n < 2:
        return None, None
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * se
    return row["logodds"] - half, row["logodds"] + half


def noise_floor(locus: LocusSection, *, sae: str, tokens: str) -> tuple[str, list[Floor], int]:
    """Which control it is, the central 95 % of its effects at every dose, and how many effects there are at one."""
    table = where(locus.kl, sae=sae, token_set=tokens).select(["relation", "dose", "logodds"])
    for relation in words.floors():
        rows = where(table, relation=relation)
        if rows.num_rows:
            doses, effects = rows["dose"].to_numpy(), rows["logodds"].to_numpy()
            at = {float(dose): effects[doses == dose] for dose in np.unique(doses)}
            floor = [Floor(dose, *np.quantile(values, _CENTRAL).tolist()) for dose, values in at.items()]
            return relation, floor, max(len(values) for values in at.values())
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
