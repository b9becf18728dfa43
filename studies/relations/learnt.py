"""Dictionaries learnt on a planted tree and on a flat world, by architecture: who absorbs, and what `polysem relations` says of it.

    python studies/relations/learnt.py [--out learnt.json]

The truth of the text is known, the dictionaries are not planted: sae-lens trains each. A latent is a feature's if the one-to-one matching gives
it and their cosine is above 0.7. Of a feature of the first level, the truth about absorption is the share of the tokens on which it is present
where its latent is off and a latent that leans towards it (cosine above 0.2) is on. Worlds up to 25 were looked at while the rules were made, 26 and up were not.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from polysem.hierarchy.absorption import NEAR
from polysem.hierarchy.relations import LEAST, relations_of
from polysem.saes import load_sae
from polysem.saes.base import SAE
from polysem.worlds.codes import MATCHED, codes_world
from polysem.worlds.training import BATCH, train_with_sae_lens
from polysem.worlds.tree import TreeWorld, tree_world

WORLDS, TOKENS, STEPS, WIDTH = (26, 27, 28), 30_000, 1_000, 128
ARMS = {"relu_l1": 0.1, "topk_auxk": 2, "batchtopk": 2, "matryoshka": 2}
"""architecture -> penalty, or active latents: a little fewer than the 2.2 features of the tree that are present on a token"""
FLAT = {"relu_l1": 0.1, "topk_auxk": 4, "batchtopk": 4, "matryoshka": 4}
"""of the flat world: 4 are"""


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("learnt.json"))
    out = parser.parse_args().out
    torch.set_num_threads(1)
    made = []
    for world in WORLDS:
        for name in ARMS:
            for told in (tree(world, name), flat(world, name)):
                made.append({"world": world, "architecture": name} | told)
        out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def tree(world: int, architecture: str) -> dict[str, object]:
    """Pairs of a tree of three levels and the rate of absorption, found and true."""
    planted = tree_world(absorbed=0, wholes=0, twice=0, signed=0, mixes=0, seed=world)

    def batches() -> Iterator[torch.Tensor]:
        n = 0
        while True:
            n += 1
            x = planted.sample(BATCH * 16, seed=1_000_000 * (world + 1) + n)[0]
            yield from torch.from_numpy(x).split(BATCH)

    sae = _trained(architecture, ARMS[architecture], batches(), d=planted.directions.shape[1], seed=world)
    x, codes = planted.sample(TOKENS, seed=world)
    made = relations_of(sae, x, label=architecture)
    latent = _latents(sae, planted.directions)
    feature = {own: f for f, own in latent.items()}
    above = _above(planted)
    known = {(latent[a], latent[b]) for a, b in above if a in latent and b in latent}
    rows = made.relations.to_pylist()
    pairs = {
        (r["above"], r["i"] + r["j"] - r["above"]): r["relation"]
        for r in rows
        if r["relation"] in ("parent", "absorbed") and r["i"] in feature and r["j"] in feature
    }
    parents = {p for p, kind in pairs.items() if kind == "parent"}
    active = sae.encode(torch.from_numpy(x)).numpy() > 0
    covers = {(a, b) for a, b in known if active[codes[:, feature[b]] > 0, a].mean() >= 0.9}
    units = sae.W_dec.numpy() / np.linalg.norm(sae.W_dec.numpy(), axis=1, keepdims=True)
    told = {r["feature"]: r["rate"] for r in made.absorption.to_pylist() if r["trusted"]}
    roots = sorted({a for a, _ in above} - {b for _, b in above})
    rates = []
    for root in (r for r in roots if r in latent):
        own, on = latent[root], codes[:, root] > 0
        leans = units @ planted.directions[root] > NEAR
        leans[own] = False
        true = float((~active[on, own] & active[on][:, leans].any(axis=1)).mean())
        rates.append({"true": round(true, 4), "found": round(told[own], 4) if own in told else None})
    return {
        "kind": "tree", "matched": len(latent), "features": len(planted.directions), "l0": float(active.sum(1).mean()),
        "pairs_known": len(known), "pairs_covering": len(covers), "parents_found": len(parents),
        "parents_right": len(parents & known), "parents_right_of_covering": len(parents & covers),
        "absorbed_found": sum(kind == "absorbed" for kind in pairs.values()),
        "absorbed_right": sum(kind == "absorbed" and p in known for p, kind in pairs.items()),
        "roots": len(roots), "absorption": rates,
    }  # fmt: skip


def flat(world: int, architecture: str) -> dict[str, object]:
    """Pairs that are given a relation among latents of features that have none: 128 in 64 dimensions."""
    planted = codes_world(n_features=WIDTH, d=64, n_pairs=24, seed=world)
    generator = torch.Generator().manual_seed(1_000_000 * (world + 1))

    def batches() -> Iterator[torch.Tensor]:
        while True:
            yield planted.sample(BATCH, generator)[0]

    sae = _trained(architecture, FLAT[architecture], batches(), d=64, seed=world)
    x = planted.sample(TOKENS, torch.Generator().manual_seed(world))[0]
    made = relations_of(sae, x.numpy(), label=architecture).relations.to_pylist()
    owned = set(_latents(sae, planted.truth.directions).values())
    close = [r for r in made if abs(r["interference"]) >= LEAST and r["i"] in owned and r["j"] in owned]
    active = sae.encode(x) > 0
    return {
        "kind": "flat", "matched": len(owned), "features": WIDTH, "l0": float(active.sum(1).float().mean()), "close": len(close),
        "related": dict(sorted(Counter(r["relation"] for r in close if r["relation"] != "unrelated").items())),
    }  # fmt: skip


def _trained(architecture: str, sparsity: float, data: Iterator[torch.Tensor], *, d: int, seed: int) -> SAE:
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = train_with_sae_lens(
            architecture, data, folder=Path(folder) / "sae", d_in=d, d_sae=WIDTH, steps=STEPS, sparsity=sparsity, tied=True,
            auxiliary=1.0,
        )  # fmt: skip
        return load_sae(str(path))


def _latents(sae: SAE, directions: np.ndarray) -> dict[int, int]:
    """feature -> its latent, of those that have one."""
    rows = sae.W_dec.numpy()
    cosines = directions @ (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).T
    feature, latent = linear_sum_assignment(-cosines)
    good = cosines[feature, latent] > MATCHED
    return dict(zip(feature[good].tolist(), latent[good].tolist(), strict=True))


def _above(planted: TreeWorld) -> set[tuple[int, int]]:
    below = {feature: others for feature, others, _ in planted.kin}
    above = {(a, b) for a, some in below.items() for b in some}
    return above | {(a, c) for a, b in above for c in below.get(b, ())}


if __name__ == "__main__":
    main()
