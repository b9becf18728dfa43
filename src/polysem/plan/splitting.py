"""Is a pair two concepts, or one concept twice? Four signals, any of which flags a pair.

A high cosine may mean that two unrelated features share a direction, or that an SAE has split one concept in two and
the glosses word it differently. Signs of the second: the directions nearly coincide; the two fire on the same tokens;
they have top tokens in common; writing one switches the other on. The first and the third are known without a model;
the others are measured on activations of the site.
Cost: one encoding of the activations, and one of `n_contexts` more for every source.
Source of the thresholds: hedging, absorption and duplication of latents (arXiv 2409.14507, 2505.11756).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.errors import ConfigError, MismatchError
from polysem.geometry.unit import unit_rows
from polysem.pairs import DUPLICATE_FIRING, DUPLICATE_INTERFERENCE, DUPLICATE_SWITCH, DUPLICATE_TOKENS
from polysem.saes.base import SAE, decoder_rows

_ROWS, _ENTRIES = 1024, 1 << 23
"""tokens encoded at a time, and the most activations of all features that are held"""


class Signals(NamedTuple):
    """What was seen of some pairs; nan where there was nothing to see."""

    interference: Float[np.ndarray, " n"]
    firing: Float[np.ndarray, " n"]
    """Jaccard of the tokens on which the two fire; nan where neither fires"""
    switch_ij: Float[np.ndarray, " n"]
    """share of contexts, among those where j is off, in which writing i at its mean activation switches j on"""
    switch_ji: Float[np.ndarray, " n"]
    tokens: Float[np.ndarray, " n"]
    """Jaccard of the top tokens; nan where either has none"""

    @property
    def flagged(self) -> Bool[np.ndarray, " n"]:
        """One concept twice, by any of the four; what is not known flags nothing."""
        with np.errstate(invalid="ignore"):
            switch = np.fmax(self.switch_ij, self.switch_ji)
            return (
                (np.abs(self.interference) > DUPLICATE_INTERFERENCE)
                | (self.firing > DUPLICATE_FIRING)
                | (switch > DUPLICATE_SWITCH)
                | (self.tokens > DUPLICATE_TOKENS)
            )


def splitting_signals(
    sae: SAE,
    activations: Float[np.ndarray, "n_tokens d_in"],
    pairs: Int[np.ndarray, "n 2"],
    *,
    tokens_in: Sequence[frozenset[int]],
    n_contexts: int = 256,
    rng: np.random.Generator,
) -> Signals:
    """The four signals of some pairs.

    Args:
        sae: whose features they are.
        activations: of the site, on a text.
        pairs: feature ids.
        tokens_in: top tokens of every feature of the SAE.
        n_contexts: tokens on which writing is tried, drawn from `activations`.

    Raises:
        ConfigError: if there are no activations, or they are not finite.
        MismatchError: if a feature does not exist.
    """
    if not len(activations) or not np.isfinite(activations).all():
        raise ConfigError(
            f"{len(activations)} activations of {sae.reads}, all finite: {bool(np.isfinite(activations).all())}; "
            "expected some, all finite"
        )
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < min(sae.d_sae, len(tokens_in)):
        raise MismatchError(
            f"pairs name features {pairs.min()} to {pairs.max()}; the SAE has {sae.d_sae} and token sets "
            f"are given for {len(tokens_in)}"
        )
    features = np.unique(pairs)
    place = {int(f): k for k, f in enumerate(features)}
    i, j = (np.array([place[int(f)] for f in column], dtype=np.int64) for column in pairs.T)
    fires, means = _firing(sae, activations, features)
    together = fires.T.astype(np.float64) @ fires.astype(np.float64)
    alone = np.diag(together)
    union = alone[i] + alone[j] - together[i, j]
    chosen = np.sort(rng.permutation(len(activations))[:n_contexts])
    switched = _switched(sae, activations[chosen], fires[chosen], features, means)
    unit = unit_rows(decoder_rows(sae)[features])
    return Signals(
        interference=(unit[i] * unit[j]).sum(axis=1),
        firing=np.divide(together[i, j], union, out=np.full(len(pairs), np.nan), where=union > 0),
        switch_ij=switched[i, j],
        switch_ji=switched[j, i],
        tokens=np.array([_jaccard(tokens_in[int(a)], tokens_in[int(b)]) for a, b in pairs]),
    )


def _firing(
    sae: SAE, activations: np.ndarray, features: np.ndarray
) -> tuple[Bool[np.ndarray, "n_tokens n"], Float[np.ndarray, " n"]]:
    """Where each feature fires, and its mean activation there (nan where it never does)."""
    columns = torch.as_tensor(features)
    n = max(1, min(_ROWS, _ENTRIES // sae.d_sae))
    parts = [
        sae.encode(_tensor(activations[k : k + n]))[:, columns].detach().cpu().double().numpy()
        for k in range(0, len(activations), n)
    ]
    acts = np.concatenate(parts)
    fires = acts > 0
    count = fires.sum(axis=0)
    return fires, np.divide(acts.sum(axis=0), count, out=np.full(len(features), np.nan), where=count > 0)


def _switched(
    sae: SAE, contexts: np.ndarray, fires: np.ndarray, features: np.ndarray, means: np.ndarray
) -> Float[np.ndarray, "n n"]:
    """[i, j]: share of contexts without j in which writing i at its mean activation switches j on."""
    x, columns = _tensor(contexts), torch.as_tensor(features)
    off = ~fires
    n_off = off.sum(axis=0)
    result = np.full((len(features), len(features)), np.nan)
    zero = torch.zeros(len(x), sae.d_sae).to(sae.W_enc)
    empty = sae.decode(zero, like=x)
    for k, (feature, mean) in enumerate(zip(features.tolist(), means.tolist(), strict=True)):
        if np.isnan(mean):
            continue
        written = zero.clone()
        written[:, feature] = mean
        moved = x.to(empty) + sae.decode(written, like=x) - empty
        on = (sae.encode(moved)[:, columns] > 0).detach().cpu().numpy()
        result[k] = np.divide(
            (on & off).sum(axis=0), n_off, out=np.full(len(features), np.nan), where=n_off > 0
        )
    return result


def _jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    return len(a & b) / len(a | b) if a and b else float("nan")


def _tensor(rows: np.ndarray) -> Tensor:
    return torch.as_tensor(np.require(rows, dtype=np.float32, requirements=["C", "W"]))
