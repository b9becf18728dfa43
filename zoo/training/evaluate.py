"""Measure the zoo: bits per character of every model against Kneser-Ney, and the fidelity of every
autoencoder.

    python evaluate.py --books books.tar.xz --work WORK

Writes WORK/card.json (every number) and WORK/CARD.md (the model card). All numbers are on the held-out
books. Models see at most 127 tokens of history, the 5-gram the whole running text; the 5-gram is fitted on
the whole training text, of which a model may have seen only a part: both differences favour the baseline.
"""

import argparse
import json
import math
from pathlib import Path

import kneser_ney
import numpy as np
import torch
from corpus import Book, read_books, sequences, split, token_stream
from models import CONTEXT, RECIPES
from saes import RECIPES_OF

from polysem.models import load_model
from polysem.models.hooks import hooked
from polysem.saes import load_sae

EVAL_TOKENS = 120_000
SAE_TOKENS = 25_000


@torch.no_grad()
def loss(model, rows: np.ndarray, *, replace=None) -> float:
    """Mean nats per token over rows [n, context]; `replace` is (tap, function) put in place of an
    activation."""
    total = 0.0
    for k in range(0, len(rows), 32):
        tokens = torch.from_numpy(rows[k : k + 32])
        actions = {} if replace is None else {replace[0]: [replace[1]]}
        with hooked(model.model, actions):
            logits = model.model(input_ids=tokens, use_cache=False).logits.float()
        picked = torch.log_softmax(logits[:, :-1], -1).gather(-1, tokens[:, 1:, None])
        total -= picked.sum().item()
    return total / (rows.shape[0] * (rows.shape[1] - 1))


def language_model(name: str, work: Path, train: list[Book], held_out: list[Book]) -> dict:
    """Bits per character of a model and of the 5-gram on the held-out books."""
    model = load_model(str(work / "models" / name))
    kind = RECIPES[name].tokenizer
    stream = token_stream(held_out, model.tokenizer, work / "tokens" / f"{kind}-held-out.npy")
    characters_per_token = sum(len(b.text) for b in held_out) / len(stream)
    rows = sequences(stream, context=CONTEXT, bos=model.bos_id, n_tokens=EVAL_TOKENS, seed=2)
    bits = loss(model, rows) / characters_per_token / math.log(2)

    baseline_file = work / "tokens" / f"{kind}-kneser-ney.json"
    if not baseline_file.exists():
        text = token_stream(train, model.tokenizer, work / "tokens" / f"{kind}-train.npy")
        nats = kneser_ney.nats(kneser_ney.fit(np.asarray(text)), np.asarray(stream), len(model.tokenizer))
        baseline_file.write_text(json.dumps(nats / sum(len(b.text) for b in held_out) / math.log(2)))
    training = json.loads((work / "models" / name / "training.json").read_text())
    return {
        "family": model.spec.family, "parameters": model.model.num_parameters(), "n_layers": model.spec.n_layers,
        "d_model": model.spec.d_model, "vocabulary": model.spec.d_vocab, "tokenizer": kind,
        "tokens_seen": training["tokens_seen"], "train_books": training["train_books"],
        "held_out_books": training["held_out_books"], "characters_per_token": characters_per_token,
        "bits_per_character": bits, "kneser_ney_bits_per_character": json.loads(baseline_file.read_text()),
    }  # fmt: skip


@torch.no_grad()
def autoencoder(name: str, recipe, work: Path, held_out: list[Book]) -> dict:
    """FVU, L0, dead features and cross-entropy recovered of one SAE on held-out text, BOS left out."""
    model = load_model(str(work / "models" / name))
    sae = load_sae(str(work / "saes" / name / recipe.name))
    kind = RECIPES[name].tokenizer
    stream = token_stream(held_out, model.tokenizer, work / "tokens" / f"{kind}-held-out.npy")
    rows = sequences(stream, context=CONTEXT, bos=model.bos_id, n_tokens=SAE_TOKENS, seed=3)
    x = torch.cat(
        [
            model.capture(torch.from_numpy(rows[k : k + 32]), [sae.reads])[sae.reads][:, 1:].flatten(0, 1)
            for k in range(0, len(rows), 32)
        ]
    )
    acts = torch.cat([sae.encode(block) for block in x.split(4096)])
    error = x - sae.decode(acts, like=x)
    variance = (x - x.mean(0)).pow(2).sum()

    def spliced(h):
        rebuilt = sae.decode(sae.encode(h), like=h)
        return torch.cat([h[:, :1], rebuilt[:, 1:]], 1)

    def zeroed(h):
        return torch.cat([h[:, :1], torch.zeros_like(h[:, 1:])], 1)

    tap = model._tap(sae.reads)
    base, with_sae, without = (loss(model, rows, replace=r) for r in (None, (tap, spliced), (tap, zeroed)))
    return {
        "kind": recipe.kind, "seed": recipe.seed, "d_in": sae.d_in, "d_sae": sae.d_sae,
        "fvu": (error.pow(2).sum() / variance).item(), "l0": (acts > 0).float().sum(-1).mean().item(),
        "dead_features": int((acts > 0).any(0).logical_not().sum()), "tokens": len(x),
        "cross_entropy": base, "cross_entropy_spliced": with_sae, "cross_entropy_zeroed": without,
        "cross_entropy_recovered": (without - with_sae) / (without - base),
    }  # fmt: skip


def card(models: dict[str, dict], saes: dict[str, dict]) -> str:
    """The model card as Markdown."""
    first = next(iter(models.values()))
    lines = [
        "# The zoo: model card",
        "",
        "Small causal language models and sparse autoencoders, trained by the scripts in `zoo/training` so that polysem runs",
        f"offline. Text: {first['train_books']} public-domain English books, one pass over a random part of them; "
        f"{len(first['held_out_books'])} other books are held out whole and every number below is measured on them.",
        "They are instruments for testing methods on real trained networks, not assistants; their text is period prose.",
        "",
        "## Models",
        "",
        "Bits per character, lower is better. The baseline is an interpolated modified Kneser-Ney 5-gram over the same",
        "tokens, fitted on the whole training text; the models read at most 127 tokens back.",
        "",
        "| name | family | parameters | layers x width | tokenizer | tokens seen | bits/char | Kneser-Ney 5-gram |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `zoo:{n}` | {m['family']} | {m['parameters'] / 1e6:.1f} M | {m['n_layers']} x {m['d_model']} | {m['tokenizer']}, "
        f"{m['vocabulary']} | {m['tokens_seen'] / 1e6:.1f} M | **{m['bits_per_character']:.3f}** | "
        f"{m['kneser_ney_bits_per_character']:.3f} |"
        for n, m in models.items()
    ]
    lines += [
        "",
        "## Sparse autoencoders",
        "",
        "FVU: fraction of variance unexplained. L0: active features a token. CE recovered: share of the loss of zeroing the",
        "site that splicing the reconstruction in avoids. The BOS position is left out of all of them.",
        "",
        "| name | kind | seed | d_in x d_sae | FVU | L0 | dead | CE clean / spliced / zeroed | CE recovered |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `zoo:{n}` | {s['kind']} | {s['seed']} | {s['d_in']} x {s['d_sae']} | {s['fvu']:.3f} | {s['l0']:.1f} | "
        f"{s['dead_features']} | {s['cross_entropy']:.3f} / {s['cross_entropy_spliced']:.3f} / {s['cross_entropy_zeroed']:.3f} | "
        f"{s['cross_entropy_recovered']:.3f} |"
        for n, s in saes.items()
    ]
    lines += [
        "",
        f"Dead: never active on the {next(iter(saes.values()))['tokens']:,} held-out tokens of the measurement.",
        "",
        "Written glosses with their scores: 871 features of `zoo:gpt2` and `zoo:neox`, in `glosses/`; docs/glosses.md of polysem.",
        "",
        "Held-out books: "
        + ", ".join(b.removesuffix(".md").replace("_", " ") for b in first["held_out_books"])
        + ".",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--books", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    train, held_out = split(read_books(args.books))
    present = [n for n in RECIPES if (args.work / "models" / n / "training.json").exists()]
    models = {n: language_model(n, args.work, train, held_out) for n in present}
    saes = {}
    for n in present:
        for recipe in RECIPES_OF[n]:
            if (args.work / "saes" / n / recipe.name).exists():
                saes[f"{n}/{recipe.name}"] = autoencoder(n, recipe, args.work, held_out)
                print(f"{n}/{recipe.name}", saes[f"{n}/{recipe.name}"], flush=True)
    (args.work / "card.json").write_text(json.dumps({"models": models, "saes": saes}, indent=1) + "\n")
    (args.work / "CARD.md").write_text(card(models, saes))
    losing = [n for n, m in models.items() if m["bits_per_character"] >= m["kneser_ney_bits_per_character"]]
    if losing:
        raise SystemExit(f"worse than the Kneser-Ney baseline: {', '.join(losing)}")


if __name__ == "__main__":
    main()
