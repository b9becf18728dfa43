"""How much of a model's prediction a dictionary keeps: cross-entropy with its reconstruction put in.

    python evaluate.py --root ../src/polysem_zoo_real --model smollm2=FOLDER --tokens smollm2=held_out.npy

Writes into every card: `ce` (nats a token, plain), `ce_reconstructed` (the site replaced by the reconstruction,
position 0 left as it is), `ce_ablated` (replaced by its mean) and `ce_recovered` = (ablated - reconstructed) /
(ablated - plain), on `n_ce` held-out tokens; and FVU, L0 and silent latents measured here again, in float32.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from polysem.models import load_model
from polysem.models.hooks import hooked
from polysem.types import Site


def reconstruct(
    w: dict[str, torch.Tensor], config: dict, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    pre = x @ w["W_enc"] + w["b_enc"]
    if "threshold" in w:
        acts = pre * (pre > w["threshold"])
    else:
        values, chosen = pre.topk(config["k"], dim=-1)
        acts = torch.zeros_like(pre).scatter(-1, chosen, values.relu())
    out = acts @ w["W_dec"] + w["b_dec"]
    return (out + x @ w["W_skip"].T if "W_skip" in w else out), acts


def cross_entropy(model, tokens: torch.Tensor, actions: dict) -> float:
    with torch.no_grad(), hooked(model.model, actions):
        logits = model.model(input_ids=tokens, use_cache=False).logits[:, 1:-1].float()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 2:].flatten()))


def mean_ce(model, batches, actions: dict) -> float:
    return float(np.mean([cross_entropy(model, batch, actions) for batch in batches]))


def evaluate(folder: Path, model, batches: list[torch.Tensor], plain: float) -> dict[str, float]:
    config, card = (json.loads((folder / n).read_text()) for n in ("cfg.json", "card.json"))
    w = {name: t.float() for name, t in load_file(folder / "sae_weights.safetensors").items()}
    reads, writes = Site.parse(card["reads"]), Site.parse(card["writes"])
    xs, ys = [], []
    for batch in batches:
        got = model.capture(batch, [reads, writes])
        xs.append(got[reads][:, 1:].flatten(0, 1))
        ys.append(got[writes][:, 1:].flatten(0, 1))
    x, y = torch.cat(xs), torch.cat(ys)
    out, acts = reconstruct(w, config, x)
    times = card.get("massive", 3.0)  # what those were trained with that do not say it
    limits = (times * card["read_median"], times * card["write_median"])
    ordinary = ~((x.norm(dim=1) > limits[0]) | (y.norm(dim=1) > limits[1]))
    error, mean = (y - out).pow(2).sum(dim=1), y[ordinary].mean(dim=0)
    fvu = float(error[ordinary].sum() / (y[ordinary] - mean).pow(2).sum())
    inputs: list[torch.Tensor] = []

    def remember(h: torch.Tensor) -> torch.Tensor:
        inputs[:] = [h]
        return h

    def put_in(h: torch.Tensor) -> torch.Tensor:
        source = h if reads == writes else inputs[0]
        return torch.cat([h[:, :1], reconstruct(w, config, source[:, 1:])[0].to(h.dtype)], dim=1)

    def ablate(h: torch.Tensor) -> torch.Tensor:
        return torch.cat([h[:, :1], mean.to(h.dtype).expand_as(h[:, 1:])], dim=1)

    actions = {model.tap(writes): [put_in]}
    if reads != writes:
        actions = {model.tap(reads): [remember], **actions}
    with_it, without = (
        mean_ce(model, batches, actions),
        mean_ce(model, batches, {model.tap(writes): [ablate]}),
    )
    return {
        "ce": plain, "ce_reconstructed": with_it, "ce_ablated": without,
        "ce_recovered": (without - with_it) / (without - plain), "n_ce": len(x), "fvu_here": fvu,
        "l0_here": float((acts > 0).sum(dim=1).float().mean()), "d_sae": int(acts.shape[1]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--model", required=True, help="NAME=FOLDER")
    parser.add_argument("--tokens", required=True, help="NAME=FILE")
    parser.add_argument("--rows", type=int, default=64)
    args = parser.parse_args()
    name, folder = args.model.split("=")
    model = load_model(folder)
    tokens = torch.from_numpy(np.load(args.tokens.split("=")[1])[: args.rows].astype(np.int64))
    batches = list(tokens.split(16))
    plain = mean_ce(model, batches, {})
    for place in sorted(p.parent for p in args.root.rglob("cfg.json") if f"/{name}/" in p.as_posix()):
        found = evaluate(place, model, batches, plain)
        card = json.loads((place / "card.json").read_text())
        (place / "card.json").write_text(json.dumps({**card, **found}, indent=1, sort_keys=True) + "\n")
        print(place.name, {k: round(v, 4) for k, v in found.items()}, flush=True)


if __name__ == "__main__":
    main()
