"""The drawings of an opened row: change over dose of its pair at every locus, and how strongly its features fire."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.report import words
from polysem.report.charts import PREDICTED, Curve, Floor, histogram, pair_doses
from polysem.report.html import Figure
from polysem.report.pairs import Key
from polysem.report.panels import LocusSection
from polysem.report.source import Tables, where
from polysem.report.text import plural

MAX_CURVES = 360
"""drawings of pairs in one report, about 2 kB each; the explorer draws the others"""
BINS = 20
_CENTRAL = (0.025, 0.975)
Pair = tuple[str, int, int]
"""SAE, i, j; i < j"""


def curves(
    loci: Sequence[LocusSection], pairs: Sequence[Pair], *, level: float, response: pa.Table
) -> tuple[list[Figure], int]:
    """Drawings of measured pairs in their order, and how many pairs have them; intervals at `level`, and what
    linear response predicts where RESPONSE holds it."""
    tables = [_by_pair(table, set(pairs)) for table in (*(locus.kl for locus in loci), response)]
    found: list[Figure] = []
    n_pairs = 0
    for pair in pairs:
        *effects, linear = (by_pair.get(pair, []) for by_pair in tables)
        own: list[Figure] = []
        for locus, mine in zip(loci, effects, strict=True):
            told = [r for r in linear if r["locus"] == locus.name]
            own += _of_pair(pair, locus, mine, told, level=level)
        if own and len(found) + len(own) > MAX_CURVES:
            break
        found += own
        n_pairs += bool(own)
    return found, n_pairs


def _by_pair(table: pa.Table, wanted: set[Pair]) -> dict[Pair, list[dict[str, Any]]]:
    """The rows of pairs at all doses, of those pairs that are wanted."""
    ids = pa.array(sorted({feature for _, i, j in wanted for feature in (i, j)}), type=pa.int64())
    mine = where(table, relation="pair")
    for side in ("source", "target"):
        mine = mine.filter(pc.is_in(mine[side].cast(pa.int64()), ids))
    found: dict[Pair, list[dict[str, Any]]] = {}
    for r in mine.to_pylist():
        key = (r["sae"], min(r["source"], r["target"]), max(r["source"], r["target"]))
        if key in wanted:
            found.setdefault(key, []).append(r)
    return found


def _of_pair(
    pair: Pair,
    locus: LocusSection,
    effects: Sequence[Mapping[str, Any]],
    linear: Sequence[Mapping[str, Any]],
    *,
    level: float,
) -> Iterator[Figure]:
    sae, i, j = pair
    for tokens in locus.token_sets:
        lines, keys, predicted = [], [], []
        for source, target, kind in ((i, j, "pair"), (j, i, "self")):
            way = (source, target, tokens)
            points = [
                (r["dose"], r["logodds"], *interval_of(r, level=level))
                for r in effects
                if (r["source"], r["target"], r["token_set"]) == way
            ]
            if not points:
                continue
            keys.append((kind, f"{source} steered, {target} read"))
            lines.append(Curve(keys[-1][1], kind, points))
            told = [r for r in linear if (r["source"], r["target"], r["token_set"]) == way]
            points = [(r["dose"], r["linear"], None, None) for r in told if r["linear"] is not None]
            if points:
                predicted.append(Curve("predicted", PREDICTED, points))
        if not lines:
            continue
        if predicted:
            keys.append((PREDICTED, "predicted by linear response"))
        relation, floor, n = noise_floor(locus, sae=sae, tokens=tokens)
        title = f"{words.locus(locus.name)}: {words.tokens(tokens)}"
        drawing = pair_doses(
            lines,
            floor=floor,
            title=title,
            x_label=f"dose ({locus.axis})",
            headline=locus.dose,
            by_root=locus.unit.name == "kl",
            predicted=predicted,
        )
        caption = f"Bars: {100 * level:g} % intervals over prompts."
        if floor:
            caption += f" Shaded: the noise floor, where 95 % of {n} {words.relation(relation).label} lie."
        yield Figure(title, drawing, caption, keys, f"{sae}/{i}/{j}")


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


def activations(run: Tables, wanted: set[Key], *, sae: str | None = None) -> list[Figure]:
    """A histogram of the activations above 0 in the stored contexts of every feature that has any; all of one SAE, if it is
    named."""
    ids = sorted({feature for _, feature in wanted})
    mine = pc.field("feature").isin(ids)
    mine = mine if sae is None else mine & (pc.field("sae") == sae)
    table = run.table("contexts", columns=("sae", "feature", "values"), where=mine)
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
        found.append(Figure(title, drawing, caption, of=f"{sae}/{feature}"))
    return found
