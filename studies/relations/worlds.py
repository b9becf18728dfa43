"""What `polysem relations` finds where every relation is known: planted trees and flat worlds.

    python studies/relations/worlds.py [--out measured.json]

Worlds 0 to 2 were looked at while the rules were made (and 11 to 18, on the way); 31 to 38 were not. No rule is to be changed for what is found in either.
Three flat worlds of each number: `flat tree`, 120 independent features, every two at a cosine of 0.45, read by the dual basis; `codes`,
128 in 200 dimensions, 24 planted pairs, read by the dual basis; `superposed`, 128 in 64 dimensions, read by the transpose of what is
written. A minute of one core.
"""

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polysem.hierarchy.relations import LEAST, Kinship, relations_of
from polysem.saes.base import SAE
from polysem.worlds.codes import codes_world
from polysem.worlds.tree import planted_sae, tree_world

DEVELOPMENT, FRESH, TOKENS = (0, 1, 2), tuple(range(31, 39)), 30_000
KINDS = ("parent", "split", "absorbed", "duplicate", "antipodal", "hedge")
BIAS = -0.3
"""of the encoder that reads by the transpose: less than any magnitude, more than most of what leaks"""


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("measured.json"))
    out = parser.parse_args().out
    torch.set_num_threads(1)
    made = [
        {"world": world, "drawn": drawn} | told
        for drawn, worlds in (("development", DEVELOPMENT), ("fresh", FRESH))
        for world in worlds
        for told in (tree(world), *flat(world))
    ]
    out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def tree(world: int) -> dict[str, object]:
    """Pairs planted, found and both, by relation; the rate of each feature that is absorbed."""
    planted = tree_world(seed=world)
    x, _ = planted.sample(TOKENS, seed=world)
    made = relations_of(planted.wide, x, label="wide", narrow=[planted.narrow])
    counts = {}
    for kind in KINDS:
        true, found = getattr(planted.truth, kind), _found(made, kind)
        counts[kind] = {"planted": len(true), "found": len(found), "both": len(true & found)}
    above = {a for a, _ in planted.truth.absorbed}
    asked = made.absorption.to_pylist()
    rates = [round(r["rate"], 4) for r in asked if r["feature"] in above and r["trusted"]]
    others = [r["rate"] for r in asked if r["feature"] not in above and r["trusted"]]
    return {
        "kind": "tree", "relations": counts, "absorption_planted": planted.truth.absorption, "absorption": rates,
        "absorption_others": round(float(np.mean(others)), 4), "same_tokens": len(_found(made, "same_tokens")),
    }  # fmt: skip


def flat(world: int) -> list[dict[str, object]]:
    """Pairs that are given a relation where none has one."""
    alone = tree_world(roots=0, absorbed=0, wholes=0, twice=0, signed=0, mixes=0, flat=120, seed=world)
    some = [("flat tree", alone.wide, alone.sample(TOKENS, seed=world)[0])]
    for name, d in (("codes", 200), ("superposed", 64)):
        codes = codes_world(n_features=128, d=d, n_pairs=24, seed=world)
        rows = codes.truth.directions
        sae = planted_sae(rows, np.linalg.pinv(rows).T)
        if name == "superposed":
            sae = replace(codes.sae, b_enc=torch.full((len(rows),), BIAS))
        some.append((name, sae, codes.sample(TOKENS, torch.Generator().manual_seed(world))[0].numpy()))
    return [{"kind": name} | _false(sae, x) for name, sae, x in some]


def _false(sae: SAE, x: np.ndarray) -> dict[str, object]:
    made = relations_of(sae, x, label="flat").relations.to_pylist()
    close = [r for r in made if abs(r["interference"]) >= LEAST]
    return {
        "pairs": sae.d_sae * (sae.d_sae - 1) // 2, "close": len(close),
        **{f"{name}related": _counts(some) for name, some in (("", made), ("close_", close))},
    }  # fmt: skip


def _counts(rows: list[dict[str, Any]]) -> dict[str, int]:
    kinds = Counter(r["relation"] for r in rows if r["relation"] != "unrelated")
    return dict(sorted(kinds.items()))


def _found(made: Kinship, kind: str) -> set[tuple[int, int]]:
    rows = (r for r in made.relations.to_pylist() if r["relation"] == kind)
    return {
        (r["i"], r["j"]) if r["above"] is None else (r["above"], r["i"] + r["j"] - r["above"]) for r in rows
    }


if __name__ == "__main__":
    main()
