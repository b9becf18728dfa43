"""Absorption: a general feature is silent where it should fire, because a special one that fires there has its direction too
(arXiv 2409.14507).

Whether it should fire, a probe says, learnt from the feature's own tokens (it fires there and is needed: without its part the error
would be larger, so that what leaks into it is not taken for it) against tokens where neither it nor any possible
child fires (a child: decoder cosine above `NEAR`, and on at most half of the feature's tokens), nor what has the opposite direction; so
what may be absorbed teaches the probe nothing, and what is more general teaches it what the feature is not. Its direction is that of
linear discriminant analysis, its threshold a logistic regression on that one number. A direction that merely leans towards the
feature's moves the probe in step with itself; so on a child's tokens, what grows with the child is taken off first. Not so where the
child reads the feature's part with its own, as learnt ones do: there the score is about as large as on the feature's own tokens, and
two things vary. A child that took the feature over writes its part, too; so a token counts only where the child is needed: without
its part the error there would be larger. A probe may err where it has learnt nothing: so features of like density without a cosine,
which do not fire with it more than by chance, are kept from it and read by it in the same way, and a child counts only where its
share is above what 5 % of those reach.
A logistic regression in all dimensions would cost hours for thousands of features; on the planted tree this one finds the
planted rates.
Cost: of each feature, a covariance of the text without its possible children's tokens, and one solution. Held: the text, firings and
what passes; no array of tokens and features.
"""

from array import array
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from polysem.geometry import benjamini_hochberg
from polysem.hierarchy.firing import Fired, cofiring_tail

NEAR = 0.2
"""decoder cosine with the feature, and with the pattern of its probe, that a child has at least"""
FEWEST = 50
"""tokens of a feature on which it is needed from which a probe is learnt"""
TRUSTED = 0.8
"""F1 of a probe on the feature's own tokens that makes a rate"""
MOSTLY = 0.5
"""share of a child's tokens without the feature on which the probe is on"""
FEW = 10
"""such tokens of a child at least"""
LEVEL = 0.05
FAR = 0.1
"""|decoder cosine| of those that stand beside the children at most"""
PART = 0.5
"""share of a feature's tokens on which what is more special fires at most"""
FULL, STIRS = 0.6, 2.0
"""a child that reads the feature's part with its own: mean score on its tokens, as a share of that on the feature's own, and standard
deviation of what does not grow with the child, in those of the score on tokens of neither; at least"""
_STEPS, _RIDGE = 12, 1e-3


class Absorbed(NamedTuple):
    """Rows of a general feature and one that absorbs it, and of every feature that has a probe."""

    parent: Int[np.ndarray, " m"]
    child: Int[np.ndarray, " m"]
    p: Float[np.ndarray, " m"]
    q: Float[np.ndarray, " m"]
    share: Float[np.ndarray, " m"]
    """of the child's tokens without the feature: probe on, and the child needed"""
    feature: Int[np.ndarray, " k"]
    n_on: Int[np.ndarray, " k"]
    f1: Float[np.ndarray, " k"]
    rate: Float[np.ndarray, " k"]
    n_children: Int[np.ndarray, " k"]


@dataclass
class _Text:
    """The activations, made ready for many probes."""

    x: Float[np.ndarray, "n d"]
    """mean zero"""
    total: Float[np.ndarray, "d d"]
    """x' x"""

    @classmethod
    def of(cls, seen: Fired) -> "_Text":
        x = seen.x - seen.x.mean(axis=0)
        return cls(x, (x.T @ x).astype(np.float64))

    def direction(
        self, own: Int[np.ndarray, " n_own"], left_out: Int[np.ndarray, " n_out"]
    ) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
        """The linear discriminant between tokens `own` and all others but `left_out`, and its pattern: what it reads, as a
        direction of activations (the difference of means)."""
        out = self.x[left_out]
        n = len(self.x) - len(out)
        gone = out.sum(axis=0, dtype=np.float64)
        covariance = (self.total - (out.T @ out).astype(np.float64)) / n - np.outer(gone, gone) / n**2
        covariance += _RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        mine = self.x[own].sum(axis=0, dtype=np.float64)
        rest = -(mine + gone) / max(n - len(own), 1)
        pattern = mine / len(own) - rest
        return np.linalg.solve(covariance, pattern), pattern


def absorption(seen: Fired, *, most: int | None = None) -> Absorbed:
    """Who absorbs whom, and how often, of all features that are needed on `FEWEST` tokens and have a possible child.

    Args:
        seen: the dictionary on a text.
        most: of so many of them only, evenly over the numbers of features; None: of all.
    """
    text = _Text.of(seen)
    often = np.flatnonzero(seen.count >= FEWEST)
    if most is not None:
        often = often[np.unique(np.linspace(0, len(often) - 1, min(most, len(often))).astype(np.int64))]
    tried: list[tuple[int, int, float, int, int]] = []
    n_tests = 0
    probes: list[tuple[int, int, float]] = []
    beside = array("d")
    hits: dict[tuple[int, int], np.ndarray] = {}
    for feature in often.tolist():
        cosine = seen.units @ seen.units[feature]
        fires, own = seen.at(feature), seen.needed(feature)
        if len(own) < FEWEST:
            continue
        met = np.asarray(seen.fires[own].sum(axis=0)).ravel().astype(np.int64)
        near = (np.abs(cosine) > NEAR) & (seen.count > 0) & (met <= PART * len(own))
        children = np.flatnonzero(near & (cosine > 0))
        others = _like(seen.count, children, np.flatnonzero((np.abs(cosine) < FAR) & (seen.count >= FEW)))
        size = np.full(len(others), len(own))
        others = others[cofiring_tail(met[others], seen.n, size, seen.count[others], above=True) > LEVEL]
        near[others] = True
        mine = np.zeros(seen.n, dtype=bool)
        mine[own] = True
        with_child = np.asarray(seen.fires @ near.astype(np.float32)) > 0
        learnt = ~with_child
        learnt[fires] = False
        learnt |= mine
        if not len(children) or learnt.sum() - len(own) < FEWEST:
            continue
        direction, pattern = text.direction(own, np.flatnonzero(~learnt))
        score = text.x @ direction.astype(np.float32)
        limit = _limit(score, mine, learnt)
        on = score > limit
        n_on = int((on & learnt).sum())
        f1 = 2 * int((on & mine).sum()) / max(n_on + len(own), 1)
        probes.append((feature, n_on, f1))
        if f1 < TRUSTED:
            continue
        base = learnt & ~mine
        n_base, n_false = int(base.sum()), int((base & on).sum())
        zero, noise = float(score[base].mean()), float(score[base].std())
        whole = float(score[own].mean()) - zero
        lean = seen.units[children] @ (pattern / np.linalg.norm(pattern))
        for child in (*children[lean > NEAR].tolist(), *others.tolist()):
            alone = np.setdiff1d(seen.at(child), fires)
            if len(alone) < FEW:
                continue
            here, without = score[alone], _beyond(score[alone], seen.activation(child, alone))
            merged = here.mean() - zero >= FULL * whole and without.std() >= STIRS * noise
            hit = alone[(here if merged else without) > limit]
            hit = np.intersect1d(hit, seen.needed(child), assume_unique=True)
            if child in others:
                beside.append(len(hit) / len(alone))
                continue
            n_hit, n_alone = len(hit), len(alone)
            p = cofiring_tail(
                np.array([n_hit]),
                n_base + n_alone,
                np.array([n_alone]),
                np.array([n_false + n_hit]),
                above=True,
            )
            n_tests += 1
            if p[0] <= LEVEL:  # a larger one neither passes nor moves a q that does
                tried.append((feature, child, float(p[0]), n_hit, n_alone))
                if n_hit >= MOSTLY * n_alone:
                    hits[feature, child] = hit
    table = np.array(tried, dtype=np.float64).reshape(-1, 5)
    share = table[:, 3] / table[:, 4]
    q = benjamini_hochberg(table[:, 2], n_tests=n_tests)
    usual = float(np.quantile(np.asarray(beside), 1 - LEVEL)) if beside else 0.0
    kept = (q <= LEVEL) & (share >= MOSTLY) & (share > usual)
    # Two that are each on where the other should be are parts of one thing; neither is above the other.
    both = {tuple(pair) for pair in table[kept, :2].tolist()}
    kept &= np.array([(b, a) not in both for a, b in table[:, :2].tolist()], dtype=bool)
    parent, child = table[kept, 0].astype(np.int64), table[kept, 1].astype(np.int64)
    of: dict[int, list[np.ndarray]] = {}
    for pair in zip(parent.tolist(), child.tolist(), strict=True):
        of.setdefault(pair[0], []).append(hits[pair])
    rows = []
    for feature, n_on, f1 in probes:
        found = of.get(feature, [])
        n_hit = len(np.unique(np.concatenate(found))) if found else 0
        known = f1 >= TRUSTED and n_on + n_hit > 0
        rows.append((feature, n_on + n_hit, f1, n_hit / (n_on + n_hit) if known else np.nan, len(found)))
    features = np.array(rows, dtype=np.float64).reshape(-1, 5)
    return Absorbed(
        parent, child, table[kept, 2], q[kept], share[kept], features[:, 0].astype(np.int64),
        features[:, 1].astype(np.int64), features[:, 2], features[:, 3], features[:, 4].astype(np.int64),
    )  # fmt: skip


def _like(
    count: Int[np.ndarray, " d_sae"], children: Int[np.ndarray, " m"], pool: Int[np.ndarray, " k"]
) -> Int[np.ndarray, " j"]:
    """For each child another feature of the pool, the nearest in density that is not taken."""
    order = pool[np.argsort(count[pool], kind="stable")]
    if not len(order):
        return order
    at = np.minimum(np.searchsorted(count[order], np.sort(count[children])), len(order) - 1)
    # Of equals the next one: places rise, and fall back from the end.
    for k in range(1, len(at)):
        at[k] = max(at[k], at[k - 1] + 1)
    return order[np.unique(np.minimum(at, len(order) - 1))]


def _beyond(score: Float[np.ndarray, " n"], activation: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The score less what grows with the child's activation."""
    away = activation - activation.mean()
    spread = float(away @ away)
    slope = float(away @ score) / spread if spread > 0 else 0.0
    return score - slope * activation


def _limit(
    score: Float[np.ndarray, " n"], own: Bool[np.ndarray, " n"], learnt: Bool[np.ndarray, " n"]
) -> float:
    """The score from which a logistic regression on it, over the tokens `learnt`, finds on more likely than off."""
    mean, sd = float(score[learnt].mean()), max(float(score[learnt].std()), 1e-12)
    z, y = ((score[learnt] - mean) / sd).astype(np.float64), own[learnt]
    base = float(y.mean())
    offset, slope = float(np.log(base / (1 - base))), 1.0
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(z * slope + offset, -30, 30)))
        away, weight = y - chance, chance * (1 - chance)
        g = np.array([away.sum(), away @ z - _RIDGE * slope])
        cross = weight @ z
        curved = np.array([[weight.sum() + 1e-9, cross], [cross, weight @ (z * z) + _RIDGE]])
        step = np.clip(np.linalg.solve(curved, g), -3, 3)
        offset, slope = offset + float(step[0]), slope + float(step[1])
    return mean - sd * offset / max(slope, 1e-9)
