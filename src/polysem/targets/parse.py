"""From an OpenAI-compatible response to an answer. Two interfaces, and servers that differ inside each.

Completions give `top_logprobs` as an object keyed by text, so tokens of equal text collide: either the key is
there twice, or one token is gone. Chat gives a list of entries with the bytes of each token. Servers grant fewer
entries than they were asked for, append the sampled token as one more, or clip tiny values to -9999.
"""

import json
from typing import Any

import numpy as np

from polysem.errors import FormatError, UnknownReferenceError
from polysem.targets.base import Answer

CLIPPED = -1000.0
"""log-probabilities below this are a server's way to say "none" and are left out"""


class Pairs(list[tuple[str, Any]]):
    """A JSON object as it was written: keys in order, repeated keys kept."""


def parse_answer(body: str, *, api: str, k: int, where: str) -> Answer:
    """The answer in a response.

    Args:
        body: the response's text.
        api: "completions" or "chat".
        k: log-probabilities that were asked for.
        where: names the server in errors.

    Raises:
        FormatError: not JSON, cut, or not of the interface.
        UnknownReferenceError: a whole response without log-probabilities: the server does not give any.
    """
    try:
        response = _plain(json.loads(body, object_pairs_hook=Pairs), keep=("top_logprobs",))
        choice = response["choices"][0]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise FormatError(
            f"{where}: the answer is no {api} response ({error!r}): {body[:200]!r}",
            hint="check the address and target.kind",
        ) from error
    logprobs = choice.get("logprobs") if isinstance(choice, dict) else None
    try:
        entries = _chat(logprobs) if api == "chat" else _completion(logprobs)
        generated = _generated(choice, api=api)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(
            f"{where}: the answer's log-probabilities cannot be read ({error!r}): {body[:200]!r}",
            hint="check target.kind: completions and chat servers answer differently",
        ) from error
    if not entries:
        raise UnknownReferenceError(
            f"{where}: the server gives no log-probabilities (asked for {k})",
            hint="serve the model with log-probabilities (vLLM gives up to --max-logprobs 20), or use another",
        )
    return _answer(entries, k=k, text=generated)


def _answer(entries: list[tuple[str, float]], *, k: int, text: str) -> Answer:
    kept = [(token, float(value)) for token, value in entries if float(value) > CLIPPED]
    clipped = len(entries) - len(kept)
    # The sampled token may stand beside the k most likely ones; it is granted like they are, but of those below
    # it nothing is known: only the k largest are a distribution's head.
    kept = sorted(kept, key=lambda entry: (-entry[1], entry[0]))[:k]
    if not kept:
        raise FormatError(f"all {clipped} log-probabilities are below {CLIPPED}; expected finite ones")
    tokens, values = zip(*kept, strict=True)
    return Answer(tuple(tokens), np.array([min(v, 0.0) for v in values]), complete=False, text=text)


def with_losses(answer: Answer, *, granted: int, vocabulary: int | None) -> Answer:
    """The answer with what is missing from the `granted` entries that the server usually gives counted as lost,
    and complete if it holds the whole vocabulary and nothing was lost."""
    lost = max(0, granted - answer.n)
    whole = vocabulary is not None and answer.n >= vocabulary
    return Answer(answer.tokens, answer.logprobs, complete=whole, lost=0 if whole else lost, text=answer.text)


def _completion(logprobs: Any) -> list[tuple[str, float]]:
    if not logprobs or not logprobs.get("top_logprobs"):
        return []
    first = logprobs["top_logprobs"][0]
    if first is None:
        return []
    return [(str(token), float(value)) for token, value in first if value is not None]


def _chat(logprobs: Any) -> list[tuple[str, float]]:
    if not logprobs or not logprobs.get("content"):
        return []
    found = logprobs["content"][0].get("top_logprobs") or []
    entries = []
    for pairs in found:
        entry = dict(pairs)
        raw = entry.get("bytes")
        # A token of half a character has no text of its own; its bytes tell it from others like it.
        text = entry["token"] if not raw or "\ufffd" not in entry["token"] else f"bytes:{bytes(raw).hex()}"
        entries.append((str(text), float(entry["logprob"])))
    return entries


def _generated(choice: dict[str, Any], *, api: str) -> str:
    if api == "chat":
        return str((choice.get("message") or {}).get("content") or "")
    return str(choice.get("text") or "")


def _plain(value: Any, *, keep: tuple[str, ...], name: str = "") -> Any:
    """Objects as dicts, except below the names of `keep`, where repeated keys matter."""
    if isinstance(value, Pairs):
        if name in keep:
            return value
        return {key: _plain(inner, keep=keep, name=key) for key, inner in value}
    if isinstance(value, list):
        return [_plain(inner, keep=keep, name=name) for inner in value]
    return value
