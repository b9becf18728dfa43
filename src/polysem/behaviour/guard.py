"""The tables of `polysem guard`: monitors of a concept, the clamp of its features and what undoes it, and pushes it does not see.

Documents are rows of a corpus, with the concept where one of its tokens stands in them, or a user's own texts. Monitors are
fitted on the first half of them and judged on the second. Prompts are beginnings of documents behind which a token of the
concept stands. Concepts that ship are the built-in categories of words.

Two features are chosen, each where nothing is reported: the *reader* tells the documents of the fit best, and the *writer* is the
one whose clamp takes most from the concept's tokens on the prompts of the choice. A feature that fires on words need not be one
that brings them about: monitors are of the reader, clamp, recovery and covert pushes of the writer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from polysem.behaviour.covert import Covert, CovertPush, PushScores, evasion_rows, gaps
from polysem.behaviour.handle import (
    RADII,
    Handle,
    Recovered,
    gini,
    half_of,
    neuron_rows,
    neuron_slopes,
    neurons_removed,
    pre_activation_shares,
    recover,
)
from polysem.behaviour.intervals import mean_interval, within
from polysem.behaviour.monitors import Documents, Monitor, fit_monitors, judged, lateness
from polysem.errors import ConfigError
from polysem.geometry.unit import unit_rows
from polysem.models.base import WhiteBoxModel
from polysem.models.hf import HFModel
from polysem.progress import SILENT, Reporter
from polysem.rank import rank_correlation
from polysem.readouts import kl
from polysem.saes.base import SAE, decoder_rows
from polysem.seeds import rng_for
from polysem.side_effects.measures import Estimate
from polysem.stats.regress import clustered_mean
from polysem.types import Site

INTERFERES = 0.2
"""|cosine| of decoder rows"""
MEASURED = 50
"""neurons of the scan that are removed one by one"""
SOURCES = 8
"""interfering features that are pushed, and as many drawn ones"""
CANDIDATES = 8
"""features that the choice of the writer measures, the largest by gradient"""
EFFECTS = (0.5, 1.0, 2.0)
"""of covert pushes, in units of the concept file's"""
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
    choice: Sequence[Sequence[int]]
    """others of that kind, for the choice of the writers"""
    off_prompts: Sequence[Sequence[int]]
    """behind which none stood"""
    features: tuple[int, ...] = ()
    """that are clamped; the writers if left out"""
    clamped: int = 1
    """writers that are clamped"""
    k: int = 8
    effect: float = 0.5
    """nats, of covert pushes"""
    seed: int = 0


def guard_rows(scene: GuardScene, *, reporter: Reporter = SILENT) -> dict[str, Rows]:
    """Rows of the GUARD tables.

    Raises:
        ConfigError: too few documents or prompts of either kind.
    """
    tables = ("monitors", "alarms", "recovery", "neurons", "evasion", "findings")
    rows: dict[str, Rows] = {f"guard_{name}": [] for name in tables}
    ids, on = scene.documents["none"]
    half = np.arange(len(ids)) % 2 == 0
    few = min(
        int((on & half).sum()), int((on & ~half).sum()), int((~on & half).sum()), int((~on & ~half).sum())
    )
    if few < 8 or len(scene.prompts) < 4 or len(scene.choice) < 4 or len(scene.off_prompts) < 4:
        raise ConfigError(
            f"{int(on.sum())} documents with the concept and {int((~on).sum())} without, {len(scene.prompts)} prompts, {len(scene.choice)} "
            f"for the choice and {len(scene.off_prompts)} others; expected at least 16 of each, and 4 of each",
            hint="raise documents in the concept file, or name another concept",
        )
    with reporter.stage("monitors"):
        fit, chosen = _monitors(scene, rows, half)
    _alarms(scene, rows, fit, chosen, half)
    with reporter.stage("clamp"):
        features = scene.features or writers(scene)
        handle = Handle(scene.model, scene.sae, features, scene.tokens)
        said = "feature that tells the documents of the fit best"
        _find(rows, "reader", Estimate(float(chosen)), len(fit.on), said)
        how = "given" if scene.features else "those whose clamp takes most on the prompts of the choice"
        said = f"first of the clamped features: {', '.join(map(str, features))}, {how}"
        _find(rows, "writer", Estimate(float(features[0])), len(scene.choice), said)
        _recovery(scene, handle, rows)
    if isinstance(scene.model, HFModel):
        with reporter.stage("neurons"):
            _neurons(scene, handle, rows)
    with reporter.stage("covert pushes"):
        _evasion(scene, handle, rows, fit, chosen)
    return rows


def writers(scene: GuardScene) -> tuple[int, ...]:
    """The features whose clamps to 0 take most from the log-odds of the concept's tokens: measured one by one for those that take
    most by gradient, mean over the prompts of the choice."""
    model, sae = scene.model, scene.sae
    told = np.zeros(sae.d_sae)
    D = decoder_rows(sae)
    for ids in scene.choice:
        row = torch.tensor([list(ids)], device=model.spec.device)
        h = model.capture(row, [sae.reads])[sae.reads][0, 1:].cpu()
        acts = sae.encode(h).detach().double().numpy()
        _, slope = Handle(model, sae, (0,), scene.tokens).slopes(ids, [], sae.writes, scene.tokens)
        told += (acts * (slope[0, 1:] @ D.T)).sum(0) / len(scene.choice)
    few = np.argsort(-told, kind="stable")[: max(CANDIDATES, 2 * scene.clamped)]
    drops = np.zeros(len(few))
    for k, feature in enumerate(few.tolist()):
        handle = Handle(model, sae, (feature,), scene.tokens)
        drops[k] = np.mean([_taken(handle, ids) for ids in scene.choice])
    return tuple(few[np.argsort(-drops, kind="stable")][: scene.clamped].tolist())


def _taken(handle: Handle, ids: Sequence[int]) -> float:
    """Nats of log-odds that the clamp takes."""
    edits = handle.clamp(ids)
    if not edits:
        return 0.0
    return float(handle.odds(handle.logits(ids, []))[0] - handle.odds(handle.logits(ids, edits))[0])


def read_documents(
    model: WhiteBoxModel, sae: SAE, ids: Sequence[Sequence[int]], on: Bool[np.ndarray, " n"]
) -> Documents:
    """Documents as monitors read them; the first position is not counted."""
    read = [read_up_to(model, sae, one) for one in ids]
    codes, mean, missed, neurons = (
        np.stack([getattr(one, name)[-1] for one in read]) for name in ("codes", "mean", "missed", "neurons")
    )
    return Documents(codes, mean, missed, neurons, on)


def read_up_to(model: WhiteBoxModel, sae: SAE, ids: Sequence[int]) -> Documents:
    """One document, read up to each of its positions but the first."""
    layer = sae.reads.layer
    mlp = Site(layer, "mlp.hook_post")
    sites = [sae.reads, *([mlp] if layer is not None and mlp in model.sites() else [])]
    seen = model.capture(torch.tensor([list(ids)], device=model.spec.device), sites)
    h = seen[sae.reads][0, 1:].cpu()
    acts = sae.encode(h).detach()
    unsaid = h - sae.decode(acts, like=h).detach() if sae.reads == sae.writes else torch.zeros(len(h), 1)
    fires = seen[mlp][0, 1:] if mlp in seen else torch.zeros(len(h), 1)
    many = np.arange(1, len(h) + 1)[:, None]
    most = [np.maximum.accumulate(x.double().cpu().numpy()) for x in (acts, fires)]
    mean = [np.cumsum(x.double().cpu().numpy(), axis=0) / many for x in (h, unsaid)]
    return Documents(most[0], mean[0], mean[1], most[1], np.zeros(len(h), dtype=bool))


def _monitors(
    scene: GuardScene, rows: dict[str, Rows], half: Bool[np.ndarray, " n"]
) -> tuple[Documents, int]:
    """Fit on one half, judge on the other and on every shift; gives the documents of the fit and the best feature."""
    ids, on = scene.documents["none"]
    fit = read_documents(scene.model, scene.sae, [ids[k] for k in np.flatnonzero(half).tolist()], on[half])
    single = scene.features[0] if len(scene.features) == 1 else None
    monitors = fit_monitors(
        fit, k=scene.k, rng=rng_for(scene.seed, "guard", "random feature"), feature=single
    )
    for shift, (ids, on) in scene.documents.items():
        # a shift of the same documents shows those that the fit has not seen
        some = np.flatnonzero(~half) if len(on) == len(half) else np.arange(len(on))
        _judge(scene, rows, fit, monitors, shift, [ids[k] for k in some.tolist()], on[some])
    return fit, int(monitors[0].made_of)


def _judge(
    scene: GuardScene,
    rows: dict[str, Rows],
    fit: Documents,
    monitors: Sequence[Monitor],
    shift: str,
    ids: Sequence[Sequence[int]],
    on: Bool[np.ndarray, " n"],
) -> None:
    test = read_documents(scene.model, scene.sae, ids, on)
    running: dict[str, list[np.ndarray]] = {monitor.name: [] for monitor in monitors}
    for one in ids:
        read = read_up_to(scene.model, scene.sae, one)
        for monitor in monitors:
            running[monitor.name].append(monitor.score(read))
    # the concept begins at its first token; a text of one's own without any of them is the concept from its beginning
    hits = [np.flatnonzero(np.isin(one[1:], scene.tokens)) for one in ids]
    starts = np.array([(hit[0] if len(hit) else 0) if o else -1 for hit, o in zip(hits, on, strict=True)])
    for monitor in monitors:
        rng = rng_for(scene.seed, "guard", shift, monitor.name)
        found = judged(monitor, fit, test, rng=rng)
        late, d = lateness(running[monitor.name], starts, rng=rng), found.detector
        rows["guard_monitors"].append(
            {
                "shift": shift, "monitor": monitor.name, "made_of": monitor.made_of, "auroc": found.auroc.value,
                "lo": found.auroc.lo, "hi": found.auroc.hi, "found": d.found.share, "found_lo": d.found.lo, "found_hi": d.found.hi,
                "false_alarms": d.flagged.share, "ece": found.ece, "delay": late.tokens.value, "delay_lo": late.tokens.lo,
                "delay_hi": late.tokens.hi, "n_late": late.n, "n_early": late.early, "alarms": late.false_alarms,
                "n_on": int(on.sum()), "n_off": int((~on).sum()),
            }
        )  # fmt: skip


def _alarms(
    scene: GuardScene, rows: dict[str, Rows], fit: Documents, feature: int, half: Bool[np.ndarray, " n"]
) -> None:
    """False alarms of the single feature at 5 %, with and without what interfering features write into it."""
    ids, on = scene.documents["none"]
    threshold = float(np.quantile(fit.codes[~fit.on, feature], 0.95))
    unit = unit_rows(decoder_rows(scene.sae))
    cosine = unit @ unit[feature]
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


def later_site(model: WhiteBoxModel, site: Site) -> Site | None:
    """The stream half-way from a site to the end; None behind the last block."""
    if site.layer is None or site.layer >= model.spec.n_layers - 1:
        return None
    return Site(max(site.layer + 1, (site.layer + model.spec.n_layers) // 2), "hook_resid_post")


def _recovery(scene: GuardScene, handle: Handle, rows: dict[str, Rows]) -> None:
    """What the clamp takes and costs, and how far moves bring it back, at the site and at a later one."""
    prompts = scene.prompts
    rng = rng_for(scene.seed, "guard", "recovery")
    outside = np.setdiff1d(np.arange(scene.model.spec.d_vocab), scene.tokens)
    drawn = tuple(sorted(rng.permutation(outside)[: len(scene.tokens)].tolist()))
    ends = [(handle.logits(ids, []), handle.logits(ids, handle.clamp(ids))) for ids in prompts]
    drops = np.array([handle.odds(plain)[0] - handle.odds(held)[0] for plain, held in ends])
    priced = [_kl(handle.logits(ids, []), handle.logits(ids, handle.clamp(ids))) for ids in scene.off_prompts]
    costs = np.array([_kl(plain, held) for plain, held in ends])
    n, nats = len(prompts), "nats of KL of the next token"
    said = "nats of log-odds that the clamp takes; n counts prompts"
    _find(rows, "suppression", mean_interval(drops), n, said)
    _find(rows, "price on prompts of the concept", within(mean_interval(costs), 0.0), n, nats)
    _find(rows, "price on other prompts", within(mean_interval(np.array(priced)), 0.0), len(priced), nats)
    able = np.flatnonzero(drops > LEAST_DROP).tolist()
    told = Estimate(float(len(able)))
    _find(rows, "prompts on which the clamp takes something", told, n, f"more than {LEAST_DROP} nats")
    if not len(able):
        return
    later = later_site(scene.model, handle.sae.writes)
    for site in [handle.sae.writes, *([later] if later else [])]:
        found = {
            arm: [
                recover(
                    handle, prompts[k], arm=arm, rng=rng, tokens=drawn if arm == "other" else None, site=site
                )
                for k in able
            ]
            for arm in ("handle", "free", "random", "other")
        }
        _recovered(site, "" if site == handle.sae.writes else ", later site", found, drops[able], rows)


def _kl(plain: torch.Tensor, held: torch.Tensor) -> float:
    return float(np.asarray(kl(plain, held)).ravel()[0])


def _recovered(
    site: Site, where: str, found: Mapping[str, Sequence[Recovered]], drops: Float[np.ndarray, " n"], rows: dict[str, Rows]
) -> None:  # fmt: skip
    """Rows of one site, and what is said of them."""
    curves: dict[str, np.ndarray] = {}
    for arm, some in found.items():
        share = np.stack([one.gain for one in some]) / drops[:, None]
        share = share if arm == "other" else np.minimum(share, 1.0)
        curves[arm] = share.mean(0)
        split = {
            name: np.stack([getattr(one, name) for one in some]).mean(0)
            for name in ("in_decoders", "in_dictionary", "in_neuron")
        }
        for r, radius in enumerate(RADII):
            told = within(mean_interval(share[:, r]), most=np.inf if arm == "other" else 1.0)
            rows["guard_recovery"].append(
                {
                    "site": str(site), "arm": arm, "radius": radius, **told.columns("recovered"),
                    "drift": max(one.drift for one in some), **{name: float(x[r]) for name, x in split.items()},
                    "n_prompts": len(some),
                }
            )  # fmt: skip
    radii, n = np.array(RADII), len(drops)
    reached = np.flatnonzero(curves["other"] >= 1)
    if len(reached):
        at = reached[0]
        share = np.minimum([one.gain[at] for one in found["handle"]] / drops, 1.0)
        told = within(mean_interval(1 - share), 0.0)
        note = (
            f"1 - recovered at {radii[at]:g} norms, where a free move raises as many drawn tokens by as much"
        )
    else:
        told, note = Estimate(np.nan), "no radius raises drawn tokens by as much"
    _find(rows, f"sufficiency of the handle{where}", told, n, note)
    back = np.flatnonzero(curves["handle"] >= 0.95)
    told, note = Estimate(np.nan), f"none up to {RADII[-1]:g} norms"
    if len(back):
        told, note = (
            Estimate(float(radii[back[0]])),
            "norms of the site at the last position; 95 % on average",
        )
    _find(rows, f"smallest move that recovers{where}", told, n, note)


def _neurons(scene: GuardScene, handle: Handle, rows: dict[str, Rows]) -> None:
    """Every neuron by gradient, the largest ones measured; how concentrated, against drawn tokens."""
    prompts = scene.prompts
    slopes = neuron_slopes(handle, prompts, scene.tokens)
    rng = rng_for(scene.seed, "guard", "neurons")
    outside = np.setdiff1d(np.arange(scene.model.spec.d_vocab), scene.tokens)
    null = neuron_slopes(handle, prompts, tuple(rng.permutation(outside)[: len(scene.tokens)].tolist()))
    order = np.argsort(-np.abs(slopes), axis=None)[:MEASURED]
    chosen = [(int(k // slopes.shape[1]), int(k % slopes.shape[1])) for k in order]
    measured = np.stack([neurons_removed(handle, ids, chosen) for ids in prompts], axis=1)
    for (layer, neuron), values in zip(chosen, measured, strict=True):
        told = {"layer": layer, "neuron": neuron, "forecast": float(slopes[layer, neuron])}
        rows["guard_neurons"].append(told | mean_interval(values).columns("measured"))
    said = "of all neurons' changes by gradient; drawn tokens: "
    own, drawn = slopes.ravel(), null.ravel()
    _find(rows, "Gini of neurons", Estimate(gini(own)), own.size, f"{said}{gini(drawn):.3f}")
    half = Estimate(float(half_of(own)))
    _find(rows, "neurons that have half", half, own.size, f"{said}{half_of(drawn)}")
    r = Estimate(float(rank_correlation(own[order], measured.mean(1))))
    _find(rows, "neurons, forecast and measured", r, len(order), "Spearman over the measured ones")


def _evasion(scene: GuardScene, handle: Handle, rows: dict[str, Rows], fit: Documents, reader: int) -> None:
    """Pushes of equal effect on prompts without the concept, and how well detectors tell them."""
    arms = _arms(scene, handle, fit)
    target = unit_rows(decoder_rows(scene.sae))[handle.features[0]]
    later = later_site(scene.model, handle.sae.writes)
    bench = Covert(handle, reader, scene.off_prompts, arms, later=later, seed=scene.seed)
    cosines = {
        id(arm): np.nan if arm.vector is None else float(arm.vector @ target / np.linalg.norm(arm.vector))
        for arm in arms
    }
    scores = [one for times in EFFECTS for one in bench.scores(times * scene.effect)]
    rows["guard_evasion"] = evasion_rows(scores, [cosines[id(one.arm)] for one in scores])
    main = [one for one in scores if one.effect == scene.effect]
    own = {one.detector: one for one in main if one.arm.kind == "target"}
    for detector, mine in own.items():
        for kind, name in (("interfering", "interfering"), ("random_feature", "random")):
            others = [one for one in main if (one.detector, one.arm.kind) == (detector, kind)]
            _gap(rows, f"evasion gap, {name}, {detector}", mine, others, scene.effect)
    table = [r for r in rows["guard_evasion"] if r["effect"] == scene.effect and r["detector"] == "target"]
    pairs = [
        (abs(r["interference"]), r["gap"])
        for r in table
        if r["kind"] == "interfering" and np.isfinite(r["gap"])
    ]
    if len(pairs) >= 3:
        r = Estimate(float(rank_correlation(*np.array(pairs).T)))
        said = "Spearman over interfering features, detector target"
        _find(rows, "evasion gap and |cosine|", r, len(pairs), said)


def _gap(
    rows: dict[str, Rows], name: str, mine: PushScores, others: Sequence[PushScores], effect: float
) -> None:
    """Mean gap over features and prompts, with errors clustered by both."""
    found = [gaps(mine, one) for one in others]
    found = [(places, values) for places, values in found if len(values)]
    said = f"AUROC of the target's own push minus that of {name.split(', ')[1]} features' at {effect:g} nats; n counts features"
    if len(found) < 3:
        _find(rows, name, Estimate(np.nan), len(found), f"{said}; fewer than 3 reach the effect")
        return
    clusters = np.array([(k, p) for k, (places, _) in enumerate(found) for p in places.tolist()])
    told = clustered_mean(np.concatenate([values for _, values in found]), clusters, level=0.95)
    ends = (float(getattr(told, end)[0]) for end in ("estimate", "lo", "hi", "se"))
    _find(rows, name, within(Estimate(*ends), -1.0, 1.0), len(found), said)


def _arms(scene: GuardScene, handle: Handle, fit: Documents) -> list[CovertPush]:
    """What is pushed: the target first, features that interfere most, random ones, and directions of other kinds."""
    unit, target = unit_rows(decoder_rows(scene.sae)), handle.features[0]
    rng = rng_for(scene.seed, "guard", "evasion")
    cosine = unit @ unit[target]
    alive = np.abs(unit).max(1) > 0
    near = [int(k) for k in np.argsort(-np.abs(cosine), kind="stable") if k != target and alive[k]]
    near = [k for k in near if abs(cosine[k]) > INTERFERES][:SOURCES]
    far = rng.permutation(np.flatnonzero(alive & (np.abs(cosine) <= INTERFERES / 2)))[:SOURCES].tolist()
    slope = np.mean(
        [
            handle.slopes(ids, [], handle.sae.writes, handle.tokens)[1][0, 1:].sum(0)
            for ids in scene.off_prompts
        ],
        axis=0,
    )
    arms = [CovertPush("target", target, unit[target])]
    arms += [CovertPush("interfering", k, unit[k]) for k in near]
    arms += [CovertPush("random_feature", k, unit[k]) for k in far]
    arms += [CovertPush("isotropic", k, rng.standard_normal(unit.shape[1])) for k in range(SOURCES)]
    arms.append(CovertPush("gradient", 0, slope))
    if fit.mean.shape[1] == len(slope):
        arms.append(CovertPush("means", 0, fit.mean[fit.on].mean(0) - fit.mean[~fit.on].mean(0)))
    neurons = neuron_rows(scene.model, handle.sae.writes)
    if neurons is not None and neurons.shape[1] == len(slope):
        best = int(np.abs(neurons @ slope).argmax())
        arms.append(CovertPush("neuron", best, neurons[best]))
    return [*arms, CovertPush("words", 0, None)]


def _find(rows: dict[str, Rows], name: str, told: Estimate, n: int, note: str) -> None:
    rows["guard_findings"].append({"name": name, **told.columns(), "n": n, "note": note})


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
