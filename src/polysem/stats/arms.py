"""From trials to pairs: the anti-join of plan and trials, odd parts over the two signs of a dose, means over
confirm prompts.

An *arm* is one direction pushed for one target: (SAE, locus, relation, target, source, draw). The effect of
an arm at a dose is what the dose does, averaged over the confirm prompts for which both ends have an outcome: the odd
part (change at +dose - change at -dose) / 2 where -dose is the mirror image of +dose, the whole difference where it is
what +dose is compared with (`Locus.share`). The difference drops the even, second-order term that any direction has
(half the difference in variance of the logit shift inside and outside the token set). Of neurons +dose is taken the way
that the neuron writes when it is active: multiplying a negative coordinate pushes the other way, and counts so.
Everything is sorted and summed in one order, so equal tables give equal bits. Cost: a few sorts of the
trials.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from polysem.act.dosing import TOLERANCE
from polysem.errors import MismatchError, NumericsError
from polysem.store.schema import group_codes
from polysem.store.tables import PLAN, TRIALS
from polysem.types import Site
from polysem.vocabulary import COVARIATES, KL, LOCI, OUTCOMES, TOKEN_SETS

ARM = ("sae", "locus", "relation", "target", "source", "draw")
PRIMARY = next(iter(OUTCOMES))
Column = pa.Array | pa.ChunkedArray
"""of tokens that were not chosen by a path"""
_MEASURED = (*(f"{name}_{when}" for name, o in OUTCOMES.items() if o.read for when in ("base", "edit")), "kl")
_MIN_COSINE = 1e-8
"""the paper's relative change divides by |c|, and skips baselines below this"""


def outcome_of(token_set: str) -> str:
    """The outcome that is asked of a token set: in the declared questions and in every check beside them."""
    return TOKEN_SETS[token_set].outcome


@dataclass(frozen=True)
class Arms:
    """One row per arm, token set and |dose|, and the prompts behind each."""

    table: pa.Table
    """ARM, token_set, dose; bin, interference, similarity, layer_type; outcomes (null where no prompt has
    both signs); counts"""
    cell_arm: Int[np.ndarray, " cells"]
    """row of `table` of every (arm, prompt) with both signs"""
    cell_prompt: Int[np.ndarray, " cells"]
    """its prompt, numbered"""
    cell_effect: Mapping[str, Float[np.ndarray, " cells"]]
    """its effect, by outcome and of the KL"""

    def beside(self, covariates: pa.Table) -> "Arms":
        """The same with the columns of COVARIATES; null where an arm has no row there."""
        table, key = self.table, ("sae", "target", "source", "token_set")
        found = places(*(zip(*(t[n].to_pylist() for n in key), strict=True) for t in (table, covariates)))
        rows = pa.array(found, mask=found < 0)
        for name in COVARIATES:
            table = table.append_column(name, covariates[name].take(rows))
        return replace(self, table=table)

    def only(self, kept: Bool[np.ndarray, " arms"]) -> "Arms":
        """These rows of `table`, and what is behind them."""
        rows = np.flatnonzero(kept)
        place = np.full(self.table.num_rows, -1)
        place[rows] = np.arange(len(rows))
        cells = place[self.cell_arm] >= 0
        effects = {name: values[cells] for name, values in self.cell_effect.items()}
        table = self.table.take(pa.array(rows))
        return Arms(table, place[self.cell_arm[cells]], self.cell_prompt[cells], effects)

    def prompts(self, chosen: Bool[np.ndarray, " arms"]) -> int:
        """How many distinct prompts the chosen rows rest on."""
        return len(np.unique(self.cell_prompt[chosen[self.cell_arm]]))


def join_trials(plan: pa.Table, trials: pa.Table) -> pa.Table:
    """Every planned trial with what came of it; status `absent` where there is no row.

    Raises:
        MismatchError: if a trial is not in the plan.
        NumericsError: if an ok trial has an outcome that is not a finite number.
    """
    plan, trials = PLAN.conform(plan), TRIALS.conform(trials)
    place = pc.index_in(trials["trial_id"], plan["trial_id"].combine_chunks())
    if place.null_count:
        strange = trials.filter(pc.is_null(place))["trial_id"]
        raise MismatchError(
            f"{len(strange)} trials are not in the plan, the first {strange[0].as_py()}; expected none",
            hint="polysem trials STUDY.toml (the trials belong to another plan)",
        )
    found = np.full(plan.num_rows, -1)
    found[place.to_numpy()[::-1]] = np.arange(trials.num_rows)[::-1]
    row = pa.array(found, mask=found < 0)
    joined = plan
    for name in trials.column_names[1:]:
        joined = joined.append_column(name, trials[name].take(row))
    status = pc.fill_null(joined["status"], "absent")
    joined = joined.set_column(joined.column_names.index("status"), "status", status)
    ok = joined.select(["trial_id", *_MEASURED]).filter(equals(joined, status="ok"))
    for name in _MEASURED:
        bad = ~np.isfinite(floats(ok[name]))
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise NumericsError(
                f"trials: {int(bad.sum())} ok rows have no finite {name}; the first, "
                f"{ok['trial_id'][first].as_py()}, has {ok[name][first].as_py()}",
                hint="polysem verify RUN",
            )
    return joined


def collect_arms(joined: pa.Table) -> Arms:
    """Effects of every arm, token set and |dose| over the confirm prompts.

    Raises:
        MismatchError: if the plan holds one arm, dose and prompt twice.
    """
    table = joined.filter(equals(joined, split="confirm"))
    table = table.set_column(table.column_names.index("source"), "source", pc.fill_null(table["source"], -1))
    signed = floats(table["dose"])
    table = table.append_column("size", pa.array(np.abs(signed)))
    arm = group_codes(table, (*ARM, "token_set", "size"))
    prompt = group_codes(table, ("prompt_id",))
    ok = equals(table, status="ok")
    plus, minus = both_signs(arm, prompt, signed, ok)
    n_arms, first = int(arm.max(initial=-1)) + 1, first_rows(arm)
    count = np.bincount(arm[plus], minlength=n_arms)
    whole = (*ARM, "token_set", "interference_bin", "pair_target", "pair_source")
    columns: dict[str, Column] = {name: table[name].take(pa.array(first)) for name in whole}
    columns |= {name: pc.fill_null(columns[name], -1) for name in ("pair_target", "pair_source")}
    columns["source_name"] = pc.if_else(
        pc.equal(columns["relation"], "given"),
        table["source_sae"].take(pa.array(first)),
        pa.scalar(None, pa.string()),
    )
    columns["dose"] = table["size"].take(pa.array(first))
    columns["layer_type"] = _layer_types(table["site"].take(pa.array(first)))
    planned = {name: floats(table[name])[first] for name in ("interference", "similarity")}
    aligned = means(floats(table["alignment"])[plus], arm[plus], count)
    planned["interference"] = np.where(np.isnan(planned["interference"]), aligned, planned["interference"])
    cells = _cells(table, plus, minus)
    numbers = planned | _outcomes(table, cells, plus, minus, arm, count)
    columns |= {name: pa.array(values, from_pandas=True) for name, values in numbers.items()}
    columns["n_planned"] = pa.array(np.bincount(arm, minlength=n_arms))
    columns["n_ok"] = pa.array(np.bincount(arm[ok], minlength=n_arms))
    columns["n_prompts"] = pa.array(count)
    return Arms(pa.table(columns), arm[plus], prompt[plus], cells)


def headline_dose(joined: pa.Table, locus: str, *, max_kl: float) -> tuple[float, str]:
    """The dose of the headline contrasts of one locus, and what must be said about the choice.

    The largest |dose| whose mean KL over the ok select trials of pairs is at most `max_kl` (nats; within the
    tolerance to which doses in nats are held), none of
    which broke the model (non-finite logits count as infinite KL). Confirm prompts are never looked at.
    """
    here = equals(joined, locus=locus)
    mine = joined.filter(here & equals(joined, relation="pair"))
    sizes = np.abs(floats(mine["dose"]))
    if not len(sizes):
        smallest = np.abs(floats(joined.filter(here)["dose"])).min()
        return float(smallest), "no pairs are planned; the smallest dose is shown"
    chosen, ok = equals(mine, split="select"), equals(mine, status="ok")
    broken = equals(mine, reason="non_finite_logits")
    kl = np.where(broken, np.inf, floats(mine["kl"]))
    doses = np.unique(sizes)
    seen = [kl[chosen & (ok | broken) & (sizes == dose)] for dose in doses]
    most = max_kl * (1 + TOLERANCE)
    fits = [float(dose) for dose, v in zip(doses, seen, strict=True) if len(v) and v.mean() <= most]
    if fits:
        return max(fits), ""
    if not any(len(v) for v in seen):
        why = "no trial on a select prompt has an outcome: the smallest dose is used, KL unchecked"
    else:
        why = f"no dose stays within a mean KL of {max_kl:g} nats on the select prompts: the smallest is used"
    return float(doses[0]), why


def effect_share(joined: pa.Table) -> Float[np.ndarray, " n"]:
    """What an effect is of the change at +dose minus that at -dose, for every row: the locus's share, with the sign of
    the coordinate that is multiplied, where there is one."""
    encoded = joined["locus"].combine_chunks().dictionary_encode()
    share = np.array([LOCI[name].share for name in encoded.dictionary.to_pylist()])
    signs = np.where(floats(joined["coordinate"]) < 0, -1.0, 1.0)
    return share[encoded.indices.to_numpy(zero_copy_only=False)] * signs if joined.num_rows else signs


def places(wanted: Iterable[Hashable], known: Iterable[Hashable]) -> Int[np.ndarray, " n"]:
    """Where each wanted key stands among the known ones; -1 for those that do not."""
    place = {key: k for k, key in enumerate(known)}
    return np.array([place.get(key, -1) for key in wanted], dtype=np.int64)


def floats(column: pa.ChunkedArray | pa.Array) -> Float[np.ndarray, " n"]:
    """A column as float64, null as NaN."""
    if not len(column):
        return np.empty(0)
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)


def equals(table: pa.Table, **wanted: str | float) -> Bool[np.ndarray, " n"]:
    """Rows whose columns have the values; null has none."""
    here = np.ones(table.num_rows, dtype=bool)
    for name, value in wanted.items():
        same = pc.fill_null(pc.equal(table[name], value), False)
        here &= same.to_numpy(zero_copy_only=False).astype(bool)
    return here


def first_rows(code: Int[np.ndarray, " n"]) -> Int[np.ndarray, " groups"]:
    """The first row of every group, of codes 0 .. G - 1 that are each there (`group_codes`)."""
    return np.unique(code, return_index=True)[1]


def both_signs(
    arm: np.ndarray, prompt: np.ndarray, signed: np.ndarray, ok: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of +dose and -dose of every (arm, prompt) in which both are ok, in the order of arm and prompt."""
    cell = np.unique(arm * (int(prompt.max(initial=0)) + 1) + prompt, return_inverse=True)[1]
    sides: list[np.ndarray] = []
    for positive in (True, False):
        rows = np.flatnonzero((signed > 0) == positive)
        if len(np.unique(cell[rows])) < len(rows):
            raise MismatchError(
                "the plan holds one arm, dose and prompt twice; expected each once",
                hint="polysem plan STUDY.toml",
            )
        side = np.full(int(cell.max(initial=-1)) + 1, -1)
        rows = rows[ok[rows]]
        side[cell[rows]] = rows
        sides.append(side)
    both = (sides[0] >= 0) & (sides[1] >= 0)
    return sides[0][both], sides[1][both]


def _cells(table: pa.Table, plus: np.ndarray, minus: np.ndarray) -> dict[str, np.ndarray]:
    """The effect in every (arm, prompt), by outcome, and its KL over both ends."""
    share = effect_share(table)[plus]
    result: dict[str, np.ndarray] = {}
    for name in OUTCOMES:
        change = floats(table[f"{name}_edit"]) - floats(table[f"{name}_base"])
        result[name] = share * (change[plus] - change[minus])
    kl = floats(table["kl"])
    return result | {KL.name: (kl[plus] + kl[minus]) / 2}


def _outcomes(
    table: pa.Table,
    cells: Mapping[str, np.ndarray],
    plus: np.ndarray,
    minus: np.ndarray,
    arm: np.ndarray,
    count: np.ndarray,
) -> dict[str, np.ndarray]:
    """Means per arm: the effects, KL over both signs, and c at +dose as the paper's regressions need it."""
    owner = arm[plus]
    result = {name: means(values, owner, count) for name, values in cells.items()}
    result[f"{PRIMARY}_se"] = standard_errors(cells[PRIMARY], owner, count, result[PRIMARY])
    push = floats(table["push_norm"]) / floats(table["resid_norm"])
    result["push"] = means((push[plus] + push[minus]) / 2, owner, count)
    base, edit = floats(table["cosine_base"])[plus], floats(table["cosine_edit"])[plus]
    result["c_base"], result["c_edit"] = means(base, owner, count), means(edit, owner, count)
    usable = np.abs(base) > _MIN_COSINE
    relative = (edit[usable] - base[usable]) / np.abs(base[usable])
    result["c_relative"] = means(relative, owner[usable], np.bincount(owner[usable], minlength=len(count)))
    return result


def means(values: np.ndarray, owner: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Mean of the values of every owner, of which there are `count`; NaN where there is none."""
    total = np.bincount(owner, weights=values, minlength=len(count))
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def standard_errors(values: np.ndarray, owner: np.ndarray, count: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Standard error of each of `means`; NaN where fewer than two values are behind it."""
    squares = np.bincount(owner, weights=(values - mean[owner]) ** 2, minlength=len(count))
    variance = np.divide(squares, (count - 1) * count, out=np.full(len(count), np.nan), where=count > 1)
    return np.sqrt(variance)


def _layer_types(sites: pa.ChunkedArray) -> pa.Array:
    encoded = sites.combine_chunks().dictionary_encode()
    names = [Site.parse(name).layer_type for name in encoded.dictionary.to_pylist()]
    return pa.array(names, pa.string()).take(encoded.indices)
