"""Tasks under a push: multiple choice, cloze, arithmetic strings, minimal pairs; what is asked is one file of questions.

A minimal pair is a question of two endings and an empty context. The answer is right where its mean log-probability per token
is the highest. A push goes on at every position of the text but the first, at its mean length over the study's prompts.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from polysem.errors import ConfigError
from polysem.models.base import WhiteBoxModel
from polysem.positions import positions_of
from polysem.side_effects.measures import mean_of
from polysem.transfer.capability import Item, own_logprobs

if TYPE_CHECKING:
    from polysem.behaviour.generate import TextArm, TextPlan
else:
    TextArm = TextPlan = Any
ROWS = 32


def task_rows(
    model: WhiteBoxModel,
    arms: Sequence[TextArm],
    items: Sequence[Item],
    plan: TextPlan,
    lengths: Float[np.ndarray, "doses arms"],
) -> list[dict[str, Any]]:
    """Rows of TEXT_TASKS.

    Raises:
        ConfigError: a question that does not fit the context, or has nothing to predict.
    """
    pushed = [
        (k, d, sign)
        for d in range(len(plan.doses))
        for k in range(len(arms))
        for sign in (1, -1)
        if np.isfinite(lengths[d, k])
    ]
    sizes = np.array([0.0, *(sign * lengths[d, k] for k, d, sign in pushed)])
    rows = [arms[k] for k, _, _ in [(0, 0, 0), *pushed]]
    gaps = np.stack([_gaps(model, item, rows, sizes) for item in items], axis=1)
    right = (gaps > 0).astype(float)
    made = [_row(-1, 0.0, 0, right[0], right[0], gaps[0] - gaps[0])]
    for r, (k, d, sign) in enumerate(pushed, start=1):
        made.append(_row(k, plan.doses[d], sign, right[r], right[0], gaps[r] - gaps[0]))
    return made


def _row(
    arm: int, dose: float, sign: int, right: np.ndarray, base: np.ndarray, gap: np.ndarray
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "arm": arm,
        "dose": dose,
        "sign": sign,
        "right": float(right.mean()),
        "n": len(right),
    }
    if arm >= 0:
        found = mean_of(right - base)
        row |= found.columns("change", "change_") | {"gap": float(gap.mean())}
    return row


def _gaps(
    model: WhiteBoxModel, item: Item, arms: Sequence[TextArm], sizes: Float[np.ndarray, " rows"]
) -> Float[np.ndarray, " rows"]:
    """Mean log-probability per token of the answer less that of the best other ending, under every push."""
    from polysem.behaviour.generate import pushes

    front = positions_of(model).row(model.tokenize(item.context, prepend_bos=False) if item.context else [])
    said = []
    for ending in item.endings:
        text = f" {ending.strip()}" if item.context else ending.strip()
        ids = [*front, *model.tokenize(text, prepend_bos=False)]
        start = max(len(front), 1)
        if len(ids) <= start or len(ids) > model.spec.n_ctx:
            raise ConfigError(
                f"a question of {len(ids)} tokens: {ending[:40]!r}; expected {start + 1} to {model.spec.n_ctx}",
                hint="cut the questions",
            )
        edited = torch.ones(len(ids), dtype=torch.bool, device=model.spec.device)
        edited[0] = False
        parts = []
        for at in range(0, len(arms), ROWS):
            some = slice(at, at + ROWS)
            edits = pushes(model, edited, arms[some], sizes[some])
            own = own_logprobs(model, ids, edits, n=len(arms[some]))[:, start - 1 :]
            parts.append(own.mean(1).cpu().numpy())
        said.append(np.concatenate(parts))
    others = [s for k, s in enumerate(said) if k != item.answer]
    return said[item.answer] - np.max(others, axis=0)
