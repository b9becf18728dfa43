"""Feature tables of the zoo's autoencoders: what each feature fires on in the training books, with token
glosses.

    python features.py --books books.tar.xz --work WORK

Every book gives excerpts of equal length, so that no author dominates; a harvest over them gives densities,
target tokens and a few short contexts per feature. A study of a zoo SAE can take these (`features.source =
"zoo"`) instead of running a corpus itself.
"""

import argparse
from pathlib import Path

import numpy as np
from corpus import Book, read_books, split
from models import RECIPES
from saes import RECIPES_OF

from polysem.features import feature_table
from polysem.models import load_model
from polysem.saes import load_sae
from polysem.store.io import write_table
from polysem.store.tables import CONTEXTS, FEATURES, GLOSSES

EXCERPT = 2_000
"""characters"""
EXCERPTS_A_BOOK = 4
N_TOKENS = 400_000
CONTEXTS_KEPT = 4


def write_excerpts(books: list[Book], folder: Path) -> None:
    """A folder of text files, one a book, each with the same number of excerpts that begin and end at a
    line."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, book in enumerate(books):
        rng = np.random.default_rng([7, n])
        pieces = []
        for start in sorted(rng.integers(0, max(1, len(book.text) - EXCERPT), EXCERPTS_A_BOOK)):
            begin = book.text.find("\n", start) + 1
            end = book.text.find("\n", begin + EXCERPT)
            pieces.append(book.text[begin : end if end > 0 else None])
        (folder / (Path(book.name).stem + ".txt")).write_text("\n".join(pieces), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--books", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    excerpts = args.work / "excerpts"
    if not excerpts.exists():
        write_excerpts(split(read_books(args.books))[0], excerpts)
    for name in RECIPES:
        recipes = [r for r in RECIPES_OF[name] if (args.work / "saes" / name / r.name).exists()]
        waiting = [r for r in recipes if not (args.work / "features" / name / r.name).exists()]
        model = load_model(str(args.work / "models" / name)) if waiting else None
        for recipe in waiting:
            sae = load_sae(str(args.work / "saes" / name / recipe.name))
            table = feature_table(
                sae,
                model,
                corpus=str(excerpts),
                n_tokens=N_TOKENS,
                label=recipe.name,
                n_contexts=CONTEXTS_KEPT,
            )
            out = args.work / "features" / name / recipe.name
            partial = out.with_name(out.name + ".partial")
            partial.mkdir(parents=True, exist_ok=True)
            for schema in (FEATURES, GLOSSES, CONTEXTS):
                write_table(partial / f"{schema.name}.parquet", table.tables()[schema.name], schema)
            partial.rename(out)
            print(f"{name}/{recipe.name}: {table.contexts.num_rows} contexts", flush=True)


if __name__ == "__main__":
    main()
