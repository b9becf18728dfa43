"""GT3, gloss noise: pairs whose effect comes from meaning alone, while meaning is measured with error.

Interference G and true similarity S* are standard normal with correlation rho; the effect is gamma S* plus
noise of target, source and pair. Only S = S* + error is seen, with reliability r = Var S* / Var S. A regression
on (G, S) then credits G with gamma rho (1 - r) / (1 - r rho^2) (validity document, section 2.2; errors in
variables). A second gloss with independent error is there for an instrument that knows how to use it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from polysem.seeds import rng_for


@dataclass(frozen=True)
class GlossTruth:
    """What was planted."""

    gamma: float
    reliability: float
    rho: float
    similarity: Float[np.ndarray, " pairs"]
    """S*"""

    @property
    def naive_bias(self) -> float:
        """What a regression that trusts one gloss credits interference with."""
        return self.gamma * self.rho * (1 - self.reliability) / (1 - self.reliability * self.rho**2)


@dataclass(frozen=True)
class GlossWorld:
    """Pairs as an estimator sees them."""

    interference: Float[np.ndarray, " pairs"]
    similarity: Float[np.ndarray, "glosses pairs"]
    """of two independent glosses, in units of the true one's standard deviation"""
    effect: Float[np.ndarray, " pairs"]
    clusters: Int[np.ndarray, "pairs 2"]
    """target, source"""
    truth: GlossTruth


def gloss_world(
    *,
    n_targets: int = 100,
    n_sources: int = 100,
    gamma: float = 1.0,
    reliability: float = 0.5,
    rho: float = 0.5,
    seed: int = 0,
) -> GlossWorld:
    """All pairs of n_targets x n_sources."""
    rng = rng_for(seed, "gloss world")
    n = n_targets * n_sources
    true = rng.standard_normal(n)
    interference = rho * true + np.sqrt(1 - rho**2) * rng.standard_normal(n)
    error = np.sqrt((1 - reliability) / reliability)
    target, source = np.divmod(np.arange(n), n_sources)
    noise = 0.2 * rng.standard_normal(n_targets)[target] + 0.2 * rng.standard_normal(n_sources)[source]
    return GlossWorld(
        interference=interference,
        similarity=true + error * rng.standard_normal((2, n)),
        effect=gamma * true + noise + 0.3 * rng.standard_normal(n),
        clusters=np.column_stack([target, source]),
        truth=GlossTruth(gamma, reliability, rho, true),
    )
