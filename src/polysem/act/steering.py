"""Rows brought to their KL: `dosing.py` with a model's logits in its hands."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.act.dosing import doses_at_kl
from polysem.readouts import kl


def steered_at_kl(
    run: Callable[[Int[np.ndarray, " m"], Float[np.ndarray, " m"]], Tensor],
    doses: Float[np.ndarray, " rows"],
    base: Float[Tensor, "1 d_vocab"],
    *,
    first: float,
    lines: Int[np.ndarray, " rows"] | None = None,
) -> tuple[Float[np.ndarray, " rows"], Float[Tensor, "rows d_vocab"], Bool[np.ndarray, " rows"]]:
    """Signed strengths at which every row has the KL that its dose asks for, the logits there, and rows for which
    there is no such strength.

    Args:
        run: rows and signed strengths -> logits.
        doses: nats, signed: each sign is brought to its KL by itself.
        base: logits without an edit.
        first: a strength that is likely to cost 0.01 nats, positive; KL grows as the square of the strength, so one
            start serves all doses.
        lines: rows with one number share a direction; None: none do.
    """
    signs, wanted = np.sign(doses), np.abs(doses)
    logits = torch.full((len(doses), base.shape[-1]), torch.nan, dtype=torch.float64)

    def measure(rows: np.ndarray, strength: np.ndarray) -> np.ndarray:
        seen = run(rows, signs[rows] * strength)
        logits[torch.as_tensor(rows)] = seen
        if bool(torch.isfinite(seen.sum())):  # a sum shows any entry that is not
            return np.asarray(kl(base, seen), dtype=np.float64).ravel()
        finite = torch.isfinite(seen).all(-1)
        found = np.full(len(rows), np.inf)
        if bool(finite.any()):
            found[finite.numpy()] = np.asarray(kl(base, seen[finite]), dtype=np.float64).ravel()
        return found

    found = doses_at_kl(measure, wanted, first * np.sqrt(wanted / 0.01), signs=signs, lines=lines)
    return signs * found.strength, logits, ~found.reached
