"""What an injection costs at the dose that is claimed: cross-entropy on held-out text, and multiple choice.

The same strings that moved a category stand in front of ordinary text; what the model loses there is the price of what it
gained. Reported per injection, at the same dose, never at a fraction of it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from polysem.errors import ConfigError, FormatError, UnknownReferenceError

if TYPE_CHECKING:
    from polysem.models.base import WhiteBoxModel
else:
    WhiteBoxModel = Any


def continuation_nats(model: WhiteBoxModel, prefix: str, text: str) -> tuple[float, int]:
    """(nats, tokens) of a text after a prefix; only the text's own tokens count, tokenized apart from the prefix.

    Raises:
        ConfigError: an empty text, or more than the model's context.
    """
    import torch

    front = model.tokenize(prefix, prepend_bos=model.bos_id is not None) if prefix else []
    if not front and model.bos_id is not None:
        front = [model.bos_id]
    ids = model.tokenize(text, prepend_bos=False)
    skipped = 0 if front else 1  # without anything in front the first token has no prediction
    if len(ids) <= skipped or len(front) + len(ids) > model.spec.n_ctx:
        raise ConfigError(
            f"a text of {len(ids)} tokens after {len(front)} others; expected at least {skipped + 1} and {model.spec.n_ctx} in all"
        )
    tokens = torch.tensor([[*front, *ids]])
    logprobs = model.logits(tokens)[0].double().log_softmax(-1)
    start = len(front) + skipped
    own = tokens[0, start:].to(logprobs.device)
    return -float(logprobs[start - 1 : -1].gather(1, own[:, None]).sum()), len(own)


def text_cost(
    model: WhiteBoxModel, prefixes: Sequence[str], texts: Sequence[str]
) -> Float[np.ndarray, "prefixes texts"]:
    """Change of cross-entropy in nats per token that each prefix brings to each text."""
    base = [continuation_nats(model, "", text) for text in texts]
    rows = []
    for prefix in prefixes:
        moved = [continuation_nats(model, prefix, text) for text in texts]
        rows.append([m / n - b / k for (m, n), (b, k) in zip(moved, base, strict=True)])
    return np.array(rows).reshape(len(prefixes), len(texts))


@dataclass(frozen=True)
class Item:
    """One multiple-choice question."""

    context: str
    endings: tuple[str, ...]
    answer: int


def load_items(path: Path) -> list[Item]:
    """Questions of a JSONL file: {"context": text, "endings": [texts], "answer": number from 0}; `ctx` and `label` are
    taken for `context` and `answer`.

    Raises:
        UnknownReferenceError: no such file.
        FormatError: names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UnknownReferenceError(
            f"{path} cannot be read: {error}", hint="expected a .jsonl file"
        ) from error
    found = []
    for n, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            endings = tuple(row["endings"])
            item = Item(
                row.get("context") or row["ctx"],
                endings,
                int(row["answer"] if "answer" in row else row["label"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{path}, line {n}: no question ({error!r}): {line[:60]!r}") from error
        if (
            len(endings) < 2
            or not all(isinstance(e, str) and e.strip() for e in endings)
            or not 0 <= item.answer < len(endings)
        ):
            raise FormatError(
                f"{path}, line {n}: {len(endings)} endings, answer {item.answer}; expected at least two"
            )
        found.append(item)
    if not found:
        raise FormatError(f"{path} holds no question")
    return found


def choices_right(
    model: WhiteBoxModel, items: Sequence[Item], *, prefix: str = ""
) -> Float[np.ndarray, " items"]:
    """1 where the right ending has the highest mean log-probability per token after prefix and context."""
    right = []
    for item in items:
        front = f"{prefix}{item.context}"
        means = [
            -nats / n for nats, n in (continuation_nats(model, front, f" {e.strip()}") for e in item.endings)
        ]
        right.append(float(int(np.argmax(means)) == item.answer))
    return np.array(right)
