"""Running the plan: one forward pass per planned batch, one row per planned trial.

A batch's rows (direction, signed dose) go through the model together; every trial of the batch then reads
its own target set from its own row of logits, so readouts cost matrix products and never a forward pass.
The unedited prompt is run once, alone. Nothing that a batch computes depends on which other batches run
with it, so any split of the plan gives the same tables.

Every planned trial leaves a row: `ok` with all outcomes; `skipped` where it was known beforehand that there
is nothing to measure; `failed` where it was tried and gave no number. The reasons are closed (`REASONS`),
and no value is ever put in the place of one that is missing. Anything unexpected stops the run.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.errors import ConfigError, MismatchError, NumericsError
from polysem.interventions.base import (
    LOCI,
    RESOLUTION_REASONS,
    Bench,
    Intervention,
    Prompt,
    Push,
    Recipe,
    Refused,
    edited_positions,
)
from polysem.interventions.feature import decoder_row, unit
from polysem.interventions.mlp import site_of
from polysem.interventions.pushes import pushes_at_kl
from polysem.models.base import WhiteBoxModel
from polysem.models.sweep import sweep_of
from polysem.plan import Features
from polysem.progress import SILENT, Reporter
from polysem.prompts import span_of
from polysem.readouts import Outcomes, TokenSets, set_problem
from polysem.saes.base import SAE
from polysem.store.tables import PROMPTS, TRIALS
from polysem.types import Site

log = logging.getLogger(__name__)

SKIPPED = (
    "empty_target_set",
    "full_target_set",
    "token_out_of_vocab",
    "zero_embedding",
    "empty_prompt",
    "prompt_too_long",
    "prompt_out_of_vocab",
    "no_edited_position",
    *RESOLUTION_REASONS,
)
FAILED = ("non_finite_baseline", "zero_activation", "non_finite_logits", "kl_not_reached")
REASONS = (*SKIPPED, *FAILED)
"""Why a trial has no outcome: known beforehand, or found when it was tried."""

_EMPTY: dict[str, None] = dict.fromkeys(TRIALS.arrow().names)
_CACHED_PROMPTS = 256
_COVARIANCE_PROMPTS = 64
"""prompts whose activations give the covariance control, by id (a hash, so they are a sample)"""


def run_batches(
    plan: pa.Table,
    prompts: pa.Table,
    features: Features,
    model: WhiteBoxModel,
    saes: Mapping[str, SAE],
    *,
    batches: Sequence[int],
    reporter: Reporter = SILENT,
) -> pa.Table:
    """The TRIALS rows of some batches of a plan: one for every planned trial in them.

    Args:
        plan: PLAN.
        prompts: PROMPTS; all of them, whichever batches run (the covariance control is drawn from them all).
        features: target tokens of every planned target.
        model: the model that the SAEs belong to.
        saes: by label, as in the plan.
        batches: numbers of the batches to run, each once, in any order.
        reporter: is told of every batch.

    Raises:
        MismatchError: if plan, prompts, features, SAEs and model do not belong together, or a batch is not in
            the plan.
        FormatError: if a recipe of the plan cannot be read.
    """
    known = set(pc.unique(plan["batch"]).to_pylist())
    if unknown := sorted(set(batches) - known):
        raise MismatchError(
            f"batch {unknown[0]} is not in the plan, which has {len(known)} batches", hint="polysem plan"
        )
    if len(set(batches)) < len(batches):
        raise ConfigError(f"a batch is asked for twice in {sorted(batches)}; expected each once")
    mine = plan.filter(pc.is_in(plan["batch"], pa.array(list(batches), pa.int32())))
    mine = mine.sort_by([("batch", "ascending"), ("trial_id", "ascending")])
    bench = _Workbench(mine, PROMPTS.conform(prompts), features.features, model, saes)
    rows: list[dict[str, object]] = []
    numbers, starts = np.unique(mine["batch"].to_numpy(), return_index=True)
    spans = list(zip(starts, [*starts[1:], mine.num_rows], strict=True))
    for start, stop in reporter.track(spans, total=len(numbers), label="trials"):
        rows += bench.run(mine.slice(start, stop - start).to_pylist())
    missing = sum(row["status"] != "ok" for row in rows)
    log.info("%d trials in %d batches, %d of them without an outcome", len(rows), len(numbers), missing)
    return TRIALS.conform(pa.Table.from_pylist(rows, schema=TRIALS.arrow()))


class _Key(NamedTuple):
    """One row of a forward pass."""

    recipe: str
    dose: float


class _Site(NamedTuple):
    """What all trials of a batch share."""

    sae: str
    site: str
    locus: str
    prompt_id: str
    positions: str
    dose_unit: str


class _Unedited(NamedTuple):
    """A prompt before any edit."""

    prompt: Prompt
    logits: Tensor
    norm: float


class _Edited(NamedTuple):
    """Rows of logits after edits; a row is NaN where the model gave no finite logits."""

    rows: dict[_Key, int]
    logits: Tensor
    strengths: Float[np.ndarray, " rows"]
    """signed, in the units of the locus: of the activation, or relative"""
    unreached: Bool[np.ndarray, " rows"]
    """rows whose KL could not be brought to the dose"""
    refused: dict[str, str]


class _Sets(NamedTuple):
    """The target sets that can be read, and why the others cannot."""

    rows: dict[tuple[int, str], int]
    sets: TokenSets | None
    refused: dict[tuple[int, str], str]


class _Workbench:
    """What stays the same over the batches of one call. Each cached value is a function of the inputs
    alone."""

    def __init__(
        self,
        planned: pa.Table,
        prompts: pa.Table,
        features: pa.Table,
        model: WhiteBoxModel,
        saes: Mapping[str, SAE],
    ):
        self.model = model
        self.sweep = sweep_of(model)
        self.saes = saes
        self.planned = planned
        self.features = features
        self.prompts = {row["prompt_id"]: tuple(row["token_ids"]) for row in prompts.to_pylist()}
        self.texts = dict(zip(prompts["prompt_id"].to_pylist(), prompts["text"].to_pylist(), strict=True))
        self.bench = lru_cache(maxsize=None)(self._bench)
        self.token_sets = lru_cache(maxsize=2)(self._token_sets)  # batches come SAE by SAE
        self.base_logits = lru_cache(maxsize=_CACHED_PROMPTS)(self._base_logits)
        self.norm = lru_cache(maxsize=_CACHED_PROMPTS)(self._norm)
        self.activations = lru_cache(maxsize=1)(self._activations)
        self.realise = lru_cache(maxsize=4096)(self._realise)
        self.alignment = lru_cache(maxsize=None)(self._alignment)

    def run(self, trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows of one batch."""
        shared = {_Site(*(trial[name] for name in _Site._fields)) for trial in trials}
        if len(shared) > 1:
            raise MismatchError(
                f"batch {trials[0]['batch']} mixes {len(shared)} combinations of {', '.join(_Site._fields)}; "
                "expected one",
                hint="polysem plan",
            )
        where = shared.pop()
        try:
            unedited = self._unedited(where)
        except Refused as refusal:
            return [self._without(trial, refusal.reason) for trial in trials]
        try:
            edited = self._forward(trials, where, unedited)
        except Refused as refusal:  # what none of the batch's rows can be given
            return [self._without(trial, refusal.reason) for trial in trials]
        return self._read(trials, where, unedited, edited)

    def _unedited(self, where: _Site) -> _Unedited:
        bench = self.bench(where.sae)
        if where.site != str(site_of(where.locus, bench.sae)):
            raise MismatchError(
                f"the plan edits {where.site} for SAE {where.sae!r}, which reads {bench.sae.site}",
                hint="polysem plan",
            )
        if where.prompt_id not in self.prompts:
            raise MismatchError(
                f"the plan's prompt {where.prompt_id!r} is not in the prompts table", hint="polysem plan"
            )
        ids = self._token_ids(where.prompt_id)
        span = self._text_span(where.prompt_id) if where.locus == "prompt" else None
        prompt = Prompt(token_ids=ids, edited=edited_positions(where.positions, len(ids)), text_span=span)
        if not prompt.edited.any():
            raise Refused("no_edited_position")
        norm = self.norm(where.prompt_id, bench.sae.site, where.positions)
        if norm == 0.0 and where.dose_unit in ("resid_norm", "kl"):
            raise Refused("zero_activation")
        return _Unedited(prompt=prompt, logits=self.base_logits(where.prompt_id), norm=norm)

    def _forward(self, trials: list[dict[str, Any]], where: _Site, unedited: _Unedited) -> _Edited:
        bench, intervention = self.bench(where.sae), LOCI[where.locus]
        directions: dict[str, np.ndarray] = {}
        refused: dict[str, str] = {}
        for recipe in sorted({trial["recipe"] for trial in trials}):
            try:
                directions[recipe] = self.realise(where.sae, where.locus, recipe)
            except Refused as refusal:
                refused[recipe] = refusal.reason
        keys = sorted({_Key(t["recipe"], t["dose"]) for t in trials if t["recipe"] in directions})
        scale = unedited.norm if where.dose_unit == "resid_norm" else 1.0
        strengths = np.array([key.dose * scale for key in keys])

        def run(rows: Int[np.ndarray, " m"], strength: Float[np.ndarray, " m"]) -> Tensor:
            pushes = [Push(directions[keys[k].recipe], float(s)) for k, s in zip(rows, strength, strict=True)]
            return self._logits(pushes, intervention, unedited.prompt, bench)

        if where.dose_unit == "kl":
            relative = where.locus in ("neuron", "mlp_neuron")
            strengths, logits, unreached = pushes_at_kl(
                run,
                np.array([key.dose for key in keys]),
                unedited.logits,
                first=0.2 if relative else 0.05 * unedited.norm,
            )
        else:
            logits, unreached = run(np.arange(len(keys)), strengths), np.zeros(len(keys), dtype=bool)
        return _Edited({key: k for k, key in enumerate(keys)}, logits, strengths, unreached, refused)

    def _logits(
        self, pushes: list[Push], intervention: Intervention, prompt: Prompt, bench: Bench
    ) -> Float[Tensor, "rows d_vocab"]:
        """Last-position logits of every push, float64 on the CPU; NaN rows where they are not finite."""
        if not pushes:
            return torch.empty(0, self.model.spec.d_vocab, dtype=torch.float64)
        tokens, edits = intervention.prepare(pushes, prompt, bench)
        try:
            return self.sweep.logits(tokens, edits).detach().cpu().double()
        except NumericsError:
            if len(pushes) == 1:
                return torch.full((1, self.model.spec.d_vocab), torch.nan, dtype=torch.float64)
            # One bad row must not take the batch with it: each alone says which it was.
            return torch.cat([self._logits([push], intervention, prompt, bench) for push in pushes])

    def _read(
        self, trials: list[dict[str, Any]], where: _Site, unedited: _Unedited, edited: _Edited
    ) -> list[dict[str, Any]]:
        known = self.token_sets(where.sae)
        wanted = sorted({(t["target"], t["token_set"]) for t in trials} & set(known.rows))
        column = {key: k for k, key in enumerate(wanted)}
        finite = torch.isfinite(edited.logits.sum(-1))  # a sum shows any entry that is not
        if not bool(finite.all()):
            finite = torch.isfinite(edited.logits).all(-1)
        position = (finite.cumsum(0) - 1).tolist()
        seen = None
        if known.sets is not None and wanted and bool(finite.any()):
            sets = known.sets.take([known.rows[key] for key in wanted])
            seen = Outcomes.of(unedited.logits, edited.logits[finite], sets)
        rows = []
        for trial in trials:
            key, target = _Key(trial["recipe"], trial["dose"]), (trial["target"], trial["token_set"])
            reason = edited.refused.get(key.recipe) or known.refused.get(target)
            if reason is None and edited.unreached[edited.rows[key]]:
                reason = "kl_not_reached"
            if reason is None and not finite[edited.rows[key]]:
                reason = "non_finite_logits"
            if reason is not None:
                rows.append(self._without(trial, reason))
                continue
            assert seen is not None  # a trial without a reason has a finite row and a readable set
            rows.append(
                self._row(
                    trial,
                    status="ok",
                    **seen.at(position[edited.rows[key]], column[target]),
                    alignment=self.alignment(where.sae, where.locus, key.recipe, trial["target"]),
                    dose_absolute=float(edited.strengths[edited.rows[key]]),
                    resid_norm=unedited.norm,
                )
            )
        return rows

    def _without(self, trial: dict[str, Any], reason: str) -> dict[str, Any]:
        return self._row(trial, status="failed" if reason in FAILED else "skipped", reason=reason)

    def _row(self, trial: dict[str, Any], **values: object) -> dict[str, Any]:
        return {**_EMPTY, "trial_id": trial["trial_id"], "dtype": self.model.spec.dtype, **values}

    def _alignment(self, label: str, locus: str, recipe: str, target: int) -> float | None:
        """Cosine of a realised direction with the target's; None where one of the two has no direction."""
        if not LOCI[locus].steers:
            return None
        try:
            return float(self.realise(label, locus, recipe) @ unit(decoder_row(self.bench(label), target)))
        except Refused:
            return None

    def _bench(self, label: str) -> Bench:
        if label not in self.saes:
            raise MismatchError(
                f"the plan's SAE {label!r} is not among {', '.join(sorted(self.saes))}", hint="polysem plan"
            )
        sae = self.saes[label]
        width = self.model.site_width(sae.site)
        if width != sae.d_in:
            raise MismatchError(
                f"SAE {label!r} is {sae.d_in} wide but {sae.site} of {self.model.spec.ref} is {width} wide",
                hint="load the SAE's own model, or name the right site in the study",
            )
        return Bench(
            label, sae, self.model.spec, activations=lambda: self.activations(sae.site), model=self.model
        )

    def _realise(self, label: str, locus: str, recipe: str) -> np.ndarray:
        return LOCI[locus].realise(Recipe.parse(recipe), self.bench(label))

    def _token_ids(self, prompt_id: str) -> tuple[int, ...]:
        """Token ids of a prompt. Raises Refused if the model cannot read them."""
        ids = self.prompts[prompt_id]
        if not ids:
            raise Refused("empty_prompt")
        if len(ids) > self.model.spec.n_ctx:
            raise Refused("prompt_too_long")
        if min(ids) < 0 or max(ids) >= self.model.spec.d_vocab:
            raise Refused("prompt_out_of_vocab")
        return ids

    def _text_span(self, prompt_id: str) -> tuple[int, int] | None:
        """Where the prompt's own text lies among its tokens; None where it ends them, as without a chat template."""
        text = self.model.tokenize(self.texts[prompt_id], prepend_bos=False)
        return span_of(self._token_ids(prompt_id), text)

    def _tokens(self, prompt_id: str) -> Tensor:
        return torch.tensor([self._token_ids(prompt_id)], device=self.model.spec.device)

    def _base_logits(self, prompt_id: str) -> Float[Tensor, "1 d_vocab"]:
        try:
            logits = self.model.logits(self._tokens(prompt_id), last_only=True)[:, -1].detach().cpu().double()
        except NumericsError as error:
            raise Refused("non_finite_baseline") from error
        if not bool(torch.isfinite(logits).all()):
            raise Refused("non_finite_baseline")
        return logits

    def _captured(self, prompt_id: str, site: Site) -> Float[np.ndarray, "pos d"]:
        """The site's activations on one unedited prompt, float64."""
        try:
            seen = self.model.capture(self._tokens(prompt_id), [site])[site][0].cpu().double().numpy()
        except NumericsError as error:
            raise Refused("non_finite_baseline") from error
        if not np.isfinite(seen).all():
            raise Refused("non_finite_baseline")
        return seen

    def _norm(self, prompt_id: str, site: Site, positions: str) -> float:
        """Mean norm of the site's activations at the edited positions."""
        seen = self._captured(prompt_id, site)
        return float(np.linalg.norm(seen[edited_positions(positions, len(seen))], axis=1).mean())

    def _activations(self, site: Site) -> Float[np.ndarray, "n d"]:
        """Activations of the site on the plan's prompts, all positions but the first; prompts that cannot
        run give none."""
        seen = [np.empty((0, self.model.site_width(site)))]
        for prompt_id in sorted(self.prompts)[:_COVARIANCE_PROMPTS]:
            try:
                seen.append(self._captured(prompt_id, site)[1:])
            except Refused as refusal:
                log.debug("prompt %s gives no activations: %s", prompt_id, refusal.reason)
        return np.concatenate(seen)

    def _token_sets(self, label: str) -> _Sets:
        """The target sets of one SAE that the planned batches read."""
        rows = self.planned.filter(pc.equal(self.planned["sae"], label))
        wanted = rows.group_by(["target", "token_set"]).aggregate([]).to_pylist()
        own = self.features.filter(pc.equal(self.features["sae"], label))
        own = own.filter(pc.is_in(own["feature"], pa.array({w["target"] for w in wanted}, pa.int32())))
        tokens = {
            row["feature"]: {"in": row["tokens_in"], "out": row["tokens_out"]} for row in own.to_pylist()
        }
        found: dict[tuple[int, str], list[int]] = {}
        refused: dict[tuple[int, str], str] = {}
        W_E = self.model.W_E
        for target, name in sorted((w["target"], w["token_set"]) for w in wanted):
            if target not in tokens:
                raise MismatchError(
                    f"the plan's target {target} of SAE {label!r} is not in the feature table",
                    hint="polysem plan",
                )
            reason = set_problem(tokens[target][name], W_E)
            if reason is None:
                found[target, name] = tokens[target][name]
            else:
                refused[target, name] = reason
        sets = TokenSets.of(list(found.values()), W_E) if found else None
        return _Sets({key: k for k, key in enumerate(found)}, sets, refused)
