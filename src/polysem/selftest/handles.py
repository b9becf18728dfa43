"""GT8, W-M: a behaviour carried in planted shares by a feature and by what the dictionary does not see.

The readout is linear: log-odds = w . h + constant, w = carried d_f + beside r, with r orthogonal to every decoder row. A clamp of
f to 0 takes a_f carried; the best move of length L that f does not see brings back L |w - (w . e) e|; a push along d_i to an
effect E has the length E / (w . d_i) and moves what the monitor of f reads by that times d_i . d_f.
"""

from collections.abc import Iterator

import numpy as np
import torch
from scipy import stats

from polysem.behaviour.handle import RADII, Handle, pushed_to_effect, recover
from polysem.behaviour.monitors import Documents, fit_monitors, judged
from polysem.seeds import rng_for
from polysem.selftest.lines import Measured, at_most, near
from polysem.selftest.runner import RunSize
from polysem.transfer.defence import auroc
from polysem.worlds.linear import LinearWorld
from polysem.worlds.tables import plain_sae

WIDTH, VOCAB, TOKENS, EFFECT = 12, 900, (1, 2), 0.6


def world(seed: int, *, carried: float, beside: float, cosine: float, unseen: float) -> Handle:
    """Feature 0 carries the behaviour; feature 1 lies at `cosine` to it, with `unseen` of what no feature reads.

    Embeddings are normal along the features' plane and steady elsewhere, so that what the monitor reads is N(0, 1).
    """
    rng = rng_for(seed, "handles", "world")
    d, r = np.eye(WIDTH)[0], np.eye(WIDTH)[1]
    other = cosine * d + unseen * r + np.sqrt(1 - cosine**2 - unseen**2) * np.eye(WIDTH)[2]
    E = np.zeros((VOCAB, WIDTH))
    E[:, 0] = rng.standard_normal(VOCAB)
    E[:, 3] = 3.0
    U = np.zeros((VOCAB, WIDTH))
    U[list(TOKENS)] = carried * d + beside * r
    model = LinearWorld(torch.from_numpy(E), torch.from_numpy(U))
    return Handle(model, plain_sae(np.stack([d, other])), (0,), TOKENS)


def planted(size: RunSize) -> Iterator[Measured]:
    """Recovery, its ceiling, evasion and monitors are those of the closed forms."""
    yield from _recovery(size)
    yield from _evasion(size)
    yield from _monitors(size)


def _recovery(size: RunSize) -> Iterator[Measured]:
    for carried, beside in ((1.0, 0.0), (1.0, 0.5), (0.6, 1.2)):
        handle = world(size.seed, carried=carried, beside=beside, cosine=0.4, unseen=0.3)
        E = handle.model.W_E.numpy()
        prompts = [[0, int(x)] for x in np.flatnonzero(E[:, 0] > 0.5)[: size.of(6, 40)]]
        rng = rng_for(size.seed, "handles", "moves")
        found = {
            arm: [recover(handle, ids, arm=arm, rng=rng) for ids in prompts] for arm in ("handle", "free")
        }
        a = E[[x for _, x in prompts], 0]
        norms = np.linalg.norm(E[[x for _, x in prompts]], axis=1)
        drops = np.array([one.drop for one in found["handle"]])
        name = f"carried {carried:g}, beside {beside:g}"
        yield at_most(f"{name}: drop off by", np.abs(drops - a * carried).max(), 1e-5, unit="nats")
        for arm, along in (("handle", beside), ("free", float(np.hypot(carried, beside)))):
            expected = np.minimum(np.array(RADII) * norms[:, None] * along / drops[:, None], 1.0).mean(0)
            told = np.minimum(np.stack([one.gain for one in found[arm]]) / drops[:, None], 1.0).mean(0)
            yield at_most(f"{name}: share recovered, {arm}, off by", np.abs(told - expected).max(), 0.02)
        drift = max(one.drift for one in found["handle"])
        yield at_most(f"{name}: clamped pre-activation moved by", drift, 1e-6, unit="of the lengths")


def _evasion(size: RunSize) -> Iterator[Measured]:
    n = size.of(150, 800)
    for cosine, unseen in ((0.4, 0.0), (0.4, 0.5), (0.7, 0.5)):
        handle = world(size.seed, carried=1.0, beside=1.0, cosine=cosine, unseen=unseen)
        rows = handle.sae.W_dec.double().numpy()
        seen = [pushed_to_effect(handle, [0, x], rows, EFFECT) for x in range(1, n + 1)]
        clean = np.array([one.clean for one in seen])
        pushed = np.stack([one.seen for one in seen])
        told = auroc(clean, pushed[:, 0]) - auroc(clean, pushed[:, 1])
        lengths = EFFECT / (rows @ np.eye(WIDTH)[:2].sum(0))
        yield at_most(
            f"length to the effect, cosine {cosine}, unseen {unseen}: off by",
            np.abs(seen[0].length - lengths).max(),
            1e-2,
            unit="activation",
        )
        shifts = lengths * np.array([1.0, cosine])
        sd = handle.model.W_E[1 : n + 1, 0].numpy().std()
        expected = stats.norm.cdf(shifts / (sd * np.sqrt(2)))
        yield near(
            f"evasion gap, cosine {cosine}, unseen {unseen}",
            told,
            expected[0] - expected[1],
            0.03,
            note=f"{n} prompts",
        )


def _monitors(size: RunSize) -> Iterator[Measured]:
    """Documents that differ by a planted step in one feature, one neuron and one direction."""
    n, step = size.of(1200, 8000), 1.2
    rng = rng_for(size.seed, "handles", "documents")
    on = np.arange(n) % 2 == 0
    parts = [rng.standard_normal((n, k)) for k in (30, 8, 8, 20)]
    parts[0][:, 3] += step * on
    parts[1][:, 2] += step * on
    parts[3][:, 5] -= step * on
    docs = Documents(parts[0], parts[1], parts[2], parts[3], on)
    fit, test = (docs.take(np.arange(n)[k * n // 2 : (k + 1) * n // 2]) for k in (0, 1))
    expected = float(stats.norm.cdf(step / np.sqrt(2)))
    slack = 3.5 * np.sqrt(expected * (1 - expected) / (n / 4))
    for monitor in fit_monitors(fit, k=4, rng=rng):
        found = judged(monitor, fit, test, rng=rng)
        planted_one = monitor.name not in ("random", "residual")
        yield near(
            f"AUROC of {monitor.name}", found.detector.auroc, expected if planted_one else 0.5, slack + 0.02
        )
        yield at_most(f"calibration error of {monitor.name}", found.ece, 0.08)
