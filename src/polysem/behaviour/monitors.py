"""Monitors of a concept, from documents with and without it: fitted on some, judged on others.

A document is a row for each reader: the largest activation of every feature and neuron, and the means of the site and of what
the dictionary does not explain of it. A monitor is a score of documents; none has seen the documents that it is judged on.
A document read up to a token is a document, too: so a monitor scores a text as it comes, and is late or not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int

from polysem.behaviour.intervals import auroc_interval, mean_interval, within
from polysem.side_effects.measures import Estimate
from polysem.transfer.defence import Detector, detector

L2 = 1.0
FALSE = 0.01
"""documents without the concept that may be flagged"""
BINS = 10


@dataclass(frozen=True)
class Documents:
    """Documents as monitors read them."""

    codes: Float[np.ndarray, "n d_sae"]
    """largest activation of every feature"""
    mean: Float[np.ndarray, "n d"]
    """mean of the site"""
    missed: Float[np.ndarray, "n d"]
    """mean of what the dictionary does not explain"""
    neurons: Float[np.ndarray, "n d_mlp"]
    """largest activation of every neuron of the layer's MLP"""
    on: Bool[np.ndarray, " n"]
    """whether they have the concept"""

    def take(self, some: Int[np.ndarray, " m"]) -> "Documents":
        """Some of them."""
        return Documents(**{f.name: getattr(self, f.name)[some] for f in fields(self)})


Score = Callable[[Documents], Float[np.ndarray, " n"]]


@dataclass(frozen=True)
class Monitor:
    """A score of documents."""

    name: str
    made_of: str
    score: Score


def aurocs(x: Float[np.ndarray, "n k"], on: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " k"]:
    """`auroc` of every column."""
    from scipy import stats

    ranks = stats.rankdata(x, axis=0)
    n, m = int((~on).sum()), int(on.sum())
    return (ranks[on].sum(0) - m * (m + 1) / 2) / (n * m)


def logistic(
    x: Float[np.ndarray, "n k"], y: Bool[np.ndarray, " n"], *, l2: float = L2
) -> tuple[Float[np.ndarray, " k"], float]:
    """Weights and constant of a logistic regression; the penalty is on the weights of standardised columns."""
    from scipy import optimize

    centre, scale = x.mean(0), x.std(0)
    z = (x - centre) / np.where(scale > 0, scale, 1.0)
    sign = np.where(y, 1.0, -1.0)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (z @ w[:-1] + w[-1])
        slope = -sign / (1 + np.exp(np.clip(margin, -500, 500)))
        grad = np.append(z.T @ slope + l2 * w[:-1], slope.sum())
        return float(np.logaddexp(0, -margin).sum() + l2 / 2 * w[:-1] @ w[:-1]), grad

    w = optimize.minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B").x
    weights = w[:-1] / np.where(scale > 0, scale, 1.0)
    return weights, float(w[-1] - weights @ centre)


def fit_monitors(
    docs: Documents, *, k: int, rng: np.random.Generator, feature: int | None = None
) -> list[Monitor]:
    """One monitor of every kind.

    Args:
        docs: of the fit.
        k: features of the sparse probe.
        rng: for the random feature.
        feature: the single one; the best by AUROC on these documents if left out.
    """
    on = docs.on
    of_features = aurocs(docs.codes, on)
    best = int(of_features.argmax()) if feature is None else feature
    top = np.argsort(-of_features, kind="stable")[:k]
    few, _ = logistic(docs.codes[:, top], on)
    fires = (docs.codes > 0).mean(0)
    others = np.argsort(np.abs(fires - fires[best]), kind="stable")
    near = others[others != best][: max(10, len(others) // 50)]
    drawn = int(rng.choice(near))
    of_neurons = aurocs(docs.neurons, on)
    neuron = int(np.abs(of_neurons - 0.5).argmax())
    sign = 1.0 if of_neurons[neuron] >= 0.5 else -1.0
    means = docs.mean[on].mean(0) - docs.mean[~on].mean(0)
    missed = docs.missed[on].mean(0) - docs.missed[~on].mean(0)
    probe, _ = logistic(docs.mean, on)
    shown = ", ".join(map(str, top.tolist()))
    return [
        Monitor("feature", str(best), lambda d: d.codes[:, best]),
        Monitor("features", shown, lambda d: d.codes[:, top] @ few),
        Monitor("means", "", lambda d: d.mean @ means),
        Monitor("probe", "", lambda d: d.mean @ probe),
        Monitor("neuron", str(neuron), lambda d: sign * d.neurons[:, neuron]),
        Monitor("residual", "", lambda d: d.missed @ missed),
        Monitor("random", str(drawn), lambda d: d.codes[:, drawn]),
    ]


@dataclass(frozen=True)
class Judged:
    """A monitor on documents that it has not seen."""

    auroc: Estimate
    detector: Detector
    ece: float


def judged(monitor: Monitor, fit: Documents, test: Documents, *, rng: np.random.Generator) -> Judged:
    """AUROC, detection at 1 % false alarms, and calibration.

    Raises:
        ConfigError: too few documents.
    """
    scores = monitor.score(test)
    found = detector(scores[~test.on], scores[test.on], level=0.95, rng=rng, false_positives=FALSE, draws=1)
    weight, constant = logistic(monitor.score(fit)[:, None], fit.on, l2=1e-3)
    p = 1 / (1 + np.exp(-np.clip(scores * weight[0] + constant, -500, 500)))
    told = auroc_interval(scores[~test.on], scores[test.on])
    return Judged(told, found, calibration_error(p, test.on))


@dataclass(frozen=True)
class Late:
    """How long after the concept's first token a monitor flags a text that it reads token by token."""

    tokens: Estimate
    """from the concept's first token to the first one flagged, over documents that are flagged there or later"""
    n: int
    early: int
    """documents flagged before the concept's first token"""
    false_alarms: float
    """documents without the concept that are flagged at any token, of the half that did not set the threshold"""


def lateness(
    running: Sequence[Float[np.ndarray, " pos"]], starts: Int[np.ndarray, " n"], *, rng: np.random.Generator
) -> Late:
    """The threshold is the one that flags 1 % of one half of the documents without the concept at any of their tokens.

    Args:
        running: score of every document, read up to each of its tokens.
        starts: place of the concept's first token; -1 in documents without it.
        rng: halves the documents without it.
    """
    worst = np.array([scores.max() for scores, at in zip(running, starts, strict=True) if at < 0])
    order = rng.permutation(len(worst))
    setting, rest = worst[order[: len(worst) // 2]], worst[order[len(worst) // 2 :]]
    threshold = float(np.quantile(setting, 1 - FALSE, method="higher"))
    flagged = [
        int(over[0]) - int(at)
        for scores, at in zip(running, starts, strict=True)
        if at >= 0 and len(over := np.flatnonzero(scores > threshold))
    ]
    late = np.array([k for k in flagged if k >= 0], dtype=np.float64)
    told = within(mean_interval(late), 0.0)
    return Late(told, len(late), len(flagged) - len(late), float((rest > threshold).mean()))


def calibration_error(p: Float[np.ndarray, " n"], on: Bool[np.ndarray, " n"]) -> float:
    """Mean over documents of |share with the concept - mean probability| of their bin (ten of equal width)."""
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    gaps = [abs(on[bins == b].mean() - p[bins == b].mean()) * (bins == b).sum() for b in np.unique(bins)]
    return float(np.sum(gaps) / len(p))
