"""A measured row, run again as it stands: the same direction, dose, positions and prompts, in the batches of the plan that hold it.

What is computed for a batch depends on that batch alone, so on the machine of the run the number comes out to the bit.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from polysem.errors import StoreError
from polysem.explore.steer import Request
from polysem.plan.strengths import own_strengths
from polysem.report.source import where
from polysem.stats.arms import collect_arms, join_trials
from polysem.stats.effects import pair_effects
from polysem.store.run import RunFolder

if TYPE_CHECKING:
    from polysem.engine.context import StudyContext

Number = Annotated[int, Field(ge=0)]


class AskedRow(Request):
    """Which row of PAIR_EFFECTS."""

    sae: str
    locus: str
    source: Number
    target: Number
    token_set: str
    dose: Annotated[float, Field(gt=0, allow_inf_nan=False)]


def run_again(
    bench: "StudyContext", run: RunFolder, asked: AskedRow, *, check: Callable[[], None]
) -> dict[str, Any]:
    """The row's effect as stored and as it comes out now, and the same of every prompt.

    Args:
        bench: model and SAEs of the study.
        run: its folder.
        asked: which row.
        check: is called between batches; ends the work by raising.

    Raises:
        StoreError: if the study has no such row.
    """
    from polysem.trials import run_batches

    whole = run.table("plan", where=pc.field("sae") == asked.sae)
    named = ("locus", "source", "target", "token_set")
    mine = where(whole, relation="pair", split="confirm", **{name: getattr(asked, name) for name in named})
    mine = mine.filter(
        pc.less(pc.abs(pc.subtract(pc.abs(mine["dose"]), asked.dose)), 1e-9 * (1 + asked.dose))
    )
    if not mine.num_rows:
        raise StoreError(
            f"the plan has no pair {asked.source} on {asked.target} of {asked.sae} at dose {asked.dose:g}"
        )
    stored = run.table("trials", where=pc.field("trial_id").isin(mine["trial_id"].to_pylist()))
    prompts, made = run.table("prompts"), []
    for batch in sorted(set(mine["batch"].to_pylist())):
        check()
        made.append(
            run_batches(
                *(whole, prompts, bench.features, bench.model, bench.dictionaries),
                batches=[batch],
                word_start=not bench.study.prompts.chat_template,
            )
        )
    seen = pa.concat_tables(made)
    seen = seen.filter(pc.is_in(seen["trial_id"], mine["trial_id"].combine_chunks()))
    before, now = (_effect(mine, trials) for trials in (stored, seen))
    return {
        **asked.model_dump(),
        "stored": before["logodds"],
        "again": now["logodds"],
        "same": math.isclose(before["logodds"], now["logodds"], rel_tol=0, abs_tol=0),
        "kl": now["kl"],
        "n_prompts": now["n_prompts"],
        "positions": mine["positions"][0].as_py(),
        "dose_unit": mine["dose_unit"][0].as_py(),
    }


def _effect(plan: pa.Table, trials: pa.Table) -> dict[str, Any]:
    rows = pair_effects(collect_arms(own_strengths(join_trials(plan, trials)))).to_pylist()
    if not rows:
        raise StoreError("no prompt of the row has an outcome at both signs of the dose")
    return rows[0]
