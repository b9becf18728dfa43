"""The bounded state of a harvest against a dense store and a full sort, ties and any batching included."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polysem.config import FeaturesConfig
from polysem.features.best import AFTER_PEAK, Harvest, HarvestPlan
from polysem.features.columns import target_tokens
from polysem.features.encoder import Active
from polysem.features.tokens_out import _largest


def add(state, acts, tokens, *, first_row):
    """Dense activations [rows, positions, features], BOS and all."""
    acts = torch.as_tensor(acts)
    state.add(Active.of_dense(acts[:, state.first :].flatten(0, 1)), tokens, first_row=first_row)


def tied_activations(seed, n_rows, n_pos, d_sae):
    """Few distinct values, mostly zero: ties everywhere."""
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 4, (n_rows, n_pos, d_sae)) * rng.choice([0.5, 0.75, 1.0], d_sae)
    return (values * (rng.random((n_rows, n_pos, d_sae)) < 0.15)).astype(np.float32)


def best_windows(acts, first, k):
    """(value, row, peak) of the k best rows of one feature [row pos], by (value desc, row)."""
    live = acts[:, first:]
    peaks = [
        (-live[r].max(), r, int(live[r].argmax()) + first) for r in range(len(live)) if live[r].max() > 0
    ]
    return [(-float(v), r, p) for v, r, p in sorted(peaks)[:k]]


def best_tokens(acts, tokens, first, m):
    """(token, largest activation) of the m best distinct tokens, by (value desc, token)."""
    best = {}
    for r, p in zip(*np.nonzero(acts[:, first:]), strict=True):
        token, value = int(tokens[r, p + first]), float(acts[r, p + first])
        best[token] = max(best.get(token, 0.0), value)
    return sorted(best.items(), key=lambda item: (-item[1], item[0]))[:m]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n_rows=st.integers(1, 30),
    n_pos=st.integers(2, 9),
    k=st.integers(1, 4),
    m=st.integers(1, 5),
    window=st.integers(1, 12),
    first=st.integers(0, 1),
    cuts=st.lists(st.integers(0, 30), max_size=5),
)
def test_state_is_that_of_a_dense_store_whatever_the_batches(seed, n_rows, n_pos, k, m, window, first, cuts):
    d_sae = 5
    acts = tied_activations(seed, n_rows, n_pos, d_sae)
    acts[..., 4] = 0
    acts[:, 0, 3] = 9
    tokens = np.random.default_rng(seed + 1).integers(0, 8, (n_rows, n_pos))
    state = Harvest.empty(d_sae, HarvestPlan(k, window, m), context=n_pos, first=first)
    edges = sorted({0, n_rows, *(c for c in cuts if c < n_rows)})
    for a, b in pairwise(edges):
        add(state, acts[a:b], tokens[a:b], first_row=a)
    width = min(window, n_pos - first)
    assert state.n_positions[0] == n_rows * (n_pos - first)
    assert state.n_active.tolist() == (acts[:, first:] > 0).sum((0, 1)).tolist()
    for f in range(d_sae):
        dense = acts[..., f]
        assert state.max_act[f] == max(dense[:, first:].max(), 0)
        n = int((state.context_row[f] >= 0).sum())
        got = list(zip(state.context_value[f], state.context_row[f], state.context_peak[f], strict=True))
        assert got[:n] == best_windows(dense, first, k)
        for rank in range(n):
            row, peak, start = (
                int(a[f, rank]) for a in (state.context_row, state.context_peak, state.context_start)
            )
            assert first <= start <= peak < start + width <= n_pos, "the peak is shown, BOS is not"
            assert state.context_acts[f, rank].tolist() == dense[row, start : start + width].tolist()
        held = state.token_id[f] >= 0
        got = list(zip(state.token_id[f][held].tolist(), state.token_act[f][held].tolist(), strict=True))
        assert got == best_tokens(dense, tokens, first, m)


def test_a_window_ends_a_few_tokens_after_its_peak():
    acts = torch.zeros(1, 50, 1)
    acts[0, 30, 0] = 1.0
    tokens = np.zeros((1, 50), dtype=np.int64)
    starts = {}
    for window in (1, 3, 24):
        state = Harvest.empty(1, HarvestPlan(1, window, 1), context=50, first=1)
        add(state, acts, tokens, first_row=0)
        starts[window] = int(state.context_start[0, 0])
    assert starts == {1: 30, 3: 29, 24: 30 + AFTER_PEAK - 23}


def test_restored_state_is_the_state():
    plan = HarvestPlan(2, 3, 2)
    acts = torch.from_numpy(tied_activations(0, 6, 5, 4))
    tokens = np.arange(30).reshape(6, 5)
    whole, half, rest = (Harvest.empty(4, plan, context=5, first=1) for _ in range(3))
    add(whole, acts, tokens, first_row=0)
    add(half, acts[:3], tokens[:3], first_row=0)
    rest.restore(half.arrays())
    add(rest, acts[3:], tokens[3:], first_row=3)
    assert half.n_positions[0] == 12, "what is restored is not shared"
    for name, values in whole.arrays().items():
        np.testing.assert_array_equal(values, rest.arrays()[name], err_msg=name)


@pytest.mark.parametrize(("ratio", "expected"), [(1.0, [7]), (0.8, [7, 3, 4]), (0.79, [7, 3, 4, 5])])
def test_target_tokens_are_those_at_the_ratio_of_the_maximum(ratio, expected):
    state = Harvest.empty(2, HarvestPlan(1, 1, 5), context=5, first=0)
    acts = torch.zeros(1, 5, 2)
    acts[0, :, 0] = torch.tensor([8.0, 8.0, 7.9, 2.0, 10.0])
    add(state, acts, np.array([[4, 3, 5, 6, 7]]), first_row=0)
    kept = target_tokens(state, FeaturesConfig(target_ratio=ratio))
    assert state.token_id[0][kept[0]].tolist() == expected
    assert not kept[1].any(), "a feature that never fired has no target token"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), width=st.integers(1, 40), n=st.integers(1, 12), levels=st.integers(1, 30))
def test_largest_settles_ties_by_column(seed, width, n, levels):
    values = np.random.default_rng(seed).integers(-levels, levels, (4, width)).astype(np.float32)
    ids, best = _largest(torch.from_numpy(values), n)
    for row in range(4):
        expected = np.argsort(-values[row], kind="stable")[:n]
        assert ids[row].tolist() == expected.tolist()
        assert best[row].tolist() == values[row][expected].tolist()
