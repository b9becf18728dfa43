"""Dictionaries of one site in five widths, three sparsities and three seeds, trained here: what `polysem scaling` measures.

    python studies/scaling/family.py [--work FOLDER]

Of zoo GPT-2's middle stream on the text the zoo ships (395,000 tokens, each seen two and a half times). Three seeds at k = 16; one at
k = 8 and 32, so that widths can be compared at one reconstruction. 25 in all, narrow ones first; each is kept when it is done, and a
training goes on from its checkpoint.
"""

import argparse
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

MODEL, SITE, CORPUS, CONTEXT = "zoo:gpt2", "blocks.2.hook_resid_post", "zoo:samples", 128
WIDTHS = (768, 1_536, 3_072, 6_144, 12_288)
ARMS = ((16, 0), (16, 1), (16, 2), (8, 0), (32, 0))
"""(k, seed)"""
BATCH, STEPS = 2_048, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/scaling"))
    work = parser.parse_args().work
    torch.set_num_threads(1)
    model = load_model(MODEL, device="cpu")
    positions = positions_of(model)
    rows = token_rows(CORPUS, model, n_tokens=2_000_000, context=CONTEXT, positions=positions)
    about = {"model": MODEL, "revision": model.spec.revision, "dtype": "float32", "corpus": CORPUS, "context": CONTEXT}  # fmt: skip
    site, report = Site.parse(SITE), on_stderr()
    kept = harvest(model, rows.tokens, [site], work / "activations", n_special=positions.n_first, about=about)
    for width in WIDTHS:
        for k, seed in ARMS:
            out = work / f"w{width}-k{k}-seed{seed}"
            if (out / "card.json").is_file():
                continue
            recipe = TrainingRecipe(d_sae=width, k=k, seed=seed, batch=BATCH, steps=STEPS)
            with report.stage(out.name):
                train_dictionary(
                    Split(kept, site, site), recipe, out,
                    checkpoint=work / f"{out.name}.checkpoint", reporter=report,
                )  # fmt: skip
            (work / f"{out.name}.checkpoint").unlink()


if __name__ == "__main__":
    main()
