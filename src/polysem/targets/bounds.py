"""What a truncated distribution still says: bounds, each attained or approached by some completion of it.

Let the granted tokens have probabilities p_t, the rest mass m. A token that was not granted has at most the
smallest granted probability, unless the server lost tokens of equal text, for which that does not hold. All
bounds are those of the set of completions; a complete distribution gives lo = hi.
"""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from polysem.errors import ConfigError
from polysem.targets.base import MASS_TOLERANCE, Answer

ROUNDING = 1e-4
"""mass that log-probabilities of four decimals can hide"""


@dataclass(frozen=True)
class Bound:
    """An interval that holds the value that the whole distribution would give."""

    lo: float
    hi: float

    @property
    def mid(self) -> float:
        """The middle; NaN where an end is infinite."""
        return (self.lo + self.hi) / 2 if math.isfinite(self.lo) and math.isfinite(self.hi) else math.nan

    @property
    def width(self) -> float:
        return self.hi - self.lo


def mass_bound(answer: Answer, inside: Bool[np.ndarray, " n"], *, n_unseen: int | None = None) -> Bound:
    """P(T): from the granted tokens of T alone to these and whatever of the rest could be of T.

    Args:
        answer: what was granted.
        inside: which of its tokens are in T.
        n_unseen: tokens of T in the vocabulary that were not granted, where that is known; each has at most the
            smallest granted probability if no token was lost.
    """
    seen = float(answer.probs[inside].sum())
    most = answer.missing
    if n_unseen is not None and answer.lost == 0:
        most = min(most, n_unseen * float(answer.probs.min()))
    return Bound(seen, min(1.0, seen + most))


def log_odds_bound(mass: Bound, rest: Bound) -> Bound:
    """ln P(T) / (1 - P(T)), from bounds of P(T) and of the mass outside T; infinite where the mass may be 0.

    `rest` is given apart and not as 1 - mass, so that a mass near 1 keeps its digits.
    """
    return Bound(_log_ratio(mass.lo, rest.hi), _log_ratio(mass.hi, rest.lo))


def kl_bound(base: Answer, other: Answer) -> Bound:
    """KL(base || other) in nats.

    Lower: the tokens granted in both, and one bucket for all else (merging tokens never raises KL). The bucket of
    `other` is what its granted tokens leave, and may be as large as their rounding hides; a larger one only lowers the
    bound, which is finite therefore. Upper: finite only where both are complete; a token that was granted in `base`
    alone can be as rare in `other` as one likes.
    """
    whole = _whole(base, other)
    p, q = _merged(base, other)
    # A probability below the smallest number is not 0: its logarithm is there, and above that of the smallest number.
    q = np.maximum(q, np.finfo(np.float64).tiny)
    if not whole:
        q[-1] = max(q[-1], _hidden_by_rounding(other))
    live = p > 0
    value = max(0.0, float((p[live] * (np.log(p[live]) - np.log(q[live]))).sum()))
    return Bound(value, value if whole else math.inf)


def _hidden_by_rounding(answer: Answer) -> float:
    """Mass that rounded log-probabilities can hide: what four decimals do; where more than 1 is granted, what is taken."""
    return MASS_TOLERANCE if float(np.exp(answer.logprobs).sum()) > 1 else ROUNDING


def tv_bound(base: Answer, other: Answer) -> Bound:
    """Total variation distance, in [0, 1].

    Lower: the common tokens and one bucket. Upper: the rests do not overlap more than they must.
    """
    p, q = _merged(base, other)
    lower = 0.5 * float(np.abs(p - q).sum())
    if _whole(base, other):
        return Bound(lower, lower)
    common = 0.5 * float(np.abs(p[:-1] - q[:-1]).sum())
    return Bound(lower, min(1.0, common + 0.5 * float(p[-1] + q[-1])))


def _whole(base: Answer, other: Answer) -> bool:
    """Whether both are complete and of one vocabulary."""
    return base.complete and other.complete and base.tokens == other.tokens


def _merged(base: Answer, other: Answer) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Probabilities of the tokens granted in both, and the rest as one last bucket.

    Tokens are known by their text alone, so a text that stands for several goes into the bucket, and where
    tokens of equal text were lost everything does. Of two complete answers of one vocabulary nothing is merged.
    """
    if _whole(base, other):
        return np.append(base.probs, 0.0), np.append(other.probs, 0.0)
    p, q = _by_text(base), _by_text(other)
    common = sorted(p.keys() & q.keys()) if base.lost == other.lost == 0 else []
    pc = np.array([p[t] for t in common])
    qc = np.array([q[t] for t in common])
    return np.append(pc, max(0.0, 1.0 - pc.sum())), np.append(qc, max(0.0, 1.0 - qc.sum()))


def _by_text(answer: Answer) -> dict[str, float]:
    """Probability of each text that is one granted token."""
    seen = Counter(answer.tokens)
    pairs = zip(answer.tokens, answer.probs.tolist(), strict=True)
    return {text: prob for text, prob in pairs if seen[text] == 1}


def top_k_counts(answer: Answer, inside: Bool[np.ndarray, "sets n"], *, k: int) -> list[Bound]:
    """How many of the k most likely tokens are of each set.

    Raises:
        ConfigError: if fewer than k tokens were granted (those lost counted): nothing is said about the rest.
    """
    if answer.n + answer.lost < k and not answer.complete:
        raise ConfigError(
            f"top-{k} success was asked for, but the target grants {answer.n + answer.lost} log-probabilities",
            hint=f"lower success_k to {answer.n + answer.lost}, or serve more (vLLM: --max-logprobs {k})",
        )
    order = _top(answer, min(k, answer.n))
    sure = inside[:, order].sum(axis=1)
    if answer.lost == 0:
        return [Bound(float(n), float(n)) for n in sure]
    # A lost token may be of T or not, and takes a place of one that was granted.
    certain = inside[:, order[: max(0, k - answer.lost)]].sum(axis=1)
    return [Bound(float(c), float(min(k, n + answer.lost))) for c, n in zip(certain, sure, strict=True)]


def _top(answer: Answer, k: int) -> list[int]:
    """Places of the k most likely tokens; ties by text, so that a server's order does not matter."""
    least = np.partition(answer.logprobs, -k)[-k]
    near = np.flatnonzero(answer.logprobs >= least).tolist()
    return sorted(near, key=lambda i: (-answer.logprobs[i], answer.tokens[i]))[:k]


def noise_sd(values: Float[np.ndarray, "prompts repeats"]) -> float:
    """Standard deviation of one answer's outcome around its prompt's mean, from repeated baselines; NaN where
    nothing was repeated."""
    if values.shape[1] < 2 or not values.shape[0]:
        return math.nan
    return math.sqrt(float(np.nanmean(np.var(values, axis=1, ddof=1))))


def _log_ratio(above: float, below: float) -> float:
    if above <= 0:
        return -math.inf
    return math.inf if below <= 0 else math.log(above) - math.log(below)
