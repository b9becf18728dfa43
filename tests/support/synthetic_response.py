"""Tables of the stage `response` for a synthetic study: a gradient that knows the effects, and what rests on it."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from polysem.seeds import rng_for
from polysem.store import tables as t

if TYPE_CHECKING:
    from support.synthetic import SyntheticStudy

Rows = list[dict[str, Any]]


def response_tables(world: "SyntheticStudy", pairs: pa.Table) -> dict[str, pa.Table]:
    """A gradient that sees every effect but for a tenth of its spread, and a decomposition by the planted law."""
    rng = rng_for(world.seed, "synthetic", "response")
    features = [r for r in pairs.to_pylist() if r["relation"] != "random_direction"]
    spread = 0.1 * float(np.std([r["logodds"] for r in features]))
    rows: dict[str, Rows] = {schema.name: [] for schema in t.STAGES["response"]}
    for r in features:
        linear = r["logodds"] + spread * rng.standard_normal()
        key = {name: r[name] for name in ("sae", "target", "source", "token_set", "dose")}
        more = {name: r[name] for name in ("locus", "relation", "draw", "n_prompts")}
        rows["response"].append(key | more | {"linear": linear, "linear_direct": 0.4 * linear})
        if r["relation"] == "pair":
            along = {"total": r["logodds"], "linear": linear, "path": r["logodds"], "n_prompts": 2}
            rows["gradient_path"].append(key | {"locus": r["locus"]} | along)
        if r["relation"] == "pair" and r["token_set"] == "in" and r["dose"] == min(world.doses):
            total, shared = r["logodds"], r["dose"] * world.slope * r["interference"]
            parts = {"total": total, "shared": shared, "common": 0.0, "own": total - shared}
            parts |= {"interaction": 0.0, "direct": 0.4 * total, "indirect": 0.6 * total}
            parts |= {"mediated": 0.3 * total, "remainder": 0.7 * total, "clean": total}
            rows["decomposition"].append(key | parts | {"n_prompts": 2})
            for name in ("centred", "enc_dec"):
                value = r["interference"] + 0.1 * rng.standard_normal()
                own = {"sae": r["sae"], "target": r["target"], "source": r["source"]}
                rows["metrics"].append(own | {"metric": name, "value": value})
    for k, label in enumerate(world.saes):
        for lo, hi in ((0.0, 1.0), (0.2, 0.4)):
            number = {"estimate": 0.2 + 0.1 * k, "lo": 0.1, "hi": 0.5, "level": 0.95, "floor": 0.13}
            count = {"rms_cosine": 0.15, "n_targets": 12, "n_sources": 200, "n_pairs": 2000}
            band = {"sae": label, "token_set": "in", "band_lo": lo, "band_hi": hi, "note": None}
            rows["compensation"].append(band | number | count)
        rows["gradient_matrix"] += _matrix(label, world.slope, rng)
    for other in world.saes[1:]:
        rows["replicated"] += _replicated(world.saes[0], other, rng)
    return {
        schema.name: schema.conform(pa.Table.from_pylist(rows[schema.name], schema=schema.arrow()))
        for schema in t.STAGES["response"]
    }


def dictionaries_tables(world: Any) -> dict[str, pa.Table]:
    """Every feature of the first SAE is matched with its namesake in the others; the first five are stable."""
    n, matched, stable = world.n_features, [], []
    pairs = [{"number": k, "first": world.saes[0], "second": other} for k, other in enumerate(world.saes[1:])]
    for two in pairs:
        for f in range(n):
            size = 0.9 if f < 5 else 0.4
            matched.append(
                two | {"feature": f, "match": f, "decoder": size, "encoder": size, "stable": f < 5}
            )
    for k, label in enumerate(world.saes):
        for f in range(n):
            known = {"stability": float(f < 5), "nearest": 0.9 if f < 5 else 0.45}
            stable.append({"number": k, "sae": label, "feature": f} | known)
    two_of = {
        "n": n,
        "pw_mcc": 0.41,
        "turned": 0.2,
        "drawn": 0.25,
        "stable_first": 5 / n,
        "stable_second": 5 / n,
    }
    bins = {
        "matched": "stable",
        "low": 0.3,
        "high": 0.4,
        "n": 10,
        "same": 0.2,
        "chance": 0.1,
        "lo": 0.0,
        "hi": 0.2,
    }
    spans = {
        "group": "all",
        "n_groups": 1,
        "size": n - 5,
        "rank": 30.0,
        "shared": 0.6,
        "angle": 35.0,
        "random": 0.4,
    }
    rows = {
        "replicates": [two | two_of for two in pairs],
        "survival": [two | bins for two in pairs],
        "shared_spans": [two | spans | {"lo": 0.35, "hi": 0.45, "drawn": 0.55} for two in pairs],
        "matching": matched,
        "stability": stable,
    }
    return {schema.name: schema.of_rows(rows[schema.name]) for schema in t.STAGES["dictionaries"]}


def _matrix(label: str, slope: float, rng: np.random.Generator) -> Rows:
    """Cosines of 8 targets and 24 features, and gradients that follow them but for effects of both and noise."""
    G = 0.2 * rng.standard_normal((8, 24))
    own = 0.1 * rng.standard_normal(24)
    E = slope * G + own[:8, None] + own[None] + 0.1 * rng.standard_normal(G.shape)
    return [
        {"sae": label, "token_set": "in", "target": j, "source": i}
        | {"interference": float(G[j, i]), "linear": float(E[j, i])}
        for j, i in np.ndindex(*G.shape)
    ]


def _replicated(label: str, other: str, rng: np.random.Generator) -> Rows:
    """Pairs of 8 features whose effects in two SAEs correlate at 0.8."""
    rows: Rows = []
    for j, i in np.ndindex(8, 8):
        shared = 2 * rng.standard_normal()
        seen = [float(shared + rng.standard_normal()) for _ in range(2)]
        key = {"sae": label, "other": other, "token_set": "in", "target": j, "source": i}
        more = {"other_target": j, "other_source": i, "linear": seen[0], "other_linear": seen[1]}
        if i != j:
            more |= {"steered": seen[0] / 10, "other_steered": seen[1] / 10, "n_steered": 2}
            more |= {
                "dealt_linear": float(rng.standard_normal()),
                "dealt_steered": float(rng.standard_normal()) / 10,
            }
            more |= {"stable_target": j < 5, "stable_source": i < 5, "shared": True}
            rows.append(key | more | {"matched": 0.3, "best_cosine": 0.55, "n_prompts": 2})
    return rows
