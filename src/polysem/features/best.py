"""The best windows and tokens of every feature, from activations that come in batches: bounded and exact.

Only activations above a feature's k-th best so far can change its best k; all others are dropped by one
comparison, and what is left is sorted. The result is exact, not a sketch. A window or token that belongs to
the final best is never turned away: the k-th best only rises, so what is below it once stays below, and a
token that falls out and comes back higher enters with its higher value. Windows are by (value, largest
first; row; position), tokens by (value, largest first; token id); ties are settled in that order.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from polysem.features.encoder import Active

AFTER_PEAK = 4
"""tokens kept after the peak of a window, where the window has room for as many before it"""


@dataclass(frozen=True)
class HarvestPlan:
    """What to keep: numbers per feature."""

    n_contexts: int
    window: int
    """tokens of a window; shorter where the row is"""
    n_tokens: int
    """distinct tokens kept per feature"""
    batch_rows: int = 16
    """rows of one forward pass"""


@dataclass
class Harvest:
    """What one SAE's features fired on. Arrays are by feature, best first; unused places hold -1 (rows,
    tokens), -inf (values) or 0."""

    first: int
    """first position of a row that counts"""
    n_positions: Int[np.ndarray, " 1"]
    """tokens seen"""
    n_active: Int[np.ndarray, " d_sae"]
    """tokens on which the feature is active"""
    context_value: Float[np.ndarray, "d_sae n_contexts"]
    context_row: Int[np.ndarray, "d_sae n_contexts"]
    context_peak: Int[np.ndarray, "d_sae n_contexts"]
    """position of the peak in the row"""
    context_start: Int[np.ndarray, "d_sae n_contexts"]
    """position of the window's first token in the row"""
    context_acts: Float[np.ndarray, "d_sae n_contexts window"]
    token_id: Int[np.ndarray, "d_sae n_tokens"]
    token_act: Float[np.ndarray, "d_sae n_tokens"]

    @classmethod
    def empty(cls, d_sae: int, plan: HarvestPlan, *, context: int, first: int) -> "Harvest":
        """Nothing seen yet, for rows of `context` tokens of which those from `first` on count."""
        k, m = plan.n_contexts, plan.n_tokens
        window = min(plan.window, context - first)
        return cls(
            first,
            np.zeros(1, np.int64),
            np.zeros(d_sae, np.int64),
            np.full((d_sae, k), -np.inf, np.float32),
            np.full((d_sae, k), -1, np.int64),
            np.zeros((d_sae, k), np.int32),
            np.zeros((d_sae, k), np.int32),
            np.zeros((d_sae, k, window), np.float32),
            np.full((d_sae, m), -1, np.int32),
            np.full((d_sae, m), -np.inf, np.float32),
        )

    @property
    def max_act(self) -> Float[np.ndarray, " d_sae"]:
        """Largest activation; 0 for a feature that never fired."""
        return np.maximum(self.context_value[:, 0], 0)

    def arrays(self) -> dict[str, np.ndarray]:
        """The state by name, for a checkpoint."""
        return {name: value for name, value in vars(self).items() if name != "first"}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over the state of a checkpoint."""
        for name in self.arrays():
            setattr(self, name, arrays[name].copy())

    def add(self, acts: Active, tokens: Int[np.ndarray, "batch pos"], *, first_row: int) -> None:
        """Add activations of the rows `first_row`, `first_row` + 1, ..., which come after all rows before.

        Args:
            acts: their places are the positions that count, from `first` on, row by row.
            tokens: of all positions.
            first_row: number of the first of these rows.
        """
        n_pos = tokens.shape[1]
        row, position = np.divmod(acts.place, n_pos - self.first)
        position += self.first
        feature, value = acts.feature, acts.value
        self.n_positions += acts.n_places if acts.n_seen is None else acts.n_seen
        self.n_active += np.bincount(feature, minlength=acts.d_sae)
        able = value > self.context_value[feature, -1]
        self._add_windows(
            acts, feature[able], value[able], row[able], position[able], n_pos=n_pos, first_row=first_row
        )
        able = value >= self.token_act[feature, -1]
        self._add_tokens(feature[able], value[able], tokens[row[able], position[able]])

    def _add_windows(
        self,
        acts: Active,
        feature: np.ndarray,
        value: np.ndarray,
        row: np.ndarray,
        peak: np.ndarray,
        *,
        n_pos: int,
        first_row: int,
    ) -> None:
        """Merge the peak of each row (`row` counts from 0 in `acts`) into the features' best windows."""
        if not len(feature):
            return
        peaks = _peaks(((feature * (row.max() + 1) + row) * n_pos) + peak, value, n_pos)
        feature, value, row, peak = feature[peaks], value[peaks], row[peaks], peak[peaks]
        window = self.context_acts.shape[2]
        after = min(AFTER_PEAK, (window - 1) // 2)
        start = np.clip(peak - (window - 1 - after), self.first, n_pos - window)
        fresh = {
            "context_value": value,
            "context_row": first_row + row,
            "context_peak": peak,
            "context_start": start,
            "context_acts": acts.windows(row * (n_pos - self.first) + start - self.first, feature, window),
        }
        touched, slot = _held(self.context_row, feature)
        whole = {
            name: np.concatenate([getattr(self, name)[touched, slot], new]) for name, new in fresh.items()
        }
        # among equals of a feature the earlier row comes first, as it does here already
        feature = np.concatenate([touched, feature])
        order, feature, rank = _best(feature, whole["context_value"], self.context_row.shape[1])
        for name, values in whole.items():
            getattr(self, name)[feature, rank] = values[order]

    def _add_tokens(self, feature: np.ndarray, value: np.ndarray, token: np.ndarray) -> None:
        """Merge activations into the features' best distinct tokens."""
        if not len(feature):
            return
        touched, slot = _held(self.token_id, feature)
        feature = np.concatenate([touched, feature])
        token = np.concatenate([self.token_id[touched, slot], token])
        value = np.concatenate([self.token_act[touched, slot], value])
        most = _peaks(feature * (int(token.max()) + 1) + token, value, 1)
        feature, token, value = feature[most], token[most], value[most]
        order, feature, rank = _best(feature, value, self.token_id.shape[1])
        self.token_id[feature, rank] = token[order]
        self.token_act[feature, rank] = value[order]


def _held(places: np.ndarray, feature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(feature, rank) of what is kept already for the features named."""
    named = np.zeros(len(places), dtype=bool)
    named[feature] = True
    feature, rank = np.nonzero((places >= 0) & named[:, None])
    return feature, rank


def _begins(column: np.ndarray) -> np.ndarray:
    """Where, in a sorted column, a new value begins."""
    return np.flatnonzero(np.append(True, column[1:] != column[:-1]))


def _peaks(
    key: Int[np.ndarray, " n"], value: Float[np.ndarray, " n"], size: int
) -> Int[np.ndarray, " groups"]:
    """The index of the largest value of each group, groups rising: those whose keys agree but for the remainder of division
    by `size`, which decides between equal values (the smaller one)."""
    order = np.argsort(key)
    value, group = value[order], key[order] // size
    begin = _begins(group)
    sizes = np.diff(begin, append=len(order))
    first = np.flatnonzero(value == np.repeat(np.maximum.reduceat(value, begin), sizes))
    return order[first[_begins(group[first])]]


def _best(
    feature: Int[np.ndarray, " n"], value: Float[np.ndarray, " n"], k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is among each feature's k largest, by feature and then best first, equals in the order given: (indices, features,
    ranks). Values are float32 above 0, whose bits are ordered as they are."""
    order = np.argsort((feature << 31) - value.view(np.int32), kind="stable")
    sorted_feature = feature[order]
    begin = _begins(sorted_feature)
    rank = np.arange(len(order)) - np.repeat(begin, np.diff(begin, append=len(order)))
    kept = rank < k
    return order[kept], sorted_feature[kept], rank[kept]
