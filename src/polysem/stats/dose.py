"""What each signed dose does, and which planned trials have no outcome."""

from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.stats.arms import PRIMARY, equals, floats
from polysem.stats.rows import POOLED, Row, Rows
from polysem.store.schema import group_codes
from polysem.store.tables import DOSE_RESPONSE, MISSING

_KEY = ("sae", "locus", "relation", "interference_bin", "token_set", "dose")


def dose_response(joined: pa.Table, *, level: float) -> pa.Table:
    """Mean change of log-odds at every signed dose over the ok confirm trials, with intervals over targets.

    Trials of one target are one cluster: the interval is the mean's with CRV1 standard errors and t with
    (targets - 1) degrees of freedom; null for a single target. The pooled rows (`sae` = *) come on top of
    those of each SAE.
    """
    read = [*_KEY, "target", "kl", f"{PRIMARY}_edit", f"{PRIMARY}_base"]
    ok = joined.select(read).filter(equals(joined, status="ok", split="confirm"))
    change = floats(ok[f"{PRIMARY}_edit"]) - floats(ok[f"{PRIMARY}_base"])
    kl = floats(ok["kl"])
    target = group_codes(ok, ("sae", "target"))
    pooled = ok.set_column(ok.column_names.index("sae"), "sae", pa.repeat(pa.scalar(POOLED), ok.num_rows))
    curves = (_curves(table, change=change, kl=kl, target=target, level=level) for table in (pooled, ok))
    return DOSE_RESPONSE.of(chain.from_iterable(curves))


def missing(joined: pa.Table) -> pa.Table:
    """How every planned trial ended, counted; `absent` for those without a row."""
    reason = pc.fill_null(joined["reason"], "")
    table = joined.select(["locus", "relation", "status"]).append_column("reason", reason)
    counted = table.group_by(list(MISSING.key), use_threads=False).aggregate([([], "count_all")])
    return MISSING.conform(counted.rename_columns([*MISSING.key, "n_trials"]))


def _curves(table: pa.Table, *, change: np.ndarray, kl: np.ndarray, target: np.ndarray, level: float) -> Rows:
    from scipy.special import stdtrit

    group = group_codes(table, _KEY)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    rows: Rows = []
    for members in np.split(order, starts[1:]) if len(order) else []:
        y = change[members]
        mean, n = float(y.mean()), len(y)
        _, code = np.unique(target[members], return_inverse=True)
        g = int(code.max()) + 1
        lo = hi = None
        if g > 1:
            sums = np.bincount(code, weights=y - mean)
            reach = float(stdtrit(g - 1, 0.5 + level / 2) * np.sqrt(g / (g - 1) * (sums**2).sum()) / n)
            lo, hi = mean - reach, mean + reach
        key: Row = {name: table[name][int(members[0])].as_py() for name in _KEY}
        ends = {"lo": lo, "hi": hi, "kl": float(kl[members].mean())}
        rows.append(key | {PRIMARY: mean} | ends | {"n_trials": n, "n_targets": g})
    return rows
