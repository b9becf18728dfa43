"""Toward which categories of words a push moves the model, whatever target it was planned for.

Every trial reads the log-odds of every category's own tokens (`readouts.CategoryWords`), so each direction that was
pushed answers for all of them. The same push serves several targets and token sets and counts once. Effects are those of
the locus (`arms.effect_share`), apart for both splits: who looks for the largest chooses on the select
prompts and reads it on the confirm prompts, so that the choice adds nothing.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from polysem.seeds import short_hash
from polysem.stats.arms import (
    Column,
    both_signs,
    effect_share,
    equals,
    first_rows,
    floats,
    means,
    standard_errors,
)
from polysem.store.schema import group_codes
from polysem.store.tables import TOWARD
from polysem.vocabulary import CATEGORIES, RELATIONS

_PUSH = ("dictionary", "locus", "recipe", "size")
_SPLITS = {"select": "select", "confirm": "effect"}
"""split -> name of its mean"""
_READ = [
    *("sae", "source_sae", "locus", "relation", "recipe", "source", "dose", "coordinate", "prompt_id"),
    *("split", "status", "kl", *(kind.column for kind in CATEGORIES.values())),
]
"""columns of plan and trials"""


def toward(joined: pa.Table) -> pa.Table:
    """TOWARD of plan joined with trials, at the study's own strengths.

    Raises:
        MismatchError: if the plan holds one push, dose and prompt twice under one relation and target.
    """
    table = joined.select(_READ).filter(equals(joined, status="ok"))
    if not table.num_rows:
        return TOWARD.empty()
    table, push, prompt = _once(table)
    ok = np.ones(table.num_rows, dtype=bool)
    plus, minus = both_signs(push, prompt, floats(table["dose"]), ok)
    n, first = int(push.max(initial=-1)) + 1, first_rows(push)
    owner = push[plus]
    kl = floats(table["kl"])
    parts = {split: equals(table, split=split)[plus] for split in _SPLITS}
    confirm = parts["confirm"]
    kl = means((kl[plus] + kl[minus])[confirm] / 2, owner[confirm], np.bincount(owner[confirm], minlength=n))
    known: dict[str, Column] = {
        name: table[name].take(pa.array(first)) for name in ("locus", "relation", "size", "source")
    }
    known["kl"] = pa.array(kl, from_pandas=True)
    known["sae"] = table["dictionary"].take(pa.array(first))
    known["push"] = pa.array([short_hash(text) for text in table["recipe"].take(pa.array(first)).to_pylist()])
    made = [_of_category(table, name, plus, minus, owner, parts, n) for name in CATEGORIES]
    rows = pa.concat_tables([pa.table(known | one) for one in made])
    rows = rows.rename_columns(["dose" if name == "size" else name for name in rows.column_names])
    return TOWARD.conform(
        rows.filter(pc.greater(rows["n_prompts"], 0)).select([c.name for c in TOWARD.columns])
    )


def _once(table: pa.Table) -> tuple[pa.Table, Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Each push, signed dose and prompt once: under the relation that comes first in the vocabulary; number of the push
    and of the prompt of every row."""
    source = table["source"].combine_chunks()
    size = pc.abs(table["dose"])
    dictionary = pc.coalesce(table["source_sae"], table["sae"])
    for name, values in (("size", size), ("dictionary", dictionary)):
        table = table.append_column(name, values)
    table = table.set_column(table.column_names.index("source"), "source", pc.fill_null(source, -1))
    order = {name: k for k, name in enumerate(RELATIONS)}
    relation = table["relation"].combine_chunks().dictionary_encode()
    rank = np.array([order[name] for name in relation.dictionary.to_pylist()])[relation.indices.to_numpy()]
    push, prompt = group_codes(table, _PUSH), group_codes(table, ("prompt_id",))
    dose = np.unique(floats(table["dose"]), return_inverse=True)[1]
    row = (push * (int(dose.max()) + 1) + dose) * (int(prompt.max()) + 1) + prompt
    by_rank = np.lexsort((np.arange(len(row)), rank, row))
    kept = by_rank[np.flatnonzero(np.diff(row[by_rank], prepend=-1))]
    return table.take(pa.array(kept)), push[kept], prompt[kept]


def _of_category(
    table: pa.Table,
    name: str,
    plus: Int[np.ndarray, " cells"],
    minus: Int[np.ndarray, " cells"],
    owner: Int[np.ndarray, " cells"],
    parts: dict[str, Bool[np.ndarray, " cells"]],
    n: int,
) -> dict[str, pa.Array]:
    """Columns of one category: means over the prompts of either split, their errors and counts."""
    change = floats(table[CATEGORIES[name].column])
    effect = effect_share(table)[plus] * (change[plus] - change[minus])
    found: dict[str, pa.Array] = {"category": pa.array([name] * n)}
    for split, mean in _SPLITS.items():
        mine = parts[split] & np.isfinite(effect)
        values, own = effect[mine], owner[mine]
        count = np.bincount(own, minlength=n)
        average = means(values, own, count)
        found[mean] = pa.array(average, from_pandas=True)
        found[f"{mean}_se"] = pa.array(standard_errors(values, own, count, average), from_pandas=True)
        found["n_prompts" if split == "confirm" else "n_select"] = pa.array(count)
    return found
