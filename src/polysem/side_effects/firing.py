"""How features fire on running text: how hard, on how many kinds of tokens, beside how many others."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from polysem.models.base import WhiteBoxModel
from polysem.saes.base import SAE

ROWS = 16
"""rows of text in one forward pass"""


class TextFiring(NamedTuple):
    """Of some features; 0 for one that does not fire on the text."""

    mean_act: Float[np.ndarray, " n"]
    """mean activation where it fires"""
    firing_entropy: Float[np.ndarray, " n"]
    """nats, of the kinds of tokens on which it fires"""
    coactivation_entropy: Float[np.ndarray, " n"]
    """nats, of the other features that fire on the same token, each counted as often as it does"""


def firing(
    model: WhiteBoxModel,
    sae: SAE,
    rows: Int[np.ndarray, "n_rows context"],
    counted: Bool[np.ndarray, " context"],
    features: Sequence[int],
) -> TextFiring:
    """Of text, at the positions that count. Entropies are of counts as they are: of few firings they are too small."""
    chosen = torch.tensor(list(features), dtype=torch.long)
    total, n = np.zeros(len(chosen)), np.zeros(len(chosen))
    beside, keys = torch.zeros(len(chosen), sae.d_sae), []
    mask = torch.from_numpy(counted)
    for at in range(0, len(rows), ROWS):
        tokens = torch.as_tensor(rows[at : at + ROWS], device=model.spec.device).long()
        x = model.capture(tokens, [sae.reads])[sae.reads][:, mask].flatten(0, 1).cpu()
        codes = sae.encode(x).detach()
        fires, own = (codes > 0).float(), codes[:, chosen]
        total += own.double().sum(0).numpy()
        n += (own > 0).sum(0).numpy()
        beside += fires[:, chosen].T @ fires
        place, feature = (own > 0).nonzero(as_tuple=True)
        keys.append(feature * model.spec.d_vocab + tokens[:, mask].flatten().cpu()[place])
    beside[torch.arange(len(chosen)), chosen] = 0.0
    kinds, times = torch.cat(keys).unique(return_counts=True)
    of = (kinds // model.spec.d_vocab).numpy()
    tokens_of = [times.numpy()[of == k] for k in range(len(chosen))]
    return TextFiring(
        mean_act=total / np.maximum(n, 1),
        firing_entropy=np.array([entropy(one) for one in tokens_of]),
        coactivation_entropy=np.array([entropy(one) for one in beside.numpy()]),
    )


def entropy(counts: Float[np.ndarray, " m"] | Int[np.ndarray, " m"]) -> float:
    """Nats, of shares in proportion to counts; 0 without any."""
    known = counts[counts > 0].astype(np.float64)
    share = known / known.sum() if len(known) else known
    return float(-(share * np.log(share)).sum())
