"""From an OpenAI-compatible response to an answer, in whichever of the two forms a server writes it.

The completions form gives `top_logprobs` as an object keyed by text, so tokens of equal text collide: either the
key is there twice, or one token is gone. The chat form gives a list of entries with the bytes of each token.
llama.cpp answers completions in the chat form. Servers grant fewer entries than they were asked for, list the
sampled token once more, or clip tiny values to -9999. How a server spells tokens is another matter: `spelling`.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from polysem.errors import FormatError, UnknownReferenceError
from polysem.targets.base import Answer
from polysem.targets.samples import Samples

CLIPPED = -1000.0
"""log-probabilities below this are a server's way to say "none" and are left out"""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenLogprobs(list[tuple[str, Any]]):
    """A JSON object as it was written: keys in order, repeated keys kept."""


@dataclass(frozen=True)
class Entry:
    """One granted token."""

    token: str
    logprob: float
    id: int | None = None


@dataclass(frozen=True)
class Told:
    """What a response says of the server."""

    model: str | None
    """its name for the model that answered"""
    prompt_tokens: int | None
    """tokens of the prompt by its own tokenizer"""
    form: str
    """of the log-probabilities: completions, chat, or "" where there are none"""
    thought: bool = False
    """whether the answer holds reasoning apart from its content"""


def parse_answer(body: str, *, api: str, k: int, where: str) -> Answer:
    """The answer in a response, tokens spelled as the server spells them.

    Args:
        body: the response's text.
        api: "completions" or "chat": what was asked; either form is read.
        k: log-probabilities that were asked for.
        where: names the server in errors.

    Raises:
        FormatError: not JSON, cut, or not of the interface.
        UnknownReferenceError: a whole response without log-probabilities: the server does not give any.
    """
    choice = _choice(_response(body, api=api, where=where))
    try:
        entries = _entries(choice)
        generated = _generated(choice)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(
            f"{where}: the answer's log-probabilities cannot be read ({error!r}): {body[:200]!r}",
            hint="check target.url; expected choices[0].logprobs in the form of OpenAI's completions or chat",
        ) from error
    if not entries:
        raise UnknownReferenceError(
            f"{where}: the answer has no log-probabilities, though {k} were asked for: {body[:200]!r}",
            hint="serve the model with log-probabilities (vLLM: --max-logprobs; llama.cpp gives them), or use another",
        )
    return _answer(entries, k=k, text=generated)


def parse_samples(body: str, *, api: str, n: int, where: str) -> Samples:
    """The tokens that were drawn, with what is said of each; either form is read.

    Raises:
        FormatError: no response, or not `n` tokens with log-probabilities.
    """
    response = _response(body, api=api, where=where)
    try:
        found = [_drawn(choice["logprobs"]) for choice in response["choices"]]
        first = max(_entries(response["choices"][0]), key=lambda e: e.logprob)
        if len(found) != n or not all(math.isfinite(e.logprob) for e in found):
            raise ValueError(f"{len(found)} tokens")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise FormatError(
            f"{where}: {n} samples were asked for, and the answer cannot be read as such ({error!r}): {body[:200]!r}",
            hint="set target.samples lower, or to 0 (llama.cpp draws as many as --parallel says)",
        ) from error
    logprobs = np.array([min(e.logprob, 0.0) for e in found])
    return Samples(tuple(e.token for e in found), logprobs, (first.token, first.logprob))


def _drawn(logprobs: dict[str, Any] | None) -> Entry:
    known = logprobs or {}
    if known.get("content"):
        return _entry(known["content"][0])
    return Entry(_whole(str(known["tokens"][0])), float(known["token_logprobs"][0]))


def told(body: str, *, api: str, where: str) -> Told:
    """What a response says of the server. Raises FormatError as `parse_answer`."""
    response = _response(body, api=api, where=where)
    choice = _choice(response)
    usage = response.get("usage") if isinstance(response, dict) else None
    counted = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    model = response.get("model")
    message = choice.get("message")
    reasoned = isinstance(message, dict) and (message.get("reasoning_content") or message.get("reasoning"))
    return Told(
        model if isinstance(model, str) and model else None,
        counted if isinstance(counted, int) and not isinstance(counted, bool) else None,
        _form(choice.get("logprobs")),
        bool(reasoned),
    )


def _response(body: str, *, api: str, where: str) -> dict[str, Any]:
    try:
        response = _plain(json.loads(body, object_pairs_hook=TokenLogprobs), keep=("top_logprobs",))
        response["choices"][0].get("logprobs")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(
            f"{where}: the answer is no {api} response ({error!r}): {body[:200]!r}",
            hint="check target.url and target.kind",
        ) from error
    return response


def _choice(response: dict[str, Any]) -> dict[str, Any]:
    return response["choices"][0]


def _form(logprobs: Any) -> str:
    if not isinstance(logprobs, dict):
        return ""
    return "chat" if logprobs.get("content") else "completions" if logprobs.get("top_logprobs") else ""


def _entries(choice: dict[str, Any]) -> list[Entry]:
    logprobs: Any = choice.get("logprobs")
    match _form(logprobs):
        case "chat":
            found = logprobs["content"][0].get("top_logprobs") or []
            return [_entry(dict(pairs)) for pairs in found if dict(pairs).get("logprob") is not None]
        case "completions":
            first = logprobs["top_logprobs"][0] or []
            return [Entry(_whole(str(token)), float(value)) for token, value in first if value is not None]
        case _:
            return []


def _entry(entry: dict[str, Any]) -> Entry:
    token, raw, number = str(entry["token"]), entry.get("bytes"), entry.get("id")
    # A token of half a character has no text of its own; its bytes tell it from others like it.
    token = f"bytes:{bytes(raw).hex()}" if raw and "\ufffd" in token else _whole(token)
    return Entry(token, float(entry["logprob"]), number if isinstance(number, int) else None)


def _whole(token: str) -> str:
    """A token's text; of SentencePiece's fallback for one byte, the byte."""
    piece = _BYTE.fullmatch(token)
    return f"bytes:{piece.group(1).lower()}" if piece else token


def _answer(entries: list[Entry], *, k: int, text: str) -> Answer:
    entries = [e for e in entries if not math.isnan(e.logprob)]
    kept = [e for e in _once(entries, text) if e.logprob > CLIPPED]
    # The sampled token may stand beside the k most likely ones; it is granted like they are, but of those below
    # it nothing is known: only the k largest are a distribution's head.
    kept = sorted(kept, key=lambda e: (-e.logprob, e.token))[:k]
    if not kept:
        raise FormatError(f"all {len(entries)} log-probabilities are below {CLIPPED}; expected finite ones")
    values = np.array([min(e.logprob, 0.0) for e in kept])
    return Answer(tuple(e.token for e in kept), values, complete=False, text=text)


def _once(entries: list[Entry], generated: str) -> list[Entry]:
    """The entries without the sampled token's second mention: the same id, or, where there are no ids, the generated
    text with the same number. Other tokens of equal text are other tokens."""
    ids: set[int] = set()
    sampled: set[float] = set()
    kept: list[Entry] = []
    for entry in entries:
        if entry.id is not None:
            if entry.id in ids:
                continue
            ids.add(entry.id)
        elif entry.token == generated:
            if entry.logprob in sampled:
                continue
            sampled.add(entry.logprob)
        kept.append(entry)
    return kept


def with_losses(answer: Answer, *, granted: int, vocabulary: int | None) -> Answer:
    """The answer with what is missing from the `granted` entries that the server usually gives counted as lost,
    and complete if it holds the whole vocabulary and nothing was lost."""
    lost = max(0, granted - answer.n)
    whole = vocabulary is not None and answer.n >= vocabulary
    return Answer(answer.tokens, answer.logprobs, complete=whole, lost=0 if whole else lost, text=answer.text)


def _generated(choice: dict[str, Any]) -> str:
    message = choice.get("message")
    return str((message.get("content") if isinstance(message, dict) else choice.get("text")) or "")


def _plain(value: Any, *, keep: tuple[str, ...], name: str = "") -> Any:
    """Objects as dicts, except below the names of `keep`, where repeated keys matter."""
    if isinstance(value, TokenLogprobs):
        if name in keep:
            return value
        return {key: _plain(inner, keep=keep, name=key) for key, inner in value}
    if isinstance(value, list):
        return [_plain(inner, keep=keep, name=name) for inner in value]
    return value
