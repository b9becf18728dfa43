"""GT8, W-M: a behaviour carried in planted shares by a feature and by what the dictionary does not see.

The readout is linear: log-odds = w . h + constant, w = carried d_f + beside r, with r orthogonal to every decoder row. A clamp of
f to 0 takes a_f carried; the best move of length L that f does not see brings back L |w - (w . e) e|; a push along d_i to an
effect E has the length E / (w . d_i) and moves what the monitor of f reads by that times d_i . d_f. At a later site, where h arrives as
h A and is read by w, the best move that is orthogonal to d_f A and to e brings back L times what of w is.
"""

from collections.abc import Iterator

import numpy as np
import torch
from scipy import stats

from polysem.behaviour.covert import Covert, CovertPush, evasion_rows
from polysem.behaviour.handle import RADII, Handle, projector, recover
from polysem.behaviour.intervals import auroc_interval, mean_interval, paired_auroc, paired_placements
from polysem.behaviour.monitors import Documents, fit_monitors, judged, lateness
from polysem.seeds import rng_for
from polysem.selftest.lines import Measured, at_most, between, near
from polysem.selftest.runner import RunSize
from polysem.side_effects.measures import Estimate
from polysem.worlds.linear import LATER, CarriedWorld, LinearWorld
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
    model = LinearWorld(torch.from_numpy(E), torch.from_numpy(U), n_ctx=8)  # no room for texts
    return Handle(model, plain_sae(np.stack([d, other])), (0,), TOKENS)


def planted(size: RunSize) -> Iterator[Measured]:
    """Recovery, its ceiling, evasion and monitors are those of the closed forms."""
    yield from _recovery(size)
    yield from _later(size)
    yield from _evasion(size)
    yield from _monitors(size)
    yield from _delay(size)
    yield from _coverage(size)


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


def _later(size: RunSize) -> Iterator[Measured]:
    """Moves where what was clamped has arrived turned."""
    here = world(size.seed, carried=1.0, beside=0.5, cosine=0.4, unseen=0.3)
    rng = rng_for(size.seed, "handles", "later")
    A = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0] @ np.diag(rng.uniform(0.5, 2.0, WIDTH))
    E, W = here.model.W_E.numpy(), here.model.W_U.numpy() @ np.linalg.inv(A).T
    model = CarriedWorld(*(torch.from_numpy(x) for x in (E, A, W)))
    handle = Handle(model, here.sae, here.features, here.tokens)
    w, rows = W[TOKENS[0]], np.stack([np.eye(WIDTH)[0] @ A, np.eye(WIDTH)[0]])
    prompts = [[0, int(x)] for x in np.flatnonzero(E[:, 0] > 0.5)[: size.of(6, 40)]]
    norms = np.linalg.norm(E[[x for _, x in prompts]] @ A, axis=1)
    for arm, along in (("handle", np.linalg.norm(projector(rows) @ w)), ("free", np.linalg.norm(w))):
        found = [recover(handle, ids, arm=arm, rng=rng, site=LATER) for ids in prompts]
        drops = np.array([one.drop for one in found])
        told = np.minimum(np.stack([one.gain for one in found]) / drops[:, None], 1.0).mean(0)
        expected = np.minimum(np.array(RADII) * norms[:, None] * along / drops[:, None], 1.0).mean(0)
        yield at_most(f"share recovered at a later site, {arm}, off by", np.abs(told - expected).max(), 0.02)
        if arm == "handle":
            drift = max(one.drift for one in found)
            yield at_most(
                "later site: what arrives of the clamped feature moved by", drift, 1e-6, unit="of the lengths"
            )


def _evasion(size: RunSize) -> Iterator[Measured]:
    n = size.of(150, 800)
    for cosine, unseen in ((0.4, 0.0), (0.4, 0.5), (0.7, 0.5)):
        handle = world(size.seed, carried=1.0, beside=1.0, cosine=cosine, unseen=unseen)
        rows = handle.sae.W_dec.double().numpy()
        arms = [
            CovertPush(kind, k, row)
            for k, (kind, row) in enumerate(zip(("target", "interfering"), rows, strict=True))
        ]
        scores = Covert(
            handle, 0, [[0, x] for x in range(1, n + 1)], arms, later=None, seed=size.seed
        ).scores(EFFECT)
        cosines = [float(one.arm.vector @ rows[0]) for one in scores if one.arm.vector is not None]
        told = {(r["detector"], r["kind"]): r for r in evasion_rows(scores, cosines)}
        lengths = EFFECT / (rows @ np.eye(WIDTH)[:2].sum(0))
        name = f"cosine {cosine}, unseen {unseen}"
        off = [
            abs(told["target", arm.kind]["length"] / length - 1)
            for arm, length in zip(arms, lengths, strict=True)
        ]
        yield at_most(f"length to the effect, {name}: off by", max(off), 1e-2, unit="of the length")
        shifts = lengths * np.array([1.0, cosine])
        sd = handle.model.W_E[1 : n + 1, 0].numpy().std()
        expected = stats.norm.cdf(shifts / (sd * np.sqrt(2)))
        gap = told["target", "interfering"]
        yield near(f"evasion gap, {name}", gap["gap"], expected[0] - expected[1], 0.03, note=f"{n} prompts")
        # steady off the features' plane: what the push adds there alone tells it
        yield near(f"linear detector at the site, {name}", told["site", "interfering"]["seen"], 1.0, 0.01)


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
            f"AUROC of {monitor.name}", found.auroc.value, expected if planted_one else 0.5, slack + 0.02
        )
        yield at_most(f"calibration error of {monitor.name}", found.ece, 0.08)


def _delay(size: RunSize) -> Iterator[Measured]:
    """A monitor that answers a geometric number of tokens after the concept, or never, and false alarms of one in a hundred."""
    n, length, p = size.of(600, 4000), 60, 0.4
    rng = rng_for(size.seed, "handles", "delay")
    running, starts = [], np.where(np.arange(n) % 2 == 0, 5, -1)
    for at in starts:
        score = np.maximum.accumulate(rng.uniform(0, 1, length))
        if at >= 0 and (late := int(rng.geometric(p)) - 1) < length - at:
            score[at + late :] = 2.0
        running.append(score)
    told = lateness(running, starts, rng=rng)
    sd = np.sqrt(1 - p) / p
    # the threshold is near the largest of 60 uniforms, which documents of the concept reach before it in one of some thousand
    yield near(
        "delay of a monitor", told.tokens.value, (1 - p) / p, 4 * sd / np.sqrt(n / 2) + 0.02, unit="tokens"
    )
    yield between("false alarms at any token", told.false_alarms, 0.0, 0.05)


def _coverage(size: RunSize) -> Iterator[Measured]:
    """How often intervals hold what they are of."""
    n = size.of(600, 12000)
    rng = rng_for(size.seed, "handles", "coverage")
    error = float(np.sqrt(0.95 * 0.05 / n))

    def line(name: str, found: list[Estimate], truth: float) -> Measured:
        held = float(np.mean([one.lo <= truth <= one.hi for one in found]))
        lo, hi = 0.936 - 3 * error, 0.963 + 3 * error
        return between(f"intervals that hold {name}", held, lo, hi, error=error)

    drops = stats.truncnorm(0.5, np.inf)
    draws = {
        "the mean of 16 normal numbers": (rng.standard_normal((n, 16)), 0.0),
        "the mean of 16 exponential numbers": (rng.exponential(size=(n, 16)), 1.0),
        "the mean drop of 16 prompts": (drops.rvs((n, 16), random_state=rng), float(drops.mean())),
        "the mean delay of 30 documents": (rng.geometric(0.4, (n, 30)) - 1.0, 1.5),
    }
    for name, (drawn, truth) in draws.items():
        yield line(name, [mean_interval(x) for x in drawn], truth)
    for step in (0.8, 1.6):
        truth = float(stats.norm.cdf(step / np.sqrt(2)))
        found = [auroc_interval(rng.standard_normal(80), rng.standard_normal(40) + step) for _ in range(n)]
        yield line(f"the AUROC of 40 documents, {truth:.2f}", found, truth)
    folds, close = np.zeros(16, dtype=np.int64), 0.9
    for step in (1.0, 2.0):
        # the same prompt pushed and not: compared with itself it is told better
        ends = stats.norm.cdf(step / np.sqrt([2, 2 - 2 * close]))
        truth, found = float(15 * ends[0] + ends[1]) / 16, []
        for _ in range(n):
            clean = rng.standard_normal(16)
            pushed = close * clean + np.sqrt(1 - close**2) * rng.standard_normal(16) + step
            found.append(paired_auroc(paired_placements(clean, pushed, folds)))
        yield line(f"the AUROC of a push on 16 prompts, {truth:.2f}", found, truth)
