"""How much of a slope is the trace of how a dictionary divides things: the slopes on interference of record with all pairs of
a plan, and with those alone of which no relation is known (`polysem relations`). Estimates of record keep all pairs; these
stand beside them."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.config import EffectsConfig
from polysem.plan.strengths import own_strengths
from polysem.stats.arms import collect_arms, join_trials
from polysem.stats.contrasts import slopes
from polysem.stats.effects import views_of
from polysem.stats.guard import stopped
from polysem.stats.rows import Rows
from polysem.store.tables import COVARIATES, SLOPES_WITHOUT
from polysem.vocabulary import TOKEN_SETS
from polysem.vocabulary_findings import KINSHIPS


def slopes_without(
    plan: pa.Table,
    trials: pa.Table,
    relations: pa.Table,
    *,
    label: str,
    config: EffectsConfig,
    covariates: pa.Table | None = None,
) -> pa.Table:
    """SLOPES_WITHOUT of one SAE, at every locus and for every token set.

    Args:
        plan: PLAN.
        trials: TRIALS.
        relations: RELATIONS of that SAE, whatever it is called there.
        label: of the SAE in the plan.
        config: as the effects were estimated with.
        covariates: COVARIATES, as the effects were estimated with.

    Raises:
        MismatchError: if trials are not of this plan.
        StoreError: if a table does not have its schema.
    """
    joined = stopped(own_strengths(join_trials(plan, trials)), stop_kl=config.stop_kl)
    arms = collect_arms(joined).beside(COVARIATES.empty() if covariates is None else covariates)
    known = relations.filter(pc.not_equal(relations["relation"], "unrelated"))
    kinds = dict(
        zip(
            zip(known["i"].to_pylist(), known["j"].to_pylist(), strict=True),
            known["relation"].to_pylist(),
            strict=True,
        )
    )
    rows: Rows = []
    for view in views_of(joined, arms, config=config):
        ends = np.sort(np.column_stack([view.columns[who] for who in ("target", "source")]).astype(np.int64))
        kind = np.array([kinds.get((i, j), "") for i, j in ends.tolist()], dtype=object)
        related = view.where(sae=label, relation="pair") & np.asarray(kind != "", dtype=bool)
        for tokens in view.token_sets:
            gone = Counter[str](kind[related & view.where(token_set=tokens)].tolist())
            told = ", ".join(f"{KINSHIPS[name].label} {gone[name]}" for name in KINSHIPS if gone[name])
            for pairs, seen in (("all", view), ("unrelated", view.only(~related))):
                row = next(slopes(seen, sae=label, tokens=tokens, outcome=TOKEN_SETS[tokens].outcome))
                without = pairs == "unrelated"
                rows.append(
                    {name: row[name] for name in ("estimate", "lo", "hi", "p", "level", "n_pairs", "unit", "note")}
                    | {"sae": label, "locus": view.locus, "token_set": tokens, "pairs": pairs}
                    | {"n_left_out": gone.total() if without else 0, "left_out": told if without else ""}
                )  # fmt: skip
    return SLOPES_WITHOUT.of(rows)
