"""A mixed model beside the clustered regression: a check, not the arbiter.

Crossed random intercepts of target and source, fitted by restricted maximum likelihood with statsmodels. The
two answer the same question by different assumptions; where one finds a slope and the other does not, that is
said. A fit that did not converge, or put a variance on its boundary, gives no p value without saying so, and a
singular one gives none; nothing of that is left to a warning.
Cost: dense n x n algebra per step; seconds for 500 pairs.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from polysem.stats.regress import explained, refusal

MAX_PAIRS = 600
"""more would take minutes"""


@dataclass(frozen=True)
class Mixed:
    """Fixed effects in the order of the design; nan where `reason` says why there are none."""

    estimate: Float[np.ndarray, " k"]
    se: Float[np.ndarray, " k"]
    sd_target: float
    sd_source: float
    sd_residual: float
    reason: str
    remark: str
    """a variance at its boundary, or an optimiser that did not converge; the fit is given all the same"""


def mixed_model(
    y: Float[np.ndarray, " n"], design: Float[np.ndarray, "n k"], clusters: Int[np.ndarray, "n 2"]
) -> Mixed:
    """y on the design with crossed random intercepts of target and source (REML)."""
    n, k = design.shape
    groups = [len(np.unique(column)) for column in clusters.T]
    reason = ""
    if n > MAX_PAIRS:
        reason = f"{n} pairs; the mixed model is fitted for at most {MAX_PAIRS}"
    elif min(groups) < 3 or n < k + 4:
        reason = (
            f"{n} pairs of {groups[0]} targets and {groups[1]} sources are too few for variance components"
        )
    reason = reason or refusal(y, design)
    if not reason and explained(y, y - design @ np.linalg.lstsq(design, y, rcond=None)[0]):
        reason = "the effects do not vary beyond what the regressors give"
    return _nothing(k, reason) if reason else _fit(y, design, clusters)


def _nothing(k: int, reason: str) -> Mixed:
    nan = np.full(k, np.nan)
    return Mixed(nan, nan, np.nan, np.nan, np.nan, reason, "")


def _fit(y: np.ndarray, design: np.ndarray, clusters: np.ndarray) -> Mixed:
    from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec

    members = [np.unique(column, return_inverse=True)[1] for column in clusters.T]
    indicators = [np.eye(m.max() + 1)[m] for m in members]
    # All rows are one group, so that both intercepts can cross; the variance components are its structure.
    components = VCSpec(
        ["source", "target"],
        [
            [[f"s{j}" for j in range(indicators[1].shape[1])]],
            [[f"t{j}" for j in range(indicators[0].shape[1])]],
        ],
        [[indicators[1]], [indicators[0]]],
    )
    scale, k = float(np.std(y)), design.shape[1]
    # What the library warns of depends on the processor's last bits; what it found is judged here instead.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = MixedLM(y / scale, design, groups=np.zeros(len(y)), exog_vc=components)
        try:
            # First the one that ends at the same place whatever the unit of y: L-BFGS may stop short of the top.
            fit = model.fit(reml=True, method=["bfgs", "lbfgs", "powell"])
            variances = np.diag(fit.cov_params())[:k]
        except np.linalg.LinAlgError as error:
            return _nothing(k, f"the mixed model is singular: {error}")
    if not (np.isfinite(fit.fe_params).all() and np.isfinite(variances).all() and (variances > 0).all()):
        return _nothing(k, "the mixed model is singular: a coefficient has no positive variance")
    said = [] if fit.converged else ["the fit did not converge"]
    sd = np.sqrt(np.maximum(np.asarray(fit.vcomp), 0.0)) * scale
    for name, value in zip(("source", "target"), sd, strict=True):
        if value < 1e-4 * scale:
            said.append(f"the variance of {name}s is estimated as zero")
    if not said and any("singular" in str(w.message).lower() for w in caught):
        said.append("the Hessian is singular")
    return Mixed(
        estimate=np.asarray(fit.fe_params) * scale,
        se=np.sqrt(variances) * scale,
        sd_target=float(sd[1]),
        sd_source=float(sd[0]),
        sd_residual=float(np.sqrt(fit.scale)) * scale,
        reason="",
        remark="; ".join(said),
    )
