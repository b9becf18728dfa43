"""Take latents out of a TopK dictionary that are active on no held-out token: they cost space and do nothing.

    python prune.py --model FOLDER --tokens held_out.npy --weights NAME.safetensors --out PRUNED.safetensors

What is left reconstructs every one of these tokens as before.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from polysem.models import load_model
from polysem.types import Site


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--site", default="blocks.9.hook_resid_post")
    parser.add_argument("--tokens", type=Path, required=True, help="[rows, context] with BOS in front")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--k", type=int, default=48)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model, site = load_model(args.model, dtype="bfloat16"), Site.parse(args.site)
    weights = load_file(args.weights)
    W, b = weights["W_enc"].float(), weights["b_enc"].float()
    active = torch.zeros(len(b), dtype=torch.bool)
    for rows in np.array_split(np.load(args.tokens).astype(np.int64), 100):
        x = model.capture(torch.from_numpy(rows), [site])[site][:, 1:].flatten(0, 1)
        values, chosen = (x @ W + b).topk(args.k, dim=1)
        active[chosen[values > 0]] = True
    kept = {
        "W_enc": weights["W_enc"][:, active],
        "b_enc": weights["b_enc"][active],
        "W_dec": weights["W_dec"][active],
    }
    save_file({**weights, **{n: t.contiguous() for n, t in kept.items()}}, args.out)
    print(f"{int(active.sum())} of {len(b)} latents kept")


if __name__ == "__main__":
    main()
