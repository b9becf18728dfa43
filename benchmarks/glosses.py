"""Embedding glosses: the first run against padded batches of transformers, and the second, when all texts are known."""

import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from benchmarks.harness import Line, Size, benchmark, interleaved, require, shares

# isort: split
import numpy as np
import torch

from polysem.glosses import embed_texts
from polysem.glosses.bert import PANEL
from polysem.glosses.embedders import MiniLM, minilm_folder
from polysem.onednn import bare_rate

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


@benchmark
def first_run(size: Size) -> Iterator[Line]:
    """Token glosses as a study words them, some 40 tokens each."""
    rng = np.random.default_rng(1)
    some = make_texts(512 if size == "full" else 16)
    texts = [
        f'"{rng.choice(WORDS)}", {text} — as in «… {" ".join(rng.choice(WORDS, 12))} …»' for text in some
    ]
    ours, theirs = MiniLM(minilm_folder()), padded()

    def packed() -> np.ndarray:
        vectors = np.empty((len(texts), 384), np.float32)
        for batch in ours.batches(texts):
            vectors[batch.indices] = batch.vectors
        return vectors

    apart = float(np.abs(packed() - theirs(texts)).max())
    require(apart < 1e-6, f"vectors differ by {apart:.1e}")
    seconds = interleaved({"ours": packed, "theirs": lambda: theirs(texts)})
    rate = bare_rate(384, rows=PANEL)
    n_tokens = sum(len(encoding.ids) for encoding in ours._parts[0].encode_batch(texts))
    flops = (
        2.0 * 6 * 12 * 384**2 * n_tokens
    )  # the linear maps of six layers; attention, norms and lookups are not counted
    yield Line(
        f"embedding {len(texts):,} token glosses (MiniLM), float32",
        "transformers, sorted, padded batches of 32",
        seconds["ours"] / len(texts),
        seconds["theirs"] / len(texts),
        "cpu s a gloss",
        f"largest difference of an entry {apart:.1e} (allowed 1e-06)",
        2,
        3,
        note=f"{flops / len(texts) / 1e6:.0f} MFLOP a gloss; products of this size run at {rate / 1e9:.0f} GFLOP/s here; {shares(packed)}",
        floor=flops / rate / len(texts),
    )


def padded() -> Callable[[list[str]], np.ndarray]:
    """The encoder as the library runs it: 32 texts of about one length, filled up."""
    from transformers import AutoModel, AutoTokenizer

    folder = minilm_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()

    def vectors(texts: list[str]) -> np.ndarray:
        found = np.empty((len(texts), 384), np.float32)
        order = np.argsort([len(ids) for ids in tokenizer(texts)["input_ids"]], kind="stable")
        for chosen in np.split(order, range(32, len(texts), 32)):
            batch = tokenizer([texts[n] for n in chosen], padding=True, return_tensors="pt")
            with torch.inference_mode():
                hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            found[chosen] = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()
        return found

    return vectors
