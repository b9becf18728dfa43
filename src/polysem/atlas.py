"""The linear response of every pair of an SAE: what steering along source s does to the log-odds of target T's tokens.

For one prompt the response to a small vector v added at the edited positions is g . v, with g the gradient of the
log-odds at the site, summed over those positions. Gradients are linear in what they start from, so every
target of a prompt shares d_model backward passes at most (the Jacobian of the last normed stream), however
many targets there are. Averaged over prompts, each in units of its own activation norm, one vector per target
remains, and the effect of every source is one dot product: E = G @ unit(W_dec).T. E is never whole in memory:
it is made in blocks of targets, counted into histograms over all pairs, and its largest entries per target are
kept; G is kept whole, and gives any entry of E back.

What is linear may be wrong: `verify_sample` steers for real, at a fixed KL, and says how much of the measured
effects the prediction explains. Cost: prompts x d_model suffix gradients, n_targets x d_sae x d_in products.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.act.base import some_edited
from polysem.act.steering import steered_at_kl
from polysem.edits import Add
from polysem.errors import ConfigError, MismatchError
from polysem.geometry.unit import unit_rows
from polysem.models.clean import CleanRun, clean_run
from polysem.models.gradients import head_slope, pull_back_head
from polysem.models.hf import HFModel
from polysem.models.replay import last_logits
from polysem.models.sweep import sweep_of
from polysem.positions import mean_norm
from polysem.readouts import distinct_ids, kl, log_odds
from polysem.seeds import rng_for
from polysem.types import Site

COSINE_EDGES = np.linspace(-1.0, 1.0, 101)
EFFECT_EDGES = np.concatenate([-np.logspace(2, -4, 25), [0.0], np.logspace(-4, 2, 25)])
"""nats per unit of resid_norm; what lies beyond the ends is counted in the end cells"""
_ROWS = 64
"""gradients pulled back in one pass"""
_BLOCK = 256
"""targets whose effects on all sources are in memory at once"""
FIRST_DOSE = 0.05
"""in units of resid_norm: costs about 0.01 nats"""


def set_responses(
    model: HFModel,
    site: Site,
    prompts: Sequence[Sequence[int]],
    sets: Sequence[Sequence[int]],
    *,
    positions: str = "all_but_first",
) -> Float[np.ndarray, "n_sets d"]:
    """d log-odds of each token set / d (vector added at the edited positions, in units of the mean activation norm
    there), averaged over prompts: nats per unit of resid_norm, float64.

    Args:
        model: a `transformers` model.
        site: where is steered; not the embedding.
        prompts: token ids; each must have an edited position.
        sets: token ids of every target; neither empty nor the whole vocabulary.
        positions: which positions are edited, as in the plan.

    Raises:
        ConfigError: if there are no prompts or a set is empty.
        MismatchError: if a token is outside the vocabulary, or a prompt has no edited position.
        SiteError, NumericsError: as `WhiteBoxModel.vjp`.
    """
    if not prompts:
        raise ConfigError("the atlas needs at least one prompt", hint="raise prompts.n in the study")
    tables = _padded(sets, model.spec.d_vocab)
    total = np.zeros((len(sets), model.site_width(site)))
    for ids in prompts:
        total += _of_prompt(model, site, ids, tables, positions)
    return total / len(prompts)


def _of_prompt(
    model: HFModel, site: Site, ids: Sequence[int], sets: tuple[Tensor, Tensor], positions: str
) -> Float[np.ndarray, "n_sets d"]:
    prompt = _Prompt(model, site, ids, positions)
    starts = _starts(model, prompt.clean, sets)
    few = len(starts) <= model.spec.d_model
    gradient = prompt.pulled(starts) if few else starts @ prompt.pulled(prompt.basis(starts.device))
    return (prompt.norm * gradient).cpu().numpy()


class _Prompt:
    """One prompt seen once, and gradients from its last normed stream."""

    def __init__(self, model: HFModel, site: Site, ids: Sequence[int], positions: str):
        tokens = torch.tensor([list(ids)], dtype=torch.long, device=model.spec.device)
        model.check_tokens(tokens)
        mask = some_edited(positions, len(ids))
        self.model, self.site, self.clean = model, site, clean_run(model, tokens)
        self.norm = _norm(model, tokens, site, mask)
        self._edited = torch.as_tensor(mask, device=tokens.device)

    def basis(self, device: torch.device) -> Float[Tensor, "d_model d_model"]:
        """What gives the Jacobian of the normed stream."""
        return torch.eye(self.model.spec.d_model, dtype=torch.float64, device=device)

    def pulled(self, rows: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d"]:
        """Gradient at the site of every row . normed stream, summed over edited positions."""
        parts = rows.split(_ROWS)
        return torch.cat(
            [
                pull_back_head(self.model, self.clean, self.site, part)[:, self._edited].sum(1)
                for part in parts
            ]
        ).double()


class PromptResponse(NamedTuple):
    """All that is linear about pushes of one prompt, from one pass of d_model gradients."""

    gradients: Float[np.ndarray, "n_sets d"]
    """d log-odds of every set / d vector added at the edited positions: nats per unit of activation"""
    jacobian: Float[np.ndarray, "d_model d"]
    """d last normed stream / d that vector"""
    metric: Float[np.ndarray, "d_model d_model"]
    """nats per squared unit of the normed stream: that of pushes at several sites is J_s v + J_t w"""
    logits: Float[np.ndarray, "d_model d"]
    """J with |J v| = the length of the change of centred logits (soft-caps left out), up to a rotation that is the same
    for all prompts"""
    norm: float
    """mean norm of the activations at the edited positions"""

    @property
    def fisher(self) -> Float[np.ndarray, "d d"]:
        """Nats per squared unit of activation: KL = v . F v / 2 for a small v."""
        return self.jacobian.T @ self.metric @ self.jacobian


class Responder:
    """Linear responses of a model's prompts at one site, for the same token sets each time."""

    def __init__(
        self, model: HFModel, site: Site, sets: Sequence[Sequence[int]], *, positions: str = "all_but_first"
    ):
        """Arguments as of `set_responses`. Sets of very different sizes may be given together."""
        self.model, self.site, self.positions = model, site, positions
        d_vocab = model.spec.d_vocab
        by_size: dict[int, list[int]] = {}
        for row, ids in enumerate(sets):
            by_size.setdefault(len(ids).bit_length(), []).append(row)
        self._parts = [(rows, _padded([sets[row] for row in rows], d_vocab)) for rows in by_size.values()]
        self._n = len(sets)
        centred = model.W_U.double() - model.W_U.double().mean(0)
        self._root = torch.linalg.qr(centred, mode="r").R

    def __call__(self, ids: Sequence[int]) -> PromptResponse:
        """Of one prompt. Raises as `set_responses`."""
        model, prompt = self.model, _Prompt(self.model, self.site, ids, self.positions)
        jacobian = prompt.pulled(prompt.basis(model.W_U.device))
        starts = torch.zeros(self._n, model.spec.d_model, dtype=torch.float64, device=jacobian.device)
        for rows, tables in self._parts:
            starts[torch.tensor(rows)] = _starts(model, prompt.clean, tables)
        with torch.no_grad():
            p = last_logits(model, prompt.clean.pre[-1][:, -1])[0].double().softmax(-1)
            rows = model.W_U * head_slope(model, prompt.clean)[:, None]
            mean = p.to(rows) @ rows
            spread = (rows - mean) * p.to(rows).sqrt()[:, None]
            metric = (spread.T @ spread).double()
        made = (starts @ jacobian, jacobian, metric, self._root @ jacobian)
        return PromptResponse(*(part.cpu().numpy() for part in made), norm=prompt.norm)


def _starts(model: HFModel, clean: CleanRun, sets: tuple[Tensor, Tensor]) -> Float[Tensor, "n_sets d_model"]:
    """d log-odds / d normed stream at the last position, float64: sum_t (q_t + p_t / (1 - P)) u_t over the set
    minus sum_t p_t u_t / (1 - P) over all tokens, q being p within the set."""
    with torch.no_grad():
        z = last_logits(model, clean.pre[-1][:, -1])[0].double()
    index, real = (table.to(z.device) for table in sets)
    slope, weight = head_slope(model, clean).double(), model.W_U
    log_p = z.log_softmax(-1)
    everything = ((log_p.exp() * slope).to(weight) @ weight).double()
    slopes = slope.expand(len(z))
    rows = []
    for part, mask in zip(index.split(_BLOCK), real.split(_BLOCK), strict=True):
        inside = log_p[part].masked_fill(~mask, -torch.inf)
        outside = -torch.expm1(inside.logsumexp(-1, keepdim=True))  # 1 - P
        weights = (inside.softmax(-1) + inside.exp() / outside) * slopes[part]
        rows.append((weights[:, :, None] * weight[part].double()).sum(1) - everything / outside)
    return torch.cat(rows)


def _padded(sets: Sequence[Sequence[int]], d_vocab: int) -> tuple[Int[Tensor, "n k"], Bool[Tensor, "n k"]]:
    ids = [distinct_ids(one, d_vocab) for one in sets]
    width = max((len(one) for one in ids), default=1)
    index = torch.zeros(len(ids), width, dtype=torch.long)
    real = torch.zeros(len(ids), width, dtype=torch.bool)
    for row, one in enumerate(ids):
        index[row, : len(one)] = torch.tensor(one)
        real[row, : len(one)] = True
    return index, real


def _norm(model: HFModel, tokens: Tensor, site: Site, mask: Bool[np.ndarray, " pos"]) -> float:
    """Mean norm of the activations at the edited positions: the unit of doses."""
    seen = model.capture(tokens, [site])[site][0].cpu().double().numpy()
    return mean_norm(np.linalg.norm(seen, axis=1), mask)


class Block(NamedTuple):
    """The effects of all sources on some targets."""

    rows: slice
    effect: Float[Tensor, "rows d_sae"]
    interference: Float[Tensor, "rows d_sae"]
    similarity: Float[Tensor, "rows d_sae"]
    """NaN where either feature has no gloss"""
    others: Bool[Tensor, "rows d_sae"]
    """sources that are not the target and have a direction"""


@dataclass(frozen=True)
class Dictionary:
    """What the atlas reads of an SAE."""

    directions: Float[np.ndarray, "d_sae d_in"]
    """unit decoder rows; zero rows where there is none"""
    glosses: Float[np.ndarray, "d_sae d_embed"]
    """unit gloss embeddings; zero rows where there is none"""

    @classmethod
    def of(
        cls, W_dec: Float[np.ndarray, "d_sae d_in"], embeddings: Float[np.ndarray, "n_embedded d_embed"]
    ) -> "Dictionary":
        """From raw rows. Raises MismatchError if they are not of one dictionary, or not finite."""
        if len(W_dec) != len(embeddings):
            raise MismatchError(f"{len(W_dec)} decoder rows but {len(embeddings)} gloss embeddings")
        for name, rows in (("decoder rows", W_dec), ("gloss embeddings", embeddings)):
            if not np.isfinite(rows).all():
                bad = int((~np.isfinite(rows)).any(1).sum())
                raise MismatchError(
                    f"{bad} of {len(rows)} {name} hold NaN or infinity", hint="polysem features STUDY.toml"
                )
        W_dec, embeddings = (
            unit_rows(rows.astype(np.float64)).astype(np.float32) for rows in (W_dec, embeddings)
        )
        return cls(W_dec, embeddings)


def effect_blocks(
    gradients: Float[np.ndarray, "n_targets d_in"],
    targets: Int[np.ndarray, " n_targets"],
    dictionary: Dictionary,
) -> Iterator[Block]:
    """Predicted effects of every source on every target, in blocks of targets: nats per unit of resid_norm."""
    D, S = torch.from_numpy(dictionary.directions), torch.from_numpy(dictionary.glosses)
    has_direction, has_gloss = D.abs().amax(1) > 0, S.abs().amax(1) > 0
    G, ids = torch.as_tensor(gradients, dtype=torch.float32), torch.as_tensor(targets)
    for start in range(0, len(ids), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(ids)))
        mine = ids[rows]
        similarity = S[mine] @ S.T
        similarity[~has_gloss[mine]] = torch.nan
        similarity[:, ~has_gloss] = torch.nan
        others = has_direction.repeat(len(mine), 1)
        others[torch.arange(len(mine)), mine] = False
        yield Block(rows, G[rows] @ D.T, D[mine] @ D.T, similarity, others)


class Counts(NamedTuple):
    """Pairs in each cell of (cosine, effect), by either cosine; pairs without a cosine are in none."""

    interference: Int[np.ndarray, "n_cosine n_effect"]
    similarity: Int[np.ndarray, "n_cosine n_effect"]


def count_block(block: Block) -> Counts:
    """How many pairs of a block lie in each cell."""
    n_cosine, n_effect = len(COSINE_EDGES) - 1, len(EFFECT_EDGES) - 1
    edges = torch.as_tensor(EFFECT_EDGES[1:-1], dtype=torch.float32)
    # what does not count goes into a row of cells behind the last
    column = torch.bucketize(block.effect, edges, right=True, out_int32=True)
    found = []
    for cosine in (block.interference, block.similarity):
        row = ((cosine + 1.0) * (n_cosine / 2)).nan_to_num_(nan=n_cosine).to(torch.int32)
        row = row.clamp_(0, n_cosine - 1).masked_fill_(~block.others | cosine.isnan(), n_cosine)
        cells = torch.bincount((row * n_effect + column).flatten(), minlength=(n_cosine + 1) * n_effect)
        found.append(cells.reshape(n_cosine + 1, n_effect)[:n_cosine].numpy())
    return Counts(*found)


def largest(block: Block, k: int) -> tuple[Int[np.ndarray, "rows k"], Float[np.ndarray, "rows k"]]:
    """The k sources with the largest absolute effect on each target of a block, and their effects."""
    size = block.effect.abs().masked_fill(~block.others, -1.0)
    top = size.topk(min(k, size.shape[1])).indices
    return top.numpy(), block.effect.gather(1, top).numpy()


class Sampled(NamedTuple):
    """One real intervention beside its prediction."""

    target: int
    source: int
    prompt: int
    dose: float
    """in units of resid_norm"""
    kl: float
    predicted: float
    measured: float


def verify_sample(
    model: HFModel,
    site: Site,
    prompts: Sequence[Sequence[int]],
    pairs: Sequence[tuple[int, int]],
    *,
    sets: Sequence[Sequence[int]],
    dictionary: Dictionary,
    target_kl: float = 0.01,
    positions: str = "all_but_first",
) -> list[Sampled]:
    """Push each pair's source on each prompt at the dose that moves the next-token distribution by `target_kl`
    nats, and set the change of the target's log-odds beside the linear prediction for that prompt and dose.

    Args:
        model: a `transformers` model.
        site: of the SAE.
        prompts: token ids.
        pairs: (target, source) feature numbers.
        sets: token ids of the target of each pair.
        dictionary: the SAE's directions.
        target_kl: nats, KL(before || after).
        positions: as in the plan.

    Returns:
        Rows in the order of prompts, then pairs; none for a dose that cannot be found (`act.dosing.TOLERANCE` of the KL).
    """
    found: list[Sampled] = []
    tables = _padded(sets, model.spec.d_vocab)
    directions = torch.from_numpy(dictionary.directions[[source for _, source in pairs]]).to(model.W_U.device)
    for number, ids in enumerate(prompts):
        tokens = torch.tensor([list(ids)], dtype=torch.long, device=model.spec.device)
        mask = some_edited(positions, len(ids))
        norm = _norm(model, tokens, site, mask)
        gradient = torch.from_numpy(_of_prompt(model, site, ids, tables, positions))
        slope = (gradient * directions.cpu().double()).sum(1)
        base = model.logits(tokens, last_only=True)[:, -1].double().cpu()
        where = torch.as_tensor(mask, device=tokens.device)[None]
        run = partial(_pushed, model, site, tokens, where, norm * directions)
        dose, moved, missed = steered_at_kl(run, np.full(len(pairs), target_kl), base, first=FIRST_DOSE)
        for k, (target, source) in enumerate(pairs):
            if not missed[k]:
                measured = float(log_odds(moved[k], sets[k])) - float(log_odds(base[0], sets[k]))
                spent, predicted = float(kl(base[0], moved[k])), float(dose[k] * slope[k])
                found.append(Sampled(target, source, number, float(dose[k]), spent, predicted, measured))
    return found


def _pushed(
    model: HFModel,
    site: Site,
    tokens: Int[Tensor, "1 pos"],
    where: Bool[Tensor, "1 pos"],
    vectors: Float[Tensor, "n d"],
    rows: Int[np.ndarray, " m"],
    dose: Float[np.ndarray, " m"],
) -> Float[Tensor, "m d_vocab"]:
    """Logits under some of the vectors, each times its dose."""
    added = vectors[rows] * torch.as_tensor(dose).to(vectors)[:, None]
    edit = Add(site, added, where.expand(len(rows), -1))
    return sweep_of(model).logits(tokens.expand(len(rows), -1), [edit]).double().cpu()


class Fit(NamedTuple):
    """How well predictions explain measurements."""

    r2: float
    lo: float
    hi: float
    slope: float
    """of measured on predicted, through zero"""
    n: int


def explained(sample: Sequence[Sampled], *, seed: int, level: float = 0.95, draws: int = 2000) -> Fit:
    """R2 of the predictions as they stand (no refit): 1 - sum (m - p)^2 / sum (m - mean m)^2; NaN without data.

    The interval is a percentile bootstrap over pairs (all prompts of a pair together), `draws` resamples.
    """
    if len(sample) < 2:
        return Fit(np.nan, np.nan, np.nan, np.nan, len(sample))
    predicted = np.array([row.predicted for row in sample])
    measured = np.array([row.measured for row in sample])
    _, groups = np.unique([(row.target, row.source) for row in sample], axis=0, return_inverse=True)
    n_groups = int(groups.max()) + 1
    sums = np.stack(
        [
            np.bincount(groups, values, n_groups)
            for values in (np.ones_like(measured), measured, measured**2, (measured - predicted) ** 2)
        ]
    )
    rng = rng_for(seed, "atlas", "bootstrap")
    picks = rng.integers(0, n_groups, size=(draws, n_groups))
    resampled = _r2(sums[:, picks].sum(-1))
    lo, hi = np.nanquantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    slope = float(measured @ predicted / (predicted @ predicted)) if predicted.any() else np.nan
    return Fit(float(_r2(sums.sum(-1))), float(lo), float(hi), slope, len(sample))


def _r2(sums: Float[np.ndarray, "4 ..."]) -> np.ndarray | np.floating:
    n, first, second, residual = sums
    spread = second - first**2 / n
    return 1.0 - np.divide(residual, spread, out=np.full_like(spread, np.nan), where=spread > 0)
