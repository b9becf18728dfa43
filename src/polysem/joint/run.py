"""The tables of `polysem joint`, from scenes of the dictionaries whose features are pushed.

All directions of all sites stand on one bench a prompt, each at the length that costs the dose alone. What is measured is of the
confirm prompts where something was chosen or forecast on the others, and of all prompts where nothing was.
"""

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from polysem.config import JointConfig
from polysem.errors import ConfigError
from polysem.joint.additivity import (
    EXACT,
    ORDERS,
    PARTS,
    Energies,
    SizesSeen,
    pool_energies,
    sizes_seen,
    subsets,
    sum_preserving,
)
from polysem.joint.bench import JointBench
from polysem.joint.layers import LayersSeen, layer_rows, layers_seen
from polysem.joint.pairs import PairsSeen, draw_pairs, hypotheses, lifts, pair_rows, pairs_seen
from polysem.positions import PLAIN
from polysem.progress import SILENT, Reporter
from polysem.seeds import rng_for
from polysem.side_effects.directions import Direction
from polysem.side_effects.forecast import over_features
from polysem.side_effects.measures import jackknife
from polysem.side_effects.scene import Scene
from polysem.store.stages import REGISTRY

log = logging.getLogger(__name__)
HALF = 0.5
"""unexplained share above which, and share of kept tokens below which, sums are said to have failed"""
TABLES = REGISTRY["joint"].tables
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class SitePlan:
    """What is pushed at one site; numbers are places among all directions."""

    label: str
    pools: Sequence[Int[np.ndarray, " pool"]]
    pairs: Int[np.ndarray, "pairs 2"]

    @property
    def singles(self) -> Int[np.ndarray, " n"]:
        """Of all pools."""
        return np.concatenate(self.pools)


def joint_rows(
    scenes: Mapping[str, Scene],
    config: JointConfig,
    *,
    text: Int[np.ndarray, "n_rows context"] | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Rows]:
    """Rows of the JOINT tables.

    Args:
        scenes: by label of the dictionary, in the order of the forward pass; of the same model and prompts.
        config: how much is pushed.
        text: rows on which co-firing is counted; None: it is not.
        reporter: is told of every prompt.

    Raises:
        ConfigError: too few features that can be pushed.
    """
    main = next(iter(scenes.values()))
    directions, plans, between = _drawn(scenes, config)
    benches = [JointBench(main.model, ids, directions, positions=main.positions) for ids in main.prompts]
    lengths = [
        bench.lengths(config.kl)
        for bench in reporter.track(benches, total=len(benches), label="doses of single pushes")
    ]
    lost = np.isnan(np.sum(lengths, axis=0))
    if lost.any():
        names = ", ".join(f"{directions[k].sae} {directions[k].feature}" for k in np.flatnonzero(lost))
        log.warning("left out, because %g nats are not reached on every prompt: %s", config.kl, names)
        plans = [_without(plan, lost) for plan in plans]
        between = {key: pairs[~lost[pairs].any(1)] for key, pairs in between.items()}
    lengths = [np.nan_to_num(one) for one in lengths]
    rows: dict[str, Rows] = {schema.name: [] for schema in TABLES}
    for plan in plans:
        _pools(main, plan, directions, benches, lengths, config, rows, reporter)
        _sizes(main, plan, benches, lengths, config, rows, reporter)
        _pairs(scenes, plan, directions, benches, lengths, text, rows, reporter)
    for (first, second), pairs in between.items():
        if len(pairs):
            _layers(scenes, first, second, directions, pairs, benches, lengths, rows, reporter)
    return rows


def _drawn(
    scenes: Mapping[str, Scene], config: JointConfig
) -> tuple[list[Direction], list[SitePlan], dict[tuple[str, str], Int[np.ndarray, "pairs 2"]]]:
    directions: list[Direction] = []
    plans: list[SitePlan] = []
    for label, scene in scenes.items():
        rng = rng_for(scene.seed, "joint", "features", label)
        able = (scene.all_own >= 0) & (np.abs(scene.all_rows).max(1) > 0)
        need = config.pools * config.pool
        if able.sum() < need:
            raise ConfigError(
                f"{int(able.sum())} features of {label} with a direction and tokens; {need} are drawn",
                hint="lower joint.pools or joint.pool in the study",
            )
        pooled = rng.permutation(np.flatnonzero(able))[:need]
        paired = draw_pairs(scene.all_rows, able, config.pairs, rng)
        wanted = list(dict.fromkeys([*pooled.tolist(), *paired.ravel().tolist()]))
        place = {feature: len(directions) + k for k, feature in enumerate(wanted)}
        directions += [replace(d, name=f"{label}: {d.name}") for d in scene.features(wanted)]
        pools = [np.array([place[f] for f in one]) for one in pooled.reshape(config.pools, -1).tolist()]
        pairs = np.array([[place[f] for f in one] for one in paired.tolist()], dtype=np.int64)
        plans.append(SitePlan(label, pools, pairs.reshape(-1, 2)))
    between: dict[tuple[str, str], np.ndarray] = {}
    seed = next(iter(scenes.values())).seed
    for early, late in itertools.pairwise(plans):
        rng = rng_for(seed, "joint", "layers", early.label, late.label)
        sides = [rng.choice(one.singles, config.pairs) for one in (early, late)]
        between[early.label, late.label] = np.unique(np.stack(sides, axis=1), axis=0)
    return directions, plans, between


def _without(plan: SitePlan, lost: Bool[np.ndarray, " n"]) -> SitePlan:
    pools = [pool[~lost[pool]] for pool in plan.pools]
    if min(map(len, pools)) < 2:
        raise ConfigError(
            f"a pool of {plan.label} keeps fewer than two features that reach the dose",
            hint="lower joint.kl in the study",
        )
    return SitePlan(plan.label, pools, plan.pairs[~lost[plan.pairs].any(1)])


def _pools(
    scene: Scene,
    plan: SitePlan,
    directions: Sequence[Direction],
    benches: Sequence[JointBench],
    lengths: Sequence[np.ndarray],
    config: JointConfig,
    rows: dict[str, Rows],
    reporter: Reporter,
) -> None:
    """Rows of JOINT_ADDITIVITY, and J4."""
    gaps = []
    for number, pool in enumerate(reporter.track(plan.pools, total=len(plan.pools), label="pools")):
        n = len(pool)
        bases = {"learnt": np.eye(n)}
        for r in range(config.rotations):
            bases[f"rotated {r}"] = sum_preserving(
                n, rng_for(scene.seed, "joint", "rotation", plan.label, number, r)
            )
        shares: dict[str, float] = {}
        for basis, matrix in bases.items():
            seen: list[dict[str, Energies]] = []
            for k, bench in enumerate(benches):
                rng = rng_for(scene.seed, "joint", "subsets", plan.label, number, k)
                sets = subsets(n, config.subsets, rng)
                seen.append(pool_energies(bench, lengths[k], pool.tolist(), sets, matrix))
            made = _additivity(seen)
            shares[basis] = made["odd", 1]["residual"]
            rows["joint_additivity"] += [
                {
                    "sae": plan.label, "pool": number, "basis": basis, "part": part, "order": order,
                    "features": [directions[k].feature for k in pool.tolist()],
                    "exact": n <= EXACT, "n_sets": 2**n if n <= EXACT else config.subsets,
                    "n_prompts": len(benches), **row,
                }
                for (part, order), row in made.items()
            ]  # fmt: skip
        gaps.append(np.mean([v for name, v in shares.items() if name != "learnt"]) - shares["learnt"])
    values = np.array(gaps)
    mean, lo, hi, _ = over_features(lambda at: float(values[at].mean()), len(values))
    note = "SAR_1 of the odd part, rotated minus learnt coordinates; n counts pools"
    rows["joint_findings"].append(
        {"sae": plan.label, "name": "J4 rotated minus learnt", "value": mean, "lo": lo, "hi": hi}
        | {"n": len(values), "note": note}
    )


def _additivity(seen: Sequence[Mapping[str, Energies]]) -> dict[tuple[str, int], dict[str, Any]]:
    made = {}
    for part in PARTS:
        above = np.stack([one[part].above for one in seen])
        total = np.array([one[part].total for one in seen])
        for order in range(ORDERS):
            found = jackknife(
                lambda some, a=above[:, order], t=total: (
                    float(a[some].sum() / t[some].sum()) if t[some].sum() > 0 else np.nan
                ),
                np.arange(len(seen)),
            )
            made[part, order + 1] = {"residual": found.value, "lo": found.lo, "hi": found.hi}
    return made


def _sizes(
    scene: Scene,
    plan: SitePlan,
    benches: Sequence[JointBench],
    lengths: Sequence[np.ndarray],
    config: JointConfig,
    rows: dict[str, Rows],
    reporter: Reporter,
) -> None:
    """Rows of JOINT_SIZES; how KL grows, and where sums fail."""
    rng, n = rng_for(scene.seed, "joint", "sizes", plan.label), len(plan.singles)
    drawn = [
        np.stack([rng.permutation(n)[:size] for _ in range(config.draws)])
        for size in config.sizes
        if size <= n
    ]
    units = [bench.of(plan.singles.tolist()) for bench in benches]
    seen: list[list[SizesSeen]] = [
        sizes_seen(one, lengths[k][plan.singles], drawn)
        for k, one in enumerate(reporter.track(units, total=len(units), label="sizes"))
    ]
    every = np.arange(len(benches))
    growth, failed = [], ""
    for place, sets in enumerate(drawn):
        size = sets.shape[1]
        mine = [one[place] for one in seen]
        missed, moved = (np.stack([getattr(one, name) for one in mine]) for name in ("missed", "moved"))
        costs, alone = np.stack([one.kl for one in mine]), np.stack([one.singles for one in mine])
        kept = float(np.mean([one.kept for one in mine]))
        growth.append((np.log(size), np.log(costs.mean(1) / (alone.mean(1) / size))))
        for p, part in enumerate(PARTS):
            found = jackknife(
                lambda some, a=missed[:, p], b=moved[:, p]: float(a[some].sum() / b[some].sum()), every
            )
            rows["joint_sizes"].append(
                {
                    "sae": plan.label, "size": size, "part": part, "unexplained": found.value, "lo": found.lo,
                    "hi": found.hi, "worst": float((missed[:, p].sum(0) / moved[:, p].sum(0)).max()),
                    "kl": float(costs.mean()), "coherence": float(costs.mean() / alone.mean()), "kept": kept,
                    "n_sets": len(sets), "n_prompts": len(benches),
                }
            )  # fmt: skip
            if part == "odd" and not failed and (found.value > HALF or kept < HALF):
                failed = f"unexplained {found.value:.2f}, top token kept {kept:.2f}"
                rows["joint_findings"].append(
                    {"sae": plan.label, "name": "collapse", "value": float(size), "n": len(benches), "note": failed}
                )  # fmt: skip
    if not failed:
        said = f"no size up to {max(one.shape[1] for one in drawn)} fails"
        rows["joint_findings"].append(
            {"sae": plan.label, "name": "collapse", "n": len(benches), "note": said}
        )
    x = np.array([one for one, _ in growth])
    y = np.stack([one for _, one in growth])
    slope = jackknife(lambda some: float(x @ y[:, some].mean(1) / (x @ x)), every)
    note = "joint KL grows as size to this power: 1 where pushes have nothing in common, 2 where they are one"
    rows["joint_findings"].append(
        {"sae": plan.label, "name": "growth of KL", "value": slope.value, "lo": slope.lo, "hi": slope.hi}
        | {"n": len(benches), "note": note}
    )


def _pairs(
    scenes: Mapping[str, Scene],
    plan: SitePlan,
    directions: Sequence[Direction],
    benches: Sequence[JointBench],
    lengths: Sequence[np.ndarray],
    text: Int[np.ndarray, "n_rows context"] | None,
    rows: dict[str, Rows],
    reporter: Reporter,
) -> None:
    """Rows of JOINT_PAIRS, and J1 to J3."""
    if not len(plan.pairs):
        return
    scene = scenes[plan.label]
    sets = [list(directions[i].tokens) for i in plan.pairs[:, 0].tolist()]
    seen: list[PairsSeen] = [
        pairs_seen(bench, lengths[k], plan.pairs, sets)
        for k, bench in enumerate(reporter.track(benches, total=len(benches), label="pairs"))
    ]
    lift = np.full(len(plan.pairs), np.nan)
    if text is not None:
        numbers = np.array([[directions[k].feature for k in pair] for pair in plan.pairs.tolist()])
        sides = [(scene.dictionary, numbers[:, side]) for side in (0, 1)]
        lift = lifts(scene.model, sides, text, PLAIN.counted(text.shape[1]))
    made = pair_rows(directions, plan.pairs, seen, lift, confirm=scene.confirm)
    rows["joint_pairs"] += made
    rows["joint_findings"] += [
        {"sae": plan.label, "name": name, "value": value, "lo": lo, "hi": hi, "n": n}
        | {"note": "Spearman; n counts pairs" if "R2" not in name else "n counts pairs"}
        for name, value, lo, hi, n in hypotheses(made)
    ]


def _layers(
    scenes: Mapping[str, Scene],
    first: str,
    second: str,
    directions: Sequence[Direction],
    pairs: Int[np.ndarray, "pairs 2"],
    benches: Sequence[JointBench],
    lengths: Sequence[np.ndarray],
    rows: dict[str, Rows],
    reporter: Reporter,
) -> None:
    """Rows of JOINT_LAYERS of two sites."""
    later = scenes[second]
    matches: list[tuple[int, float]] = []
    for i in pairs[:, 0].tolist():
        same = later.all_rows.shape[1] == len(directions[i].vector)
        cosine = later.all_rows @ directions[i].unit if same else np.zeros(len(later.all_rows))
        matches.append((int(cosine.argmax()), float(cosine.max())))
    matched = later.all_rows[[k for k, _ in matches]]
    sets = [list(directions[j].tokens) for j in pairs[:, 1].tolist()]
    seen: list[LayersSeen] = [
        layers_seen(bench, lengths[k], pairs, sets, matched)
        for k, bench in enumerate(reporter.track(benches, total=len(benches), label="layers"))
    ]
    made = layer_rows(directions, pairs, seen, matches, confirm=later.confirm)
    rows["joint_layers"] += made
    for way in ("live", "frozen"):
        values = np.array([row[f"unexplained_{way}"] for row in made])
        value, lo, hi, _ = over_features(lambda at, v=values: float(v[at].mean()), len(values))
        rows["joint_findings"].append(
            {
                "sae": f"{first} and {second}",
                "name": f"unexplained, {way}",
                "value": value,
                "lo": lo,
                "hi": hi,
            }
            | {"n": len(values), "note": "odd part of logits, two sites; n counts pairs"}
        )


def of_rows(rows: Mapping[str, Rows]) -> dict[str, pa.Table]:
    """The tables of the stage; those without rows are empty."""
    return {schema.name: schema.of_rows(rows.get(schema.name, [])) for schema in TABLES}
