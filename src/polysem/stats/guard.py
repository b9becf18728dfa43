"""The hard stop: strengths at which the model no longer is itself are not analysed.

Whether a strength passes is judged by the mean KL of the pairs on the select prompts, and then holds for every arm
and prompt: judged trial by trial, or on the reported prompts, the stop itself would select on the outcome. Prompt
injections have no strength that could be lowered and are exempt.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.stats.arms import equals, floats

OVER_BUDGET = "over_kl_budget"


def stopped(joined: pa.Table, *, stop_kl: float | None) -> pa.Table:
    """Plan and trials with the status `failed` and the reason `over_kl_budget` where a strength is over the budget.

    Args:
        joined: plan and trials, from `join_trials`.
        stop_kl: nats; None stops nothing.
    """
    if stop_kl is None or not joined.num_rows:
        return joined
    size = np.abs(floats(joined["dose"]))
    judged = equals(joined, status="ok", split="select", relation="pair")
    kl, over = floats(joined["kl"]), np.zeros(len(size), dtype=bool)
    for name in set(joined["locus"].to_pylist()):
        mine = equals(joined, locus=name) & ~equals(joined, dose_unit="injection")
        for dose in np.unique(size[mine]):
            here = mine & (size == dose)
            seen = kl[here & judged]
            if len(seen) and float(seen.mean()) > stop_kl:
                over |= here
    over &= equals(joined, status="ok")
    return _replaced(_replaced(joined, "status", over, "failed"), "reason", over, OVER_BUDGET)


def _replaced(table: pa.Table, name: str, where: np.ndarray, value: str) -> pa.Table:
    column = pc.if_else(pa.array(where), pa.scalar(value, pa.string()), table[name].combine_chunks())
    return table.set_column(table.column_names.index(name), name, column)
