"""The tables of `polysem joint`, from scenes of the dictionaries whose features are pushed.

All directions of all sites stand on one bench a prompt, each at the length that costs the dose alone. What is measured is of the
confirm prompts where something was chosen or forecast on the others, and of all prompts where nothing was.
"""

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from polysem.config import JointConfig
from polysem.errors import ConfigError
from polysem.joint.additivity import (
    EXACT,
    ORDERS,
    PARTS,
    Energies,
    pool_energies,
    sizes_seen,
    subsets,
    sum_preserving,
)
from polysem.joint.bench import JointBench
from polysem.joint.layers import layer_rows, layers_seen
from polysem.joint.pairs import draw_pairs, hypotheses, lifts, pair_rows, pairs_seen
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
T = TypeVar("T")


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
    made = _Joint(
        scenes, config, directions, benches, lengths, text, reporter, {schema.name: [] for schema in TABLES}
    )
    for plan in plans:
        made.pools(plan)
        made.sizes(plan)
        made.pairs(plan)
    for (first, second), pairs in between.items():
        if len(pairs):
            made.layers(first, second, pairs)
    return made.rows


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


@dataclass(frozen=True)
class _Joint:
    """All directions of all sites on one bench a prompt, and the rows that tell of them."""

    scenes: Mapping[str, Scene]
    config: JointConfig
    directions: Sequence[Direction]
    benches: Sequence[JointBench]
    lengths: Sequence[Float[np.ndarray, " n"]]
    text: Int[np.ndarray, "n_rows context"] | None
    reporter: Reporter
    rows: dict[str, Rows]

    def _rng(self, *of: str | int) -> np.random.Generator:
        return rng_for(next(iter(self.scenes.values())).seed, "joint", *of)

    def _find(self, sae: str, name: str, told: Mapping[str, float], n: int, note: str) -> None:
        self.rows["joint_findings"].append({"sae": sae, "name": name, **told, "n": n, "note": note})

    def _on_each(self, label: str, of: Callable[[JointBench, Float[np.ndarray, " n"]], T]) -> list[T]:
        """What is seen on every prompt's bench, at its lengths."""
        both = list(zip(self.benches, self.lengths, strict=True))
        return [of(*one) for one in self.reporter.track(both, total=len(both), label=label)]

    def pools(self, plan: SitePlan) -> None:
        """Rows of JOINT_ADDITIVITY, and J4."""
        gaps, config = [], self.config
        for number, pool in enumerate(self.reporter.track(plan.pools, total=len(plan.pools), label="pools")):
            n = len(pool)
            bases = {"learnt": np.eye(n)}
            for r in range(config.rotations):
                bases[f"rotated {r}"] = sum_preserving(n, self._rng("rotation", plan.label, number, r))
            shares: dict[str, float] = {}
            for basis, matrix in bases.items():
                seen: list[dict[str, Energies]] = []
                for k, (bench, lengths) in enumerate(zip(self.benches, self.lengths, strict=True)):
                    sets = subsets(n, config.subsets, self._rng("subsets", plan.label, number, k))
                    seen.append(pool_energies(bench, lengths, pool.tolist(), sets, matrix))
                made = _additivity(seen)
                shares[basis] = made["odd", 1]["residual"]
                self.rows["joint_additivity"] += [
                    {
                        "sae": plan.label, "pool": number, "basis": basis, "part": part, "order": order,
                        "features": [self.directions[k].feature for k in pool.tolist()],
                        "exact": n <= EXACT, "n_sets": 2**n if n <= EXACT else config.subsets,
                        "n_prompts": len(self.benches), **row,
                    }
                    for (part, order), row in made.items()
                ]  # fmt: skip
            gaps.append(np.mean([v for name, v in shares.items() if name != "learnt"]) - shares["learnt"])
        note = "SAR_1 of the odd part, rotated minus learnt coordinates; n counts pools"
        self._find(plan.label, "J4 rotated minus learnt", _mean(gaps), len(gaps), note)

    def sizes(self, plan: SitePlan) -> None:
        """Rows of JOINT_SIZES; how KL grows, and where sums fail."""
        rng, singles = self._rng("sizes", plan.label), plan.singles
        n, n_prompts = len(singles), len(self.benches)
        drawn = [
            np.stack([rng.permutation(n)[:size] for _ in range(self.config.draws)])
            for size in self.config.sizes
            if size <= n
        ]
        seen = self._on_each(
            "sizes", lambda bench, lengths: sizes_seen(bench.of(singles.tolist()), lengths[singles], drawn)
        )
        every = np.arange(n_prompts)
        growth, failed = [], ""
        for place, sets in enumerate(drawn):
            size = sets.shape[1]
            mine = [one[place] for one in seen]
            missed, moved, costs, alone = (
                np.stack([getattr(one, name) for one in mine])
                for name in ("missed", "moved", "kl", "singles")
            )
            kept = float(np.mean([one.kept for one in mine]))
            growth.append((np.log(size), np.log(costs.mean(1) / (alone.mean(1) / size))))
            for p, part in enumerate(PARTS):
                found = jackknife(
                    lambda some, a=missed[:, p], b=moved[:, p]: float(a[some].sum() / b[some].sum()), every
                )
                self.rows["joint_sizes"].append(
                    {
                        "sae": plan.label, "size": size, "part": part, **found.columns("unexplained"),
                        "worst": float((missed[:, p].sum(0) / moved[:, p].sum(0)).max()), "kl": float(costs.mean()),
                        "coherence": float(costs.mean() / alone.mean()), "kept": kept, "n_sets": len(sets),
                        "n_prompts": n_prompts,
                    }
                )  # fmt: skip
                if part == "odd" and not failed and (found.value > HALF or kept < HALF):
                    failed = f"unexplained {found.value:.2f}, top token kept {kept:.2f}"
                    self._find(plan.label, "collapse", {"value": float(size)}, n_prompts, failed)
        if not failed:
            said = f"no size up to {max(one.shape[1] for one in drawn)} fails"
            self._find(plan.label, "collapse", {}, n_prompts, said)
        x = np.array([one for one, _ in growth])
        y = np.stack([one for _, one in growth])
        slope = jackknife(lambda some: float(x @ y[:, some].mean(1) / (x @ x)), every)
        note = "joint KL grows as size to this power: 1 where pushes have nothing in common, 2 where they are one"
        self._find(plan.label, "growth of KL", slope.columns(), n_prompts, note)

    def pairs(self, plan: SitePlan) -> None:
        """Rows of JOINT_PAIRS, and J1 to J3."""
        if not len(plan.pairs):
            return
        scene = self.scenes[plan.label]
        sets = [list(self.directions[i].tokens) for i in plan.pairs[:, 0].tolist()]
        seen = self._on_each("pairs", lambda bench, lengths: pairs_seen(bench, lengths, plan.pairs, sets))
        lift = np.full(len(plan.pairs), np.nan)
        if self.text is not None:
            numbers = np.array([[self.directions[k].feature for k in pair] for pair in plan.pairs.tolist()])
            sides = [(scene.dictionary, numbers[:, side]) for side in (0, 1)]
            lift = lifts(scene.model, sides, self.text, PLAIN.counted(self.text.shape[1]))
        made = pair_rows(self.directions, plan.pairs, seen, lift, confirm=scene.confirm)
        self.rows["joint_pairs"] += made
        for name, value, lo, hi, n in hypotheses(made):
            note = "Spearman; n counts pairs" if "R2" not in name else "n counts pairs"
            self._find(plan.label, name, {"value": value, "lo": lo, "hi": hi}, n, note)

    def layers(self, first: str, second: str, pairs: Int[np.ndarray, "pairs 2"]) -> None:
        """Rows of JOINT_LAYERS of two sites."""
        later, directions = self.scenes[second], self.directions
        matches: list[tuple[int, float]] = []
        for i in pairs[:, 0].tolist():
            same = later.all_rows.shape[1] == len(directions[i].vector)
            cosine = later.all_rows @ directions[i].unit if same else np.zeros(len(later.all_rows))
            matches.append((int(cosine.argmax()), float(cosine.max())))
        matched = later.all_rows[[k for k, _ in matches]]
        sets = [list(directions[j].tokens) for j in pairs[:, 1].tolist()]
        seen = self._on_each(
            "layers", lambda bench, lengths: layers_seen(bench, lengths, pairs, sets, matched)
        )
        made = layer_rows(directions, pairs, seen, matches, confirm=later.confirm)
        self.rows["joint_layers"] += made
        note = "odd part of logits, two sites; n counts pairs"
        for way in ("live", "frozen"):
            told = _mean([row[f"unexplained_{way}"] for row in made])
            self._find(f"{first} and {second}", f"unexplained, {way}", told, len(made), note)


def _mean(values: Sequence[float]) -> dict[str, float]:
    """Of a row: the mean over features, pools or pairs, and its interval."""
    each = np.array(values)
    return over_features(lambda at: float(each[at].mean()), len(each)).columns()


def _additivity(seen: Sequence[Mapping[str, Energies]]) -> dict[tuple[str, int], dict[str, float]]:
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
            made[part, order + 1] = found.columns("residual")
    return made


def of_rows(rows: Mapping[str, Rows]) -> dict[str, pa.Table]:
    """The tables of the stage; those without rows are empty."""
    return {schema.name: schema.of_rows(rows.get(schema.name, [])) for schema in TABLES}
