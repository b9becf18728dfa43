"""What an injection costs at the dose that is claimed: cross-entropy on held-out text, and multiple choice.

The same strings that moved a category stand in front of ordinary text; what the model loses there is the price of what it
gained. Reported per injection, at the same dose, never at a fraction of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from polysem.boundary.door import Door, brief
from polysem.boundary.text import json_lines, read_text
from polysem.edits import Add, Edit
from polysem.errors import ConfigError
from polysem.positions import positions_of
from polysem.types import Site

if TYPE_CHECKING:
    from torch import Tensor

    from polysem.models.base import WhiteBoxModel
else:
    Tensor = WhiteBoxModel = Any

ROWS = 32
"""vectors in one forward pass"""
_QUESTIONS = Door("questions", "expected a .jsonl file of objects with context, endings and answer")


def own_logprobs(
    model: WhiteBoxModel, ids: Sequence[int], edits: Sequence[Edit] = (), *, n: int = 1
) -> Float[Tensor, "n predicted"]:
    """Log-probability (nats, float64) of each token of a text but the first, after those before it.

    Args:
        ids: of the text, BOS included where it has one.
        edits: under which.
        n: rows that the edits are for.
    """
    import torch

    tokens = torch.tensor([list(ids)], device=model.spec.device).expand(n, -1)
    logprobs = model.logits(tokens, edits)[:, :-1].double().log_softmax(-1)
    return logprobs.gather(2, tokens[:, 1:, None].to(logprobs.device))[..., 0]


def continuation_nats(model: WhiteBoxModel, prefix: str, text: str) -> tuple[float, int]:
    """(nats, tokens) of a text after a prefix; only the text's own tokens count, tokenized apart from the prefix.

    Raises:
        ConfigError: an empty text, or more than the model's context.
    """
    front = positions_of(model).row(model.tokenize(prefix, prepend_bos=False) if prefix else [])
    ids = model.tokenize(text, prepend_bos=False)
    skipped = 0 if front else 1  # without anything in front the first token has no prediction
    if len(ids) <= skipped or len(front) + len(ids) > model.spec.n_ctx:
        raise ConfigError(
            f"a text of {len(ids)} tokens after {len(front)} others; expected at least {skipped + 1} and {model.spec.n_ctx} in all"
        )
    own = own_logprobs(model, [*front, *ids])[0, len(front) + skipped - 1 :]
    return -float(own.sum()), len(own)


def edited_nats(
    model: WhiteBoxModel, ids: Sequence[int], site: Site, vectors: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, " n"]:
    """Cross-entropy of a text in nats per token, BOS or first token given, under each vector added at all
    positions but the first.

    Raises:
        ConfigError: a text of fewer than two tokens, or longer than the context.
    """
    import torch

    if not 2 <= len(ids) <= model.spec.n_ctx:
        raise ConfigError(f"a text of {len(ids)} tokens; expected 2 to {model.spec.n_ctx}")
    mask = torch.ones(len(ids), dtype=torch.bool, device=model.spec.device)
    mask[0] = False
    found = []
    for start in range(0, len(vectors), ROWS):
        part = torch.tensor(vectors[start : start + ROWS], dtype=torch.float32, device=model.spec.device)
        edit = Add(site, part, mask.expand(len(part), -1))
        found.append(-own_logprobs(model, ids, [edit], n=len(part)).mean(dim=1).cpu().numpy())
    return np.concatenate(found) if found else np.zeros(0)


def text_cost(
    model: WhiteBoxModel, prefixes: Sequence[str], texts: Sequence[str]
) -> Float[np.ndarray, "prefixes texts"]:
    """Change of cross-entropy in nats per token that each prefix brings to each text."""
    found = [[continuation_nats(model, prefix, text) for text in texts] for prefix in ("", *prefixes)]
    per_token = np.array([[nats / n for nats, n in row] for row in found]).reshape(len(found), len(texts))
    return per_token[1:] - per_token[0]


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
    found = []
    for n, row in json_lines(read_text(path, door=_QUESTIONS), path, door=_QUESTIONS):
        if not isinstance(row, dict):
            raise _QUESTIONS.refuse(path, f"line {n}: no question: {brief(row)}")
        context, endings = row.get("context", row.get("ctx")), row.get("endings")
        answer = row.get("answer", row.get("label"))
        if isinstance(answer, str) and len(answer) < 9 and answer.strip().isdecimal():
            answer = int(answer)
        if not isinstance(answer, int) or isinstance(answer, bool):
            answer = None
        if not isinstance(context, str) or not isinstance(endings, list) or answer is None:
            raise _QUESTIONS.refuse(path, f"line {n}: no question (context, endings, answer): {brief(row)}")
        good = [e for e in endings if isinstance(e, str) and e.strip()]
        if len(endings) < 2 or len(good) < len(endings) or not 0 <= answer < len(endings):
            raise _QUESTIONS.refuse(
                path, f"line {n}: {len(endings)} endings, answer {answer}; expected at least two"
            )
        item = Item(context, tuple(endings), answer)
        found.append(item)
    if not found:
        raise _QUESTIONS.refuse(path, "it holds no question")
    return found


def choices_right(
    model: WhiteBoxModel, items: Sequence[Item], *, prefix: str = ""
) -> Float[np.ndarray, " items"]:
    """1 where the right ending has the highest mean log-probability per token after prefix and context."""
    right = []
    for item in items:
        ends = (continuation_nats(model, f"{prefix}{item.context}", f" {e.strip()}") for e in item.endings)
        right.append(float(np.argmax([-nats / n for nats, n in ends]) == item.answer))
    return np.array(right)
