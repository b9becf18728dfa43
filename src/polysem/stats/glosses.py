"""How well gloss similarity is measured in a study, and the effect of interference with that noise taken out.

One row per locus and token set, where the plan has a second measure of gloss similarity (a second gloss, or a second
embedder); without one there is nothing to judge the first by, and no row.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from polysem.errors import ConfigError
from polysem.stats.reliability import instrumented, reliability
from polysem.stats.rows import View
from polysem.store.tables import RELIABILITY


def gloss_reliability(signals: pa.Table, views: Sequence[View]) -> pa.Table:
    """RELIABILITY of the pairs at the headline dose of every locus.

    Args:
        signals: SIGNALS.
        views: the arms of every locus at its headline dose.
    """
    second = {
        (r["sae"], r["target"], r["source"]): (r["similarity_2"], r["measure_2"])
        for r in signals.to_pylist()
        if r["similarity_2"] is not None
    }
    rows = []
    for view in views if second else ():
        for token_set in sorted(set(view.columns["token_set"].tolist())):
            row = _row(view, token_set, second)
            if row is not None:
                rows.append(row)
    return RELIABILITY.conform(pa.Table.from_pylist(rows, schema=RELIABILITY.arrow()))


def _row(
    view: View, token_set: str, second: dict[tuple[str, int, int], tuple[float, str]]
) -> dict[str, object] | None:
    c = view.columns
    chosen = view.where(token_set=token_set, relation="pair")
    for name in ("interference", "similarity", "logodds"):
        chosen &= np.isfinite(c[name])
    keys = [
        (sae, int(target), int(source))
        for sae, target, source in zip(c["sae"], c["target"], c["source"], strict=True)
    ]
    chosen &= np.array([key in second for key in keys], dtype=bool)
    measures = sorted({second[key][1] for key, here in zip(keys, chosen, strict=True) if here})
    if not chosen.any():
        return None
    two = np.array([second[key][0] for key, here in zip(keys, chosen, strict=True) if here])
    numbers = ("r", "r_lo", "r_hi", "naive", "corrected", "lo", "hi", "p", "similarity", "first_stage_f")
    row: dict[str, object] = {}
    row |= dict.fromkeys((*numbers, "note"))
    row |= {
        "locus": view.locus,
        "token_set": token_set,
        "measure": " and ".join(measures),
        "level": view.level,
    }
    row |= {"n_pairs": int(chosen.sum()), "unit": "nats per cosine"}
    try:
        agreement = reliability(c["similarity"][chosen], two, level=view.level)
        row |= {"r": agreement.r, "r_lo": agreement.lo, "r_hi": agreement.hi}
        found = instrumented(
            c["logodds"][chosen],
            c["interference"][chosen],
            c["similarity"][chosen],
            two,
            view.clusters[chosen],
            level=view.level,
        )
    except ConfigError as error:
        return row | {"note": f"not estimated: {str(error).splitlines()[0]}"}
    values = {
        name: getattr(found, name)
        for name in ("naive", "corrected", "lo", "hi", "p", "similarity", "first_stage_f")
    }
    known = {name: float(value) if np.isfinite(value) else None for name, value in values.items()}
    return row | known | {"note": found.remark or None}
