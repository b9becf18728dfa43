"""One concept twice: each signal by hand, and a planted split with reworded glosses."""

import numpy as np
import pytest

from polysem.errors import ConfigError, MismatchError
from polysem.plan.splitting import Signals, splitting_signals
from polysem.worlds.tables import plain_sae

NO_TOKENS = [frozenset()] * 8


def signals_of(W_dec, activations, pairs, tokens=NO_TOKENS, **options):
    sae = plain_sae(np.asarray(W_dec, dtype=np.float64))
    return splitting_signals(
        sae, np.asarray(activations, float), np.asarray(pairs), tokens_in=tokens,
        rng=np.random.default_rng(0), **options,
    )  # fmt: skip


def test_every_signal_by_hand():
    W_dec = [[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, 1.0]]
    acts = [[1.0, 0, 0], [2.0, -2.0, 0], [0, 0, 1.0], [-1.0, 0, 1.0]]
    # 0 fires on rows 0 and 1 (mean 1.5); 1 on row 0 (0.6; row 1: 1.2 - 1.6 < 0); 2 on rows 2 and 3
    found = signals_of(
        W_dec, acts, [(0, 1), (0, 2)], [frozenset({1, 2}), frozenset({2, 3}), frozenset(), *NO_TOKENS]
    )
    assert found.interference == pytest.approx([0.6, 0.0])
    assert found.firing == pytest.approx([0.5, 0.0])
    # writing 0 by 1.5 where 1 is off: row 1 -> -0.4 + 0.9 on, row 2 -> 0.9 on, row 3 -> -0.6 + 0.9 on
    assert found.switch_ij == pytest.approx([1.0, 0.0])
    # writing 1 by 0.6 where 0 is off (rows 2, 3): 0.36 on; -1 + 0.36 off
    assert found.switch_ji == pytest.approx([0.5, 0.0])
    assert found.tokens[0] == pytest.approx(1 / 3)
    assert np.isnan(found.tokens[1])
    assert found.flagged.tolist() == [True, False]


@pytest.mark.parametrize(
    ("name", "below", "above"),
    [
        ("interference", -0.7, -0.71),
        ("firing", 0.3, 0.31),
        ("switch_ij", 0.25, 0.26),
        ("switch_ji", 0.25, 0.26),
        ("tokens", 0.2, 0.21),
    ],
)
def test_each_signal_flags_alone_and_what_is_unknown_does_not(name, below, above):
    nothing = {n: np.full(2, np.nan) for n in Signals._fields}
    assert Signals(**(nothing | {name: np.array([below, above])})).flagged.tolist() == [False, True]
    assert not Signals(**nothing).flagged.any()


def test_a_split_concept_is_caught_and_crosstalk_is_not():
    """Ten concepts are each given two latents at cosine 0.5, so that no single direction gives it away; ten pairs of
    independent concepts lie at the same cosine but are read apart by the encoder, as a trained one does."""
    rng = np.random.default_rng(0)
    d, n = 64, 40
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
    W_dec = basis[:n].copy()
    W_dec[1:20:2] = 0.5 * basis[0:20:2] + np.sqrt(0.75) * basis[1:20:2]
    W_dec[21:40:2] = 0.5 * basis[20:40:2] + np.sqrt(0.75) * basis[21:40:2]
    sae = plain_sae(W_dec)
    # Readers of the independent pairs are dual: each sees its own concept only. Those of split pairs are the rows.
    W_enc = W_dec.copy()
    dual = np.linalg.pinv(W_dec[20:]).T
    W_enc[20:] = dual
    sae = type(sae)(**{**vars(sae), "W_enc": sae.W_enc.new_tensor(W_enc.T), "b_enc": sae.b_enc - 0.1})
    fires = rng.random((3000, n)) < 0.05
    fires[:, 1:20:2] = fires[:, 0:20:2]  # both halves of a split concept fire together
    acts = (fires * rng.uniform(1, 2, fires.shape)) @ W_dec
    pairs = np.arange(n).reshape(-1, 2)
    found = splitting_signals(
        sae, acts, pairs, tokens_in=[frozenset({k}) for k in range(n)], rng=np.random.default_rng(1)
    )
    assert found.interference == pytest.approx([0.5] * 20, abs=1e-6)
    assert found.flagged[:10].all()
    assert not found.flagged[10:].any()


def test_a_feature_that_never_fires_tells_nothing():
    found = signals_of([[1.0, 0], [0.0, 1.0]], [[1.0, -1.0]], [(0, 1)])
    assert found.firing.tolist() == [0.0]
    assert np.isnan(found.switch_ji[0])  # 1 has no mean activation to be written at
    assert not found.flagged.any()


def test_what_does_not_fit_is_refused():
    W_dec, pairs = [[1.0, 0], [0.0, 1.0]], [(0, 1)]
    with pytest.raises(ConfigError, match="0 activations"):
        signals_of(W_dec, np.empty((0, 2)), pairs)
    with pytest.raises(ConfigError, match="all finite: False"):
        signals_of(W_dec, [[np.nan, 0.0]], pairs)
    with pytest.raises(MismatchError, match="features 0 to 5"):
        signals_of(W_dec, [[1.0, 0.0]], [(0, 5)])
