"""Running the plan: one forward pass per planned batch, one row per planned trial.

A batch's rows (direction, signed dose) go through the model together; every trial of the batch then reads
its own target set from its own row of logits, so readouts cost matrix products and never a forward pass.
The unedited prompt is run once, alone. Nothing that a batch computes depends on which other batches run
with it, so any split of the plan gives the same tables.

Every planned trial leaves a row: `ok` with all outcomes; `skipped` where it was known beforehand that there
is nothing to measure; `failed` where it was tried and gave no number. The reasons are closed (`vocabulary.REASONS`),
and no value is ever put in the place of one that is missing. Anything unexpected stops the run.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.act.base import (
    EditedPrompt,
    Intervention,
    Recipe,
    Refused,
    SiteContext,
    Steer,
    decoder_row,
    edited_positions,
    intervention,
    unit,
)
from polysem.act.steering import steered_at_kl
from polysem.errors import ConfigError, MismatchError, NumericsError
from polysem.linear.direct import direct_logits, promoted
from polysem.models.base import WhiteBoxModel
from polysem.models.sweep import sweep_of
from polysem.plan.index import FeatureRows
from polysem.positions import PLAIN, mean_norm, ordinary_rows
from polysem.progress import SILENT, Reporter
from polysem.prompts import span_of
from polysem.readouts import CategoryWords, Outcomes, TokenSets, set_problem
from polysem.saes.base import SAE
from polysem.store.tables import PROMPTS, TRIALS
from polysem.types import Site
from polysem.vocabulary import CONTROLS, DOSE_UNITS, REASONS, TOKEN_SETS, attribute

log = logging.getLogger(__name__)

_CACHED_PROMPTS = 256
_COVARIANCE_PROMPTS = 64
"""prompts whose activations give the covariance control, by id (a hash, so they are a sample)"""


def run_batches(
    plan: pa.Table,
    prompts: pa.Table,
    features: FeatureRows,
    model: WhiteBoxModel,
    saes: Mapping[str, SAE],
    *,
    batches: Sequence[int],
    word_start: bool = True,
    reporter: Reporter = SILENT,
    kept: "Kept | None" = None,
) -> pa.Table:
    """The TRIALS rows of some batches of a plan: one for every planned trial in them.

    Args:
        plan: PLAN.
        prompts: PROMPTS; all of them, whichever batches run (the covariance control is drawn from them all).
        features: target tokens of every planned target.
        model: the model that the SAEs belong to.
        saes: by label, as in the plan.
        batches: numbers of the batches to run, each once, in any order.
        word_start: whether what comes next begins with a space, as it does but for answers in a chat.
        reporter: is told of every batch.
        kept: from a call with the same plan, prompts, features, model and SAEs; changes no bit.

    Raises:
        MismatchError: if plan, prompts, features, SAEs and model do not belong together, or a batch is not in
            the plan.
        FormatError: if a recipe of the plan cannot be read.
    """
    known = set(pc.unique(plan["batch"]).to_pylist())
    if unknown := sorted(set(batches) - known):
        raise MismatchError(
            f"batch {unknown[0]} is not in the plan, which has {len(known)} batches",
            hint="polysem plan STUDY.toml",
        )
    if len(set(batches)) < len(batches):
        raise ConfigError(f"a batch is asked for twice in {sorted(batches)}; expected each once")
    mine = plan.filter(pc.is_in(plan["batch"], pa.array(list(batches), pa.int32())))
    mine = mine.sort_by([("batch", "ascending"), ("trial_id", "ascending")])
    kept = kept or Kept()
    run = kept.running = kept.running or _Running(
        PROMPTS.conform(prompts), features.features, model, saes, word_start=word_start
    )
    run.begin(mine)
    made = [TRIALS.empty()]
    numbers, starts = np.unique(mine["batch"].to_numpy(), return_index=True)
    spans = list(zip(starts, [*starts[1:], mine.num_rows], strict=True))
    for start, stop in reporter.track(spans, total=len(numbers), label="trials"):
        made.append(run.batch(mine.slice(start, stop - start).to_pylist()))
    rows = TRIALS.conform(pa.concat_tables(made))
    missing = pc.sum(pc.not_equal(rows["status"], "ok")).as_py() or 0
    log.info("%d trials in %d batches, %d of them without an outcome", rows.num_rows, len(numbers), missing)
    return rows


class _Key(NamedTuple):
    """One row of a forward pass."""

    recipe: str
    dose: float


class _Shared(NamedTuple):
    """What all trials of a batch share."""

    sae: str
    """of the targets"""
    edited: str
    """dictionary whose site is edited: that of the sources"""
    site: str
    locus: str
    prompt_id: str
    positions: str
    dose_unit: str

    @property
    def bare(self) -> bool:
        """Whether the prompt is read without its BOS."""
        return self.positions == "all_no_bos"


_PLACE = itemgetter("sae", "recipe", *_Shared._fields[2:])


class _Unedited(NamedTuple):
    """A prompt before any edit."""

    prompt: EditedPrompt
    logits: Tensor
    norm: float


class _Edited(NamedTuple):
    """Rows of logits after edits; a row is NaN where the model gave no finite logits."""

    rows: dict[_Key, int]
    logits: Tensor
    strengths: Float[np.ndarray, " rows"]
    """signed, in the units of the locus: of the activation, or relative"""
    direct: Tensor | None
    """logits of the direct path, row by row; None where it is not known"""
    unreached: Bool[np.ndarray, " rows"]
    """rows whose KL could not be brought to the dose"""
    norms: Float[np.ndarray, " rows"]
    """of what the edits do to the site; NaN where it is not known"""
    refused: dict[str, str]


class _Read(NamedTuple):
    """A target set: whose, which, the tokens that the plan names in its place (() where it names none), and relation and seed
    of trials that bring a row in the place of the target's own, where the set is chosen by that row."""

    target: int
    name: str
    given: tuple[int, ...]
    relation: str = ""
    seed: int = 0


def _read_key(row: Mapping[str, Any]) -> _Read:
    own = _Read(row["target"], row["token_set"], tuple(row["reads"] or ()))
    name = row["relation"]
    if (
        own.given
        or not TOKEN_SETS[own.name].by_row
        or name not in CONTROLS
        or not CONTROLS[name].row_of_target
    ):
        return own
    return own._replace(relation=name, seed=Recipe.parse(row["recipe"]).integer("seed"))


class _Sets(NamedTuple):
    """The target sets that can be read, and why the others cannot."""

    rows: dict[_Read, int]
    sets: TokenSets | None
    refused: dict[_Read, str]


class _Running:
    """What stays the same over the batches of a plan. Each cached value is a function of the inputs
    alone."""

    def __init__(
        self,
        prompts: pa.Table,
        features: pa.Table,
        model: WhiteBoxModel,
        saes: Mapping[str, SAE],
        *,
        word_start: bool,
    ):
        self.model = model
        self.sweep = sweep_of(model)
        self.saes = saes
        self.features = features
        self.prompts = {row["prompt_id"]: tuple(row["token_ids"]) for row in prompts.to_pylist()}
        self.texts = dict(zip(prompts["prompt_id"].to_pylist(), prompts["text"].to_pylist(), strict=True))
        self.context = lru_cache(maxsize=None)(self._context)
        self.words = CategoryWords.of(model.token_strings(range(model.spec.d_vocab)), word_start=word_start)
        self.base_logits = lru_cache(maxsize=_CACHED_PROMPTS)(self._base_logits)
        self.text_span = lru_cache(maxsize=_CACHED_PROMPTS)(self._text_span)
        self.norm = lru_cache(maxsize=_CACHED_PROMPTS)(self._norm)
        self.activations = lru_cache(maxsize=1)(self._activations)
        self.realise = lru_cache(maxsize=4096)(self._realise)
        self.alignment = lru_cache(maxsize=1 << 16)(self._alignment)
        self.captured = lru_cache(maxsize=2)(self._captured)
        self.coordinate = lru_cache(maxsize=4096)(self._coordinate)

    def begin(self, planned: pa.Table) -> None:
        """Batches of these rows come next; only the sets that they read are held."""
        self.planned = planned
        self.token_sets = lru_cache(maxsize=2)(self._token_sets)  # batches come SAE by SAE

    def batch(self, trials: list[dict[str, Any]]) -> pa.Table:
        """The TRIALS rows of one batch, in the order given."""
        shared = {
            _Shared(sae, Recipe.parse(text).dictionary(sae), *rest)
            for sae, text, *rest in {*map(_PLACE, trials)}
        }
        if len(shared) > 1:
            raise MismatchError(
                f"batch {trials[0]['batch']} mixes {len(shared)} combinations of {', '.join(_Shared._fields)}; "
                "expected one",
                hint="polysem plan STUDY.toml",
            )
        where = shared.pop()
        try:
            unedited = self._unedited(where)
        except Refused as refusal:
            return self._rows(trials, [refusal.reason] * len(trials), {})
        try:
            edited = self._forward(trials, where, unedited)
        except Refused as refusal:  # what none of the batch's rows can be given
            return self._rows(trials, [refusal.reason] * len(trials), {})
        return self._read(trials, where, unedited, edited)

    def _unedited(self, where: _Shared) -> _Unedited:
        context, acts = self.context(where.edited), intervention(where.locus)
        if where.site != str(acts.site(context.sae)):
            raise MismatchError(
                f"the plan edits {where.site} for SAE {where.edited!r}, which writes {context.sae.writes}",
                hint="polysem plan STUDY.toml",
            )
        if where.prompt_id not in self.prompts:
            raise MismatchError(
                f"the plan's prompt {where.prompt_id!r} is not in the prompts table",
                hint="polysem plan STUDY.toml",
            )
        ids = self._token_ids(where.prompt_id, bare=where.bare)
        span = self.text_span(where.prompt_id) if acts.inside_text else None
        prompt = EditedPrompt(
            token_ids=ids, edited=edited_positions(where.positions, len(ids)), text_span=span
        )
        if not prompt.edited.any():
            raise Refused("no_edited_position")
        norm = self.norm(where.prompt_id, context.sae.writes, where.positions, where.bare)
        if norm == 0.0 and where.dose_unit in ("resid_norm", "kl"):
            raise Refused("zero_activation")
        return _Unedited(prompt=prompt, logits=self.base_logits(where.prompt_id, where.bare), norm=norm)

    def _forward(self, trials: list[dict[str, Any]], where: _Shared, unedited: _Unedited) -> _Edited:
        context, acts = self.context(where.edited), intervention(where.locus)
        directions: dict[str, np.ndarray] = {}
        refused: dict[str, str] = {}
        for recipe in sorted({trial["recipe"] for trial in trials}):
            try:
                directions[recipe] = self.realise(where.edited, where.locus, recipe)
            except Refused as refusal:
                refused[recipe] = refusal.reason
        centres = {recipe: Recipe.parse(recipe).centre for recipe in directions}
        keys = sorted({_Key(t["recipe"], t["dose"]) for t in trials if t["recipe"] in directions})
        scale = unedited.norm if where.dose_unit == "resid_norm" else 1.0
        strengths = np.array([key.dose * scale for key in keys])

        def run(rows: Int[np.ndarray, " m"], strength: Float[np.ndarray, " m"]) -> Tensor:
            steers = [
                Steer(directions[keys[k].recipe], float(s), centres[keys[k].recipe])
                for k, s in zip(rows, strength, strict=True)
            ]
            return self._logits(steers, acts, unedited.prompt, context)

        if where.dose_unit == "kl":
            strengths, logits, unreached = steered_at_kl(
                run,
                np.array([key.dose for key in keys]),
                unedited.logits,
                first=0.2 if acts.relative else 0.08 * self._stream(where, context.sae.writes),
                lines=np.unique([key.recipe for key in keys], return_inverse=True)[1],
            )
        else:
            logits, unreached = run(np.arange(len(keys)), strengths), np.zeros(len(keys), dtype=bool)
        steers = [Steer(directions[key.recipe], float(s)) for key, s in zip(keys, strengths, strict=True)]
        norms = np.abs(strengths) if acts.adds else self._push_norms(steers, acts, unedited, where)
        rows = {key: k for k, key in enumerate(keys)}
        direct = self._direct(steers, where, unedited, logits)
        return _Edited(rows, logits, strengths, direct, unreached, norms, refused)

    def _push_norms(
        self, steers: list[Steer], acts: Intervention, unedited: _Unedited, where: _Shared
    ) -> Float[np.ndarray, " rows"]:
        """Mean norm of the change of the site's activations at the edited positions; where text was put in, at the tokens
        behind it. NaN where there is none, or no finite activation."""
        if not steers:
            return np.empty(0)
        context, prompt = self.context(where.edited), unedited.prompt
        tokens, edits = acts.prepare(steers, prompt, context)
        try:
            seen = (
                self.model.capture(tokens, [context.sae.writes], edits)[context.sae.writes]
                .cpu()
                .double()
                .numpy()
            )
        except NumericsError:
            if len(steers) == 1:
                return np.array([np.nan])
            return np.concatenate([self._push_norms([one], acts, unedited, where) for one in steers])
        before, at = self._captured(where.prompt_id, context.sae.writes, where.bare), prompt.edited
        n, put = len(prompt.token_ids), tokens.shape[1] - len(prompt.token_ids)
        if put:
            own, rows = np.array(prompt.token_ids), tokens.cpu().numpy()
            last_other = np.flatnonzero((rows[:, put:] != own).any(0)).max(initial=-1)
            at = (np.arange(n) > last_other) & bool((rows[:, :n] != own).any())  # nothing is behind a suffix
        change = np.linalg.norm(seen[:, put:] - before, axis=-1)[:, at]
        return change.mean(axis=1) if at.any() else np.full(len(steers), np.nan)

    def _direct(
        self, steers: list[Steer], where: _Shared, unedited: _Unedited, logits: Float[Tensor, "rows d_vocab"]
    ) -> Float[Tensor, "rows d_vocab"] | None:
        """Logits of the direct path of every row; None where it is not known."""
        context, prompt = self.context(where.edited), unedited.prompt
        acts = intervention(where.locus)
        return direct_logits(
            self.model,
            context.rows(len(steers), prompt),
            acts.prepare(steers, prompt, context).edits if steers else [],
            base=unedited.logits,
            edited=logits,
            seen=lambda site: torch.as_tensor(self._captured(where.prompt_id, site, where.bare)),
            sweep=self.sweep,
        )

    def _logits(
        self, steers: list[Steer], acts: Intervention, prompt: EditedPrompt, context: SiteContext
    ) -> Float[Tensor, "rows d_vocab"]:
        """Last-position logits of every row, float64 on the CPU; NaN rows where they are not finite."""
        if not steers:
            return torch.empty(0, self.model.spec.d_vocab, dtype=torch.float64)
        tokens, edits = acts.prepare(steers, prompt, context)
        try:
            return self.sweep.logits(tokens, edits).detach().cpu().double()
        except NumericsError:
            if len(steers) == 1:
                return torch.full((1, self.model.spec.d_vocab), torch.nan, dtype=torch.float64)
            # One bad row must not take the batch with it: each alone says which it was.
            return torch.cat([self._logits([steer], acts, prompt, context) for steer in steers])

    def _read(
        self, trials: list[dict[str, Any]], where: _Shared, unedited: _Unedited, edited: _Edited
    ) -> pa.Table:
        known = self.token_sets(where.sae)
        keys, reads = [_Key(t["recipe"], t["dose"]) for t in trials], [_read_key(t) for t in trials]
        wanted = sorted(set(reads) & set(known.rows))
        column = {key: k for k, key in enumerate(wanted)}
        finite = torch.isfinite(edited.logits.sum(-1))  # a sum shows any entry that is not
        if not bool(finite.all()):
            finite = torch.isfinite(edited.logits).all(-1)
        is_finite, position = finite.tolist(), (finite.cumsum(0) - 1).numpy()
        toward = self.words.change(unedited.logits, edited.logits[finite])
        reasons: list[str | None] = []
        for key, read in zip(keys, reads, strict=True):
            reason = edited.refused.get(key.recipe) or known.refused.get(read)
            if reason is None and edited.unreached[edited.rows[key]]:
                reason = "kl_not_reached"
            if reason is None and not is_finite[edited.rows[key]]:
                reason = "non_finite_logits"
            reasons.append(reason)
        ok = [k for k, reason in enumerate(reasons) if reason is None]
        if not ok:
            return self._rows(trials, reasons, {})
        assert known.sets is not None  # a trial without a reason has a finite row and a readable set
        sets = known.sets.take([known.rows[key] for key in wanted])
        top = DOSE_UNITS[where.dose_unit].top
        direct = None if edited.direct is None else edited.direct[finite]
        seen = Outcomes.of(unedited.logits, edited.logits[finite], sets, direct, top=top)
        row = np.array([edited.rows[keys[k]] for k in ok])
        alignments = [
            self.alignment(where.sae, where.edited, where.locus, keys[k].recipe, trials[k]["target"])
            for k in ok
        ]
        numbers = seen.at(position[row], np.array([column[reads[k]] for k in ok]))
        numbers |= {name: values[position[row]] for name, values in toward.items()}
        numbers |= {
            "alignment": np.array(alignments, dtype=np.float64),
            "dose_absolute": edited.strengths[row],
            "push_norm": np.where(np.isfinite(edited.norms), edited.norms, np.nan)[row],
            "resid_norm": np.full(len(ok), unedited.norm),
            "coordinate": np.array([self.coordinate(where, keys[k].recipe) for k in ok], dtype=np.float64),
        }
        return self._rows(trials, reasons, numbers)

    def _rows(
        self,
        trials: list[dict[str, Any]],
        reasons: Sequence[str | None],
        numbers: Mapping[str, Float[np.ndarray, " ok"]],
    ) -> pa.Table:
        """TRIALS rows: those without a reason are ok and have the numbers, by column; NaN is no number."""
        ok = np.array([reason is None for reason in reasons])

        def column(name: str) -> pa.Array:
            values = np.full(len(trials), np.nan)
            values[ok] = numbers.get(name, np.nan)
            return pa.array(values, from_pandas=True)

        said = {
            "trial_id": [trial["trial_id"] for trial in trials],
            "status": ["ok" if reason is None else REASONS[reason].status for reason in reasons],
            "reason": list(reasons),
            "dtype": [self.model.spec.dtype] * len(trials),
        }
        schema = TRIALS.arrow()
        return pa.table([said.get(name) or column(name) for name in schema.names], schema=schema)

    def _alignment(self, sae: str, edited: str, locus: str, recipe: str, target: int) -> float | None:
        """Cosine of a realised direction with the target's; None where one of the two has no direction, or they have
        not one width."""
        context = self.context(sae)
        if not intervention(locus).steers or self.context(edited).sae.d_in != context.sae.d_in:
            return None
        try:
            return float(self.realise(edited, locus, recipe) @ unit(decoder_row(context, target)))
        except Refused:
            return None

    def _coordinate(self, where: _Shared, recipe: str) -> float | None:
        """What a relative strength multiplies, mean over the edited positions; None where none does."""
        acts = intervention(where.locus)
        if not acts.relative:
            return None
        seen = self.captured(where.prompt_id, acts.site(self.context(where.edited).sae), where.bare)
        along = self.realise(where.edited, where.locus, recipe)
        return float((seen[edited_positions(where.positions, len(seen))] @ along).mean())

    def _context(self, label: str) -> SiteContext:
        if label not in self.saes:
            raise MismatchError(
                f"the plan's SAE {label!r} is not among {', '.join(sorted(self.saes))}",
                hint="polysem plan STUDY.toml",
            )
        sae = self.saes[label]
        width = self.model.site_width(sae.writes)
        if width != sae.d_out:
            raise MismatchError(
                f"SAE {label!r} is {sae.d_out} wide but {sae.writes} of {self.model.spec.ref} is {width} wide",
                hint="load the SAE's own model, or name the right site in the study",
            )
        return SiteContext(
            label, sae, self.model.spec, activations=lambda: self.activations(sae.writes), model=self.model
        )

    def _realise(self, label: str, locus: str, recipe: str) -> np.ndarray:
        return intervention(locus).realise(Recipe.parse(recipe), self.context(label))

    def _token_ids(self, prompt_id: str, *, bare: bool = False) -> tuple[int, ...]:
        """Token ids of a prompt, of a bare one without its BOS. Raises Refused if the model cannot read them."""
        ids = self.prompts[prompt_id]
        if bare and ids and ids[0] == self.model.bos_id:
            ids = ids[1:]
        if not ids:
            raise Refused("empty_prompt")
        if len(ids) > self.model.spec.n_ctx:
            raise Refused("prompt_too_long")
        if min(ids) < 0 or max(ids) >= self.model.spec.d_vocab:
            raise Refused("prompt_out_of_vocab")
        return ids

    def _text_span(self, prompt_id: str) -> tuple[int, int] | None:
        """Where the prompt's own text lies among its tokens; None where it ends them, as without a chat template."""
        return span_of(self._token_ids(prompt_id), self.texts[prompt_id], self.model)

    def _tokens(self, prompt_id: str, bare: bool) -> Tensor:
        return torch.tensor([self._token_ids(prompt_id, bare=bare)], device=self.model.spec.device)

    def _base_logits(self, prompt_id: str, bare: bool) -> Float[Tensor, "1 d_vocab"]:
        try:
            logits = (
                self.model.logits(self._tokens(prompt_id, bare), last_only=True)[:, -1]
                .detach()
                .cpu()
                .double()
            )
        except NumericsError as error:
            raise Refused("non_finite_baseline") from error
        if not bool(torch.isfinite(logits).all()):
            raise Refused("non_finite_baseline")
        return logits

    def _captured(self, prompt_id: str, site: Site, bare: bool = False) -> Float[np.ndarray, "pos d"]:
        """The site's activations on one unedited prompt, float64."""
        try:
            seen = self.model.capture(self._tokens(prompt_id, bare), [site])[site][0].cpu().double().numpy()
        except NumericsError as error:
            raise Refused("non_finite_baseline") from error
        if not np.isfinite(seen).all():
            raise Refused("non_finite_baseline")
        return seen

    def _norm(self, prompt_id: str, site: Site, positions: str, bare: bool) -> float:
        """Mean norm of the site's activations at the edited positions, massive ones left out where others are edited."""
        norms = np.linalg.norm(self._captured(prompt_id, site, bare), axis=1)
        return mean_norm(norms, edited_positions(positions, len(norms)))

    def _stream(self, where: _Shared, site: Site) -> float:
        """Mean norm of what a push at the site is added to: of a sublayer's output, the stream behind it."""
        behind = Site(site.layer, "hook_resid_post")
        to_stream = site.point in ("hook_attn_out", "hook_mlp_out") and behind in self.model.sites()
        return self.norm(where.prompt_id, behind if to_stream else site, where.positions, where.bare)

    def _activations(self, site: Site) -> Float[np.ndarray, "n d"]:
        """Activations of the site on the plan's prompts at the positions that are counted; prompts that cannot run give
        none."""
        seen = [np.empty((0, self.model.site_width(site)))]
        for prompt_id in sorted(self.prompts)[:_COVARIANCE_PROMPTS]:
            try:
                here = self._captured(prompt_id, site)
                seen.append(here[PLAIN.counted(len(here), span=self.text_span(prompt_id))])
            except Refused as refusal:
                log.debug("prompt %s gives no activations: %s", prompt_id, refusal.reason)
        return ordinary_rows(np.concatenate(seen))

    def _token_sets(self, label: str) -> _Sets:
        """The target sets of one SAE that the planned batches read."""
        rows = self.planned.filter(pc.equal(self.planned["sae"], label))
        wanted = {
            _read_key(row): row["recipe"]
            for row in rows.select(["target", "token_set", "reads", "relation", "recipe"]).to_pylist()
        }
        own = self.features.filter(pc.equal(self.features["sae"], label))
        own = own.filter(pc.is_in(own["feature"], pa.array({key.target for key in wanted}, pa.int32())))
        tokens = {
            row["feature"]: {name: row[kind.column] for name, kind in TOKEN_SETS.items()}
            for row in own.to_pylist()
        }
        found: dict[_Read, list[int]] = {}
        refused: dict[_Read, str] = {}
        W_E = self.model.W_E
        for key in sorted(wanted):
            target, name, given = key[:3]
            if target not in tokens:
                raise MismatchError(
                    f"the plan's target {target} of SAE {label!r} is not in the feature table",
                    hint="polysem plan STUDY.toml",
                )
            ids = list(given) or tokens[target][name]
            if key.relation:
                ids = self._promoted(key, wanted[key], label, n=len(ids))
            reason = set_problem(ids, W_E)
            if reason is None:
                found[key] = ids
            else:
                refused[key] = reason
        sets = TokenSets.of(list(found.values()), W_E) if found else None
        return _Sets({key: k for k, key in enumerate(found)}, sets, refused)

    def _promoted(self, key: _Read, recipe: str, label: str, *, n: int) -> list[int]:
        """The n tokens that the row which stands in for the target's own promotes most through the unembedding."""
        context = self.context(label)
        row = attribute(CONTROLS[key.relation].row_of_target)(Recipe.parse(recipe), key.target, context)
        return promoted(self.model.W_U, torch.as_tensor(row), n)


@dataclass
class Kept:
    """What calls of `run_batches` on one plan hand on: directions, unedited prompts, words."""

    running: _Running | None = None
