"""A small study with planted truth: pairs whose cosine, gloss similarity and causal effect are all chosen.

Space is three orthogonal parts. Targets are orthonormal directions of part A. Part B is a block for every
target; a source of target t is c t + sqrt(1 - c^2) u with u in t's block, so its cosine with t is c and with
every other target 0. Unembedding rows of t's tokens are gain x t (plus, if asked for, a route of their own
through t's block); those of other tokens live in part C. Pushing a source of t by a thus adds
a (gain c + route . u) to all logits of t's tokens and nothing to any other: the log-odds of the target set
change by exactly that, at every strength.

The feature list also holds what must never be drawn: a dense feature, a duplicate, one without gloss and
one with a similar gloss, each at a cosine that would otherwise qualify.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float

from polysem.config import PairsConfig
from polysem.saes.base import SAE
from polysem.seeds import rng_for, short_hash
from polysem.store.tables import CLUSTERS, CONTEXTS, FEATURES, GLOSSES, PAIRS, PARTNERS, PROMPTS
from polysem.worlds.linear import SITE, LinearWorld
from polysem.worlds.tables import plain_sae

LABEL = "planted"
SIMILARITY = 0.1
"""gloss similarity of every source with its target"""
TOKENS = 3
"""tokens of a target set"""
D_B, D_C, D_EMBED = 12, 12, 160
FORBIDDEN = ("dense", "duplicate", "unglossed", "similar")
"""what each of the last features is, all of them leaning on target 0"""


@dataclass(frozen=True)
class Planted:
    """The parts of a planted study, and its truth."""

    model: LinearWorld
    sae: SAE
    features: pa.Table
    glosses: pa.Table
    contexts: pa.Table
    clusters: pa.Table
    embeddings: dict[str, np.ndarray]
    prompts: pa.Table
    targets: list[int]
    forbidden: dict[str, int]
    cosine: dict[tuple[int, int], float] = field(repr=False)
    """(target, source) -> planted cosine"""
    effect: Float[np.ndarray, "n_targets d_sae"] = field(repr=False)
    """change in the log-odds of a target's tokens per unit of each feature's unit direction"""

    @property
    def saes(self) -> dict[str, SAE]:
        return {LABEL: self.sae}


def planted_study(
    *,
    cosines: tuple[float, ...] = (0.05, 0.15, 0.25, 0.35, 0.5),
    n_targets: int = 4,
    n_plain: int = 60,
    gain: float = 4.0,
    route: float = 0.0,
    n_prompts: int = 6,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Planted:
    """A planted study.

    Args:
        cosines: of the sources that every target gets.
        n_targets: targets, at most 20.
        n_plain: further features in part B, orthogonal to all targets: what random controls are drawn from.
        gain: logits per unit of activation along a target's direction, for its tokens.
        route: standard deviation, over sources, of the effect that is no part of the cosine (in logits per unit).
        n_prompts: prompts, half of each split.
        seed: of everything random.
        dtype: of the model.
    """
    rng = rng_for(seed, "planted")
    d = n_targets + n_targets * D_B + D_C
    t = np.eye(d)[:n_targets]
    leaning = [(k, c) for k in range(n_targets) for c in cosines]
    extra = [(0, 0.35), (0, 0.9), (0, 0.35), (0, 0.35)]
    plain = np.pad(_unit(rng.standard_normal((n_plain, n_targets * D_B))), ((0, 0), (n_targets, D_C)))
    sources = np.zeros((len(leaning + extra), d))
    for row, (k, cosine) in zip(sources, leaning + extra, strict=True):
        row[k] = cosine
        row[_block(k, n_targets)] = np.sqrt(1 - cosine**2) * _unit(rng.standard_normal(D_B))
    n_sources = len(leaning)
    directions = np.concatenate([t, sources[:n_sources], plain, sources[n_sources:]])
    first_extra = n_targets + n_sources + n_plain
    forbidden = {name: first_extra + k for k, name in enumerate(FORBIDDEN)}
    W_dec = directions * rng.uniform(0.8, 1.2, size=(len(directions), 1))

    d_vocab = n_targets * TOKENS + len(directions) + 10
    W_U = np.zeros((d_vocab, d))
    W_U[:, -D_C:] = rng.standard_normal((d_vocab, D_C))
    for k in range(n_targets):
        mine = slice(k * TOKENS, (k + 1) * TOKENS)
        W_U[mine] = gain * t[k]
        # u is a random unit vector of the block: a vector of norm route x sqrt(D_B) gives that deviation.
        W_U[mine, _block(k, n_targets)] = route * np.sqrt(D_B) * _unit(rng.standard_normal(D_B))
    W_E = rng.standard_normal((d_vocab, d))
    return Planted(
        model=LinearWorld(torch.tensor(W_E, dtype=dtype), torch.tensor(W_U, dtype=dtype)),
        sae=plain_sae(W_dec),
        features=_features(directions, n_targets, forbidden, W_dec, rng),
        glosses=_glosses(len(directions), forbidden),
        contexts=CONTEXTS.empty(),
        clusters=CLUSTERS.empty(),
        embeddings={LABEL: _embeddings(leaning, n_targets, n_plain, rng)},
        prompts=_prompts(n_prompts, d_vocab, rng),
        targets=list(range(n_targets)),
        forbidden=forbidden,
        cosine={(k, n_targets + i): c for i, (k, c) in enumerate(leaning)},
        effect=W_U[: n_targets * TOKENS : TOKENS] @ directions.T,
    )


def _block(target: int, n_targets: int) -> slice:
    """Coordinates of a target's block in part B."""
    return slice(n_targets + target * D_B, n_targets + (target + 1) * D_B)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def _embeddings(
    leaning: list[tuple[int, float]], n_targets: int, n_plain: int, rng: np.random.Generator
) -> np.ndarray:
    """Gloss embeddings: sources at exactly SIMILARITY to their target, all else orthogonal or nearly so."""
    own = np.eye(D_EMBED)[:n_targets]
    near = [(k, SIMILARITY) for k, _ in leaning] + [(None, 0.0)] * n_plain
    near += [(0, SIMILARITY), (0, SIMILARITY), (None, None), (0, 0.8)]  # in the order of FORBIDDEN
    rows = [*own]
    for k, similarity in near:
        if similarity is None:
            rows.append(np.zeros(D_EMBED))
        else:
            along = 0.0 if k is None else similarity * own[k]
            rest = np.pad(_unit(rng.standard_normal(D_EMBED - n_targets)), (n_targets, 0))
            rows.append(along + np.sqrt(1 - similarity**2) * rest)
    return np.stack(rows).astype(np.float32)


def _features(
    directions: np.ndarray,
    n_targets: int,
    forbidden: dict[str, int],
    W_dec: np.ndarray,
    rng: np.random.Generator,
) -> pa.Table:
    rows = []
    for feature in range(len(directions)):
        if feature < n_targets:
            tokens = list(range(feature * TOKENS, (feature + 1) * TOKENS))
        else:
            tokens = [n_targets * TOKENS + feature - n_targets]
        written = tokens if feature < n_targets else []  # so that only targets can be targets
        gloss = None if feature == forbidden["unglossed"] else f"feature {feature}"
        rows.append(
            {
                "sae": LABEL,
                "feature": feature,
                "site": str(SITE),
                "density": 0.5 if feature == forbidden["dense"] else float(rng.uniform(1e-3, 2e-2)),
                "n_active": 100,
                "max_act": 1.0,
                "tokens_in": tokens,
                "tokens_in_str": [f" {i}" for i in tokens],
                "tokens_in_act": [1.0] * len(tokens),
                "tokens_out": written,
                "tokens_out_str": [f" {i}" for i in written],
                "tokens_out_logit": [1.0] * len(written),
                "tokens_bottom_str": [],
                "dec_norm": float(np.linalg.norm(W_dec[feature])),
                "neuron_alignment": [0, 1, 2],
                "neuron_alignment_values": [0.0, 0.0, 0.0],
                "gloss": gloss,
                "gloss_source": None if gloss is None else "planted",
                "n_glosses": 0 if gloss is None else 1,
            }
        )
    return FEATURES.conform(pa.Table.from_pylist(rows, schema=FEATURES.arrow()))


def _glosses(d_sae: int, forbidden: dict[str, int]) -> pa.Table:
    rows = [
        {
            "sae": LABEL,
            "feature": f,
            "gloss_index": 0,
            "text": f"feature {f}",
            "source": "planted",
            "explainer": None,
        }
        for f in range(d_sae)
        if f != forbidden["unglossed"]
    ]
    return GLOSSES.conform(pa.Table.from_pylist(rows, schema=GLOSSES.arrow()))


def _prompts(n: int, d_vocab: int, rng: np.random.Generator) -> pa.Table:
    rows = []
    for k in range(n):
        ids = [0, *rng.integers(1, d_vocab, size=int(rng.integers(3, 7))).tolist()]
        text = " ".join(map(str, ids[1:]))
        split = "select" if k % 2 else "confirm"
        rows.append(
            {
                "prompt_id": short_hash(text),
                "text": text,
                "token_ids": ids,
                "source": f"planted {k}",
                "split": split,
            }
        )
    return PROMPTS.conform(pa.Table.from_pylist(rows, schema=PROMPTS.arrow()))


def brute_pairs(planted: Planted, config: PairsConfig) -> dict[str, pa.Table]:
    """PAIRS and PARTNERS by loops over all pairs, in float64."""
    W = planted.sae.W_dec.double().numpy()
    W = W / np.linalg.norm(W, axis=1, keepdims=True)
    E = planted.embeddings[LABEL].astype(np.float64)
    rows = {r["feature"]: r for r in planted.features.to_pylist()}
    pairs: list[dict[str, object]] = []
    counts: dict[tuple[int, int], int] = {}
    for i, j in itertools.combinations(range(len(W)), 2):
        if rows[i]["gloss"] is None or rows[j]["gloss"] is None:
            continue
        cosine, gloss = float(W[i] @ W[j]), float(E[i] @ E[j] / np.sqrt((E[i] @ E[i]) * (E[j] @ E[j])))
        index = int(np.searchsorted(config.bins, cosine, side="right")) - 1
        index = index if 0 <= index < len(config.bins) - 1 else -1
        a, b = set(rows[i]["tokens_in"]), set(rows[j]["tokens_in"])
        if gloss < config.max_similarity and index >= 0:
            for feature in (i, j):
                counts[feature, index] = counts.get((feature, index), 0) + 1
        if abs(cosine) >= config.min_interference and gloss < config.max_similarity:
            filled = dict.fromkeys([c.name for c in PAIRS.columns], 0.0)
            pairs.append(
                filled
                | {"sae": LABEL, "sae_j": LABEL, "i": i, "j": j, "interference": cosine, "similarity": gloss}
                | {"interference_bin": index, "is_dense": max(rows[i]["density"], rows[j]["density"]) > 0.1}
                | {"is_duplicate": abs(cosine) > 0.7 or len(a & b) / len(a | b) > 0.2}
            )
    partners = [
        {
            "sae": LABEL,
            "sae_j": LABEL,
            "feature": f,
            "max_similarity": config.max_similarity,
            "interference_bin": b,
            "count": n,
        }
        for (f, b), n in counts.items()
    ]
    return {
        "pairs": PAIRS.conform(pa.Table.from_pylist(pairs, schema=PAIRS.arrow())),
        "partners": PARTNERS.conform(pa.Table.from_pylist(partners, schema=PARTNERS.arrow())),
    }
