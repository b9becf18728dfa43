"""One pass over a corpus: what every feature of every SAE fires on.

1. A batch of rows goes through the model once; the sites of all SAEs are captured together. 2. Each SAE
encodes its site. BOS positions are left out of everything. 3. Per feature, bounded state is updated: how
often it fires, its largest activation, its best windows (at most one a row), and its best tokens by their
largest activation.

The state is exact, not a sketch: a window or token that belongs to the final best cannot be turned away
earlier, because the k-th best only rises. Ties go to the earlier row, and to the smaller token id. Memory:
a few kilobytes a feature; time: the forward pass.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.corpus import TokenRows
from polysem.errors import NumericsError, StoreError
from polysem.models.base import WhiteBoxModel
from polysem.progress import SILENT, Reporter
from polysem.saes.base import SAE
from polysem.store.io import read_arrays, write_arrays

log = logging.getLogger(__name__)

AFTER_PEAK = 4
"""tokens kept after the peak of a window"""
CHECKPOINT_EVERY = 64
"""batches between checkpoints"""


@dataclass(frozen=True)
class HarvestPlan:
    """What to keep: numbers per feature."""

    n_contexts: int
    window: int
    n_tokens: int
    """distinct tokens kept per feature"""
    batch_rows: int = 16


@dataclass
class Harvest:
    """What one SAE's features fired on. Arrays are by feature; unused places hold -inf, -1 or 0."""

    n_positions: int
    n_active: Int[np.ndarray, " d_sae"]
    max_act: Float[np.ndarray, " d_sae"]
    context_value: Float[np.ndarray, "d_sae n_contexts"]
    context_row: Int[np.ndarray, "d_sae n_contexts"]
    context_peak: Int[np.ndarray, "d_sae n_contexts"]
    context_start: Int[np.ndarray, "d_sae n_contexts"]
    context_acts: Float[np.ndarray, "d_sae n_contexts window"]
    token_id: Int[np.ndarray, "d_sae n_tokens"]
    token_act: Float[np.ndarray, "d_sae n_tokens"]
    _arrays: tuple[str, ...] = field(
        default=(
            "n_active", "max_act", "context_value", "context_row", "context_peak", "context_start",
            "context_acts", "token_id", "token_act",
        ),
        repr=False,
    )  # fmt: skip

    @classmethod
    def empty(cls, d_sae: int, plan: HarvestPlan, *, context: int) -> "Harvest":
        k, m = plan.n_contexts, plan.n_tokens
        window = min(plan.window, context)
        return cls(
            0,
            np.zeros(d_sae, np.int64),
            np.zeros(d_sae, np.float32),
            np.full((d_sae, k), -np.inf, np.float32),
            np.full((d_sae, k), -1, np.int32),
            np.zeros((d_sae, k), np.int32),
            np.zeros((d_sae, k), np.int32),
            np.zeros((d_sae, k, window), np.float32),
            np.full((d_sae, m), -1, np.int32),
            np.full((d_sae, m), -np.inf, np.float32),
        )

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        named = {f"{prefix}/{name}": getattr(self, name) for name in self._arrays}
        return {**named, f"{prefix}/n_positions": np.array([self.n_positions])}

    def restore(self, prefix: str, arrays: Mapping[str, np.ndarray]) -> None:
        for name in self._arrays:
            setattr(self, name, arrays[f"{prefix}/{name}"].copy())
        self.n_positions = int(arrays[f"{prefix}/n_positions"][0])


def harvest(
    model: WhiteBoxModel,
    saes: Mapping[str, SAE],
    rows: TokenRows,
    *,
    plan: HarvestPlan,
    skip_first: bool,
    checkpoint: Path | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Harvest]:
    """What every feature fires on, by SAE label.

    Args:
        model: runs the rows.
        saes: by label.
        rows: [n_rows, context] tokens.
        plan: what to keep.
        skip_first: leave position 0 (BOS) out of all statistics.
        checkpoint: file that holds the state of an unfinished pass; written every `CHECKPOINT_EVERY` batches.
        reporter: is told of every batch.

    Raises:
        NumericsError: if an SAE gives an activation that is not finite.
    """
    context = rows.tokens.shape[1]
    states = {label: Harvest.empty(sae.d_sae, plan, context=context) for label, sae in saes.items()}
    mark = _fingerprint(model, saes, rows, plan, skip_first=skip_first)
    starts = range(0, len(rows.tokens), plan.batch_rows)
    done = _resume(checkpoint, states, mark) if checkpoint else 0
    sites = sorted({sae.site for sae in saes.values()}, key=str)
    for n in reporter.track(range(done, len(starts)), total=len(starts), label="harvest", done=done):
        at = starts[n]
        tokens = torch.from_numpy(rows.tokens[at : at + plan.batch_rows])
        captured = model.capture(tokens, sites)
        for label, sae in saes.items():
            acts = sae.encode(captured[sae.site])
            if not torch.isfinite(acts).all():
                raise NumericsError(
                    f"SAE {label} gives activations that are not finite on rows {at} to {at + len(tokens)}"
                )
            _update(states[label], acts.cpu(), tokens, first_row=at, skip_first=skip_first)
        if checkpoint and (n + 1) % CHECKPOINT_EVERY == 0 and n + 1 < len(starts):
            _save(checkpoint, states, mark, done=n + 1)
    return states


def _update(
    state: Harvest,
    acts: Float[Tensor, "batch pos d_sae"],
    tokens: Int[Tensor, "batch pos"],
    *,
    first_row: int,
    skip_first: bool,
) -> None:
    first = 1 if skip_first else 0
    live = acts[:, first:]
    state.n_positions += live.shape[0] * live.shape[1]
    state.n_active += (live > 0).sum((0, 1)).numpy()
    best, peak = live.amax(1).numpy(), live.argmax(1).numpy() + first
    np.maximum(state.max_act, best.max(0), out=state.max_act)
    _update_contexts(state, acts.numpy(), best, peak, first_row=first_row, first=first)
    _update_tokens(state, live.numpy(), tokens[:, first:].numpy())


def _update_contexts(
    state: Harvest, acts: np.ndarray, best: np.ndarray, peak: np.ndarray, *, first_row: int, first: int
) -> None:
    """Merge each row's best activation per feature ([batch d_sae], at `peak`) into the features' best
    windows."""
    k = state.context_value.shape[1]
    touched = np.flatnonzero(((best > state.context_value[:, -1]) & (best > 0)).any(0))
    if not len(touched):
        return
    new = np.where(best > 0, best, -np.inf).T[touched]
    merged = np.concatenate([state.context_value[touched], new], 1)
    order = np.argsort(-merged, axis=1, kind="stable")[:, :k]  # stable: earlier rows first among equals
    row = np.arange(len(touched))[:, None]
    from_old, batch = order < k, np.maximum(order - k, 0)
    old = np.minimum(order, k - 1)
    feature = touched[:, None]
    window = state.context_acts.shape[2]
    at = peak[batch, feature]
    start = np.clip(
        at - (window - 1 - AFTER_PEAK), min(first, acts.shape[1] - window), acts.shape[1] - window
    )
    fresh = acts[batch[..., None], start[..., None] + np.arange(window), feature[..., None]]
    filled = np.isfinite(merged[row, order])

    def keep(held: np.ndarray, given: np.ndarray, blank: int) -> np.ndarray:
        expand = (...,) + (None,) * (held.ndim - 2)
        chosen = np.where(from_old[expand], held[touched][row, old], given)
        return np.where(filled[expand], chosen, blank).astype(held.dtype)

    state.context_acts[touched] = keep(state.context_acts, fresh, 0)
    state.context_start[touched] = keep(state.context_start, start, 0)
    state.context_peak[touched] = keep(state.context_peak, at, 0)
    state.context_row[touched] = keep(state.context_row, first_row + batch, -1)
    state.context_value[touched] = merged[row, order]


def _update_tokens(state: Harvest, acts: np.ndarray, tokens: np.ndarray) -> None:
    """Merge the activations of one batch into each feature's best distinct tokens."""
    batch, pos, feature = np.nonzero(acts)
    value = acts[batch, pos, feature]
    hopeful = value >= state.token_act[feature, -1]
    if not hopeful.any():
        return
    feature, value, token = feature[hopeful], value[hopeful], tokens[batch[hopeful], pos[hopeful]]
    touched = np.unique(feature)
    held = state.token_id[touched] >= 0
    feature = np.concatenate([np.broadcast_to(touched[:, None], held.shape)[held], feature])
    token = np.concatenate([state.token_id[touched][held], token])
    value = np.concatenate([state.token_act[touched][held], value])
    order = np.lexsort((-value, token, feature))
    feature, token, value = feature[order], token[order], value[order]
    distinct = np.concatenate([[True], (feature[1:] != feature[:-1]) | (token[1:] != token[:-1])])
    feature, token, value = feature[distinct], token[distinct], value[distinct]
    order = np.lexsort((token, -value, feature))
    feature, token, value = feature[order], token[order], value[order]
    begin = np.searchsorted(feature, touched)
    rank = np.arange(len(feature)) - np.repeat(begin, np.diff([*begin, len(feature)]))
    kept = rank < state.token_act.shape[1]
    state.token_id[feature[kept], rank[kept]] = token[kept]
    state.token_act[feature[kept], rank[kept]] = value[kept]


def _fingerprint(
    model: WhiteBoxModel, saes: Mapping[str, SAE], rows: TokenRows, plan: HarvestPlan, *, skip_first: bool
) -> str:
    facts = {
        "model": [model.spec.ref, model.spec.revision, model.spec.dtype],
        "saes": {
            label: [sae.provenance.ref, sae.provenance.revision, str(sae.site)] for label, sae in saes.items()
        },
        "rows": hashlib.sha256(rows.tokens.tobytes()).hexdigest(),
        "plan": [plan.n_contexts, plan.window, plan.n_tokens, plan.batch_rows, skip_first],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _save(path: Path, states: Mapping[str, Harvest], mark: str, *, done: int) -> None:
    arrays = {"done": np.array([done]), "fingerprint": np.frombuffer(mark.encode(), np.uint8)}
    for n, state in enumerate(states.values()):
        arrays |= state.arrays(str(n))
    write_arrays(path, arrays)


def _resume(path: Path, states: Mapping[str, Harvest], mark: str) -> int:
    """Batches already done, with the states restored; 0 where the checkpoint is absent, damaged or of
    another pass."""
    if not path.exists():
        return 0
    try:
        arrays = read_arrays(path, rebuild="run the same command again")
    except StoreError as error:
        log.warning("the harvest starts again: %s", error)
        return 0
    if arrays["fingerprint"].tobytes().decode() != mark:
        log.warning("the harvest starts again: %s is of another model, SAE, corpus or setting", path)
        return 0
    for n, state in enumerate(states.values()):
        state.restore(str(n), arrays)
    return int(arrays["done"][0])
