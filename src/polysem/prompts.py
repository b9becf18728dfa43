"""The prompts of a study: incomplete texts whose next token is read, each assigned to the select or the
confirm half beforehand.

Corpus prompts come from rows that the harvest has not seen, where the corpus has any left; they begin at
the start of a sentence and end between two words. Templates are neutral openings written for this purpose,
so that the baseline does not favour a target.
"""

import json
import logging
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa

from polysem.config import CorpusConfig, PromptsConfig
from polysem.corpus import iter_rows
from polysem.errors import ConfigError, FormatError, UnknownReferenceError
from polysem.models.base import WhiteBoxModel
from polysem.seeds import rng_for, short_hash
from polysem.store.tables import PROMPTS

log = logging.getLogger(__name__)

CANDIDATES_PER_PROMPT = 20
_SENTENCE_START = re.compile(r"(?:(?<=[.!?] )|(?<=[.!?][\"'] ))(?=[A-Z])")

TEMPLATES = (
    "When the door was opened at last, the first thing anybody saw was",
    "It was not easy to say what had changed, but there was now something",
    "She put the letter down, thought for a moment, and then asked about the",
    "After the long meal they sat together and talked of nothing but",
    "He had promised to bring only one thing with him, and that was the",
    "Nobody in the room could remember who had first mentioned the",
    "The people of the house agreed on one point, that it must be",
    "At the end of the road there stood, as there had always stood, a",
    "What he wanted most, though he told no one, was to become",
    "They waited until the noise had died away and then began to",
    "The book was open at a page on which somebody had written the word",
    "Everything depended, so the old woman said, upon the",
    "If you ask me what I think of it, I must answer that it is",
    "The box was heavier than it looked, for inside it lay",
    "There was a short silence, and then from the next room came the",
    "By the following week the whole matter had turned into a question of",
    "I have never understood why so many of them care about",
    "The child pointed at the window and called out that there was a",
    "On the table, between the cups, someone had left a",
    "His answer surprised us all, because we had expected him to speak of",
    "Of all the things that were said that day, one concerned the",
    "We had gone no further than the gate when we noticed the",
    "The report was short and did not explain how they had found the",
    "To those who knew her well it was plain that she was thinking of",
    "In the picture one can see, a little to the left, a",
    "The second part of the plan, which was never carried out, was to",
    "It began, like most things of the kind, with a",
    "Long before anyone gave it a name, people spoke of it as the",
    "What remained when the work was finished was mostly",
    "They could not agree whether to go on or to turn back towards the",
)


def make_prompts(
    config: PromptsConfig, corpus: CorpusConfig, model: WhiteBoxModel, *, prepend_bos: bool, seed: int
) -> pa.Table:
    """PROMPTS: `config.n` distinct prompts (fewer where the source has fewer), with their split.

    Args:
        config: source, number, length and share of the confirm half.
        corpus: where corpus prompts come from.
        model: whose tokenizer and context length hold.
        prepend_bos: put one BOS in front of every prompt.
        seed: root seed of the study.

    Raises:
        ConfigError: an unknown source, or fewer than two prompts.
        FormatError: a prompt that is blank or longer than the model's context; names file and line.
        UnknownReferenceError: a file that is not there.
    """
    if config.source == "corpus":
        found = _from_corpus(config, corpus, model, prepend_bos=prepend_bos, seed=seed)
    elif config.source == "templates":
        found = [(text, f"template {n}") for n, text in enumerate(TEMPLATES)]
    elif config.source.startswith("file:"):
        found = list(_from_file(Path(config.source.removeprefix("file:")).expanduser()))
    else:
        raise ConfigError(
            f"unknown source of prompts {config.source!r}; expected corpus, templates or file:PATH",
            hint="set prompts.source in the study",
        )
    distinct = list(dict(reversed(found)).items())[::-1]
    if len(distinct) > config.n:
        chosen = sorted(rng_for(seed, "prompts", config.source).permutation(len(distinct))[: config.n])
        distinct = [distinct[k] for k in chosen]
    if len(distinct) < 2:
        raise ConfigError(
            f"{len(distinct)} distinct prompts from {config.source!r}; a study needs at least 2"
        )
    if len(distinct) < config.n:
        log.warning(
            "%d distinct prompts from %s, fewer than the %d asked for", len(distinct), config.source, config.n
        )
    return _table(distinct, model, config, prepend_bos=prepend_bos, seed=seed)


def _table(
    distinct: list[tuple[str, str]],
    model: WhiteBoxModel,
    config: PromptsConfig,
    *,
    prepend_bos: bool,
    seed: int,
) -> pa.Table:
    order = rng_for(seed, "prompts", "split").permutation(len(distinct))
    n_confirm = min(max(1, round(config.confirm_fraction * len(distinct))), len(distinct) - 1)
    confirm = set(order[:n_confirm].tolist())
    rows = []
    for n, (text, source) in enumerate(distinct):
        ids = model.tokenize(text, prepend_bos=prepend_bos)
        if len(ids) > model.spec.n_ctx:
            raise FormatError(
                f"prompt {source} has {len(ids)} tokens, but {model.spec.ref} reads {model.spec.n_ctx}",
                hint="shorten the prompt, or lower prompts.length",
            )
        rows.append(
            {
                "prompt_id": short_hash("prompt", text),
                "text": text,
                "token_ids": ids,
                "source": source,
                "split": "confirm" if n in confirm else "select",
            }
        )
    return PROMPTS.conform(pa.Table.from_pylist(rows, schema=PROMPTS.arrow()))


def _from_corpus(
    config: PromptsConfig, corpus: CorpusConfig, model: WhiteBoxModel, *, prepend_bos: bool, seed: int
) -> list[tuple[str, str]]:
    harvested = max(1, -(-corpus.n_tokens // (corpus.context - prepend_bos)))
    wanted = CANDIDATES_PER_PROMPT * config.n

    def candidates(skip: int) -> list[tuple[str, str]]:
        rows = iter_rows(corpus.ref, model, context=corpus.context, prepend_bos=prepend_bos)
        found = []
        for row in islice(rows, skip, None):
            if len(found) == wanted:
                break
            text = _opening(model.detokenize(row.tokens[prepend_bos:]), model, config.length)
            if text:
                found.append((text, row.source))
        return found

    found = candidates(harvested)
    if len(found) < config.n:
        log.warning(
            "corpus %s has %d openings beyond the harvested rows, fewer than the %d prompts asked for; "
            "prompts are taken from the whole corpus",
            corpus.ref, len(found), config.n,
        )  # fmt: skip
        found = candidates(0)
    return found


def _opening(text: str, model: WhiteBoxModel, length: int) -> str | None:
    """At most `length` tokens from the first sentence start of `text`, ending between two words; None if
    there is no such."""
    start = _SENTENCE_START.search(text)
    if start is None:
        return None
    ids = model.tokenize(text[start.start() :], prepend_bos=False)
    if len(ids) <= length:
        return None
    for cut in range(length, length // 2, -1):
        opening = model.detokenize(ids[:cut])
        follows = model.detokenize(ids[: cut + 1])[len(opening) :]
        if follows[:1].isspace() and opening[-1:].isalnum():
            return opening.strip()
    return None


def _from_file(path: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = path.read_bytes().decode("utf-8").splitlines()
    except OSError as error:
        raise UnknownReferenceError(f"prompts file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"prompts file {path} is not UTF-8 at byte {error.start}") from error
    for n, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        text = line
        if path.suffix == ".jsonl":
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise FormatError(f"prompts file {path}, line {n}: not JSON: {error.msg}") from error
            text = record.get("text") if isinstance(record, dict) else None
            if not isinstance(text, str) or not text.strip():
                raise FormatError(
                    f"prompts file {path}, line {n}: expected an object with a string `text`, not {line[:60]!r}"
                )
        yield text, f"{path.name}:{n}"
