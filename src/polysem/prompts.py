"""The prompts of a study: incomplete texts whose next token is read, each assigned to the select or the
confirm half beforehand.

Corpus prompts come from text that the harvest has not seen, where the corpus has any left; they begin at
the start of a sentence, end between two words and stay within one document. Templates are neutral openings
written for this purpose, so that the baseline does not favour a target.
"""

import logging
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa

from polysem.boundary.files import local_path
from polysem.config import CorpusConfig, PromptsConfig
from polysem.corpus import lay, one_a_line
from polysem.errors import ConfigError, FormatError
from polysem.models.base import WhiteBoxModel
from polysem.models.text import chat_row
from polysem.positions import PositionPolicy, Tokenized
from polysem.seeds import rng_for, short_hash
from polysem.store.tables import PROMPTS

log = logging.getLogger(__name__)

CANDIDATES_PER_PROMPT = 20
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*\s+")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Prof|Rev|Hon|No|Capt|Col|Gen|[A-Z])\.\s*$")
"""its full stop ends no sentence"""

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
    config: PromptsConfig, corpus: CorpusConfig, model: WhiteBoxModel, *, positions: PositionPolicy, seed: int
) -> pa.Table:
    """PROMPTS: `config.n` distinct prompts (fewer where the source has fewer), with their split.

    Args:
        config: source, number, length and share of the confirm half.
        corpus: where corpus prompts come from.
        model: whose tokenizer and context length hold.
        positions: says what stands in front of every prompt; in front of a chat template stands nothing that it does
            not write itself.
        seed: root seed of the study.

    Raises:
        ConfigError: an unknown source, fewer than two prompts, or a chat template that the model does not have.
        FormatError: a prompt that is blank or longer than the model's context; names file and line.
        UnknownReferenceError: a file that is not there.
    """
    if config.source == "corpus":
        found = _from_corpus(config, corpus, model)
    elif config.source == "templates":
        found = [(text, f"template {n}") for n, text in enumerate(TEMPLATES)]
    elif config.source.startswith("file:"):
        found = list(_from_file(local_path(config.source.removeprefix("file:"))))
    else:
        raise ConfigError(
            f"unknown source of prompts {config.source!r}; expected corpus, templates or file:PATH",
            hint="set prompts.source = 'corpus' in the study",
        )
    distinct = _distinct(found)
    if len(distinct) > config.n:
        chosen = sorted(rng_for(seed, "prompts", "draw").permutation(len(distinct))[: config.n])
        distinct = [distinct[k] for k in chosen]
    if len(distinct) < 2:
        raise ConfigError(
            f"{len(distinct)} distinct prompts from {config.source!r}; a study needs at least 2: one to "
            "select on, one to confirm on",
            hint="prompts.source = 'templates' needs no text of yours",
        )
    if len(distinct) < config.n:
        log.warning(
            "%d distinct prompts from %s, fewer than the %d asked for", len(distinct), config.source, config.n
        )
    return _table(distinct, model, config, positions=positions, seed=seed)


def _distinct(found: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """(text, source), each text once, from where it stands first."""
    first: dict[str, str] = {}
    for text, source in found:
        first.setdefault(text, source)
    return list(first.items())


def _table(
    distinct: list[tuple[str, str]],
    model: WhiteBoxModel,
    config: PromptsConfig,
    *,
    positions: PositionPolicy,
    seed: int,
) -> pa.Table:
    order = rng_for(seed, "prompts", "split").permutation(len(distinct))
    n_confirm = min(max(1, round(config.confirm_fraction * len(distinct))), len(distinct) - 1)
    confirm = set(order[:n_confirm].tolist())
    rows = []
    for n, (text, source) in enumerate(distinct):
        if config.chat_template:
            ids = chat_row(model, text).ids
        else:
            ids = positions.row(model.tokenize(text, prepend_bos=False))
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
    return PROMPTS.of(rows)


def span_of(token_ids: Sequence[int], text: str, model: WhiteBoxModel) -> tuple[int, int] | None:
    """Where the tokens of a prompt's own text lie among all its tokens, [start, stop); None if they end them, as they
    do without a chat template, or are not found."""
    if not (isinstance(model, Tokenized) and model.tokenizer.chat_template):
        return None
    ids, own = list(token_ids), model.tokenize(text, prepend_bos=False)
    if ids[len(ids) - len(own) :] == own:
        return None
    framed = chat_row(model, text)
    return framed.span if framed.ids == ids else None


def _from_corpus(config: PromptsConfig, corpus: CorpusConfig, model: WhiteBoxModel) -> list[tuple[str, str]]:
    # A harvest takes whole rows, with and without BOS: at most one row more than the tokens asked for.
    harvested = corpus.n_tokens + corpus.context
    wanted = CANDIDATES_PER_PROMPT * config.n
    found = list(islice(_openings(corpus, model, config.length, skip=harvested), wanted))
    if len(found) < config.n:
        log.warning(
            "corpus %s has %d openings beyond the harvested tokens, fewer than the %d prompts asked for; "
            "prompts are taken from the whole corpus",
            corpus.ref, len(found), config.n,
        )  # fmt: skip
        found = list(islice(_openings(corpus, model, config.length, skip=0), wanted))
    return found


def _openings(
    corpus: CorpusConfig, model: WhiteBoxModel, length: int, *, skip: int
) -> Iterator[tuple[str, str]]:
    """(opening, document:offset) of every stretch of `corpus.context` tokens that has one, after the first
    `skip` tokens of the corpus; none goes over the end of a document."""
    for laid in lay(corpus.ref, model):
        if laid.start + len(laid.ids) <= skip:
            continue
        whole = model.detokenize(laid.ids)
        cased = whole != whole.lower()
        for at in range(max(0, skip - laid.start), len(laid.ids), corpus.context):
            stretch = laid.ids[at : at + corpus.context]
            text = model.detokenize(stretch)
            start = _sentence_start(text, is_document=at == 0, cased=cased)
            if start is None:
                continue
            opening = _opening(text[start:], model, length)
            if opening:
                yield opening, f"{laid.name}:{at + _tokens_before(stretch, start, model)}"


def _sentence_start(text: str, *, is_document: bool, cased: bool) -> int | None:
    """Where the first sentence of `text` begins: with a capital, or with any letter or digit where the
    document has no capitals (`cased` is false). The beginning of `text` counts if it is that of a
    document."""
    ends = (end.end() for end in _SENTENCE_END.finditer(text) if not _ABBREVIATION.search(text[: end.end()]))
    for start in ([len(text) - len(text.lstrip())] if is_document else []), ends:
        for at in start:
            first = text[at : at + 1]
            if first.isupper() or (not cased and first.isalnum()):
                return at
    return None


def _tokens_before(ids: list[int], start: int, model: WhiteBoxModel) -> int:
    """How many of `ids` lie before character `start` of their text."""
    return bisect_right(range(len(ids)), start, key=lambda n: len(model.detokenize(ids[: n + 1])))


def _opening(text: str, model: WhiteBoxModel, length: int) -> str | None:
    """At most `length` tokens from the beginning of `text`, more than half of them, that end between two
    words; None where the text is too short."""
    ids = model.tokenize(text, prepend_bos=False)
    if len(ids) <= length:
        return None
    for cut in range(length, length // 2, -1):
        opening = model.detokenize(ids[:cut])
        follows = model.detokenize(ids[: cut + 1])[len(opening) :]
        if follows[:1].isspace() and opening[-1:].isalnum():
            return opening.strip()
    return None


def _from_file(path: Path) -> Iterator[tuple[str, str]]:
    for n, text in one_a_line(path, what="prompts file"):
        if not text.strip():
            raise FormatError(f"prompts file {path}, line {n}: `text` is blank; expected a prompt")
        yield text, f"{path.name}:{n}"
