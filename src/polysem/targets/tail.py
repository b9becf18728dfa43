"""The probability of a category's tokens below the smallest granted one: estimated from all answers of a study together.

A token that was not granted has at most the smallest granted probability; how much less is learnt from the answers that
do grant it. With x the log-probability of token t in answer a to sentence s,

    x = level of t + level of t on s + level of a + noise,

all four normal, and x is either granted or known to lie below the answer's smallest granted one (a censored, "Tobit",
regression with crossed random effects). The levels are their posterior mode; a missing token counts with its expected
probability given that it was not granted. What answers share (the tokens' levels) cancels in the change from a
baseline, and the standard error accounts for that.

SPREADS are of the full answers of one model (SmolLM2-135M-Instruct) to prompts of a study: over eight
categories the levels of tokens spread by 1.7 to 3.3 nats, on a sentence by .8 to 2.3, of answers by .5 to 1.1, noise by
.65 to 1.2. Labels of pools enter nowhere, so that treated and reference pools are read alike and a test of one against
the other keeps its size, however wrong this model is.
Cost: one fit on at most `N_FIT` answers, a second for `N_FIT` x 100 numbers; the others' levels are a Newton step each.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import log_ndtr


class Spreads(NamedTuple):
    """Standard deviations, nats."""

    token: float = 2.4
    token_on_sentence: float = 1.5
    sentence: float = 0.9
    answer: float = 0.7
    noise: float = 0.9


SPREADS = Spreads()
BELOW = 3.0
"""nats by which the tokens' mean level lies below the smallest granted log-probability before anything is known"""
N_FIT = 600
"""answers from which the levels of tokens are learnt"""
ITERATIONS = 150
NEWTON = 25
MOST = 0.95
"""of the missing mass that one category may be given"""
MEASURABLE = 0.5
"""share of a category's estimated probability that must be granted, on average, for an estimate to be given"""
CAUTION = 1.5
"""factor on the standard error: what full answers of two models took for intervals to cover at their level"""
MORE = 1.25
"""times k: the least that is advised where k is not enough"""
TINY = 1e-12
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Heads:
    """What was granted of one category's tokens, in many answers."""

    logprobs: Float[np.ndarray, "answers tokens"]
    """NaN where the token was not granted"""
    floor: Float[np.ndarray, " answers"]
    """smallest granted log-probability"""
    missing: Float[np.ndarray, " answers"]
    """probability of all that was not granted"""
    sentence: Int[np.ndarray, " answers"]
    """number of it, which is the place of its baseline, too: baselines come first, one of each sentence"""

    @property
    def seen(self) -> Bool[np.ndarray, "answers tokens"]:
        return ~np.isnan(self.logprobs)

    @property
    def mass(self) -> Float[np.ndarray, " answers"]:
        """Granted probability of the category."""
        return np.exp(np.where(self.seen, self.logprobs, -np.inf)).sum(axis=1)


@dataclass(frozen=True)
class Tail:
    """Estimates of one category, by answer."""

    mass: Float[np.ndarray, " answers"]
    """probability of the category, granted and estimated"""
    log_odds: Float[np.ndarray, " answers"]
    change: Float[np.ndarray, " answers"]
    """of the log-odds, from the baseline"""
    sd: Float[np.ndarray, " answers"]
    """standard error of the change, from truncation alone, with `CAUTION`"""
    share: float
    """mean share of the estimated probability that was granted"""
    k: float
    """how many times as many log-probabilities would grant `MEASURABLE` of it; 1 where that is granted"""

    @property
    def measurable(self) -> bool:
        return self.share >= MEASURABLE


def estimate_tail(heads: Heads, *, slope: float, spreads: Spreads = SPREADS) -> Tail:
    """The category's probability in every answer.

    Args:
        heads: what was granted.
        slope: by how many nats log-probabilities fall when the rank doubles, times 1 / ln 2 (a power law's exponent).
        spreads: of the levels.
    """
    n = len(heads.floor)
    fitted = np.unique(np.linspace(0, n - 1, min(n, N_FIT)).astype(np.int64))
    levels = _levels(heads, fitted, spreads)
    answer, precision = _answer_levels(heads, levels, spreads)
    mean = levels.of_tokens[heads.sentence] + answer[:, None]
    expected, variance = expected_below(heads, mean, spreads)
    hidden = expected.sum(axis=1)
    limit = MOST * heads.missing
    squeeze = np.where(hidden > limit, limit / np.maximum(hidden, TINY), 1.0)
    expected = expected * squeeze[:, None]
    hidden = hidden * squeeze
    mass = np.clip(heads.mass + hidden, TINY, 1 - TINY)
    log_odds = np.log(mass) - np.log1p(-mass)
    gain = 1 / (mass * (1 - mass))
    own = gain**2 * ((variance.sum(axis=1) * squeeze**2) + hidden**2 / precision)
    pull = gain[:, None] * expected
    common = ((pull - pull[heads.sentence]) ** 2 * levels.variance[heads.sentence]).sum(axis=1)
    sd = CAUTION * np.sqrt(own + own[heads.sentence] + common)
    at_base = heads.sentence == np.arange(n)
    share = float((heads.mass / mass).mean())
    return Tail(
        mass=mass,
        log_odds=log_odds,
        change=log_odds - log_odds[heads.sentence],
        sd=np.where(at_base, 0.0, sd),
        share=share,
        k=1.0 if share >= MEASURABLE else _more(heads, mean, slope),
    )


def share_and_odds(
    heads: Heads,
    mass: Float[np.ndarray, " answers"],
    known: Float[np.ndarray, " answers"],
    sd: Float[np.ndarray, " answers"],
) -> Tail:
    """Estimates from probabilities that err by themselves in every answer.

    Args:
        heads: which baseline is whose.
        mass: estimated.
        known: the part of it that was seen.
        sd: standard error of `mass`.
    """
    mass = np.clip(mass, TINY, 1 - TINY)
    log_odds, own = np.log(mass) - np.log1p(-mass), (sd / (mass * (1 - mass))) ** 2
    at_base = heads.sentence == np.arange(len(mass))
    share = float((known / mass).mean())
    return Tail(
        mass=mass,
        log_odds=log_odds,
        change=log_odds - log_odds[heads.sentence],
        sd=np.where(at_base, 0.0, np.sqrt(own + own[heads.sentence])),
        share=share,
        k=1.0 if share >= MEASURABLE else math.inf,
    )


@dataclass(frozen=True)
class _Levels:
    of_tokens: Float[np.ndarray, "sentences tokens"]
    variance: Float[np.ndarray, "sentences tokens"]
    of_sentences: Float[np.ndarray, " sentences"]


def _levels(heads: Heads, fitted: np.ndarray, w: Spreads) -> _Levels:
    """Posterior mode of the levels, from some of the answers."""
    from scipy.optimize import minimize

    x, floor, s = heads.logprobs[fitted], heads.floor[fitted], heads.sentence[fitted]
    seen = ~np.isnan(x)
    n, t = x.shape
    n_s = int(heads.sentence.max()) + 1
    known = np.where(seen, x, floor[:, None])
    member = np.zeros((n_s, n))
    member[s, np.arange(n)] = 1
    start = float(floor.min()) - BELOW
    ends = np.cumsum([t, n_s * t, n, n_s])

    def loss(v: np.ndarray) -> tuple[float, np.ndarray]:
        token, on, answer, sentence, middle = np.split(v, ends)
        on = on.reshape(n_s, t)
        z = (known - token - on[s] - answer[:, None]) / w.noise
        log_below = log_ndtr(z)
        value = np.where(seen, 0.5 * z * z, -log_below).sum()
        pull = np.where(seen, -z, np.exp(-0.5 * z * z - _HALF_LOG_2PI - log_below)) / w.noise
        off, apart = token - middle, answer - sentence[s]
        value += 0.5 * (
            (off**2).sum() / w.token**2
            + (on**2).sum() / w.token_on_sentence**2
            + (apart**2).sum() / w.answer**2
            + (sentence**2).sum() / w.sentence**2
        )
        slopes = (
            pull.sum(axis=0) + off / w.token**2,
            (member @ pull + on / w.token_on_sentence**2).ravel(),
            pull.sum(axis=1) + apart / w.answer**2,
            sentence / w.sentence**2 - member @ apart / w.answer**2,
            [-off.sum() / w.token**2],
        )
        return float(value), np.concatenate(slopes)

    first = np.concatenate([np.full(t, start), np.zeros(n_s * t + n + n_s), [start]])
    found = minimize(loss, first, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS})
    token, on, answer, sentence, _ = np.split(found.x, ends)
    of_tokens = token + on.reshape(n_s, t)
    told = member @ _information(known, seen, of_tokens[s] + answer[:, None], w)
    variance = 1 / (1 / w.token**2 + told.sum(axis=0)) + 1 / (1 / w.token_on_sentence**2 + told)
    return _Levels(of_tokens, variance, sentence)


def _information(known: np.ndarray, seen: np.ndarray, mean: np.ndarray, w: Spreads) -> np.ndarray:
    """What each cell tells of its mean: the curvature of its log-likelihood."""
    z = (known - mean) / w.noise
    ratio = np.exp(-0.5 * z * z - _HALF_LOG_2PI - log_ndtr(z))
    return np.where(seen, 1.0, np.clip(ratio * (ratio + z), 0.0, 1.0)) / w.noise**2


def _answer_levels(
    heads: Heads, levels: _Levels, w: Spreads
) -> tuple[Float[np.ndarray, " answers"], Float[np.ndarray, " answers"]]:
    """Level of every answer given those of tokens, by Newton's method, and its precision."""
    seen = heads.seen
    known = np.where(seen, heads.logprobs, heads.floor[:, None])
    rest, prior = levels.of_tokens[heads.sentence], levels.of_sentences[heads.sentence]
    level, precision = prior.copy(), np.ones(len(prior))
    for _ in range(NEWTON):
        mean = rest + level[:, None]
        z = (known - mean) / w.noise
        pull = np.where(seen, z, -np.exp(-0.5 * z * z - _HALF_LOG_2PI - log_ndtr(z))).sum(axis=1) / w.noise
        precision = _information(known, seen, mean, w).sum(axis=1) + 1 / w.answer**2
        step = (pull - (level - prior) / w.answer**2) / precision
        level = level + np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-6:
            break
    return level, precision


def expected_below(heads: Heads, mean: np.ndarray, w: Spreads) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the probability of every token that was not granted; 0 of those that were."""
    z = (heads.floor[:, None] - mean) / w.noise
    below = log_ndtr(z)
    first = np.exp(mean + w.noise**2 / 2 + log_ndtr(z - w.noise) - below)
    second = np.exp(2 * mean + 2 * w.noise**2 + log_ndtr(z - 2 * w.noise) - below)
    hidden = ~heads.seen
    return np.where(hidden, first, 0.0), np.where(hidden, np.maximum(second - first**2, 0.0), 0.0)


def _more(heads: Heads, mean: np.ndarray, slope: float) -> float:
    """How many times as many tokens must be granted: where the tokens above the new floor hold enough of the mass. Ranks
    follow probabilities as a power law beyond what is granted."""
    size = np.exp(np.where(heads.seen, heads.logprobs, mean))
    lower = np.linspace(0.0, 12.0, 121)
    held = [
        (size * (np.log(size) >= (heads.floor - d)[:, None])).sum(axis=1) / size.sum(axis=1) for d in lower
    ]
    enough = np.flatnonzero(np.mean(held, axis=1) >= MEASURABLE)
    return max(MORE, math.exp(float(lower[enough[0]]) / slope)) if len(enough) else math.inf
