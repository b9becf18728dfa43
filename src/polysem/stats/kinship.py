"""Pairs that have a relation (duplicates, parts, parents, ...) among those of a study: how many of the map, and the slope on
interference with and without them.

Slopes are those of record (`contrasts.slopes`, at the headline dose), estimated again on fewer pairs. Estimates of record keep all
pairs of the plan; these stand beside them. Pairs of which no relation is known stay.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.config import EffectsConfig
from polysem.hierarchy.known import BINS, kinds_of
from polysem.plan.strengths import own_strengths
from polysem.stats.arms import collect_arms, join_trials
from polysem.stats.contrasts import slopes
from polysem.stats.effects import views_of
from polysem.stats.guard import stopped
from polysem.stats.rows import POOLED, Rows
from polysem.store.tables import COVARIATES, RELATED_PAIRS, SLOPES_WITHOUT
from polysem.vocabulary import TOKEN_SETS
from polysem.vocabulary_findings import KINSHIPS


def related_pairs(
    pairs: pa.Table, relations: pa.Table, *, label: str, exclude: Collection[str] = ()
) -> pa.Table:
    """RELATED_PAIRS of one SAE: every bin of |interference| and relation of which the map has a pair.

    Args:
        pairs: PAIRS, of any SAEs.
        relations: RELATIONS of that SAE.
        exclude: relations that the study leaves out.
    """
    own = pairs.filter(pc.and_(pc.equal(pairs["sae"], label), pc.equal(pairs["sae_j"], label)))
    kinds = kinds_of(relations)
    ends = zip(own["i"].to_pylist(), own["j"].to_pylist(), strict=True)
    kind = [kinds.get(pair, "unrelated") for pair in ends]
    place = np.searchsorted(BINS, np.abs(own["interference"].to_numpy()), side="right") - 1
    flagged = pc.or_(own["is_duplicate"], own["is_dense"]).to_pylist()
    n = Counter(zip(place.tolist(), kind, strict=True))
    n_flagged = Counter((k, name) for k, name, f in zip(place.tolist(), kind, flagged, strict=True) if f)
    return RELATED_PAIRS.of_rows(
        {
            "sae": label, "low": low, "high": min(high, 1.0), "relation": name, "n_pairs": n[k, name],
            "n_flagged": n_flagged[k, name], "excluded": name in exclude,
        }
        for k, (low, high) in enumerate(pairwise(BINS))
        for name in KINSHIPS
        if n[k, name]
    )  # fmt: skip


def slopes_without(
    plan: pa.Table,
    trials: pa.Table,
    relations: Mapping[str, pa.Table],
    *,
    config: EffectsConfig,
    covariates: pa.Table | None = None,
    exclude: Collection[str] = (),
) -> pa.Table:
    """SLOPES_WITHOUT of some SAEs, at every locus and for every token set; of all together, too, where those are all of several.

    Args:
        plan: PLAN.
        trials: TRIALS.
        relations: RELATIONS by label of the SAE in the plan, whatever it is called there.
        config: as the effects were estimated with.
        covariates: COVARIATES, as the effects were estimated with.
        exclude: relations whose pairs are left out by themselves, where such are planned.

    Raises:
        MismatchError: if trials are not of this plan.
        StoreError: if a table does not have its schema.
    """
    joined = stopped(own_strengths(join_trials(plan, trials)), stop_kl=config.stop_kl)
    arms = collect_arms(joined).beside(COVARIATES.empty() if covariates is None else covariates)
    kinds = {label: kinds_of(table) for label, table in relations.items()}
    rows: Rows = []
    for view in views_of(joined, arms, config=config):
        ends = np.sort(np.column_stack([view.columns[who] for who in ("target", "source")]).astype(np.int64))
        saes = view.columns["sae"].tolist()
        kind = np.array(
            [kinds.get(sae, {}).get((i, j), "") for sae, (i, j) in zip(saes, ends.tolist(), strict=True)], dtype=object
        )  # fmt: skip
        pair = view.where(relation="pair")
        gone = {
            "not_excluded": pair & np.isin(kind.astype(str), list(exclude)),
            "unrelated": pair & np.asarray(kind != "", dtype=bool),
        }
        gone = {name: out for name, out in gone.items() if name == "unrelated" or out.any()}
        together = [POOLED] if len(kinds) > 1 and set(saes) <= set(kinds) else []
        for sae in [*together, *kinds]:
            for tokens in view.token_sets:
                for pairs in ("all", *gone):
                    out = gone.get(pairs, np.zeros(len(pair), dtype=bool))
                    left = Counter[str](kind[out & view.where(sae=sae, token_set=tokens)].tolist())
                    row = next(
                        slopes(view.only(~out), sae=sae, tokens=tokens, outcome=TOKEN_SETS[tokens].outcome)
                    )
                    rows.append(
                        {name: row[name] for name in ("estimate", "lo", "hi", "p", "level", "n_pairs", "unit", "note")}
                        | {"sae": sae, "locus": view.locus, "token_set": tokens, "pairs": pairs, "n_left_out": left.total()}
                        | {"left_out": ", ".join(f"{KINSHIPS[k].label} {left[k]}" for k in KINSHIPS if left[k])}
                    )  # fmt: skip
    return SLOPES_WITHOUT.of(rows)
