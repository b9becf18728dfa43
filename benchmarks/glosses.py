"""Embedding glosses: what the second run of a study costs, when all texts are known."""

import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from benchmarks.harness import Line, Size, benchmark, interleaved, require

# isort: split
import numpy as np
import torch

from polysem.glosses import embed_texts

torch.set_num_threads(1)

WORDS = [
    "river",
    "street",
    "harbour",
    "judge",
    "verdict",
    "oath",
    "mast",
    "sail",
    "storm",
    "rose",
    "ivy",
    "violin",
    "drum",
    "bishop",
    "seven",
    "azure",
    "mother",
]


def make_texts(n: int) -> list[str]:
    """Distinct glosses of 4 to 12 words."""
    rng = np.random.default_rng(0)
    return [
        f"{' '.join(rng.choice(WORDS, rng.integers(3, 12)))} {k}"  # the number makes each its own
        for k in range(n)
    ]


@benchmark
def second_run(size: Size) -> Iterator[Line]:
    """The first run fills a cache, the second reads it."""
    texts = make_texts(4096 if size == "full" else 64)
    with tempfile.TemporaryDirectory() as folder:
        caches, full = count(), Path(folder, "full")
        first = embed_texts(texts, "minilm", cache=full).vectors
        again = embed_texts(texts, "minilm", cache=full).vectors
        require(bool((first == again).all()), "the second run gives other vectors")
        seconds = interleaved(
            {
                "again": lambda: embed_texts(texts, "minilm", cache=full),
                "first": lambda: embed_texts(texts, "minilm", cache=Path(folder, str(next(caches)))),
            },
            warm=False,
        )
    yield Line(
        f"embedding {len(texts):,} glosses (MiniLM), second run",
        "first run",
        seconds["again"],
        seconds["first"],
        "cpu s",
        f"the same {len(texts):,} vectors to the bit",
        50,
        200,
    )
