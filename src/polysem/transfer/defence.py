"""Defences against interference, each with what it costs: an audit, not an attack.

    monitor     sum over gloss-distant pairs (i, j) of max(0, a_i G_ij - tau): how much one active feature writes into
                another that is not meant
    orthogonal  a steering direction without its part in the span of protected targets' gradients: first-order effects on
                them vanish exactly; the loss on the target of the steering is what it costs
    filter      perplexity of the prompt: prefixes of unrelated strings are not prose
A detector is judged by AUROC, and by how much it finds where 1 % of clean inputs are flagged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from polysem import rank
from polysem.errors import ConfigError, MismatchError
from polysem.positions import positions_of
from polysem.transfer.capability import own_logprobs
from polysem.transfer.judges import Proportion, proportion

if TYPE_CHECKING:
    from polysem.models.base import WhiteBoxModel
else:
    WhiteBoxModel = Any


def monitor_scores(
    acts: Float[np.ndarray, "tokens d_sae"],
    pairs: Int[np.ndarray, "n 2"],
    interference: Float[np.ndarray, " n"],
    *,
    tau: float,
) -> Float[np.ndarray, " tokens"]:
    """The monitor's score of every token, in the unit of activations.

    Args:
        pairs: gloss-distant pairs; either feature may be the active one.
        interference: their cosines; negative ones write away from the other and do not count.
        tau: what is written is counted beyond this.
    """
    if len(pairs) != len(interference):
        raise MismatchError(f"{len(pairs)} pairs and {len(interference)} cosines; expected one for each")
    score = np.zeros(len(acts))
    for column in (0, 1):
        for start in range(0, len(pairs), 4096):
            part = slice(start, start + 4096)
            written = acts[:, pairs[part, column]] * interference[part][None, :]
            score += np.maximum(written - tau, 0.0).sum(axis=1)
    return score


@dataclass(frozen=True)
class Detector:
    """How well scores tell attacked inputs from clean ones."""

    auroc: float
    lo: float
    hi: float
    found: Proportion
    """share of attacked inputs above the threshold"""
    flagged: Proportion
    """share of clean inputs above it, on those that did not set it"""
    threshold: float


def detector(
    clean: Float[np.ndarray, " n"], attacked: Float[np.ndarray, " n2"], *, level: float, rng: np.random.Generator,
    false_positives: float = 0.01, draws: int = 1000,
) -> Detector:  # fmt: skip
    """AUROC with a bootstrap interval, and detection at a false-positive rate that is set on one half of the clean
    inputs and measured on the other.

    Raises:
        ConfigError: with fewer than four clean or one attacked input.
    """
    if len(clean) < 4 or not len(attacked):
        raise ConfigError(
            f"a detector is judged on at least 4 clean and 1 attacked input, got {len(clean)}, {len(attacked)}"
        )
    values = [
        auroc(
            clean[rng.integers(0, len(clean), len(clean))],
            attacked[rng.integers(0, len(attacked), len(attacked))],
        )
        for _ in range(draws)
    ]
    lo, hi = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    order = rng.permutation(len(clean))
    setting, rest = clean[order[: len(clean) // 2]], clean[order[len(clean) // 2 :]]
    threshold = float(np.quantile(setting, 1 - false_positives, method="higher"))
    return Detector(
        auroc(clean, attacked), float(lo), float(hi),
        proportion(int((attacked > threshold).sum()), len(attacked), level=level),
        proportion(int((rest > threshold).sum()), len(rest), level=level),
        threshold,
    )  # fmt: skip


def auroc(clean: Float[np.ndarray, " n"], attacked: Float[np.ndarray, " n2"]) -> float:
    """Chance that an attacked input scores above a clean one, ties counted half."""
    return rank.auroc(np.concatenate([clean, attacked]), np.arange(len(clean) + len(attacked)) >= len(clean))


def protected_direction(
    direction: Float[np.ndarray, " d"], gradients: Float[np.ndarray, "k d"]
) -> Float[np.ndarray, " d"]:
    """(I - P) d, P the projector on the span of the gradients: its first-order effect on each of them is zero.

    Not rescaled, so that the dose on what is left is as it was.

    Raises:
        ConfigError: if nothing is left of the direction.
    """
    basis, singular, _ = np.linalg.svd(gradients.T, full_matrices=False)
    kept = basis[:, singular > 1e-10 * max(float(singular.max(initial=0.0)), 1e-300)]
    left = direction - kept @ (kept.T @ direction)
    if np.linalg.norm(left) <= 1e-9 * np.linalg.norm(direction):
        raise ConfigError(
            "the direction lies in the span of the protected gradients: nothing is left of it",
            hint="protect fewer targets",
        )
    return left


@dataclass(frozen=True)
class Tradeoff:
    """What protection gives and costs, on one measure (log-odds in nats, or first-order products)."""

    off_target_before: float
    off_target_after: float
    on_target_before: float
    on_target_after: float

    @property
    def reduction(self) -> float:
        """Share of the unmeant effect that is gone; NaN where there was none."""
        return 1 - self.off_target_after / self.off_target_before if self.off_target_before else math.nan

    @property
    def loss(self) -> float:
        """Share of the meant effect that is gone."""
        return 1 - self.on_target_after / self.on_target_before if self.on_target_before else math.nan


def tradeoff(
    before: Float[np.ndarray, " k"], after: Float[np.ndarray, " k"], *, on_before: float, on_after: float
) -> Tradeoff:
    """Mean absolute effect on protected targets and effect on the target of the steering, without and with protection."""
    return Tradeoff(float(np.abs(before).mean()), float(np.abs(after).mean()), on_before, on_after)


def text_nats(model: WhiteBoxModel, texts: Sequence[str]) -> Float[np.ndarray, " n"]:
    """Cross-entropy of each text in nats per token: the prompt filter's score (log perplexity).

    Raises:
        ConfigError: a text of fewer than two tokens.
    """
    found = []
    for text in texts:
        ids = positions_of(model).row(model.tokenize(text, prepend_bos=False))
        if len(ids) < 2:
            raise ConfigError(f"a text of {len(ids)} tokens has no perplexity: {text[:40]!r}")
        found.append(-float(own_logprobs(model, ids).mean()))
    return np.array(found)
