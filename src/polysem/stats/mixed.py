"""A mixed model beside the clustered regression: a check, not the arbiter.

y = X b + Z_target u + Z_source v + e with crossed random intercepts, by restricted maximum likelihood (as lme4's). The
two answer the same question by different assumptions; where one finds a slope and the other does not, that is said.

Given the two ratios of variance to that of e, everything else has a closed form, so only they are searched for, in a box
whose lower corner is "no variance": a component may be nothing, and then is exactly that, on any processor. (A general
optimiser over unbounded components, as statsmodels has, stops beside the boundary at a place that hangs on the last bits.)
Cost: a few products of targets x sources numbers per step, whatever the number of pairs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from polysem.stats.regress import explained, refusal

MAX_PAIRS = 600
"""more would take minutes where every pair has its own source"""
_LARGEST = 1e4
"""ratio of a component's variance to that of e, at most"""
_EXACT: Any = {"ftol": 1e-13, "gtol": 1e-7, "maxiter": 500}
_STARTS = (0.0, 0.1, 1.0, 10.0)
_SLACK = 1e-3
"""slope of the criterion, per unit of log ratio, at which the top counts as found"""


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
    from scipy.optimize import minimize

    scale = float(np.std(y))
    criterion = _Criterion(y / scale, np.linalg.qr(design)[0], clusters)
    best: Any = None
    box = [(0.0, _LARGEST)] * 2
    for start in ((a, b) for a in _STARTS for b in _STARTS):
        if best is None or criterion(np.array(start))[0] < best.fun:
            best = minimize(criterion, start, jac=True, method="L-BFGS-B", bounds=box, options=_EXACT)
    assert best is not None
    ratios = np.asarray(best.x)
    at = criterion.solved(ratios)
    # Back from the orthonormal columns to the design's own.
    turn = np.linalg.lstsq(design, np.linalg.qr(design)[0], rcond=None)[0]
    variances = np.diag(at.sigma2 * turn @ np.linalg.inv(at.information) @ turn.T)
    free = (ratios > 0) & (ratios < _LARGEST)
    steep = np.abs(best.jac * ratios)[free]
    said = ["the fit did not converge"] if (steep > _SLACK).any() else []
    for name, ratio in zip(("target", "source"), ratios, strict=True):
        if ratio == 0:
            said.append(f"the variance of {name}s is estimated as zero")
        elif ratio == _LARGEST:
            said.append(f"next to the variance of {name}s nothing is left for pairs")
    target, source, residual = (np.sqrt(at.sigma2 * np.array([*ratios, 1.0])) * scale).tolist()
    return Mixed(
        turn @ at.estimate * scale, np.sqrt(variances) * scale, target, source, residual, "", "; ".join(said)
    )


@dataclass(frozen=True)
class _Solved:
    """What follows from the two ratios."""

    estimate: np.ndarray
    information: np.ndarray
    """X' V^-1 X, V in units of the variance of e"""
    sigma2: float
    quadratic: float
    """y' P y"""
    value: float
    """minus twice the restricted log-likelihood, but for a constant"""
    gradient: np.ndarray


class _Criterion:
    """Minus twice the profiled restricted log-likelihood and its gradient, of (target, source) ratios."""

    def __init__(self, y: np.ndarray, X: np.ndarray, clusters: np.ndarray):
        codes = [np.unique(column, return_inverse=True)[1] for column in clusters.T]
        ways = [np.eye(code.max() + 1)[code] for code in codes]
        # The way with more clusters first: its block of Z'Z is diagonal and is eliminated one by one.
        order = (1, 0) if ways[1].shape[1] >= ways[0].shape[1] else (0, 1)
        Z = np.concatenate([ways[j] for j in order], axis=1)
        self.owner = np.repeat(order, [ways[j].shape[1] for j in order])
        self.many = ways[order[0]].shape[1]
        self.free = len(y) - X.shape[1]
        w = np.column_stack([X, y])
        self.ZZ, self.Zw, self.ww = Z.T @ Z, Z.T @ w, w.T @ w

    def __call__(self, ratios: np.ndarray) -> tuple[float, np.ndarray]:
        at = self.solved(ratios)
        return at.value, at.gradient

    def solved(self, ratios: np.ndarray) -> _Solved:
        # V = 1 + Z D Z', so V^-1 = 1 - Z R (1 + R Z'Z R)^-1 R Z' with R = D^1/2 (Woodbury).
        R = np.sqrt(ratios)[self.owner]
        q, m = len(R), self.many
        inner = np.eye(q) + R[:, None] * self.ZZ * R
        # Its Cholesky factor by blocks: [[diagonal, 0], [across, root]].
        diagonal = np.sqrt(np.diag(inner)[:m])
        across = inner[m:, :m] / diagonal
        root = np.linalg.cholesky(inner[m:, m:] - across @ across.T)
        half = R[:, None] * np.column_stack([self.ZZ, self.Zw])
        half[:m] /= diagonal[:, None]
        half[m:] = np.linalg.solve(root, half[m:] - across @ half[:m])
        own = np.diag(self.ZZ) - np.einsum("ij,ij->j", half[:, :q], half[:, :q])  # diagonal of Z' V^-1 Z
        B = self.Zw - half[:, :q].T @ half[:, q:]  # Z' V^-1 (X, y)
        C = self.ww - half[:, q:].T @ half[:, q:]  # (X, y)' V^-1 (X, y)
        information = C[:-1, :-1]
        estimate = np.linalg.solve(information, C[:-1, -1])
        quadratic = float(C[-1, -1] - C[:-1, -1] @ estimate)
        sigma2 = quadratic / self.free
        logdets = (
            2 * (np.log(diagonal).sum() + np.log(np.diag(root)).sum()) + np.linalg.slogdet(information)[1]
        )
        left = B[:, -1] - B[:, :-1] @ estimate  # Z' P y
        spent = own - (B[:, :-1] * np.linalg.solve(information, B[:, :-1].T).T).sum(axis=1)  # of Z' P Z
        slope = [
            float(spent[self.owner == j].sum() - (left[self.owner == j] ** 2).sum() / sigma2) for j in (0, 1)
        ]
        value = float(logdets + self.free * np.log(quadratic))
        return _Solved(estimate, information, sigma2, quadratic, value, np.array(slope))
