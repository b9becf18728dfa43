"""The text of the real models' dictionaries: books, encyclopedia and stories, mixed, cut once into two files.

    python corpus.py --data DATA --out WORK/text

`DATA` holds `text-gutenberg-classics/books.tar.xz`, `text-wikitext2/{valid,test}.txt` and
`text-tinystories-1000/tinystories_1000.json`. `train.jsonl` and `held_out.jsonl` hold records {"text", "from"}
in an order drawn once, so that any beginning of a file is a fair sample of it. Nothing is in both: a book
belongs to one of them by a hash of its name (one in twenty is held out), WikiText-2 gives `valid` to one and
`test` to the other, stories go by number.
"""

import argparse
import hashlib
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HELD_OUT = 20
"""one book and one story in this many is held out"""
CHUNK = 3000
"""characters of a record, about; paragraphs stay whole"""
BOOK_CHARACTERS = {"train": 20_000_000, "held_out": 600_000}
"""of the 80 million that there are: so that the small sources are not drowned"""


def books(archive: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of every book, sorted by name, without its Markdown header."""
    found = {}
    with tarfile.open(archive, "r:xz") as tar:
        for member in tar:  # in the archive's order: going back in it would unpack it again from the start
            handle = tar.extractfile(member) if member.name.endswith(".md") else None
            if handle is not None:
                head, rule, body = handle.read().decode("utf-8").partition("-------")
                found[Path(member.name).name] = _plain(body if rule else head)
    yield from sorted(found.items())


def _plain(text: str) -> str:
    """Prose of a Markdown book: marks of emphasis and headings removed, straight quotes, runs of space
    collapsed."""
    text = re.sub(r"^#+\s*", "", text, flags=re.MULTILINE)
    text = re.sub(r"^[-*_]{3,}\s*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"[*_\\]", "", text)
    text = text.replace("\u2019", "'").replace("\u2018", "'").replace("\u201c", '"').replace("\u201d", '"')
    text = re.sub(r"[ \t]+", " ", text)
    return re.sub(r"\n{2,}", "\n", text).strip()


def wiki_paragraphs(file: Path) -> Iterator[str]:
    """Paragraphs of WikiText-2 as prose: sentences with an unknown word left out, spaces of its tokenization
    taken back."""
    for line in file.read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if not line or line.startswith("="):
            continue
        whole = [s for s in re.split(r"(?<= \.) ", line) if "<unk>" not in s]
        text = " ".join(whole)
        text = re.sub(r" @(.)@ ", r"\1", text)
        text = re.sub(r" ([.,;:!?%)\]])", r"\1", text)
        text = re.sub(r"([(\[$£]) ", r"\1", text)
        text = re.sub(r" (n't|'s|'re|'ve|'ll|'d|'m)\b", r"\1", text)
        text = re.sub(r'" ([^"]*?) "', r'"\1"', text)
        if len(text) > 200:
            yield text


def chunks(paragraphs: list[str]) -> Iterator[str]:
    """Runs of whole paragraphs of about CHUNK characters."""
    run: list[str] = []
    for paragraph in paragraphs:
        run.append(paragraph)
        if sum(map(len, run)) >= CHUNK:
            yield "\n".join(run)
            run = []
    if run:
        yield "\n".join(run)


def records(data: Path, part: str) -> list[dict[str, str]]:
    """All records of one part, in the order drawn."""
    rng = np.random.default_rng(7)
    held_out = part == "held_out"
    found: list[dict[str, str]] = []
    for name, text in books(data / "text-gutenberg-classics" / "books.tar.xz"):
        if (int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT == 0) == held_out:
            found += [{"text": c, "from": name} for c in chunks(text.split("\n"))]
    order = rng.permutation(len(found))
    sizes = np.cumsum([len(found[i]["text"]) for i in order])
    taken = [found[i] for i in order[: int(np.searchsorted(sizes, BOOK_CHARACTERS[part]))]]
    wiki = data / "text-wikitext2" / ("test.txt" if held_out else "valid.txt")
    taken += [{"text": c, "from": f"wikitext2/{wiki.name}"} for c in chunks(list(wiki_paragraphs(wiki)))]
    stories = json.loads((data / "text-tinystories-1000" / "tinystories_1000.json").read_text("utf-8"))
    taken += [
        {"text": story.strip(), "from": f"tinystories[{n}]"}
        for n, story in enumerate(stories)
        if (n % HELD_OUT == 0) == held_out and story.strip()
    ]
    return [taken[i] for i in rng.permutation(len(taken))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for part in BOOK_CHARACTERS:
        taken = records(args.data, part)
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in taken)
        (args.out / f"{part}.jsonl").write_text(lines, encoding="utf-8")
        n = sum(len(record["text"]) for record in taken)
        print(f"{part}.jsonl: {len(taken)} records, {n / 1e6:.1f} million characters")


if __name__ == "__main__":
    main()
