"""What the gradient says about the planned pushes: linear response, decomposition, compensation, other metrics.

For every planned arm whose direction is a feature's (pairs, the target itself, random features) the linear
response at the dose that was really given stands beside the measured effect, arm by arm. A sample of prompts
decomposes the measured effect of pairs. For each SAE the readout-compensation index is estimated from the
response of all targets to all features, which no experiment could afford and two backward passes per target
and prompt give. On a sample of pairs the gradient averaged along the push stands beside the one at the prompt, and
SAEs of one site are asked for the same pairs. Cost: per prompt two backward passes per target and token set; on
`DECOMPOSED_PROMPTS` prompts 18 rows of a forward pass per pair for the decomposition, two per feature for the
footprints, and 8 backward passes per sampled pair, dose and token set.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.act.base import Recipe, edited_positions
from polysem.act.steering import steered_at_kl
from polysem.edits import Add
from polysem.linear.compensation import compensation, crosstalk_floor
from polysem.linear.decompose import (
    STREAM,
    Decomposition,
    clean_tokens,
    decompose,
    mean_direction,
    mean_of,
    split_push,
)
from polysem.linear.footprint import PromptFootprint, footprint_metrics
from polysem.linear.metrics import pair_metrics
from polysem.linear.replicated import Matched, SeedSide, replicated_pairs
from polysem.linear.response import log_odds_of, membership, odd_change, odds_gradients, path_gradients
from polysem.models.base import WhiteBoxModel
from polysem.models.sweep import sweep_of
from polysem.plan.index import FeatureRows
from polysem.plan.strengths import own_strengths
from polysem.positions import PLAIN, ordinary_rows
from polysem.progress import SILENT, Reporter
from polysem.readouts import set_problem
from polysem.saes.base import SAE
from polysem.seeds import rng_for
from polysem.store.schema import or_null
from polysem.store.tables import MATCHING, STAGES
from polysem.types import Site
from polysem.vocabulary import TOKEN_SETS

DECOMPOSED_PROMPTS = 2
"""confirm prompts, in the order of their ids (hashes, so a sample), on which effects are taken apart"""
BANDS = ((0.0, 1.01), (0.0, 0.1), (0.1, 0.2), (0.2, 0.4), (0.4, 1.01))
"""|interference| of the pairs that lambda is given for; the first is all"""
COMPARED_FEATURES = 2000
"""features that lambda's matrix has besides the targets; more change it by less than its interval"""
REPLICATED_PROMPTS = 8
"""confirm prompts on which SAEs of one site are compared"""
REPLICATED_KL = 0.1
"""nats at which they are compared"""
PATH_PAIRS = 24
"""pairs of every SAE along whose pushes the gradient is averaged"""
MATRIX_SOURCES = 200
"""features beside the targets whose cells of lambda's matrix are kept for permutation tests"""
_ROWS = 24
_DECOMPOSED_ROWS = _ROWS * len(TOKEN_SETS)
"""most of them differ in the set that is read alone, and share their passes"""
_FEATURE_RELATIONS = ("pair", "self", "random_feature")
Rows = list[dict[str, Any]]


def respond(
    plan: pa.Table,
    prompts: pa.Table,
    trials: pa.Table,
    features: FeatureRows,
    model: WhiteBoxModel,
    saes: Mapping[str, SAE],
    *,
    seed: int,
    matching: pa.Table | None = None,
    level: float = 0.95,
    reporter: Reporter = SILENT,
) -> dict[str, pa.Table]:
    """The tables of the stage `response` of a study whose trials are run.

    Args:
        plan: PLAN.
        prompts: PROMPTS.
        trials: TRIALS; only confirm prompts where both signs of a dose are ok are used, as in the effects.
        features: target tokens.
        model: the model.
        saes: by label.
        seed: root seed.
        matching: MATCHING of the SAEs; pairs of SAEs that it has nothing of are not compared.
        level: of the intervals of lambda. No setting of the study, so that statistics can be redone without
            the model.
        reporter: is told of every SAE and prompt.
    """
    schemas = {s.name: s for s in STAGES["response"]}
    rows: dict[str, Rows] = {name: [] for name in schemas}
    cells = _cells(plan, trials)
    tokens = {r["prompt_id"]: r["token_ids"] for r in prompts.select(["prompt_id", "token_ids"]).to_pylist()}
    labels = sorted(set(cells["sae"].to_pylist()))
    parts: list[_OneSAE] = []
    known = MATCHING.empty() if matching is None else matching
    for label in reporter.track(labels, total=len(labels), label="response"):
        own = cells.filter(pc.equal(cells["sae"], label))
        one = _OneSAE(label, saes[label], model, features, own.to_pylist(), tokens)
        one.run()
        rows["response"] += one.responses()
        rows["decomposition"] += one.decompositions()
        rows["metrics"] += one.metrics()
        rows["gradient_path"] += one.paths(seed=seed)
        compensations, matrix = one.compensations(level=level, seed=seed)
        rows["compensation"] += compensations
        rows["gradient_matrix"] += matrix
        for other in parts:
            two = (pc.field("first") == other.label) & (pc.field("second") == label)
            if (matched := known.filter(two)).num_rows:
                rows["replicated"] += _replicated(other, one, matched, seed=seed)
        parts.append(one)
    return {name: schema.of(rows[name]) for name, schema in schemas.items()}


def _replicated(first: "_OneSAE", second: "_OneSAE", matching: pa.Table, *, seed: int) -> Rows:
    """REPLICATED of two SAEs of one site and their MATCHING, on the first prompts that both were steered on."""
    names = sorted(set(first.gradients) & set(second.gradients))[:REPLICATED_PROMPTS]
    places = {c["prompt_id"]: c["positions"] for c in first.cells}
    at = [first.prompt(name, places[name]) for name in names]
    rows: Rows = []
    matched = Matched(*(matching[name].to_numpy() for name in ("feature", "match", "decoder", "stable")))
    for tokens in sorted({name for _, name in first.keys} & {name for _, name in second.keys}) if at else []:
        here, there = (SeedSide(one.label, one.sae, one.all_sets(tokens)) for one in (first, second))
        rng = rng_for(seed, "replicated", first.label, second.label, tokens)
        rows += replicated_pairs(
            *(here, there, first.model, at),
            token_set=tokens,
            steered=partial(steered_odds, first.model),
            rng=rng,
            matched=matched,
        )
    return rows


def steered_odds(
    model: WhiteBoxModel,
    side: SeedSide,
    prompt: PromptFootprint,
    directions: Float[Tensor, "n d"],
    inside: Bool[Tensor, "n_sets d_vocab"],
) -> Float[Tensor, "n_sets n"]:
    """Odd change of every set's log-odds along every unit direction, each sign brought to REPLICATED_KL; NaN where a
    sign did not reach it."""
    site, n = side.sae.writes, len(directions)
    sweep, pushed = sweep_of(model), prompt.pushed.to(model.spec.device)
    signed = torch.cat([directions, directions]).to(device=model.spec.device, dtype=model.W_U.dtype)
    base = model.logits(prompt.tokens[None], last_only=True)[:, -1].double().cpu()
    norm = float(model.capture(prompt.tokens[None], [site])[site][0][pushed].double().norm(dim=-1).mean())

    def run(rows: Int[np.ndarray, " m"], strength: Float[np.ndarray, " m"]) -> Tensor:
        added = signed[rows] * torch.as_tensor(strength).to(signed)[:, None]
        tokens, mask = (t.expand(len(rows), -1) for t in (prompt.tokens, pushed))
        return sweep.logits(tokens, [Add(site, added, mask)]).double().cpu()

    doses = REPLICATED_KL * np.repeat([1.0, -1.0], n)
    _, logits, unreached = steered_at_kl(run, doses, base, first=0.05 * norm)
    odds = log_odds_of(logits[:, None], inside)
    odds[torch.as_tensor(unreached)] = torch.nan
    return ((odds[:n] - odds[n:]) / 2).T


_CELL = ("sae", "locus", "relation", "target", "source", "draw", "token_set", "prompt_id", "positions")


def _cells(plan: pa.Table, trials: pa.Table) -> pa.Table:
    """One row per arm, token set, |dose| and confirm prompt with both signs ok: who, and how long the push was."""
    plan = own_strengths(plan)
    decoder = pc.is_in(plan["relation"], pa.array(_FEATURE_RELATIONS))
    kept = plan.filter(pc.and_(decoder, pc.equal(plan["split"], "confirm")))
    kinds = {text: Recipe.parse(text).kind for text in pc.unique(kept["recipe"]).to_pylist()}
    kept = kept.filter(
        pa.array([kinds[text] == "decoder" for text in kept["recipe"].to_pylist()], pa.bool_())
    )
    ok = trials.filter(pc.equal(trials["status"], "ok")).select(["trial_id", "dose_absolute"])
    joined = kept.select([*_CELL, "trial_id", "dose"]).join(ok, "trial_id", join_type="inner")
    joined = joined.append_column("size", pc.abs(joined["dose"]))
    joined = joined.append_column("length", pc.abs(joined["dose_absolute"]))
    grouped = joined.group_by([*_CELL, "size"], use_threads=False).aggregate(
        [("length", "mean"), ("length", "count")]
    )
    both = grouped.filter(pc.equal(grouped["length_count"], 2))
    return both.sort_by([(name, "ascending") for name in (*_CELL, "size")])


class _OneSAE:
    """One SAE's part: gradients of every target on every prompt, then what follows from them."""

    def __init__(
        self,
        label: str,
        sae: SAE,
        model: WhiteBoxModel,
        features: FeatureRows,
        cells: Rows,
        tokens: Mapping[str, Sequence[int]],
    ):
        self.label, self.sae, self.model, self.cells, self.tokens = label, sae, model, cells, tokens
        self.features = features
        W = sae.W_dec.detach().double().cpu()
        self.unit = W / W.norm(dim=-1, keepdim=True).clamp(min=1e-30)
        wanted = sorted({(c["target"], c["token_set"]) for c in cells})
        table = features.features.filter(pc.equal(features.features["sae"], label))
        named = {c["target"] for c in cells} | {c["source"] for c in cells}
        table = table.filter(pc.is_in(table["feature"], pa.array(named, pa.int32())))
        sets = {
            (r["feature"], name): r[f"tokens_{name}"] for r in table.to_pylist() for name in ("in", "out")
        }
        self.sets = sets
        self.keys = [key for key in wanted if set_problem(sets[key], model.W_E) is None]
        self.row = {key: k for k, key in enumerate(self.keys)}
        self.inside = membership([sets[key] for key in self.keys], model.spec.d_vocab)
        self.gradients: dict[str, Float[Tensor, "n_sets d"]] = {}
        self.direct: dict[str, Float[Tensor, "n_sets d"]] = {}

    def run(self) -> None:
        """Gradients on every prompt."""
        end = Site(self.model.spec.n_layers - 1, "hook_resid_post")
        positions = {c["prompt_id"]: c["positions"] for c in self.cells}
        for prompt in sorted(positions):
            ids, pushed = self.prompt(prompt, positions[prompt])
            at = {"pushed": pushed, "inside": self.inside}
            self.gradients[prompt] = odds_gradients(self.model, ids, site=self.sae.writes, **at)
            last = pushed.clone()
            last[:-1] = False
            if self.sae.writes.point in STREAM:
                g = odds_gradients(self.model, ids, site=end, pushed=last, inside=self.inside)
                self.direct[prompt] = g

    def all_sets(self, tokens: str) -> dict[int, Sequence[int]]:
        """Target tokens of every feature of the SAE whose set can be read out."""
        table = self.features.features.select(["sae", "feature", f"tokens_{tokens}"])
        rows = table.filter(pc.equal(table["sae"], self.label)).to_pylist()
        sets = {r["feature"]: r[f"tokens_{tokens}"] for r in rows}
        return {k: ids for k, ids in sets.items() if set_problem(ids, self.model.W_E) is None}

    def prompt(self, prompt: str, positions: str) -> PromptFootprint:
        ids = torch.as_tensor(self.tokens[prompt], dtype=torch.long).to(self.model.spec.device)
        return PromptFootprint(ids, torch.as_tensor(edited_positions(positions, len(ids))))

    def responses(self) -> Rows:
        """RESPONSE: means over prompts."""
        grouped: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
        for c in self.cells:
            place = self.row.get((c["target"], c["token_set"]))
            if place is None:
                continue
            d = self.unit[c["source"]]
            total = c["length_mean"] * float(self.gradients[c["prompt_id"]][place] @ d)
            direct = (
                c["length_mean"] * float(self.direct[c["prompt_id"]][place] @ d) if self.direct else np.nan
            )
            key = tuple(c[name] for name in ("locus", "relation", "target", "source", "draw", "token_set"))
            grouped.setdefault((*key, c["size"]), []).append((total, direct))
        names = ("locus", "relation", "target", "source", "draw", "token_set", "dose")
        rows = []
        for key, values in grouped.items():
            total, direct = np.mean(values, axis=0)
            row = {"sae": self.label} | dict(zip(names, key, strict=True))
            rows.append(
                row | {"linear": float(total), "linear_direct": or_null(direct), "n_prompts": len(values)}
            )
        return rows

    def decompositions(self) -> Rows:
        """DECOMPOSITION of pairs at the smallest dose of the first locus, for every token set: all sets of a pair read the
        same passes."""
        pairs = self._pairs()
        size = min((c["size"] for c in pairs), default=0.0)
        of_set = {t: [c for c in pairs if (c["token_set"], c["size"]) == (t, size)] for t in TOKEN_SETS}
        chosen = {
            t: sorted({c["prompt_id"] for c in some})[:DECOMPOSED_PROMPTS] for t, some in of_set.items()
        }
        mine = [c for t, some in of_set.items() for c in some if c["prompt_id"] in chosen[t]]
        basis = mean_direction(self.sae.W_dec)
        found: dict[tuple[str, int, int], list[Decomposition]] = {}
        for prompt in sorted({c["prompt_id"] for c in mine}):
            here = [c for c in mine if c["prompt_id"] == prompt]
            here.sort(key=lambda c: (c["target"], c["source"]))  # the sets of a pair stand together
            for start in range(0, len(here), _DECOMPOSED_ROWS):
                part = here[start : start + _DECOMPOSED_ROWS]
                result = self._decompose(prompt, part, basis)
                for k, c in enumerate(part):
                    one = Decomposition(**{n: v[k : k + 1] for n, v in vars(result).items()})
                    found.setdefault((c["token_set"], c["target"], c["source"]), []).append(one)
        order = {t: k for k, t in enumerate(TOKEN_SETS)}
        rows = []
        for (tokens, target, source), parts in sorted(found.items(), key=lambda at: (order[at[0][0]], at[0])):
            numbers = {n: or_null(float(v[0])) for n, v in vars(mean_of(parts)).items()}
            rows.append(
                {"sae": self.label, "target": target, "source": source, "token_set": tokens, "dose": size}
                | numbers
                | {"n_prompts": len(parts)}
            )
        return rows

    def _pairs(self) -> Rows:
        """Cells of pairs whose target can be read out, of the first locus."""
        found = [
            c for c in self.cells if c["relation"] == "pair" and (c["target"], c["token_set"]) in self.row
        ]
        return [c for c in found if c["locus"] == found[0]["locus"]]

    def paths(self, *, seed: int) -> Rows:
        """GRADIENT_PATH: a sample of pairs of the first locus at every dose, on a sample of prompts."""
        pairs = self._pairs()
        if not pairs:
            return []
        names = sorted({(c["target"], c["source"]) for c in pairs})
        order = rng_for(seed, "gradient path", self.label).permutation(len(names))[:PATH_PAIRS]
        picked = {names[k] for k in order}
        prompts = sorted({c["prompt_id"] for c in pairs})[:DECOMPOSED_PROMPTS]
        found: dict[tuple[Any, ...], list[tuple[float, ...]]] = {}
        for prompt in prompts:
            here = [c for c in pairs if c["prompt_id"] == prompt and (c["target"], c["source"]) in picked]
            for start in range(0, len(here), _ROWS):
                part = here[start : start + _ROWS]
                for c, numbers in zip(part, self._along(prompt, part), strict=True):
                    key = tuple(c[n] for n in ("locus", "token_set", "size", "target", "source"))
                    found.setdefault(key, []).append(numbers)
        names = ("locus", "token_set", "dose", "target", "source")
        rows = []
        for key, numbers in found.items():
            values = zip(("total", "linear", "path"), np.mean(numbers, axis=0).tolist(), strict=True)
            own = {"sae": self.label} | dict(zip(names, key, strict=True))
            rows.append(own | dict(values) | {"n_prompts": len(numbers)})
        return rows

    def _along(self, prompt: str, part: Rows) -> list[tuple[float, ...]]:
        """Measured odd change, gradient at the prompt and gradient along the push, of every cell."""
        ids, pushed = self.prompt(prompt, part[0]["positions"])
        lengths = torch.tensor([c["length_mean"] for c in part], dtype=torch.float64)[:, None]
        pushes = lengths * self.unit[[c["source"] for c in part]]
        places = [self.row[c["target"], c["token_set"]] for c in part]
        at = {"site": self.sae.writes, "pushed": pushed, "pushes": pushes}
        plus, minus = (log_odds_of(z, self.inside[places]) for z in odd_change(self.model, ids, **at))
        average = path_gradients(self.model, ids, inside=self.inside[places], **at)
        linear = (self.gradients[prompt][places] * pushes).sum(-1)
        numbers = torch.stack([(plus - minus) / 2, linear, (average * pushes).sum(-1)], dim=1)
        return [tuple(row) for row in numbers.tolist()]

    def _decompose(self, prompt: str, part: Rows, basis: Tensor) -> Decomposition:
        ids, pushed = self.prompt(prompt, part[0]["positions"])
        lengths = torch.tensor([c["length_mean"] for c in part], dtype=torch.float64)[:, None]
        target = torch.tensor([c["target"] for c in part])
        pushes = lengths * self.unit[[c["source"] for c in part]]
        inside = self.inside[[self.row[c["target"], c["token_set"]] for c in part]]
        own = [self.sets.get((c["source"], c["token_set"]), []) for c in part]
        return decompose(
            self.model,
            ids,
            site=self.sae.writes,
            pushed=pushed,
            parts=split_push(pushes, self.unit[target], basis),
            inside=inside,
            clean=clean_tokens(inside, own, self.model.W_E),
            sae=self.sae,
            latents=target,
        )

    def metrics(self) -> Rows:
        """METRICS of every pair and random feature that was steered."""
        pairs = sorted({(c["source"], c["target"]) for c in self.cells if c["relation"] != "self"})
        if not pairs:
            return []
        activations = []
        for prompt in self.gradients:
            ids, _ = self.prompt(prompt, "all")
            seen = self.model.capture(ids[None], [self.sae.writes])[self.sae.writes][0]
            activations.append(seen.double().cpu().numpy()[PLAIN.counted(len(seen))])
        stream = self.sae.writes.point in STREAM
        values = pair_metrics(
            self.sae,
            np.array(pairs),
            W_U=self.model.W_U if stream else None,
            activations=ordinary_rows(np.concatenate(activations)),
        )
        values |= self._footprints(np.array(pairs))
        return [
            {"sae": self.label, "target": j, "source": i, "metric": name, "value": float(v)}
            for name, column in sorted(values.items())
            for (i, j), v in zip(pairs, column, strict=True)
        ]

    def _footprints(self, pairs: np.ndarray) -> dict[str, np.ndarray]:
        """Jacobian and Fisher interference of (source, target) features on a sample of prompts."""
        places = {c["prompt_id"]: c["positions"] for c in self.cells}
        prompts = [
            PromptFootprint(*self.prompt(name, places[name])) for name in sorted(places)[:DECOMPOSED_PROMPTS]
        ]
        used, code = np.unique(pairs, return_inverse=True)
        return footprint_metrics(
            self.model,
            prompts,
            site=self.sae.writes,
            directions=self.unit[used.tolist()],
            pairs=code.reshape(pairs.shape),
        )

    def compensations(self, *, level: float, seed: int) -> tuple[Rows, Rows]:
        """COMPENSATION by token set and band of |interference|, and GRADIENT_MATRIX."""
        if not self.gradients:
            return [], []
        mean = torch.stack(list(self.gradients.values())).mean(0)
        straight = torch.stack(list(self.direct.values())).mean(0) if self.direct else None
        rng = rng_for(seed, "compensation", self.label)
        alive = np.flatnonzero(self.sae.W_dec.norm(dim=-1).cpu().numpy() > 0)
        targets = sorted({t for t, _ in self.keys})
        others = np.setdiff1d(alive, targets)
        picked = rng.permutation(others)[:COMPARED_FEATURES]
        columns = np.concatenate([targets, np.sort(picked)]).astype(np.int64)
        floor = crosstalk_floor(len(alive), self.sae.d_in)
        rows, matrix = [], []
        for tokens in sorted({name for _, name in self.keys}):
            mine = [t for t in targets if (t, tokens) in self.row]
            places = [self.row[t, tokens] for t in mine]
            E = (mean[places] @ self.unit[columns].T).numpy()
            G = (self.unit[mine] @ self.unit[columns].T).numpy()
            own = np.array([targets.index(t) for t in mine], dtype=np.int64)
            D = None if straight is None else straight[places] @ self.unit[columns].T
            kept = [*range(len(targets)), *np.flatnonzero(np.isin(columns, picked[:MATRIX_SOURCES])).tolist()]
            matrix += [
                {"sae": self.label, "token_set": tokens, "target": t, "source": int(columns[i])}
                | {"interference": float(G[j, i]), "linear": float(E[j, i])}
                | {"linear_direct": None if D is None else float(D[j, i])}
                for j, t in enumerate(mine)
                for i in kept
            ]
            for lo, hi in BANDS:
                used = (np.abs(G) >= lo) & (np.abs(G) < hi)
                found = compensation(E, G, own, level=level, rng=rng, used=used)
                rows.append(
                    {"sae": self.label, "token_set": tokens, "band_lo": lo, "band_hi": min(hi, 1.0)}
                    | {"estimate": or_null(found.estimate), "lo": or_null(found.lo), "hi": or_null(found.hi)}
                    | {
                        "floor": floor,
                        "rms_cosine": float(np.sqrt((G[used] ** 2).mean())) if used.any() else 0.0,
                    }
                    | {"n_targets": found.n_targets, "n_sources": found.n_sources, "n_pairs": found.n_pairs}
                    | {"level": level, "note": found.reason or None}
                )
        return rows, matrix
