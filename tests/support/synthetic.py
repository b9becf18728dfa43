"""A whole study as tables, with a known answer: no model, no SAE, no torch.

Directions and gloss embeddings are drawn, so the map of pairs is computed, not invented. The planted law of
every trial: at signed dose a

    change in log-odds = a (slope x interference + target effect + source effect + noise of pair and prompt) -
    curvature a^2

so that the odd part at |a| regresses on interference with slope `slope x |a|`. Tests of statistics, reports
and explorers run on it.
"""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polysem.config import parse_study
from polysem.paper.presets import PaperEstimates
from polysem.seeds import rng_for, short_hash
from polysem.stats import estimate
from polysem.store import io
from polysem.store import tables as t
from polysem.store.manifest import Manifest, Output, StageInputs
from polysem.store.schema import Schema
from polysem.store.stages import StageName, order_of
from polysem.vocabulary import CATEGORIES
from support.synthetic_response import dictionaries_tables, response_tables

ALL_STAGES: tuple[StageName, ...] = (
    *("features", "pairs", "plan", "trials", "dictionaries", "response", "effects"),
)
BINS = (0.0, 0.1, 0.2, 0.3, 0.4, 1.0)
Rows = list[dict[str, Any]]
_TOPICS = {
    "names of rivers": "Thames Danube Nile Rhine",
    "words for cooking with heat": "boil roast simmer fry",
    "numbers written as words": "seven twelve forty thousand",
    "court and law": "judge verdict oath plaintiff",
    "parts of a ship": "mast keel deck sail",
    "expressions of doubt": "perhaps maybe hardly scarcely",
    "family relations": "mother uncle sister cousin",
    "colours of the sky": "azure grey crimson violet",
    "negated verbs": "cannot won't didn't never",
    "musical instruments": "violin flute drum organ",
    "weather at sea": "storm gale fog squall",
    "endings of letters": "sincerely yours faithfully adieu",
    "money and debts": "shilling debt guinea pound",
    "horses and carriages": "coach saddle mare stable",
    "moments of waking": "awoke yawned dawn pillow",
    "sounds of animals": "bark neigh hiss purr",
    "mathematical terms": "angle sum ratio circle",
    "words of anger": "furious rage wrath snarled",
    "religious offices": "bishop vicar abbot deacon",
    "plants of a garden": "rose ivy lilac fern",
}


@dataclass(frozen=True)
class SyntheticStudy:
    """What is planted and how much of it."""

    seed: int = 0
    saes: Sequence[str] = ("blocks.2.hook_resid_post", "blocks.2.hook_mlp_out")
    n_features: int = 260
    d_in: int = 48
    n_targets: int = 12
    sources_per_bin: int = 3
    n_random: int = 3
    n_prompts: int = 16
    doses: Sequence[float] = (0.05, 0.1, 0.2, 0.4)
    slope: float = 3.0
    """change in log-odds per unit dose and unit cosine"""
    noise: Sequence[float] = (0.3, 0.3, 0.2, 0.6)
    """SD of target, source, pair and prompt effects, in nats per unit dose"""
    toward_noise: float = 0.5
    """SD over prompts of the effect on a category of words, whose mean over directions is 0 with SD 1, per unit dose"""
    curvature: float = 1.0
    kl: float = 2.5
    """KL = kl x dose^2 / 2"""
    failures: float = 0.02
    """share of trials that fail"""
    preset: str = "strict"
    """of the study"""
    matched: bool = True
    """every pair has a random direction at its cosine"""
    isotropic: bool = True
    """isotropic directions, which the paper compares with, are run too unless the preset is strict"""
    glosses: Sequence[str] = field(default_factory=lambda: tuple(_TOPICS))
    tokens: Sequence[str] | None = None
    """used for every feature in place of the topic's own words"""


def synthetic_tables(world: SyntheticStudy) -> dict[str, dict[str, pa.Table]]:
    """Stage -> name -> table, for every stage before `effects`, each conforming to its schema."""
    rows: dict[str, Rows] = {name: [] for name in ("features", "glosses", "contexts", "clusters")}
    rows |= {name: [] for name in ("pairs", "density", "spectrum", "partners", "plan", "trials")}
    prompts = _prompts(world)
    for label in world.saes:
        maker = _SAE(world, label)
        maker.features(rows)
        maker.pairs(rows)
        maker.trials(rows, prompts)
    rows["prompts"] = prompts
    rows |= {schema.name: [] for schema in t.STAGES["plan"] if schema.name not in rows}
    made = {"features": (t.FEATURES, t.GLOSSES, t.CONTEXTS, t.CLUSTERS), "plan": t.STAGES["plan"]}
    made |= {"pairs": (t.PAIRS, t.DENSITY, t.SPECTRUM, t.PARTNERS), "trials": (t.TRIALS,)}
    return {
        stage: {schema.name: _table(schema, rows[schema.name]) for schema in schemas}
        for stage, schemas in made.items()
    }


def _table(schema: Schema, rows: Rows) -> pa.Table:
    return schema.conform(pa.Table.from_pylist(rows, schema=schema.arrow()))


def _prompts(world: SyntheticStudy) -> Rows:
    rows = []
    for k in range(world.n_prompts):
        text = f"It was the {k + 1}th of the month, and nobody in the house had"
        split = "select" if k % 2 else "confirm"
        rows.append({"prompt_id": short_hash(text), "text": text, "token_ids": [k, 1, 2], "split": split})
        rows[-1]["source"] = f"template {k}"
    return rows


class _SAE:
    """One SAE's part of every table."""

    def __init__(self, world: SyntheticStudy, label: str):
        self.world, self.label = world, label
        rng = rng_for(world.seed, "synthetic", label)
        n = world.n_features
        self.topic = rng.integers(len(world.glosses), size=n)
        d = rng.standard_normal((n, world.d_in))
        self.d = d / np.linalg.norm(d, axis=1, keepdims=True)
        centre = rng.standard_normal((len(world.glosses), 24))
        e = centre[self.topic] + 0.5 * rng.standard_normal((n, 24))
        e /= np.linalg.norm(e, axis=1, keepdims=True)
        self.G, self.S = self.d @ self.d.T, e @ e.T
        self.density = 10 ** rng.uniform(-4, -1.3, size=n)
        self.effect = rng.standard_normal((2, n))
        self.rng = rng

    def features(self, rows: dict[str, Rows]) -> None:
        for f in range(self.world.n_features):
            gloss = self.world.glosses[int(self.topic[f])]
            words = list(self.world.tokens or f"{_TOPICS.get(gloss, 'one two three four')}".split())
            maximum = float(np.float32(self.rng.uniform(3, 12)))
            own: dict[str, Any] = {"sae": self.label, "feature": f}
            rows["features"].append(
                own
                | {"site": self.label, "density": self.density[f], "n_active": int(self.density[f] * 2e5)}
                | {"max_act": maximum, "tokens_in": [f, f + 1], "tokens_in_str": [" " + w for w in words[:3]]}
                | {
                    "tokens_in_act": [maximum, 0.9 * maximum],
                    "tokens_out": [f + 2],
                    "tokens_out_logit": [1.5],
                }
                | {"tokens_out_str": [" " + words[-1]], "tokens_bottom_str": [" the"], "dec_norm": 1.0}
                | {"neuron_alignment": [0, 1, 2], "neuron_alignment_values": [0.3, 0.2, 0.1]}
                | {"gloss": gloss, "gloss_source": "synthetic", "n_glosses": 1}
            )
            rows["glosses"].append(
                own | {"gloss_index": 0, "text": gloss, "source": "synthetic", "explainer": None}
            )
            rows["clusters"].append(own | {"similarity_cut": 0.4, "cluster": int(self.topic[f])})
            for rank in range(2):
                text = [" she", " spoke", " of", " " + words[rank % len(words)], " and", " went", " on"]
                values = [0.0, 0.0, 0.1, 1.0, 0.3, 0.0, 0.0]
                rows["contexts"].append(
                    own
                    | {"rank": rank, "max_value": maximum * (1 - 0.1 * rank), "position": 3, "token_ids": []}
                    | {"tokens": text, "values": [v * maximum for v in values], "source": f"book {rank}, 120"}
                )

    def pairs(self, rows: dict[str, Rows]) -> None:
        i, j = np.triu_indices(self.world.n_features, 1)
        g, s, d = self.G[i, j], self.S[i, j], self.world.d_in
        for k in np.flatnonzero((np.abs(g) >= 0.2) & (s < 0.3)):
            z = float(g[k] * np.sqrt(d))
            chance = float(np.exp(-0.5 * z * z))
            rows["pairs"].append(
                {
                    "sae": self.label,
                    "sae_j": self.label,
                    "i": int(i[k]),
                    "j": int(j[k]),
                    "interference": float(g[k]),
                }
                | {"interference_demeaned": float(g[k]), "row_mean_i": 0.0, "row_mean_j": 0.0}
                | {"enc_dec_ij": float(g[k]), "enc_dec_ji": float(g[k]), "similarity": float(s[k])}
                | {"interference_bin": _bin(float(g[k])), "z_isotropic": z, "p_isotropic": chance}
                | {"z_covariance": 0.9 * z, "p_covariance": chance, "q_covariance": min(1.0, 50 * chance)}
                | {"token_overlap": 0.0, "context_overlap": 0.0}
                | {"is_duplicate": abs(float(g[k])) > 0.7, "is_dense": False}
            )
        self._density(rows, g, s)
        for threshold in (-0.4, -0.3, -0.2, 0.1, 0.2, 0.3, 0.4, 0.5):
            seen = int((g < threshold).sum() if threshold < 0 else (g > threshold).sum())
            tail = _normal_tail(abs(threshold) * np.sqrt(d)) * len(g)
            rows["spectrum"].append(
                {
                    "sae": self.label,
                    "sae_j": self.label,
                    "threshold": threshold,
                    "n_pairs": seen,
                    "n_isotropic": tail,
                }
                | {
                    "n_covariance": tail * 1.3,
                    "n_covariance_se": tail * 0.02,
                    "d_in": d,
                    "d_eff": d * 0.9,
                    "mean_norm": 0.05,
                }
            )
        counts = np.zeros((self.world.n_features, len(BINS) - 1), dtype=int)
        near = (g >= 0) & (s < 0.3)
        bins = np.minimum(np.searchsorted(BINS, g[near], side="right") - 1, len(BINS) - 2)
        for end in (i, j):
            np.add.at(counts, (end[near], bins), 1)
        own: dict[str, Any] = {"sae": self.label, "sae_j": self.label, "max_similarity": 0.3}
        rows["partners"] += [
            own | {"feature": f, "interference_bin": b, "count": int(counts[f, b])}
            for f in range(len(counts))
            for b in range(len(BINS) - 1)
        ]

    def _density(self, rows: dict[str, Rows], g: np.ndarray, s: np.ndarray) -> None:
        # Edges by integer division: np.arange(-1, 1, .05) would carry rounding into the keys.
        edges = np.arange(-20, 21) / 20
        count, _, _ = np.histogram2d(g, s, bins=[edges, edges])
        rows["density"] += [
            {
                "sae": self.label,
                "sae_j": self.label,
                "interference_lo": edges[a],
                "interference_hi": edges[a + 1],
            }
            | {"similarity_lo": edges[b], "similarity_hi": edges[b + 1], "count": int(count[a, b])}
            for a, b in np.argwhere(count > 0)
        ]

    def trials(self, rows: dict[str, Rows], prompts: Rows) -> None:
        for target in sorted(
            int(f) for f in self.rng.permutation(self.world.n_features)[: self.world.n_targets]
        ):
            for arm in self._arms(target):
                self._run(arm, rows, prompts)

    def _arms(self, target: int) -> list[tuple[str, int, int | None, int, int]]:
        arms: list[tuple[str, int, int | None, int, int]] = [("self", target, target, 0, -1)]
        others = [f for f in range(self.world.n_features) if f != target and self.S[target, f] < 0.3]
        for b in range(len(BINS) - 1):
            inside = [f for f in others if self.G[target, f] >= 0 and _bin(float(self.G[target, f])) == b]
            chosen = self.rng.permutation(len(inside))[: self.world.sources_per_bin]
            arms += [("pair", target, inside[k], 0, b) for k in sorted(chosen)]
        if self.world.matched:
            pairs = [source for relation, _, source, _, _ in arms if relation == "pair"]
            arms += [("cosine_matched", target, source, 2 * k, -1) for k, source in enumerate(pairs)]
        small = [f for f in others if abs(self.G[target, f]) < 0.05]
        for draw in range(self.world.n_random):
            arms.append(("random_feature", target, small[int(self.rng.integers(len(small)))], draw, -1))
            arms.append(("random_direction", target, None, draw, -1))
            if self.world.isotropic and self.world.preset != "strict":
                arms.append(("isotropic", target, None, draw, -1))
        return arms

    def _run(self, arm: tuple[str, int, int | None, int, int], rows: dict[str, Rows], prompts: Rows) -> None:
        relation, target, source, draw, index = arm
        w, noise = self.world, self.world.noise
        known = None if source is None else float(self.G[target, source])
        drawn_for = source if relation == "cosine_matched" else None
        source = None if drawn_for is not None else source
        aligned = float(self.rng.normal(0, 0.05)) if known is None else known
        own = noise[1] * (self.rng.standard_normal() if source is None else self.effect[1, source])
        pair = noise[2] * self.rng.standard_normal()
        similarity = None if source is None else float(self.S[target, source])
        named = {"draw": draw, "kind": relation, "source": source, "target": target}
        recipe = json.dumps(named | ({} if drawn_for is None else {"pair": drawn_for}), sort_keys=True)
        # of the direction alone, whatever the target: planted per unit dose, with its own noise over prompts
        pushed = rng_for(w.seed, "toward", self.label, recipe if source is None else source)
        gain = {c.column: float(pushed.standard_normal()) for c in CATEGORIES.values()}
        for number, prompt in enumerate(prompts):
            apart = {
                name: rate + w.toward_noise * float(pushed.standard_normal()) for name, rate in gain.items()
            }
            jitter = noise[3] * self.rng.standard_normal()
            for tokens, share in (("in", 1.0), ("out", 0.6)):
                rate = share * w.slope * aligned + noise[0] * self.effect[0, target] + own + pair + jitter
                for dose in (sign * d for d in w.doses for sign in (-1.0, 1.0)):
                    planned = {
                        "sae": self.label,
                        "site": self.label,
                        "locus": "feature",
                        "relation": relation,
                    }
                    planned |= {"target": target, "source": source, "draw": draw, "recipe": recipe}
                    planned |= {"interference_bin": index, "interference": known, "similarity": similarity}
                    planned |= {"prompt_id": prompt["prompt_id"], "token_set": tokens, "dose": dose}
                    if drawn_for is not None:
                        planned |= {"pair_target": target, "pair_source": drawn_for}
                    trial = short_hash(*planned.values())
                    planned |= {
                        "dose_unit": "resid_norm",
                        "positions": "all_but_first",
                        "split": prompt["split"],
                    }
                    planned |= {"block": f"{self.label}/{target}", "batch": number, "trial_id": trial}
                    rows["plan"].append(planned)
                    if self.rng.random() < w.failures:
                        rows["trials"].append(_failed(trial))
                    else:
                        change = dose * rate - w.curvature * dose**2
                        done = _ok(trial, change, aligned, dose, w.kl * dose**2 / 2)
                        moved = {name: dose * rate + w.curvature * dose**2 for name, rate in apart.items()}
                        rows["trials"].append(done | moved)


def _ok(trial: str, change: float, aligned: float, dose: float, kl: float) -> dict[str, object]:
    before, base = -4.0, 1 / (1 + np.exp(4.0))
    after = 1 / (1 + np.exp(-(before + change)))
    return {
        **{"trial_id": trial, "status": "ok", "reason": None, "mass_base": base, "mass_edit": after},
        **{"cosine_base": 0.2, "cosine_edit": 0.2 + 0.5 * (after - base), "logodds_base": before},
        **{"beyond_base": before, "beyond_edit": before + change},
        **{"logodds_edit": before + change, "kl": kl, "alignment": aligned},
        **{"dose_absolute": 20 * dose, "resid_norm": 20.0, "dtype": "float32"},
    }


def _failed(trial: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(c.name for c in t.TRIALS.columns)
    return row | {"trial_id": trial, "status": "failed", "reason": "zero_activation", "dtype": "float32"}


def _bin(cosine: float) -> int:
    inside = BINS[0] <= cosine <= BINS[-1]
    return min(bisect_right(BINS, cosine) - 1, len(BINS) - 2) if inside else -1


def _normal_tail(z: float) -> float:
    from scipy.special import ndtr

    return float(ndtr(-z))


def synthetic_run(
    folder: Path,
    world: SyntheticStudy,
    *,
    name: str = "synthetic",
    stages: Sequence[StageName] = ALL_STAGES,
) -> Path:
    """A run folder of the synthetic study, the stages named finished: tables, manifests, study.toml."""
    text = _study_text(world, name)
    study = parse_study(text)
    io.write_text(folder / "study.toml", text)
    made = _made(world, effects="effects" in stages, response="response" in stages)
    for stage in order_of(study):
        if stage not in stages:
            continue
        outputs: dict[str, Output] = {}
        for schema in t.STAGES[stage]:
            file = "part-00000-of-00001" if schema.name == "trials" else schema.name
            table = made[stage][schema.name]
            hashed = io.write_table(folder / stage / f"{file}.parquet", table, schema)
            outputs[f"{stage}/{file}.parquet"] = Output(hashed, table.num_rows)
        made_from = StageInputs.of(study, stage, sources={"model": "synthetic"}, inputs={})
        Manifest(made_from, outputs, facts={"device": "none"}).write(folder / stage / "manifest.json")
    return folder


_MADE: dict[str, dict[str, dict[str, pa.Table]]] = {}


def _made(world: SyntheticStudy, *, effects: bool, response: bool) -> dict[str, dict[str, pa.Table]]:
    """The tables of every stage, once for all tests of a process: estimating takes seconds."""
    key = repr((world, effects, response))
    if key in _MADE:
        return _MADE[key]
    study = parse_study(_study_text(world, "synthetic"))
    made = synthetic_tables(world)
    plan, trials = made["plan"]["plan"], made["trials"]["trials"]
    made["dictionaries"] = dictionaries_tables(world)
    if response:
        pushed = estimate(plan, trials, config=study.effects, seed=0).pair_effects
        made["response"] = response_tables(world, pushed)
    if effects:
        beside = [PaperEstimates(study.preset)]
        found = estimate(
            *(plan, trials),
            config=study.effects,
            seed=study.seed,
            response=made.get("response"),
            beside=beside,
        )
        made["effects"] = found.tables()
    _MADE[key] = made
    return made


def finish_beside(run: Path, stage: StageName, files: Mapping[str, tuple[pa.Table, Schema]]) -> None:
    """Write files of a stage that is made beside a study, and its manifest; what it was made from is not said."""
    outputs = {
        f"{stage}/{name}": Output(io.write_table(run / stage / name, table, schema), table.num_rows)
        for name, (table, schema) in files.items()
    }
    nothing = StageInputs(stage, schemas={}, parameters={}, sources={}, inputs={}, packages={})
    Manifest(nothing, outputs).write(run / stage / "manifest.json")


def _study_text(world: SyntheticStudy, name: str) -> str:
    saes = "".join(f'[[saes]]\nref = "synthetic:{label}"\nlabel = "{label}"\n\n' for label in world.saes)
    return (
        f'name = "{name}"\nseed = {world.seed}\npreset = "{world.preset}"\n\n[model]\nref = "synthetic:two-layer"\n\n{saes}'
        f'[prompts]\nsource = "templates"\nn = {world.n_prompts}\n\n'
        f"[plan]\nn_targets = {world.n_targets}\nsources_per_bin = {world.sources_per_bin}\n"
        f"n_random = {world.n_random}\ndoses = {list(world.doses)}\n"
    )
