"""Everything about the weights of one dictionary to later ones: what the stage calls, and a session in Python.

found = across(model, Ends.of("a", sae_a), [Ends.of("b", sae_b)], rows)
found["layer_findings"]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from polysem.corpus import TokenRows
from polysem.layers import hypotheses
from polysem.layers.coactivity import Pass, corpus_pass
from polysem.layers.ends import Ends, final_norm, linked, logit_columns, norm_before, summed, why_not
from polysem.layers.influence import natural_influence, pushed_later
from polysem.layers.weights import LIFT_EDGES, WEIGHT_EDGES, joint_histogram, virtual_weights
from polysem.layers.worth import (
    Helpful,
    Readings,
    effectiveness,
    helpful_features,
    readings,
    token_weights,
    token_worth,
)
from polysem.models.base import WhiteBoxModel
from polysem.progress import SILENT, Reporter
from polysem.seeds import rng_for
from polysem.side_effects.directions import Direction
from polysem.side_effects.measures import jackknife
from polysem.side_effects.push import Pushed, Readout, push

RARE, DENSE = 2e-3, 0.2
"""shares of tokens between which features are judged"""
LISTED = 20
"""edges that are listed of each kind, besides those whose help is measured"""
TOKENS, TOKEN_SOURCES = 5, 40
"""edges to tokens of each source, and sources that are shown with them"""
STEERED_AT = 24
"""tokens of a prompt of X2's pushes, at whose end they are given"""
DOSES = (0.01, 0.1, 0.5)
"""nats of X2's pushes"""
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class LayersPlan:
    """How much is measured of every two dictionaries."""

    n_sources: int = 100
    """features, drawn among those that fire on 0.2 to 20 % of tokens"""
    n_prompts: int = 24
    """rows of text on which they are pushed"""
    n_events: int = 12
    """positions of each source at which its contribution is taken away, and of each edge"""
    n_edges: int = 60
    """edges whose help is measured"""
    n_steered: int = 40
    """sources that are steered at doses; 0: none"""
    steered_prompts: int = 8
    n_null: int = 8
    """isotropic pushes"""


@dataclass(frozen=True)
class Glosses:
    """What features are called, by label and number, and how alike the glosses are."""

    texts: Mapping[str, Sequence[str | None]]
    embeddings: Mapping[str, Float[np.ndarray, "_n _d"]]
    """unit rows, zero without a gloss"""

    def similarity(
        self, source: str, target: str, i: Sequence[int], j: Int[np.ndarray, " k"]
    ) -> Float[np.ndarray, "m k"] | None:
        """Cosines of some features, NaN where a gloss is missing; None where widths differ or nothing is known."""
        a, b = self.embeddings.get(source), self.embeddings.get(target)
        if a is None or b is None or a.shape[1] != b.shape[1]:
            return None
        a, b = a[i].astype(np.float64), b[j].astype(np.float64)
        found = a @ b.T
        found[~a.any(1)] = np.nan
        found[:, ~b.any(1)] = np.nan
        return found

    def text(self, label: str, feature: int) -> str | None:
        """The gloss of a feature."""
        known = self.texts.get(label)
        return known[feature] if known is not None and feature < len(known) else None


def across(
    model: WhiteBoxModel,
    source: Ends,
    others: Sequence[Ends],
    rows: TokenRows,
    *,
    plan: LayersPlan | None = None,
    glosses: Glosses | None = None,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> dict[str, Rows]:
    """Rows of the tables of the stage, of one source and all dictionaries that it may write to.

    Args:
        source: the dictionary that writes.
        others: dictionaries that may read it; those that cannot get a row that says why.
        rows: text of equal length, the corpus of co-firing and of all events.
        plan: how much is measured.
        glosses: of the features; without them X3 has no number.

    Raises:
        NumericsError: of model and dictionaries.
    """
    plan = plan or LayersPlan()
    found: dict[str, Rows] = {
        name: []
        for name in ("layer_blocks", "layer_density", "layer_edges", "layer_tokens", "layer_findings")
    }
    targets = [one for one in others if linked(source, one)]
    for one in others:
        if one not in targets and one.label != source.label:
            found["layer_blocks"].append(_unlinked(source, one))
    norms = {
        f"before {one.label}": norm for one in targets if (norm := norm_before(model, one.reads)) is not None
    }
    last = final_norm(model)
    seen = corpus_pass(
        model, rows, [source, *targets], norms | ({"final": last} if last else {}), reporter=reporter
    )
    columns = logit_columns(model, seen.scales.get("final"))
    jobs = [
        _TwoEnds(model, source, one, seen, plan, glosses or Glosses({}, {}), seed, reporter)
        for one in targets
    ]
    direct = _token_edges(seen, source, columns, seed)
    ids = sorted({token for tokens, _ in direct.values() for token in tokens.tolist()})
    read = readings(
        model, seen, [(job.target, job.targets) for job in jobs], columns, tokens=ids,
        rng=rng_for(seed, "layers", source.label, "readings"), reporter=reporter,
    )  # fmt: skip
    found["layer_tokens"] += _token_rows(model, seen, read, source, direct, ids)
    for job in jobs:
        for name, more in job.rows(read).items():
            found[name] += more
    return found


def _unlinked(source: Ends, target: Ends) -> dict[str, Any]:
    return {
        "source": source.label, "target": target.label, "writes": str(source.first), "reads": str(target.reads),
        "norm": "-", "n_tokens": 0, "n_i": 0, "n_j": 0, "n_strong": 0, "why": why_not(source, target),
    }  # fmt: skip


class _TwoEnds:
    """One source and one target."""

    def __init__(
        self,
        model: WhiteBoxModel,
        source: Ends,
        target: Ends,
        seen: Pass,
        plan: LayersPlan,
        glosses: Glosses,
        seed: int,
        reporter: Reporter,
    ):
        self.model, self.source, self.target, self.seen = model, source, target, seen
        self.plan, self.glosses, self.seed, self.reporter = plan, glosses, seed, reporter
        self.weights = virtual_weights(source, target, seen.scales.get(f"before {target.label}"))
        self.all = seen.between(source.label, target.label)
        usual_i, usual_j = (
            np.flatnonzero((f > RARE * self.all.n_tokens) & (f < DENSE * self.all.n_tokens))
            for f in (self.all.fires_i, self.all.fires_j)
        )
        self.sources = np.sort(self._rng("sources").permutation(usual_i)[: plan.n_sources]).tolist()
        self.targets: Int[np.ndarray, " n"] = usual_j

    def _rng(self, what: str) -> np.random.Generator:
        return rng_for(self.seed, "layers", self.source.label, self.target.label, what)

    def rows(self, read: Readings) -> dict[str, Rows]:
        """All tables but that of tokens."""
        block, density = self._block()
        made = {"layer_blocks": [block], "layer_density": density, "layer_edges": [], "layer_findings": []}
        if len(self.sources) < 2 or len(self.targets) < 2:
            return made
        findings, edges = self._judged(read)
        ends = {"source": self.source.label, "target": self.target.label}
        return made | {
            "layer_findings": [ends | row for row in findings],
            "layer_edges": [ends | row for row in edges],
        }

    def _block(self) -> tuple[dict[str, Any], Rows]:
        found = joint_histogram(self.weights, self.all)
        counts, n_pairs = found.counts, int(found.counts.sum())
        least, i, j = self.weights.strong()
        live_i, live_j = self.all.fires_i > 0, self.all.fires_j > 0
        live = live_i[i] & live_j[j]
        i, j = i[live], j[live]
        ends = {"source": self.source.label, "target": self.target.label}
        block = {
            **ends, "writes": str(self.source.first), "reads": str(self.target.reads), "norm": self.weights.norm,
            "n_tokens": self.all.n_tokens, "n_i": int(live_i.sum()), "n_j": int(live_j.sum()), "rms": found.rms,
            "strong_cosine": least, "n_strong": len(i),
            "strong_never": float((self.all.both_of(i, j) == 0).mean()) if len(i) else None,
            "never": float(counts[:, 0].sum() / n_pairs) if n_pairs else None,
            "top_never": found.top_never if n_pairs else None,
        }  # fmt: skip
        density = [
            {
                **ends, "weight_low": WEIGHT_EDGES[w], "weight_high": WEIGHT_EDGES[w + 1], "lift_bin": k,
                "lift_low": None if k == 0 else LIFT_EDGES[k - 1],
                "lift_high": None if k == 0 or not np.isfinite(LIFT_EDGES[k]) else LIFT_EDGES[k],
                "n_pairs": int(counts[w, k]),
            }
            for w, k in np.argwhere(counts > 0).tolist()
        ]  # fmt: skip
        return block, density

    def _judged(self, read: Readings) -> tuple[Rows, Rows]:
        s, t, plan = self.sources, self.targets, self.plan
        weight = self.weights.of(np.asarray(s), t)
        length = self.weights.rows[s].double().norm(dim=1).numpy()[:, None]
        told_by = self.seen.between(self.source.label, self.target.label, half=0)
        era, twera = told_by.era(weight, s, t), told_by.twera(weight, s, t)
        cofire = told_by.both(s, t)
        cosine = weight / length / self.weights.columns[t].double().norm(dim=1).numpy()
        decoders = self._decoders(s, t)
        tokens = torch.from_numpy(self.seen.rows.tokens[: plan.n_prompts].astype(np.int64)).to(
            self.model.spec.device
        )
        ends = (self.model, self.seen, self.source, self.target)
        pushed = pushed_later(
            self.model, tokens, self.source, self.target, sources=s, targets=t, reporter=self.reporter
        )
        lost = natural_influence(
            *ends,
            sources=s,
            targets=t,
            half=1,
            n_events=plan.n_events,
            rng=self._rng("events"),
            reporter=self.reporter,
        )
        beside = {} if decoders is None else {"decoder cosine": decoders}
        findings = hypotheses.pushes(pushed, {"weight": weight / length, "cosine": cosine, **beside})
        cells = hypotheses.density_cells(self.all, self.weights.columns[t].norm(dim=1).numpy(), t)
        told = {"weight": weight, "ERA": era, "TWERA": twera, "co-firing": cofire, "cosine": cosine, **beside}
        findings += hypotheses.natural(lost, told, cells=cells, rng=self._rng("chance"))
        worth = effectiveness(self.seen, read, self.source, self.target, self.weights, sources=s, targets=t)
        findings += self._steered(s[: plan.n_steered]) if plan.n_steered else []
        chosen = self._chosen(worth.nats, weight)
        places = list(chosen)
        edges = [(s[a], int(t[b])) for a, b in places]
        helped = helpful_features(
            self.model, self.seen, read, self.source, self.target, self.weights, edges=edges,
            n_events=plan.n_events, rng=self._rng("edges"), reporter=self.reporter,
        )  # fmt: skip
        findings += hypotheses.harmful(
            helped, np.array([worth.nats[p] for p in places]), rng=self._rng("signs")
        )
        natural = lost.mean(np.arange(len(lost.source)), len(s))
        for why, order in (("era", np.abs(np.nan_to_num(era))), ("natural", np.abs(np.nan_to_num(natural)))):
            for flat in np.argsort(-order, axis=None, kind="stable")[:LISTED].tolist():
                place = divmod(flat, len(t))
                chosen[place] = f"{chosen[place]}+{why}" if place in chosen else why
        measured = {
            "weight": weight, "cosine": cosine, "era": self.all.era(weight, s, t), "lift": self.all.lift(s, t),
            "twera": self.all.twera(weight, s, t), "co_tokens": self.all.both(s, t).astype(np.int64), "effectiveness": worth.nats, "acts": worth.acts,
            "pushed": pushed.same.mean(1), "natural": natural,
        }  # fmt: skip
        return findings, [self._edge(place, why, measured, helped, places) for place, why in chosen.items()]

    def _edge(
        self,
        place: tuple[int, int],
        why: str,
        measured: Mapping[str, np.ndarray],
        helped: Helpful,
        places: Sequence[tuple[int, int]],
    ) -> dict[str, Any]:
        """A row of LAYER_EDGES."""
        i, j = self.sources[place[0]], int(self.targets[place[1]])
        k = places.index(place) if place in places else -1
        one = hypotheses.edge_interval(helped, k)
        return {
            "i": i, "j": j, "chosen": why, "gloss_i": self.glosses.text(self.source.label, i),
            "gloss_j": self.glosses.text(self.target.label, j),
            "weight_raw": float(self.weights.unfolded(np.array([i]), np.array([j]))[0]),
            **one.columns("saved"), "n_events": int((helped.edge == k).sum()),
            **{name: values[place].item() for name, values in measured.items()},
        }  # fmt: skip

    def _decoders(self, s: Sequence[int], t: Int[np.ndarray, " n"]) -> np.ndarray | None:
        """Cosines of what both write, where they write one width."""
        own, theirs = self.weights.rows[s].double(), summed(self.target.rows, torch.from_numpy(t)).double()
        if theirs.shape[1] != own.shape[1]:
            return None
        a, b = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-12) for x in (own, theirs))
        return (a @ b.T).numpy()

    def _chosen(self, nats: np.ndarray, weight: np.ndarray) -> dict[tuple[int, int], str]:
        """Edges whose help is measured, a third each: most effective, moderate ones, largest weights below chance."""
        n = self.plan.n_edges // 3
        positive = np.argwhere(nats > 0)
        order = positive[np.argsort(-nats[tuple(positive.T)], kind="stable")]
        middle = order[len(order) // 20 : len(order) // 2]
        drawn = middle[np.sort(self._rng("moderate").permutation(len(middle))[:n])]
        low = np.nan_to_num(self.all.lift(self.sources, self.targets)) < hypotheses.BELOW
        apart = np.argsort(-np.abs(np.where(low, weight, 0.0)), axis=None, kind="stable")[:n]
        found: dict[tuple[int, int], str] = {}
        kinds = (
            ("effectiveness", order[:n]),
            ("moderate", drawn),
            ("weight", np.column_stack(np.unravel_index(apart, weight.shape))),
        )
        for why, places in kinds:
            for a, b in places.tolist():
                found.setdefault((a, b), why)
        return found

    def _steered(self, sources: Sequence[int]) -> Rows:
        """X2 and X3."""
        live = np.flatnonzero(self.all.fires_j > 0)
        site, *also = self.source.order
        rows_of = torch.cat([self.source.rows[one] for one in (site, *also)], 1).double().numpy()
        prompts = [r[:STEERED_AT].tolist() for r in self.seen.rows.tokens[: self.plan.steered_prompts]]
        readout = Readout(self.target.label, self.target.encoder, 0.0)
        directions = [
            Direction(f"feature {i}", "feature", site, rows_of[i], also=tuple(also)) for i in sources
        ]
        rng = self._rng("isotropic")
        random = [
            Direction(
                f"isotropic {k}", "isotropic", site, rng.standard_normal(rows_of.shape[1]), also=tuple(also)
            )
            for k in range(self.plan.n_null)
        ]
        similarity = self.glosses.similarity(self.source.label, self.target.label, sources, live)
        unit = self.weights.of(sources, live)
        found: Rows = []
        for dose in DOSES:
            made = push(
                self.model, prompts, [*directions, *random], sets=[[0]], dose=dose, positions="last", readout=readout,
                reporter=self.reporter,
            )  # fmt: skip
            size: np.ndarray = _moved(made)[:, live]
            moved, isotropic = size[: len(sources)], size[len(sources) :]
            found += hypotheses.steering(
                moved, isotropic, self.all, sources=sources, dose=dose, rng=self._rng("like")
            )
            if similarity is not None:
                found += hypotheses.unlike(moved, unit, similarity, dose=dose)
        return found


def _moved(made: Pushed) -> Float[np.ndarray, "n d"]:
    """Mean size of the change of every feature over the prompts on which the dose was reached; NaN without any."""
    good = np.asarray(np.isfinite(made.latents).all(2))
    total = np.where(good[:, :, None], np.abs(made.latents), 0.0).sum(1)
    times = good.sum(1)[:, None]
    return np.divide(total, times, out=np.full_like(total, np.nan), where=times > 0)


def _token_edges(
    seen: Pass, source: Ends, columns: torch.Tensor, seed: int
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """The largest edges to tokens of some sources."""
    fires = np.bincount(seen.active[source.label].feature, minlength=source.encoder.d_sae) / max(
        1, int(seen.counted.sum())
    )
    usual = np.flatnonzero((fires > RARE) & (fires < DENSE))
    rng = rng_for(seed, "layers", source.label, "token edges")
    chosen = np.sort(rng.permutation(usual)[:TOKEN_SOURCES]).tolist()
    return {i: token_weights(source, i, columns, TOKENS) for i in chosen}


def _token_rows(
    model: WhiteBoxModel,
    seen: Pass,
    read: Readings,
    source: Ends,
    direct: Mapping[int, tuple[np.ndarray, np.ndarray]],
    ids: Sequence[int],
) -> Rows:
    found: Rows = []
    for i, (tokens, weight) in direct.items():
        p = read.p[:, np.searchsorted(ids, tokens)]
        nats, saved, documents = token_worth(seen, read, source, i, tokens=tokens, weight=weight, p=p)
        known, back = np.unique(documents, return_inverse=True)
        strings = model.token_strings(tokens.tolist())
        for k, token in enumerate(tokens.tolist()):
            one = jackknife(
                lambda some, k=k, saved=saved, back=back: float(saved[np.isin(back, some), k].mean()),
                np.arange(len(known)),
            )
            found.append(
                {
                    "source": source.label, "i": i, "token": token, "token_str": strings[k], "weight": float(weight[k]),
                    "effectiveness": float(nats[k]), **one.columns("saved"), "n_events": len(saved),
                }
            )  # fmt: skip
    return found
