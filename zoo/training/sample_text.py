"""Write the zoo's text: documents sampled from one of its models at temperature 1, seeded.

    python sample_text.py --work WORK --model gpt2 --tokens 400000

A study needs running text to harvest activations from, also where no corpus is at hand. What a language
model itself writes is its own distribution exactly, and belongs to nobody else. Each document starts from
BOS alone and is one context long; documents are separated by blank lines. Resumable: finished batches are
kept in WORK/samples.
"""

import argparse
from pathlib import Path

import torch
from models import CONTEXT
from tqdm import tqdm

from polysem.models import load_model

ROWS = 256


@torch.no_grad()
def batch(model, *, seed: int, length: int) -> list[str]:
    """`ROWS` documents, each sampled from BOS with a key-value cache."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((ROWS, 1), model.bos_id)
    cache, last = None, tokens
    for _ in range(length - 1):
        out = model.model(input_ids=last, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        p = torch.softmax(out.logits[:, -1].float(), -1)
        p[:, model.bos_id] = 0
        last = torch.multinomial(p, 1, generator=generator)
        tokens = torch.cat([tokens, last], 1)
    return [model.detokenize(row[1:].tolist()) for row in tokens]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--tokens", type=int, default=400_000)
    args = parser.parse_args()
    model = load_model(str(args.work / "models" / args.model))
    parts = args.work / "samples" / args.model
    parts.mkdir(parents=True, exist_ok=True)
    n = -(-args.tokens // (ROWS * CONTEXT))
    for k in tqdm(range(n), desc="sampling", unit="batch"):
        part = parts / f"{k:04d}.txt"
        if not part.exists():
            texts = [" ".join(t.split()) for t in batch(model, seed=k, length=CONTEXT)]
            partial = part.with_suffix(".partial")
            partial.write_text("\n\n".join(texts) + "\n\n", encoding="utf-8")
            partial.rename(part)
    whole = "".join((parts / f"{k:04d}.txt").read_text(encoding="utf-8") for k in range(n))
    (args.work / "samples.txt").write_text(whole, encoding="utf-8")


if __name__ == "__main__":
    main()
