"""A category's probability from a second request: samples of its tokens, each with its own exact log-probability.

`logit_bias` lifts the category's tokens alike, so that `n` tokens are drawn from them as they stand to each other; what a
server says of each is its log-probability without the bias (llama.cpp; vLLM with `raw_logprobs`, its default). With
granted probability G and tokens of probability p_t that were drawn and not granted, the category's probability M solves

    M = G + sum p_t / (1 - (1 - p_t / M)^n)

(Horvitz and Thompson 1952: each token counts by the inverse of its chance to be among the drawn; without bias at the true M.)
A prompt is charged once, and n tokens of output.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from polysem.errors import ConfigError
from polysem.targets.base import Answer
from polysem.targets.tail import MOST, TINY, Heads, Tail, share_and_odds

BIAS = 100
"""nats, the most that OpenAI takes: no other token is drawn then"""
_STEPS = 200
_STEEP = 0.9
"""where nearly every token that was drawn was drawn once, and the error has no bound but that of the missing mass"""
_APART = 0.5
"""nats by which a server's two numbers for one token may differ"""
_STRANGE = 5.0
"""standard errors by which the drawn tokens' log-probabilities may lie off those expected"""


@dataclass(frozen=True)
class Samples:
    """Tokens drawn from a category behind one prompt, with repetitions."""

    tokens: tuple[str, ...]
    logprobs: Float[np.ndarray, " n"]
    """without the bias, nats"""
    first: tuple[str, float]
    """the likeliest token of all by the same response, and its log-probability: that of the first answer, if all is well"""


def check_samples(
    answers: Sequence[Answer], samples: Sequence[Samples], allowed: frozenset[str], *, who: str
) -> None:
    """Refuse samples that are not what the estimate takes them for.

    Args:
        answers: granted for the same prompts.
        samples: behind them.
        allowed: texts of the tokens that were lifted.
        who: names the target in errors.

    Raises:
        ConfigError: other tokens were drawn; another distribution, or one with the bias; tokens drawn in other proportions.
    """
    drawn = {token for s in samples for token in s.tokens}
    if others := drawn - allowed:
        raise ConfigError(
            f"{who}: logit_bias was to allow {len(allowed)} tokens, and the server drew {sorted(others)[0]!r}",
            hint="set target.samples = 0, or name the served model's own tokenizer with target.tokenizer",
        )
    off, variance = 0.0, 0.0
    for answer, sampled in zip(answers, samples, strict=True):
        granted = dict(zip(answer.tokens, answer.logprobs.tolist(), strict=True))
        token, value = sampled.first
        if not abs(granted.get(token, -math.inf) - value) <= _APART:
            raise ConfigError(
                f"{who}: with logit_bias and n the likeliest token is {token!r} at {value:.2f} nats, without them "
                f"{answer.tokens[int(answer.logprobs.argmax())]!r} at {float(answer.logprobs.max()):.2f}",
                hint="serve raw log-probabilities (vLLM: --logprobs-mode raw_logprobs), or set target.samples = 0 and a larger "
                "target.k (llama.cpp grants any k, and answers some prompts otherwise where n is above 1); what was answered is kept",
            )
        known = np.array([value for t, value in granted.items() if t in allowed])
        found = np.array([granted[t] for t in sampled.tokens if t in granted])
        if len(known) > 1 and len(found):
            weight = np.exp(known - np.logaddexp.reduce(known))
            mean = float(weight @ known)
            off += float((found - mean).sum())
            variance += len(found) * float(weight @ (known - mean) ** 2)
    if variance and abs(off) > _STRANGE * math.sqrt(variance):
        raise ConfigError(
            f"{who}: tokens are drawn in other proportions than their log-probabilities say "
            f"({off / math.sqrt(variance):+.1f} standard errors)",
            hint="switch the server's sampling rules off, e.g. target.extra = { top_k = 0, min_p = 0.0 } (llama.cpp), or set "
            "target.samples = 0",
        )


def sampled_tail(heads: Heads, drawn: Float[np.ndarray, "answers tokens"], *, n: int) -> Tail:
    """The category's probability in every answer, from what was granted and what was drawn.

    Args:
        heads: what was granted.
        drawn: log-probabilities of tokens that were drawn; NaN where one was not.
        n: samples behind each answer.
    """
    p = np.exp(np.where(heads.seen, -np.inf, np.nan_to_num(drawn, nan=-np.inf)))
    known = np.maximum(heads.mass + p.sum(axis=1), TINY)
    most = np.maximum(heads.mass + MOST * heads.missing, known)
    mass = known
    for _ in range(_STEPS):
        before, chance = mass, _chance(p, mass, n)
        mass = np.clip(heads.mass + (p / chance).sum(axis=1), TINY, most)
        if np.abs(mass - before).max() <= 1e-9 * mass.max():
            break
    chance = _chance(p, mass, n)
    # one more token that was drawn once, so that an answer of which none was is not taken for certain
    variance = (p**2 * (1 - chance) / chance**2).sum(axis=1) + (mass / n) ** 2
    # M stands on both sides of its equation: an error of the sum is an error of M divided by 1 - d sum / d M
    missed = np.exp((n - 1) * np.log1p(-np.minimum(p / mass[:, None], 1 - 1e-9)))
    slope = (n * missed * (p / (chance * mass[:, None])) ** 2).sum(axis=1)
    return share_and_odds(heads, mass, known, np.sqrt(variance) / (1 - np.minimum(slope, _STEEP)))


def _chance(p: np.ndarray, mass: np.ndarray, n: int) -> Float[np.ndarray, "answers tokens"]:
    """Of each token to be among the drawn; 1 where there is none."""
    share = np.minimum(p / mass[:, None], 1 - 1e-9)
    return np.where(p > 0, -np.expm1(n * np.log1p(-share)), 1.0)
