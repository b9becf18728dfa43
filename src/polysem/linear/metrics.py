"""Measures of how much source i interferes with target j, all for the same pairs, so that they can race.

    decoder_cosine      d_i . d_j
    centred             after the mean decoder row is taken out
    residual_1, _3      after the mean and the first 1 or 3 principal components are taken out
    enc_dec             e_j . d_i, e_j the encoder column of j: what the SAE would read
    whitened            d_i^T (S + ridge)^-1 d_j, normalised; S the covariance of the site's activations
    causal              correlation over the vocabulary of W_U d_i and W_U d_j (Park et al., arXiv 2311.03658)
    virtual_weight      e_j of the target through the residual stream: e_j . d_i / (e_j . d_j)
    coactivation        correlation over the text of what the two encoders read, before any threshold

Co-activation is graded because firing is rare: on the few hundred positions that a study's prompts have, the phi
coefficient of two features that fire on 1 % of tokens is not known. The measures that need the model (`jacobian`,
`fisher`) are in `footprint`, linear response in `response`. Sources: Mu and Viswanath, arXiv 1702.01417
(removing common components).
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.linear.decompose import mean_direction
from polysem.saes.base import SAE

_RIDGE = 1e-2
"""of the mean eigenvalue, added before a covariance is inverted"""


def pair_metrics(
    sae: SAE,
    pairs: Int[np.ndarray, "n 2"],
    *,
    W_U: Float[Tensor, "d_vocab d_model"] | None,
    activations: Float[np.ndarray, "m d_in"] | None,
) -> dict[str, Float[np.ndarray, " n"]]:
    """Every measure for the given (source, target) features; those whose ingredients are missing are left out.

    Args:
        pairs: source and target of every pair.
        W_U: unembedding, where the site lies in the residual stream.
        activations: of the site, for the covariance; at least twice as many as dimensions.
    """
    W = sae.W_dec.detach().double().cpu()
    unit = W / W.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    source, target = (torch.as_tensor(column.copy()) for column in pairs.T)

    def cosine(rows: Tensor) -> np.ndarray:
        a, b = rows[source], rows[target]
        return ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp(min=1e-30)).numpy()

    found = {"decoder_cosine": cosine(unit)}
    found["centred"] = cosine(unit - unit.mean(0))
    for r in (1, 3):
        basis = mean_direction(W, components=r)
        found[f"residual_{r}"] = cosine(unit - (unit @ basis.T) @ basis)
    E = sae.W_enc.detach().double().cpu().T
    read = (E[target] * unit[source]).sum(-1)
    found["enc_dec"] = read.numpy()
    found["virtual_weight"] = (read / (E[target] * unit[target]).sum(-1)).numpy()
    if activations is not None and len(activations) >= 2 * sae.d_in:
        S = torch.as_tensor(np.cov(activations, rowvar=False))
        both = ((E[source] @ S) * E[target]).sum(-1)
        own = [((E[k] @ S) * E[k]).sum(-1) for k in (source, target)]
        found["coactivation"] = (both / (own[0] * own[1]).clamp(min=1e-300).sqrt()).numpy()
        S = S + _RIDGE * S.diagonal().mean() * torch.eye(len(S), dtype=S.dtype)
        root = torch.linalg.cholesky(torch.linalg.inv(S))
        found["whitened"] = cosine(unit @ root)
    if W_U is not None and W_U.shape[1] == sae.d_in:
        U = W_U.detach().double().cpu()
        U = U - U.mean(0)
        found["causal"] = cosine(unit @ torch.linalg.cholesky(U.T @ U + 1e-12 * torch.eye(len(U.T))))
    return {name: values for name, values in found.items() if np.isfinite(values).all()}
