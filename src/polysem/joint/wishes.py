"""Wanted effects: planned, measured on other prompts, and compared with simpler ways to the same."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from polysem.atlas import PromptResponse
from polysem.errors import MismatchError
from polysem.joint.bench import JointBench
from polysem.joint.pairs import slopes
from polysem.joint.planner import (
    FEW,
    LinearPlan,
    best_single,
    candidates,
    corrected,
    equal_doses,
    few_by_penalty,
    fewest,
    joint_linear,
    least_kl,
)
from polysem.models.hf import HFModel
from polysem.readouts import kl
from polysem.seeds import rng_for
from polysem.side_effects.directions import Direction
from polysem.side_effects.linear import own_sets, participation
from polysem.side_effects.measures import mean_of
from polysem.side_effects.push import Sets
from polysem.side_effects.scene import Scene
from polysem.types import Site

N_PROTECTED = 10
TARGETS = 2
"""of a wish that is drawn"""
Rows = list[dict[str, Any]]
Strengths = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Wish:
    """Effects that are wanted, and sets that should stay where they are."""

    targets: Sequence[tuple[str, tuple[int, ...], float]]
    """name, token ids, nats of log-odds"""
    protected: Sequence[tuple[str, tuple[int, ...]]] = ()


def drawn_wishes(scene: Scene, n: int, effect: float) -> list[Wish]:
    """Wishes for two features' own tokens each, some others' protected, all at random."""
    found = []
    for k in range(n):
        rng = rng_for(scene.seed, "joint", "wish", k)
        order = rng.permutation(len(scene.set_features)).tolist()
        named = [(f"{scene.label} {scene.set_features[p]}", tuple(scene.sets[p])) for p in order]
        targets: list[tuple[str, tuple[int, ...], float]] = []
        used: set[int] = set()
        protected = []
        for name, ids in named:
            if used & set(ids):
                continue
            used |= set(ids)
            if len(targets) < TARGETS:
                targets.append((name, ids, effect))
            elif len(protected) < N_PROTECTED:
                protected.append((name, ids))
        found.append(Wish(targets, protected))
    return found


def wish_rows(
    scenes: Mapping[str, Scene],
    wishes: Sequence[Wish],
    *,
    each: int,
    budget: float | None,
    responses: Callable[[Scene, Site], Sequence[PromptResponse]] = Scene.responses,
) -> dict[str, Rows]:
    """Rows of PLANS, PLAN_DOSES and PLAN_EFFECTS.

    Args:
        scenes: by label, of the sites that may be used.
        wishes: what is wanted.
        each: features of every site that may be used for each target.
        budget: nats of a plan; None: any.
        responses: gradients of the select prompts of a scene at a site.

    Raises:
        MismatchError: a model without gradients.
    """
    main = next(iter(scenes.values()))
    sets = [list(one) for one in main.sets]
    own = [
        (own_sets([t[1] for t in wish.targets], sets), own_sets([p[1] for p in wish.protected], sets))
        for wish in wishes
    ]
    scene = replace(main, sets=sets, made={})
    seen = {one.dictionary.writes: responses(scene, one.dictionary.writes) for one in scenes.values()}
    if not all(seen.values()):
        raise MismatchError("a plan needs the gradients of a transformers model")
    rows: dict[str, Rows] = {"plans": [], "plan_doses": [], "plan_effects": []}
    for number, (wish, (targets, protected)) in enumerate(zip(wishes, own, strict=True)):
        chosen = _candidates(scenes, seen, targets.tolist(), each)
        made = _Planning(scene, wish, chosen, joint_linear(chosen, seen), targets, protected, budget)
        for name, some in made.rows().items():
            rows[name] += [{"plan": number, **row} for row in some]
    return rows


def _candidates(
    scenes: Mapping[str, Scene],
    seen: Mapping[Site, Sequence[PromptResponse]],
    targets: Sequence[int],
    each: int,
) -> list[Direction]:
    found = []
    for label, scene in scenes.items():
        told, able = seen[scene.dictionary.writes], np.abs(scene.all_rows).max(1) > 0
        effects = np.mean([one.gradients[list(targets)] for one in told], axis=0) @ scene.all_rows.T
        metric = np.mean([one.fisher for one in told], axis=0)
        costs = np.where(able, np.einsum("nd,nd->n", scene.all_rows @ metric, scene.all_rows), np.nan)
        picked = candidates(effects, costs, each)
        found += [replace(d, name=f"{label}: {d.name}") for d in scene.features(picked.tolist())]
    return found


@dataclass(frozen=True)
class _Planning:
    """One wish, and everything that is compared for it."""

    scene: Scene
    wish: Wish
    directions: Sequence[Direction]
    linear: LinearPlan
    targets: Int[np.ndarray, " t"]
    protected: Int[np.ndarray, " u"]
    budget: float | None

    def rows(self) -> dict[str, Rows]:
        benches = [
            JointBench(self.scene.model, ids, self.directions, positions=self.scene.positions)
            for ids in self.scene.prompts
        ]
        wanted = self._wanted()
        arms = self._arms(wanted, [b for b, k in zip(benches, self.scene.select, strict=True) if k])
        strengths = np.stack([a for a, _ in arms.values()])
        looped: list[Strengths] = []
        many, n = Sets(self.scene.sets, self.scene.model.spec.d_vocab), len(self.scene.set_features)
        moved, costs = [], []
        for bench, k in zip(benches, self.scene.confirm, strict=True):
            if k:
                if isinstance(bench.model, HFModel):
                    looped.append(self._closed_loop(bench, arms["planned"][0], wanted))
                logits = bench.logits(np.concatenate([strengths, *(one[None] for one in looped[-1:])]))
                moved.append((many.log_odds(logits) - many.log_odds(bench.base)).numpy())
                costs.append(np.asarray(kl(bench.base, logits), dtype=np.float64).ravel())
        change, cost = np.stack(moved, axis=1), np.stack(costs, axis=1)
        if looped:
            arms["closed loop"] = np.mean(looped, axis=0), len(self.directions)
        found: dict[str, Rows] = {"plans": [], "plan_doses": [], "plan_effects": []}
        for row, (arm, (a, able)) in enumerate(arms.items()):
            every = np.arange(cost.shape[1])
            spent = mean_of(cost[row], every)
            means = change[row].mean(0)
            found["plans"].append(
                {
                    "arm": arm, "forecast_kl": self.linear.cost(a), "kl": spent.value, "kl_lo": spent.lo,
                    "kl_hi": spent.hi, "reached": float(means[self.targets] @ wanted / (wanted @ wanted)), "missed": _rms(means[self.targets] - wanted),
                    "protected": _rms(means[self.protected]) if len(self.protected) else 0.0,
                    "reach": float(participation((change[row][:, :n] ** 2).mean(0))),
                    "n_pushes": int((a != 0).sum()), "n_candidates": able, "n_prompts": len(every),
                }
            )  # fmt: skip
            found["plan_doses"] += self._doses(arm, a)
            found["plan_effects"] += self._effects(arm, a, change[row], wanted, every)
        return found

    def _wanted(self) -> Float[np.ndarray, " t"]:
        """Asked effects, scaled down where they cost more than the budget."""
        asked = np.array([nats for _, _, nats in self.wish.targets])
        if self.budget is None:
            return asked
        cost = self.linear.cost(least_kl(self.linear, self.targets.tolist(), asked, self.protected.tolist()))
        return asked * min(1.0, (self.budget / cost) ** 0.5)

    def _arms(
        self, wanted: Float[np.ndarray, " t"], benches: Sequence[JointBench]
    ) -> dict[str, tuple[Strengths, int]]:
        """Strengths of every arm that has the same for all prompts, and how many pushes it could use; all but one corrected on
        the select prompts."""
        targets, protected, n = self.targets.tolist(), self.protected.tolist(), len(self.directions)
        many = Sets([self.scene.sets[k] for k in targets], self.scene.model.spec.d_vocab)
        base = [many.log_odds(bench.base) for bench in benches]

        def measure(a: Strengths) -> Float[np.ndarray, " t"]:
            seen = [many.log_odds(b.logits(a[None])) - z for b, z in zip(benches, base, strict=True)]
            return torch.cat(seen).mean(0).numpy()

        def plan(ask: Callable[[np.ndarray], Strengths], able: int) -> tuple[Strengths, int]:
            def tried(gap: np.ndarray, _: Strengths) -> Strengths:
                return self.linear.bounded(ask(gap))

            return corrected(tried(wanted, np.zeros(n)), wanted, measure, tried), able

        def scaled(start: Strengths, able: int) -> tuple[Strengths, int]:
            return plan(lambda gap: start * float(wanted @ gap / (wanted @ wanted)), able)

        def within(some: Sequence[int]) -> Callable[[np.ndarray], Strengths]:
            part = self.linear.take(some)

            def ask(gap: np.ndarray) -> Strengths:
                whole = np.zeros(n)
                whole[list(some)] = least_kl(part, targets, gap, protected)
                return whole

            return ask

        every = within(range(n))
        arms = {"planned": plan(every, n), "planned, open loop": (every(wanted), n)}
        few = np.flatnonzero(fewest(self.linear, targets, wanted, protected, FEW)).tolist()
        arms["planned, few"] = plan(within(few), n)
        arms["planned, L1"] = plan(within(few_by_penalty(self.linear, targets, wanted, protected, FEW)), n)
        sites = list(dict.fromkeys(d.site for d in self.directions))
        for site in sites if len(sites) > 1 else ():
            some = [k for k, d in enumerate(self.directions) if d.site == site]
            arms[f"only {site}"] = plan(within(some), len(some))
        arms["best single"] = scaled(best_single(self.linear, targets, wanted), n)
        arms["equal doses"] = scaled(equal_doses(self.linear, targets, wanted), n)
        return arms

    def _closed_loop(self, bench: JointBench, start: Strengths, wanted: Float[np.ndarray, " t"]) -> Strengths:
        """Strengths of one prompt, corrected on it with the gradients as they are once all edits stand."""
        sets, protected = [self.scene.sets[k] for k in self.targets.tolist()], self.protected.tolist()
        many = Sets(sets, self.scene.model.spec.d_vocab)
        base = many.log_odds(bench.base)[0]

        def measure(a: Strengths) -> Float[np.ndarray, " t"]:
            return (many.log_odds(bench.logits(a[None]))[0] - base).numpy()

        def ask(gap: np.ndarray, a: Strengths) -> Strengths:
            effects = self.linear.effects.copy()
            effects[self.targets] = slopes(bench, a, sets)
            here = replace(self.linear, effects=effects)
            asked = gap + effects[self.targets] @ a
            return self.linear.bounded(least_kl(here, self.targets.tolist(), asked, protected)) - a

        return corrected(start, wanted, measure, ask)

    def _doses(self, arm: str, a: Strengths) -> Rows:
        costs = np.diag(self.linear.fisher) * a**2 / 2
        return [
            {"arm": arm, "sae": d.sae, "feature": d.feature, "site": str(d.site)}
            | {"strength": float(a[k]), "kl": float(costs[k])}
            for k, d in enumerate(self.directions)
            if a[k] != 0
        ]

    def _effects(
        self,
        arm: str,
        a: Strengths,
        change: Float[np.ndarray, "prompts n_sets"],
        wanted: Float[np.ndarray, " t"],
        every: Int[np.ndarray, " prompts"],
    ) -> Rows:
        told = self.linear.effects @ a
        asked = [*wanted.tolist(), *(0.0 for _ in self.protected)]
        named = [*(t[:2] for t in self.wish.targets), *self.wish.protected]
        rows: Rows = []
        for k, (place, (name, ids)) in enumerate(zip([*self.targets, *self.protected], named, strict=True)):
            found = mean_of(change[:, place], every)
            rows.append(
                {
                    "arm": arm, "role": "wanted" if k < len(wanted) else "protected", "target": k, "name": name,
                    "tokens": self.scene.model.token_strings(list(ids[:6])), "asked": asked[k],
                    "forecast": float(told[place]), **found.columns("measured"),
                }
            )  # fmt: skip
        return rows


def _rms(values: Float[np.ndarray, " n"]) -> float:
    return float(np.sqrt((values**2).mean()))
