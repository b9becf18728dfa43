"""The tables of `polysem guard`: monitors of a concept, the clamp of its features and what undoes it, and pushes it does not see.

Documents are rows of a corpus, with the concept where one of its tokens stands in them, or a user's own texts. Monitors are
fitted on the first half of them and judged on the second. Prompts are beginnings of documents behind which a token of the
concept stands. Concepts that ship are the built-in categories of words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from polysem.behaviour.handle import (
    RADII,
    Handle,
    gini,
    half_of,
    neuron_slopes,
    neurons_removed,
    odds_slope,
    pre_activation_shares,
    pushed_to_effect,
    recover,
)
from polysem.behaviour.monitors import Documents, Monitor, fit_monitors, judged
from polysem.errors import ConfigError
from polysem.models.base import WhiteBoxModel
from polysem.models.hf import HFModel
from polysem.progress import SILENT, Reporter
from polysem.rank import rank_correlation
from polysem.saes.base import SAE
from polysem.seeds import rng_for
from polysem.side_effects.measures import jackknife
from polysem.transfer.defence import auroc
from polysem.types import Site

INTERFERES = 0.2
"""|cosine| of decoder rows"""
MEASURED = 50
"""neurons of the scan that are removed one by one"""
SOURCES = 8
"""interfering features that are pushed, and as many drawn ones"""
LEAST_DROP = 0.05
"""nats: below it the clamp takes nothing that could be brought back"""
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class GuardScene:
    """What a concept is guarded in."""

    model: WhiteBoxModel
    sae: SAE
    tokens: tuple[int, ...]
    """of the concept"""
    documents: Mapping[str, tuple[Sequence[Sequence[int]], Bool[np.ndarray, " n"]]]
    """by shift: rows of tokens, and whether they have the concept; `none` has those of the fit, too"""
    prompts: Sequence[Sequence[int]]
    """behind which a token of the concept stood"""
    off_prompts: Sequence[Sequence[int]]
    """behind which none stood"""
    features: tuple[int, ...] = ()
    """that are clamped; the best one on the documents of the fit if left out"""
    k: int = 8
    effect: float = 0.5
    """nats, of covert pushes"""
    seed: int = 0


def guard_rows(scene: GuardScene, *, reporter: Reporter = SILENT) -> dict[str, Rows]:
    """Rows of the GUARD tables.

    Raises:
        ConfigError: too few documents or prompts of either kind.
    """
    rows: dict[str, Rows] = {
        name: []
        for name in (
            "guard_monitors",
            "guard_alarms",
            "guard_recovery",
            "guard_neurons",
            "guard_evasion",
            "guard_findings",
        )
    }
    ids, on = scene.documents["none"]
    half = np.arange(len(ids)) % 2 == 0
    few = min(
        int((on & half).sum()), int((on & ~half).sum()), int((~on & half).sum()), int((~on & ~half).sum())
    )
    if few < 8 or len(scene.prompts) < 3 or len(scene.off_prompts) < 3:
        raise ConfigError(
            f"{int(on.sum())} documents with the concept and {int((~on).sum())} without, {len(scene.prompts)} and "
            f"{len(scene.off_prompts)} prompts; expected at least 16 and 3 of each",
            hint="raise documents in the concept file, or name another concept",
        )
    with reporter.stage("monitors"):
        fit, chosen = _monitors(scene, rows, half)
    features = scene.features or (chosen,)
    handle = Handle(scene.model, scene.sae, features, scene.tokens)
    _alarms(scene, rows, fit, chosen, half)
    with reporter.stage("clamp"):
        _recovery(scene, handle, rows)
    if isinstance(scene.model, HFModel):
        with reporter.stage("neurons"):
            _neurons(scene, handle, rows)
    with reporter.stage("covert pushes"):
        _evasion(scene, handle, rows, fit)
    return rows


def read_documents(
    model: WhiteBoxModel, sae: SAE, ids: Sequence[Sequence[int]], on: Bool[np.ndarray, " n"]
) -> Documents:
    """Documents as monitors read them; the first position is not counted."""
    layer = sae.reads.layer
    mlp = Site(layer, "mlp.hook_post")
    sites = [sae.reads, *([mlp] if layer is not None and mlp in model.sites() else [])]
    parts: list[tuple[np.ndarray, ...]] = []
    for one in ids:
        row = torch.tensor([list(one)], device=model.spec.device)
        seen = model.capture(row, sites)
        h = seen[sae.reads][0, 1:].cpu()
        acts = sae.encode(h).detach()
        unsaid = h - sae.decode(acts, like=h).detach() if sae.reads == sae.writes else torch.zeros(1, 1)
        fires = seen[mlp][0, 1:].max(0).values if mlp in seen else torch.zeros(1)
        made = (acts.max(0).values, h.double().mean(0), unsaid.double().mean(0), fires)
        parts.append(tuple(one.double().cpu().numpy() for one in made))
    codes, mean, missed, neurons = (np.stack([part[k] for part in parts]) for k in range(4))
    return Documents(codes, mean, missed, neurons, on)


def _monitors(
    scene: GuardScene, rows: dict[str, Rows], half: Bool[np.ndarray, " n"]
) -> tuple[Documents, int]:
    """Fit on one half, judge on the other and on every shift; gives the documents of the fit and the best feature."""
    fit: Documents | None = None
    monitors: list[Monitor] = []
    best = -1
    for shift, (ids, on) in scene.documents.items():
        docs = read_documents(scene.model, scene.sae, ids, on)
        if fit is None:
            fit = docs.take(np.flatnonzero(half))
            single = scene.features[0] if len(scene.features) == 1 else None
            monitors = fit_monitors(
                fit, k=scene.k, rng=rng_for(scene.seed, "guard", "random feature"), feature=single
            )
            best = int(monitors[0].made_of)
        # a shift shows the documents that the fit has not seen, too
        test = docs.take(np.flatnonzero(~half)) if len(docs.on) == len(half) else docs
        for monitor in monitors:
            found = judged(monitor, fit, test, rng=rng_for(scene.seed, "guard", shift, monitor.name))
            d = found.detector
            rows["guard_monitors"].append(
                {
                    "shift": shift, "monitor": monitor.name, "made_of": monitor.made_of, "auroc": d.auroc, "lo": d.lo,
                    "hi": d.hi, "found": d.found.share, "found_lo": d.found.lo, "found_hi": d.found.hi,
                    "false_alarms": d.flagged.share, "ece": found.ece, "n_on": int(test.on.sum()), "n_off": int((~test.on).sum()),
                }
            )  # fmt: skip
    assert fit is not None
    return fit, best


def _unit(sae: SAE) -> Float[np.ndarray, "d_sae d"]:
    W = sae.W_dec.detach().cpu().double().numpy()
    norms = np.linalg.norm(W, axis=1, keepdims=True)
    return np.divide(W, norms, out=np.zeros_like(W), where=norms > 0)


def _alarms(
    scene: GuardScene, rows: dict[str, Rows], fit: Documents, feature: int, half: Bool[np.ndarray, " n"]
) -> None:
    """False alarms of the single feature at 5 %, with and without what interfering features write into it."""
    ids, on = scene.documents["none"]
    threshold = float(np.quantile(fit.codes[~fit.on, feature], 0.95))
    cosine = _unit(scene.sae) @ _unit(scene.sae)[feature]
    near = np.flatnonzero((np.abs(cosine) > INTERFERES) & (np.arange(len(cosine)) != feature))
    far = np.flatnonzero(np.abs(cosine) <= INTERFERES)
    rng = rng_for(scene.seed, "guard", "alarms")
    told: dict[str, list[tuple[float, bool]]] = {"interfering": [], "others": []}
    for k in np.flatnonzero(~half & ~on).tolist():
        row = torch.tensor([list(ids[k])], device=scene.model.spec.device)
        h = scene.model.capture(row, [scene.sae.reads])[scene.sae.reads][0, 1:].cpu()
        acts = scene.sae.encode(h).detach()[:, feature].double().numpy()
        at = int(acts.argmax())
        if not acts[at] > threshold:
            continue
        fires = scene.sae.encode(h[at : at + 1]).detach()[0].numpy() > 0
        drawn = far[fires[far]]
        drawn = rng.permutation(drawn)[: int(fires[near].sum())]
        for name, group in (("interfering", near), ("others", drawn)):
            written = float(pre_activation_shares(scene.sae, h[at : at + 1], feature, group)[0])
            told[name].append((written / acts[at], acts[at] - written <= threshold))
    for name, seen in told.items():
        rows["guard_alarms"].append(
            {
                "group": name, "explained": float(np.mean([e for _, e in seen])) if seen else 0.0,
                "share": float(np.mean([s for s, _ in seen])) if seen else np.nan, "n": len(seen),
                "note": f"{len(near)} features interfere" if seen else "no false alarm on held-out documents",
            }
        )  # fmt: skip


def _recovery(scene: GuardScene, handle: Handle, rows: dict[str, Rows]) -> None:
    """What the clamp takes and costs, and how far moves bring it back."""
    d_vocab = scene.model.spec.d_vocab
    rng = rng_for(scene.seed, "guard", "recovery")
    outside = np.setdiff1d(np.arange(d_vocab), scene.tokens)
    drawn = tuple(sorted(rng.permutation(outside)[: len(scene.tokens)].tolist()))
    found = {
        arm: [
            recover(handle, ids, arm=arm, rng=rng, tokens=drawn if arm == "other" else None)
            for ids in scene.prompts
        ]
        for arm in ("handle", "free", "random", "other")
    }
    drops = np.array([one.drop for one in found["handle"]])
    every = np.arange(len(drops))
    _find(
        rows,
        "suppression",
        jackknife(lambda some: float(drops[some].mean()), every),
        len(drops),
        "nats of log-odds that the clamp takes; n counts prompts",
    )
    costs = np.array([one.cost for one in found["handle"]])
    _find(
        rows,
        "price on prompts of the concept",
        jackknife(lambda some: float(costs[some].mean()), every),
        len(costs),
        "nats of KL of the next token",
    )
    beside = np.array([recover(handle, ids, arm="random", rng=rng).cost for ids in scene.off_prompts])
    _find(
        rows,
        "price on other prompts",
        jackknife(lambda some: float(beside[some].mean()), np.arange(len(beside))),
        len(beside),
        "nats of KL of the next token",
    )
    able = np.flatnonzero(drops > LEAST_DROP)
    _find(
        rows,
        "prompts on which the clamp takes something",
        None,
        len(drops),
        f"more than {LEAST_DROP} nats",
        value=float(len(able)),
    )
    if not len(able):
        return
    curves = {}
    for arm, some in found.items():
        gain = np.stack([some[k].gain for k in able])
        share = gain / drops[able, None]
        share = share if arm == "other" else np.minimum(share, 1.0)
        curves[arm] = share.mean(0)
        for r, radius in enumerate(RADII):
            told = jackknife(lambda at, s=share[:, r]: float(s[at].mean()), np.arange(len(able)))
            rows["guard_recovery"].append(
                {
                    "arm": arm, "radius": radius, "recovered": told.value, "lo": told.lo, "hi": told.hi,
                    "drift": max(some[k].drift for k in able), "in_decoders": float(np.mean([some[k].in_decoders for k in able])),
                    "n_prompts": len(able),
                }
            )  # fmt: skip
    radii = np.array(RADII)
    reached = np.flatnonzero(curves["other"] >= 1)
    at = radii[reached[0]] if len(reached) else np.nan
    rho = float(curves["handle"][reached[0]]) if len(reached) else np.nan
    _find(
        rows,
        "sufficiency of the handle",
        None,
        len(able),
        f"1 - recovered at {at:g} norms, where a free move raises as many drawn tokens by as much"
        if len(reached)
        else "no radius raises drawn tokens by as much",
        value=1 - rho,
    )
    back = np.flatnonzero(curves["handle"] >= 0.95)
    _find(
        rows,
        "smallest move that recovers",
        None,
        len(able),
        "norms of the site at the last position; 95 % on average"
        if len(back)
        else f"none up to {RADII[-1]:g} norms",
        value=float(radii[back[0]]) if len(back) else np.nan,
    )


def _neurons(scene: GuardScene, handle: Handle, rows: dict[str, Rows]) -> None:
    """Every neuron by gradient, the largest ones measured; how concentrated, against drawn tokens."""
    slopes = neuron_slopes(handle, scene.prompts, scene.tokens)
    rng = rng_for(scene.seed, "guard", "neurons")
    outside = np.setdiff1d(np.arange(scene.model.spec.d_vocab), scene.tokens)
    null = neuron_slopes(handle, scene.prompts, tuple(rng.permutation(outside)[: len(scene.tokens)].tolist()))
    order = np.argsort(-np.abs(slopes), axis=None)[:MEASURED]
    chosen = [(int(k // slopes.shape[1]), int(k % slopes.shape[1])) for k in order]
    measured = np.stack([neurons_removed(handle, ids, chosen) for ids in scene.prompts], axis=1)
    for k, (layer, neuron) in enumerate(chosen):
        told = jackknife(lambda some, m=measured[k]: float(m[some].mean()), np.arange(measured.shape[1]))
        rows["guard_neurons"].append(
            {
                "layer": layer,
                "neuron": neuron,
                "forecast": float(slopes[layer, neuron]),
                "measured": told.value,
                "lo": told.lo,
                "hi": told.hi,
            }
        )
    said = "of all neurons' changes by gradient; drawn tokens: "
    _find(
        rows,
        "Gini of neurons",
        None,
        slopes.size,
        f"{said}{gini(null.ravel()):.3f}",
        value=gini(slopes.ravel()),
    )
    _find(
        rows,
        "neurons that have half",
        None,
        slopes.size,
        f"{said}{half_of(null.ravel())}",
        value=float(half_of(slopes.ravel())),
    )
    r = rank_correlation(slopes.ravel()[order], measured.mean(1))
    _find(
        rows,
        "neurons, forecast and measured",
        None,
        len(order),
        "Spearman over the measured ones",
        value=float(r),
    )


def _evasion(scene: GuardScene, handle: Handle, rows: dict[str, Rows], fit: Documents) -> None:
    """Pushes of equal effect on prompts without the concept, and how well the target's monitor tells them."""
    unit, target = _unit(scene.sae), handle.features[0]
    rng = rng_for(scene.seed, "guard", "evasion")
    cosine = unit @ unit[target]
    alive = np.abs(unit).max(1) > 0
    near = np.argsort(-np.abs(cosine), kind="stable")
    near = [int(k) for k in near if k != target and alive[k] and abs(cosine[k]) > INTERFERES][:SOURCES]
    far = rng.permutation(np.flatnonzero(alive & (np.abs(cosine) <= INTERFERES / 2)))[:SOURCES].tolist()
    width = unit.shape[1]
    arms = [("target", target, unit[target])]
    arms += [("interfering", k, unit[k]) for k in near]
    arms += [("random_feature", k, unit[k]) for k in far]
    arms += [("isotropic", k, rng.standard_normal(width)) for k in range(SOURCES)]
    if fit.mean.shape[1] == width:
        arms.append(("means", 0, fit.mean[fit.on].mean(0) - fit.mean[~fit.on].mean(0)))
    arms.append(("gradient", 0, _mean_gradient(scene, handle)))
    vectors = np.stack([v for *_, v in arms])
    seen = [pushed_to_effect(handle, ids, vectors, scene.effect) for ids in scene.off_prompts]
    clean = np.array([one.clean for one in seen])
    pushed = np.stack([one.seen for one in seen])
    ok = np.isfinite(pushed)
    gaps = []
    for k, (kind, number, vector) in enumerate(arms):
        places = np.flatnonzero(ok[:, k])
        if len(places) < 3:
            continue
        told = jackknife(lambda some, k=k: auroc(clean[some], pushed[some, k]), places)
        shared = np.flatnonzero(ok[:, k] & ok[:, 0])
        gap = (
            auroc(clean[shared], pushed[shared, 0]) - auroc(clean[shared], pushed[shared, k])
            if len(shared) >= 3
            else np.nan
        )
        interference = float(vector @ unit[target] / np.linalg.norm(vector))
        rows["guard_evasion"].append(
            {
                "kind": kind, "feature": number, "interference": interference,
                "length": float(np.mean([seen[p].length[k] for p in places])), "kl": float(np.mean([seen[p].kl[k] for p in places])),
                "seen": told.value, "lo": told.lo, "hi": told.hi, "gap": gap, "n_prompts": len(places),
            }
        )  # fmt: skip
        gaps.append((kind, abs(interference), gap))
    mine = np.array([(c, g) for kind, c, g in gaps if kind == "interfering" and np.isfinite(g)]).reshape(
        -1, 2
    )
    said = f"AUROC of the target's own push minus that of interfering features at {scene.effect:g} nats; n counts features"
    if len(mine) >= 3:
        _find(
            rows,
            "evasion gap",
            jackknife(lambda some: float(mine[some, 1].mean()), np.arange(len(mine))),
            len(mine),
            said,
        )
        r = rank_correlation(mine[:, 0], mine[:, 1])
        _find(
            rows,
            "evasion gap and |cosine|",
            None,
            len(mine),
            "Spearman over interfering features",
            value=float(r),
        )
    else:
        _find(rows, "evasion gap", None, len(mine), f"{said}; fewer than 3 reach the effect", value=np.nan)


def _mean_gradient(scene: GuardScene, handle: Handle) -> Float[np.ndarray, " d"]:
    found = np.zeros(handle.sae.d_out)
    for ids in scene.off_prompts:
        row = torch.tensor([list(ids)], device=scene.model.spec.device)
        slope = odds_slope(handle.logits(ids, []), handle.tokens).to(row.device)
        found += scene.model.vjp(row, handle.sae.writes, slope)[0, 1:].sum(0).double().cpu().numpy()
    return found


def _find(rows: dict[str, Rows], name: str, told: Any, n: int, note: str, *, value: float = np.nan) -> None:
    ends = {"value": value} if told is None else {"value": told.value, "lo": told.lo, "hi": told.hi}
    rows["guard_findings"].append({"name": name, **ends, "n": n, "note": note})


def split_prompts(
    rows: Int[np.ndarray, "n pos"], inside: Bool[np.ndarray, " d_vocab"], *, n: int, length: int
) -> tuple[list[list[int]], list[list[int]]]:
    """(prompts behind which a token of the concept stands, prompts behind which none does), `length` tokens or fewer, one of a row.

    The prompts themselves hold no token of the concept.
    """
    on, off = [], []
    for row in rows:
        hit = np.flatnonzero(inside[row])
        hit = hit[hit > 3]
        if len(hit):
            # what stands in front of every row stays there
            before = row[1 : hit[0]][-(length - 1) :]
            if not inside[before].any():
                on.append([int(row[0]), *map(int, before)])
        elif not inside[row].any():
            off.append([int(t) for t in row[:length]])
    return on[:n], off[:n]
