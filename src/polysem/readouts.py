"""Readouts: what a next-token distribution says about a set of target tokens.

Four numbers per distribution p and token set T: the weighted cosine c, the mass w = P(T), its log-odds, and
the KL divergence from a baseline. All are pure, computed in float64 on the CPU whatever comes in; numpy in
gives numpy out, torch gives torch. A target set is a set: order and repetition of ids change nothing.

`target_similarity` (one pass over the embedding) is the costly part of c and depends on T alone, so many
distributions share it; `TokenSets` and `read_sets` do that for many rows and sets at once, as three matrix
products.

Sources: arXiv 2505.11611 section 3 for c and w; log-odds because an equal shift of all target logits
changes it by that shift.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.categories import builtin
from polysem.errors import ConfigError, MismatchError, NumericsError
from polysem.vocabulary import CATEGORIES, OUTCOMES, attribute

SUM_TOLERANCE = 1e-3
"""how far probabilities may sum from 1: a float32 softmax over 10^5 tokens stays within 1e-4, a cast to
bfloat16 does not"""
_TINY = 1e-280
"""below this a sum of exponentials has lost digits to underflow, and the log-sum-exp over the set is taken
instead"""
_FAR = 300.0
"""of log q - log p: from here on e^x is not formed, which could overflow, and p (e^x - 1 - x) is taken as q - p - p x"""
_BLOCK = 8192
"""embedding rows in float64 at a time"""

_ROWS = 8
"""rows in float64 at a time: what is made of them stays in the cache of a processor"""

TokenIds = Sequence[int] | Int[np.ndarray, "..."] | Int[Tensor, "..."]


def weighted_cosine(
    probs: Float[np.ndarray, "*batch d_vocab"] | Float[Tensor, "*batch d_vocab"],
    target_ids: TokenIds,
    embedding: Float[np.ndarray, "rows d_model"] | Float[Tensor, "rows d_model"],
) -> Float[np.ndarray, "*batch"] | Float[Tensor, "*batch"] | np.floating:
    """c = sum_t p_t max_{t' in T} cos(E_t, E_t'), one number per distribution, in [-1, 1] (cosine).

    Raises:
        ConfigError: if T is empty, or `probs` holds no probabilities (negative, or not summing to 1).
        MismatchError: if an id of T lies outside the vocabulary, or `embedding` has not a row per token.
        NumericsError: on NaN or infinity, or if a target token has a zero embedding.
    """
    p = _probabilities(probs)
    _same_vocabulary(p.shape[-1], embedding.shape[0], "probs", "embedding")
    return _like(probs, p @ torch.as_tensor(target_similarity(target_ids, embedding)))


def target_similarity(
    target_ids: TokenIds,
    embedding: Float[np.ndarray, "d_vocab d_model"] | Float[Tensor, "d_vocab d_model"],
) -> Float[np.ndarray, " d_vocab"] | Float[Tensor, " d_vocab"]:
    """s_t = max_{t' in T} cos(E_t, E_t'), so that c = p . s.

    A token whose embedding is zero has no direction and counts as 0 (padding rows of the vocabulary); a
    zero row inside T is an error.

    Raises: as `weighted_cosine`.
    """
    similarity = _similarities([target_ids], embedding)[0]
    return similarity if isinstance(embedding, Tensor) else similarity.numpy()


def weighted_overlap(
    probs: Float[np.ndarray, "*batch d_vocab"] | Float[Tensor, "*batch d_vocab"], target_ids: TokenIds
) -> Float[np.ndarray, "*batch"] | Float[Tensor, "*batch"] | np.floating:
    """w = P(T): the probability of the distinct target tokens together, in [0, 1].

    Raises: as `weighted_cosine`.
    """
    p = _probabilities(probs)
    return _like(probs, p[..., distinct_ids(target_ids, p.shape[-1])].sum(-1))


def log_odds(
    logits: Float[np.ndarray, "*batch d_vocab"] | Float[Tensor, "*batch d_vocab"], target_ids: TokenIds
) -> Float[np.ndarray, "*batch"] | Float[Tensor, "*batch"] | np.floating:
    """log P(T) / (1 - P(T)) in nats: log-sum-exp of the logits over T minus that over the other tokens.

    Raises:
        ConfigError: if T is empty or is the whole vocabulary.
        MismatchError: if an id of T lies outside the vocabulary.
        NumericsError: if a logit is not finite.
    """
    z = _finite(logits, "logits")
    inside = torch.zeros(z.shape[-1], dtype=torch.bool)
    inside[distinct_ids(target_ids, z.shape[-1])] = True
    _not_everything(inside)
    return _like(logits, z[..., inside].logsumexp(-1) - z[..., ~inside].logsumexp(-1))


def kl(
    base_logits: Float[np.ndarray, "*batch d_vocab"] | Float[Tensor, "*batch d_vocab"],
    edited_logits: Float[np.ndarray, "*batch2 d_vocab2"] | Float[Tensor, "*batch2 d_vocab2"],
) -> Float[np.ndarray, "*batch3"] | Float[Tensor, "*batch3"] | np.floating:
    """KL(base || edited) of the two softmax distributions, in nats, >= 0; leading axes broadcast.

    Summed as p (e^x - 1 - x) with x = log q - log p, whose terms are all non-negative: small divergences
    keep their digits.

    Raises:
        MismatchError: if the two vocabularies differ.
        NumericsError: if a logit is not finite.
    """
    base, edited = _finite(base_logits, "base_logits"), _finite(edited_logits, "edited_logits")
    _same_vocabulary(base.shape[-1], edited.shape[-1], "base_logits", "edited_logits")
    log_p = base.log_softmax(-1)
    p = log_p.exp()
    if edited.ndim == 2 and base.numel() == base.shape[-1]:
        parts = [_divergence(log_p, p, some) for some in edited.split(_ROWS)]
        return _like(base_logits, torch.cat(parts))
    return _like(base_logits, _divergence(log_p, p, edited))


def _divergence(log_p: Tensor, p: Tensor, edited: Tensor) -> Tensor:
    log_q = edited.log_softmax(-1)
    x = log_q - log_p
    if not x.numel() or float(x.amax()) < _FAR:
        return torch.expm1(x).sub_(x).clamp_(min=0.0).mul_(p).sum(-1)
    terms = torch.expm1(x.clamp(max=_FAR)).sub_(x).clamp_(min=0.0).mul_(p)
    return torch.where(x > _FAR, log_q.exp() - p - p * x, terms).sum(-1)


def share_of_shift(
    logodds_base: Float[Tensor, " n_sets"],
    logodds_edit: Float[Tensor, "rows n_sets"],
    divergence: Float[Tensor, " rows"],
) -> Float[Tensor, "rows n_sets"]:
    """rho: the signed share of a shift of the whole distribution that goes into the odds of T, in [-1, 1].

    rho = sign(dw) sqrt(KL(Bern w || Bern w') / KL(p || p')). By the data-processing inequality no shift can do
    better than 1. To first order it is dw / sqrt(2 KL w (1 - w)), the correlation under p of the logit shift with
    membership in T; that form has its bound to first order only.

    Args:
        logodds_base: logit of P(T) before, nats.
        logodds_edit: after.
        divergence: KL(p || p') of every row, nats.

    Returns:
        NaN where nothing moved at all.
    """
    softplus = torch.nn.functional.softplus
    inside, outside = -softplus(-logodds_base), -softplus(logodds_base)
    x = -softplus(-logodds_edit) - inside
    y = -softplus(logodds_edit) - outside
    binary = inside.exp() * (torch.expm1(x) - x) + outside.exp() * (torch.expm1(y) - y)
    share = (binary.clamp(min=0.0) / divergence[:, None]).sqrt().clamp(max=1.0)
    return torch.where(divergence[:, None] > 0, share * torch.sign(logodds_edit - logodds_base), torch.nan)


def distinct_ids(target_ids: TokenIds, d_vocab: int) -> list[int]:
    """The ids of T, each once, rising.

    Raises:
        ConfigError: if there are none.
        MismatchError: if one lies outside the vocabulary.
    """
    ids = sorted({int(i) for i in np.asarray(target_ids).reshape(-1).tolist()})
    if not ids:
        raise ConfigError(
            "the target set holds no token; every readout needs at least one",
            hint="choose another feature or lower features.target_ratio",
        )
    if ids[0] < 0 or ids[-1] >= d_vocab:
        wrong = next(i for i in (ids[0], ids[-1]) if not 0 <= i < d_vocab)
        raise MismatchError(
            f"target token id {wrong} lies outside the vocabulary of {d_vocab} tokens (0 to {d_vocab - 1})",
            hint="use the feature table that was made with this model's tokenizer",
        )
    return ids


@dataclass(frozen=True)
class TokenSets:
    """Several target sets, ready to be read from many rows: what each token counts for c, and who is
    inside."""

    similarity: Float[Tensor, "n_sets d_vocab"]
    """s_t of each set, float64"""
    inside: Float[Tensor, "n_sets d_vocab"]
    """1 for tokens of the set, 0 elsewhere, float64"""

    @classmethod
    def of(
        cls,
        sets: Sequence[TokenIds],
        embedding: Float[np.ndarray, "d_vocab d_model"] | Float[Tensor, "d_vocab d_model"],
    ) -> "TokenSets":
        """The sets, in the order given. Raises: as `weighted_cosine` and `log_odds`."""
        d_vocab = embedding.shape[0]
        inside = torch.zeros(len(sets), d_vocab, dtype=torch.float64)
        for row, ids in zip(inside, sets, strict=True):
            row[distinct_ids(ids, d_vocab)] = 1.0
            _not_everything(row > 0)
        return cls(similarity=_similarities(sets, embedding), inside=inside)

    def take(self, which: Sequence[int]) -> "TokenSets":
        """The sets at these positions."""
        rows = torch.as_tensor(list(which), dtype=torch.long)
        return TokenSets(similarity=self.similarity[rows], inside=self.inside[rows])


class SetReadouts(NamedTuple):
    """One number per row and set; fields are named as the outcomes are."""

    cosine: Float[Tensor, "rows n_sets"]
    mass: Float[Tensor, "rows n_sets"]
    logodds: Float[Tensor, "rows n_sets"]


def read_sets(logits: Float[Tensor, "rows d_vocab"], sets: TokenSets) -> SetReadouts:
    """c, w and log-odds of every set under every row of logits: the public readouts, for many at once.

    Raises:
        NumericsError: if a logit is not finite.
    """
    z = _finite(logits, "logits")
    if len(z) > _ROWS:
        parts = [_read_rows(some, sets) for some in z.split(_ROWS)]
        return SetReadouts(*(torch.cat(column) for column in zip(*parts, strict=True)))
    return _read_rows(z, sets)


def _read_rows(z: Float[Tensor, "rows d_vocab"], sets: TokenSets) -> SetReadouts:
    weights = (z - z.amax(-1, keepdim=True)).exp_()
    total = weights.sum(-1, keepdim=True)
    within, odds = _odds(z, weights, total, sets.inside)
    return SetReadouts(cosine=(weights @ sets.similarity.T) / total, mass=within / total, logodds=odds)


def _odds(
    z: Float[Tensor, "rows d_vocab"],
    weights: Float[Tensor, "rows d_vocab"],
    total: Float[Tensor, "rows 1"],
    inside: Float[Tensor, "n_sets d_vocab"],
) -> tuple[Float[Tensor, "rows n_sets"], Float[Tensor, "rows n_sets"]]:
    """Sums of the weights e^(z - max) inside each set, and its log-odds."""
    within = weights @ inside.T
    without = total - within
    # A difference keeps its digits where the set holds no more than half; others are summed outside of it.
    large = within > 0.5 * total
    some = large.any(0).nonzero()[:, 0]
    if len(some):
        summed = weights @ (1.0 - inside[some]).T
        without[:, some] = torch.where(large[:, some], summed, without[:, some])
    odds = within.log() - without.log()
    for row, column in ((within < _TINY) | (without < _TINY)).nonzero().tolist():
        own = inside[column] > 0
        odds[row, column] = z[row, own].logsumexp(-1) - z[row, ~own].logsumexp(-1)
    return within, odds


def log_odds_of_sets(
    logits: Float[Tensor, "rows d_vocab"], inside: Float[Tensor, "n_sets d_vocab"]
) -> Float[Tensor, "rows n_sets"]:
    """Log-odds (nats, float64) of several sets under every row: `log_odds`, without the embedding that `read_sets` needs.

    Args:
        logits: of next-token distributions.
        inside: 1 for tokens of the set, 0 elsewhere, float64; no set is empty or everything.

    Raises:
        NumericsError: if a logit is not finite.
    """
    parts = []
    for rows in _finite(logits, "logits").split(_ROWS):
        weights = (rows - rows.amax(-1, keepdim=True)).exp_()
        parts.append(_odds(rows, weights, weights.sum(-1, keepdim=True), inside)[1])
    return torch.cat(parts) if parts else inside.new_empty(0, len(inside))


def _similarities(
    sets: Sequence[TokenIds],
    embedding: Float[np.ndarray, "d_vocab d_model"] | Float[Tensor, "d_vocab d_model"],
) -> Float[Tensor, "n_sets d_vocab"]:
    """s_t of every set; the embedding goes through float64 in blocks, so that a large vocabulary needs no
    second copy."""
    table = _tensor(embedding)
    ids = [distinct_ids(target, table.shape[0]) for target in sets]
    targets = [_unit(table[torch.as_tensor(i, device=table.device)], i) for i in ids]
    result = torch.empty(len(sets), table.shape[0], dtype=torch.float64)
    for start in range(0, table.shape[0], _BLOCK):
        block = _finite(table[start : start + _BLOCK], "embedding")
        norms = block.norm(dim=-1, keepdim=True)
        unit = torch.where(norms > 0, block / norms.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        for row, target in zip(result, targets, strict=True):
            # Rounding can carry a cosine past 1 by an ulp; c must stay inside its bounds.
            row[start : start + _BLOCK] = (unit @ target.T).amax(-1).clamp(-1.0, 1.0)
    return result


def _unit(rows: Float[Tensor, "n d_model"], ids: list[int]) -> Float[Tensor, "n d_model"]:
    rows = _finite(rows, "embedding")
    norms = rows.norm(dim=-1, keepdim=True)
    zero = (norms[:, 0] == 0).nonzero()
    if len(zero):
        raise NumericsError(
            f"target token {ids[int(zero[0])]} has a zero embedding; a cosine with it is undefined",
            hint="remove the token from the target set",
        )
    return rows / norms


def _tensor(values: np.ndarray | Tensor) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    # torch takes neither read-only memory (as from Arrow) nor negative strides.
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))


def _finite(values: np.ndarray | Tensor, name: str) -> Tensor:
    result = _tensor(values).to(device="cpu", dtype=torch.float64)
    # A sum shows any NaN or infinity and costs one pass; only where it is not finite is every entry looked at.
    if not bool(torch.isfinite(result.sum())) and not bool(torch.isfinite(result).all()):
        bad = int((~torch.isfinite(result)).sum())
        raise NumericsError(
            f"{name} holds {bad} non-finite values of {result.numel()}; expected finite numbers"
        )
    return result


def _probabilities(probs: np.ndarray | Tensor) -> Tensor:
    p = _finite(probs, "probs")
    if bool((p < 0).any()):
        raise ConfigError(
            f"probs holds a negative value ({float(p.min()):g}); expected probabilities, not logits"
        )
    worst = float((p.sum(-1) - 1.0).abs().max()) if p.numel() else 0.0
    if worst > SUM_TOLERANCE:
        raise ConfigError(
            f"probs sum to 1 only within {worst:g}; expected within {SUM_TOLERANCE:g}",
            hint="pass the softmax over the whole vocabulary, in float32 or better",
        )
    return p


def _same_vocabulary(a: int, b: int, a_name: str, b_name: str) -> None:
    if a != b:
        raise MismatchError(
            f"{a_name} is over {a} tokens but {b_name} over {b}; expected the same vocabulary"
        )


def _not_everything(inside: Tensor) -> None:
    if bool(inside.all()):
        raise ConfigError(
            f"the target set is the whole vocabulary of {len(inside)} tokens; its log-odds are infinite"
        )


def _like(given: np.ndarray | Tensor, result: Tensor) -> np.ndarray | Tensor | np.floating:
    """`result` as numpy where numpy came in."""
    return result if isinstance(given, Tensor) else result.numpy()[()]


def read_outcomes(
    logits: Float[Tensor, "rows d_vocab"], sets: TokenSets
) -> dict[str, Float[Tensor, "rows n_sets"]]:
    """Every outcome of `vocabulary.OUTCOMES` that a distribution shows, by name; those with the same `read` come of one
    call."""
    made: dict[str, Any] = {}
    found: dict[str, Tensor] = {}
    for name, outcome in OUTCOMES.items():
        if not outcome.read:
            continue
        if outcome.read not in made:
            made[outcome.read] = attribute(outcome.read)(logits, sets)
        values = made[outcome.read]
        found[name] = values if isinstance(values, Tensor) else getattr(values, name)
    return found


def read_top(
    logits: Float[Tensor, "rows d_vocab"], sets: TokenSets, top: int
) -> dict[str, Float[Tensor, "rows n_sets"]]:
    """c and w as sums over the `top` most likely tokens of every row, not renormalised (arXiv 2505.11611, prompts and
    neurons).

    Raises:
        NumericsError: if a logit is not finite.
    """
    p = _finite(logits, "logits").softmax(-1)
    kept = p.topk(min(top, p.shape[-1]), dim=-1)
    p = torch.zeros_like(p).scatter_(-1, kept.indices, kept.values)
    return {"cosine": p @ sets.similarity.T, "mass": p @ sets.inside.T}


class Outcomes(NamedTuple):
    """Every outcome of the finite rows of a batch, for every set read."""

    base: dict[str, Float[np.ndarray, " n_sets"]]
    edit: dict[str, Float[np.ndarray, "rows n_sets"]]
    kl: Float[np.ndarray, " rows"]

    @classmethod
    def of(
        cls,
        base: Float[Tensor, "1 d_vocab"],
        edited: Float[Tensor, "rows d_vocab"],
        sets: TokenSets,
        direct: Float[Tensor, "rows d_vocab"] | None = None,
        *,
        top: int = 0,
    ) -> "Outcomes":
        """From logits.

        Args:
            base: of the unedited prompt.
            edited: of every row.
            sets: what is read.
            direct: where what a row adds at the last position passes final norm and unembedding alone; None where the edit
                has no such path that is known, and `beyond` no number.
            top: c and w are sums over that many of the most likely tokens; 0 for all.
        """
        before, after = read_outcomes(base, sets), read_outcomes(edited, sets)
        before["beyond"] = before["logodds"]
        if direct is None:
            after["beyond"] = torch.full_like(after["logodds"], torch.nan)
        else:
            straight = log_odds_of_sets(direct, sets.inside)
            after["beyond"] = after["logodds"] - straight + before["logodds"]
        if top:
            before |= read_top(base, sets, top)
            after |= read_top(edited, sets, top)
        moved = torch.as_tensor(kl(base, edited))
        rho = share_of_shift(before["logodds"][0], after["logodds"], moved)
        return cls(
            base={f"{name}_base": values[0].numpy() for name, values in before.items()},
            edit={f"{name}_edit": values.numpy() for name, values in after.items()} | {"rho": rho.numpy()},
            kl=moved.numpy(),
        )

    def at(
        self, rows: Int[np.ndarray, " n"], columns: Int[np.ndarray, " n"]
    ) -> dict[str, Float[np.ndarray, " n"]]:
        """The outcomes of pairs of a row and a set, by column of TRIALS; NaN where there is no number."""
        found = {name: values[columns] for name, values in self.base.items()}
        return (
            found
            | {name: values[rows, columns] for name, values in self.edit.items()}
            | {"kl": self.kl[rows]}
        )


def set_problem(ids: Sequence[int], W_E: Float[Tensor, "d_vocab d_model"]) -> str | None:
    """The word of `vocabulary.REASONS` for which a target set cannot be read; None if it can."""
    if not ids:
        return "empty_target_set"
    if min(ids) < 0 or max(ids) >= len(W_E):
        return "token_out_of_vocab"
    if len(set(ids)) == len(W_E):
        return "full_target_set"
    if bool((W_E[torch.as_tensor(ids, device=W_E.device)].abs().amax(-1) == 0).any()):
        return "zero_embedding"
    return None


@dataclass(frozen=True)
class CategoryWords:
    """The tokens of every category of words (`vocabulary.CATEGORIES`) that a vocabulary has some of."""

    names: tuple[str, ...]
    """in the order of the vocabulary"""
    inside: Float[Tensor, "n_categories d_vocab"]
    """1 for a token of the category, float64"""

    @classmethod
    def of(cls, strings: Sequence[str], *, word_start: bool) -> "CategoryWords":
        """Those of a vocabulary.

        Args:
            strings: the text of every token, by id.
            word_start: whether what comes next begins with a space, as it does but for answers in a chat.
        """
        inside = torch.from_numpy(builtin().inside(strings, word_start=word_start)).double()
        size = inside.sum(-1)
        read = ((size > 0) & (size < len(strings))).nonzero()[:, 0]
        names = list(builtin().names)
        return cls(tuple(names[k] for k in read.tolist()), inside[read])

    def change(
        self, base: Float[Tensor, "1 d_vocab"], edited: Float[Tensor, "rows d_vocab"]
    ) -> dict[str, Float[np.ndarray, " rows"]]:
        """The change in the log-odds (nats) of every category in every row, by its column of TRIALS."""
        moved = log_odds_of_sets(edited, self.inside) - log_odds_of_sets(base, self.inside)
        return {CATEGORIES[name].column: moved[:, k].numpy() for k, name in enumerate(self.names)}
