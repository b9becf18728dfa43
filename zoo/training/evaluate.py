"""Measure the zoo: bits per character of every model against Kneser-Ney, and the fidelity of every
autoencoder.

    python evaluate.py --books books.tar.xz --work WORK [--transcoders-beside CARD.json]

With a card of before only transcoders are measured, and the rest is taken from it. Writes WORK/card.json (every number) and WORK/CARD.md (the model card). All numbers are on the held-out
books. Models see at most 127 tokens of history, the 5-gram the whole running text; the 5-gram is fitted on
the whole training text, of which a model may have seen only a part: both differences favour the baseline.
"""

import argparse
import json
import math
from dataclasses import fields
from pathlib import Path

import kneser_ney
import numpy as np
import torch
from corpus import Book, read_books, sequences, split, token_stream
from models import CONTEXT, RECIPES
from saes import RECIPES_OF
from transcoders import MODEL, SETS

from polysem.layers.hops import hop_share
from polysem.layers.splice import splice
from polysem.layers.steer import two_ways
from polysem.models import load_model
from polysem.models.hooks import hooked
from polysem.saes import load_sae
from polysem.saes.transcoders import load_transcoders
from polysem.saes.written import measure_written

EVAL_TOKENS = 120_000
SAE_TOKENS = 25_000
SET_TOKENS = 12_000
STEERED, PROMPTS, PROMPT_TOKENS = 12, 6, 32
"""features of every layer, texts at whose end they are steered, and their tokens"""


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


def steered(model, one, acts: torch.Tensor, rows: torch.Tensor) -> dict[str, list[float]]:
    """Some features brought to their mean activation at the end of some texts, written and seen: [mean, low, high] of each
    measure of `two_ways`."""
    rate = (acts > 0).float().mean(0)
    usual = torch.nonzero((rate > 2e-3) & (rate < 0.2)).flatten().numpy()
    chosen = np.sort(np.random.default_rng(4).permutation(usual)[:STEERED]).tolist()
    values = [float(acts[:, j][acts[:, j] > 0].mean()) for j in chosen]
    found = two_ways(model, one, rows[:PROMPTS, :PROMPT_TOKENS], features=chosen, values=values)
    return {field.name: list(found.mean(field.name)[:3]) for field in fields(found)}


@torch.no_grad()
def transcoders(name: str, work: Path, held_out: list[Book]) -> dict:
    """FVU of what a set writes, L0 and dead features by layer, and the cross-entropy with all MLPs replaced."""
    model = load_model(str(work / "models" / MODEL))
    folder = work / "transcoders" / MODEL / name
    found = load_transcoders(str(folder))
    stream = token_stream(
        held_out, model.tokenizer, work / "tokens" / f"{RECIPES[MODEL].tokenizer}-held-out.npy"
    )
    rows = torch.from_numpy(sequences(stream, context=CONTEXT, bos=model.bos_id, n_tokens=SET_TOKENS, seed=3))
    sites = sorted({one.reads for one in found.layers} | set(found.sites))
    parts = [model.capture(some, sites) for some in rows.split(32)]
    seen = {site: torch.cat([part[site][:, 1:].flatten(0, 1) for part in parts]) for site in sites}
    written, layers = measure_written(found, seen), []
    for one in found.layers:
        acts = one.encode(seen[one.reads])
        ahead = hop_share(found, seen, site=one.writes[0], groups=np.arange(len(acts)) // (CONTEXT - 1))
        layers.append(
            {
                "fvu": written[one.writes[0]].fvu, "l0": (acts > 0).float().sum(-1).mean().item(),
                "dead_features": int((acts > 0).any(0).logical_not().sum()),
                "written_ahead": ahead.value, "written_ahead_interval": [ahead.lo, ahead.hi],
                "steered": steered(model, one, acts, rows),
            }
        )  # fmt: skip
    spliced = splice(model, found, rows)
    recovered, cost = spliced.recovered, spliced.cost
    first = found.layers[0].encoder
    return {
        "kind": "cross-layer" if found.cross_layer else "per-layer", "d_in": first.d_in, "d_sae": first.d_sae,
        "skip": found.layers[0].writers[0].W_skip is not None, "layers": layers,
        "samples": json.loads((folder / "training.json").read_text())["tokens"],
        "tokens": len(seen[sites[0]]), "cross_entropy": float(spliced.clean.mean()),
        "cross_entropy_spliced": float(spliced.spliced.mean()), "cross_entropy_zeroed": float(spliced.zeroed.mean()),
        "cross_entropy_recovered": recovered.value, "recovered_interval": [recovered.lo, recovered.hi],
        "cost_interval": [cost.lo, cost.hi],
    }  # fmt: skip


def card(models: dict[str, dict], saes: dict[str, dict], sets: dict[str, dict]) -> str:
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
        "## Transcoders",
        "",
        "Of all four MLPs of `zoo:gpt2`, read behind the norm, JumpReLU, in circuit-tracer's layout. FVU: of the written output (of",
        "a cross-layer set the sum of all that write there), L0 and dead by layer. CE: all MLPs replaced at once, each transcoder",
        "reading the spliced run, the BOS position left out; recovered with its 95 % interval over rows. Ahead: of the squared",
        "length of what features write into a layer, the share from features of earlier layers.",
        "",
        "| name | kind | d_in x latents | skip | FVU by layer | L0 by layer | dead | ahead | CE clean / spliced / zeroed | CE recovered |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `zoo:{n}` | {s['kind']} | {s['d_in']} x {s['d_sae']} | {'yes' if s['skip'] else 'no'} | "
        f"{' '.join(format(x['fvu'], '.3f') for x in s['layers'])} | {' '.join(format(x['l0'], '.1f') for x in s['layers'])} | "
        f"{' '.join(str(x['dead_features']) for x in s['layers'])} | "
        f"{' '.join(format(x['written_ahead'], '.2f') for x in s['layers'])} | {s['cross_entropy']:.3f} / {s['cross_entropy_spliced']:.3f} / "
        f"{s['cross_entropy_zeroed']:.3f} | {s['cross_entropy_recovered']:.3f} [{s['recovered_interval'][0]:.3f}, "
        f"{s['recovered_interval'][1]:.3f}] |"
        for n, s in sets.items()
    ]
    lines += [
        "",
        f"Measured on {next(iter(sets.values()))['tokens']:,} held-out tokens; trained on "
        f"{next(iter(sets.values()))['samples']:,} samples a layer.",
        "",
        "Written glosses with their scores: 871 features of `zoo:gpt2` and `zoo:neox`, in `glosses/`; docs/glosses.md of polysem.",
        "",
        "Held-out books: "
        + ", ".join(b.removesuffix(".md").replace("_", " ") for b in first["held_out_books"])
        + ".",
        "",
    ]
    return "\n".join(lines)


def write(work: Path, models: dict[str, dict], saes: dict[str, dict], held_out: list[Book]) -> None:
    """The card in both forms, transcoders measured."""
    present = [name for name in SETS if (work / "transcoders" / MODEL / name).exists()]
    sets = {f"{MODEL}/{name}": transcoders(name, work, held_out) for name in present}
    found = {"models": models, "saes": saes, "transcoders": sets}
    (work / "card.json").write_text(json.dumps(found, indent=1) + "\n")
    (work / "CARD.md").write_text(card(models, saes, sets))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--books", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--transcoders-beside", type=Path, help="card of before, whose other numbers stay")
    args = parser.parse_args()
    if args.transcoders_beside:
        before = json.loads(args.transcoders_beside.read_text())
        write(args.work, before["models"], before["saes"], read_books(args.books, held_out=True))
        return
    train, held_out = split(read_books(args.books))
    present = [n for n in RECIPES if (args.work / "models" / n / "training.json").exists()]
    models = {n: language_model(n, args.work, train, held_out) for n in present}
    saes = {}
    for n in present:
        for recipe in RECIPES_OF[n]:
            if (args.work / "saes" / n / recipe.name).exists():
                saes[f"{n}/{recipe.name}"] = autoencoder(n, recipe, args.work, held_out)
                print(f"{n}/{recipe.name}", saes[f"{n}/{recipe.name}"], flush=True)
    write(args.work, models, saes, held_out)
    losing = [n for n, m in models.items() if m["bits_per_character"] >= m["kneser_ney_bits_per_character"]]
    if losing:
        raise SystemExit(f"worse than the Kneser-Ney baseline: {', '.join(losing)}")


if __name__ == "__main__":
    main()
