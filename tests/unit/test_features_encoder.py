"""The screened encoder against float64 algebra, and its promise that no screen or batch shows in the result."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polysem.errors import NumericsError
from polysem.features import encoder as encoders
from polysem.features.encoder import Active, ActiveEncoder
from polysem.saes.base import SAE, Provenance
from polysem.types import Site

KINDS = ("relu", "jumprelu", "gated", "topk", "topk-rescaled", "relu-normed")


def make_sae(kind: str, *, d_in: int = 20, d_sae: int = 70, seed: int = 0, spread: float = 1.0) -> SAE:
    """Random weights; norms of features from 1/spread to spread, biases of both signs."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    size = spread ** (2 * torch.rand(d_sae, generator=rng) - 1)
    sae = SAE(
        W_enc=normal(d_in, d_sae) * size,
        W_dec=normal(d_sae, d_in) * size[:, None],
        b_enc=normal(d_sae) * 2 - 3,
        b_dec=normal(d_in),
        activation="relu",
        reads=Site.parse("blocks.0.hook_resid_post"),
        writes=Site.parse("blocks.0.hook_resid_post"),
        model_id=None,
        model_revision=None,
        provenance=Provenance("memory", "memory", "test"),
    )
    match kind:
        case "jumprelu":
            return replace(sae, activation="jumprelu", threshold=normal(d_sae).abs() * 3 - 0.5)
        case "gated":
            gate = normal(d_sae), normal(d_sae), normal(d_sae) - 4
            return replace(sae, activation="gated", gate=gate, b_enc=torch.zeros(d_sae))
        case "topk":
            return replace(sae, activation="topk", k=5)
        case "topk-rescaled":
            return replace(sae, activation="topk", k=3, rescale_by_decoder_norm=True)
        case "relu-normed":
            return replace(sae, normalization="layer_norm", centre_input=True, rescale_by_decoder_norm=True)
    return sae


def exactly(sae: SAE, x: torch.Tensor) -> np.ndarray:
    """Activations in float64 from the same float32 input of the encoder, rounded once."""
    from polysem.saes.base import _activate, encoder_input

    def wide(value):
        if isinstance(value, tuple):
            return tuple(part.double() for part in value)
        return value.double() if isinstance(value, torch.Tensor) else value

    double = replace(sae, **{name: wide(value) for name, value in vars(sae).items() if name != "provenance"})
    return _activate(double, encoder_input(sae, x).double() @ double.W_enc).float().numpy()


def as_dense(active: Active) -> np.ndarray:
    out = np.zeros((active.n_places, active.d_sae), np.float32)
    out[active.place, active.feature] = active.value
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("screen", ["bf16", "fp32"])
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_activations_are_those_of_float64(kind, screen, spread):
    sae = make_sae(kind, spread=spread)
    x = torch.randn(300, 20, generator=torch.Generator().manual_seed(1))
    x *= 10 ** (3 * torch.rand(300, 1, generator=torch.Generator().manual_seed(2)) - 1.5)
    found = ActiveEncoder(sae, screen=screen)(x)
    expected = exactly(sae, x)
    assert 0 < (expected > 0).mean() < 0.9
    np.testing.assert_allclose(as_dense(found), expected, rtol=2**-22, atol=0)
    keys = found.place * sae.d_sae + found.feature
    assert (np.diff(keys) > 0).all(), "sorted, each once"
    assert (found.value > 0).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10**6),
    d_in=st.integers(2, 50),
    d_sae=st.integers(6, 90),
    n=st.integers(1, 40),
    cut=st.integers(0, 40),
    tiles=st.sampled_from([(7, 16), (512, 4096)]),
    dense=st.sampled_from([0.0, 0.03, 1.0]),
)
def test_no_screen_batch_or_fallback_shows_in_the_result(kind, seed, d_in, d_sae, n, cut, tiles, dense):
    sae = make_sae(kind, d_in=d_in, d_sae=d_sae, seed=seed, spread=5)
    x = torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed)) * 3
    reference = as_dense(ActiveEncoder(sae, screen="fp32")(x))
    before = encoders._PLACES, encoders._FEATURES, encoders.DENSE
    encoders._PLACES, encoders._FEATURES, encoders.DENSE = *tiles, dense
    try:
        encode = ActiveEncoder(sae, screen="bf16")
        parts = [as_dense(encode(part)) for part in (x[:cut], x[cut:])]
    finally:
        encoders._PLACES, encoders._FEATURES, encoders.DENSE = before
    np.testing.assert_array_equal(np.concatenate(parts), reference)


@pytest.mark.parametrize("kind", ["relu", "topk"])
@pytest.mark.parametrize("screen", ["bf16", "fp32"])
def test_pre_activations_within_rounding_of_the_cut_are_not_lost(kind, screen):
    """Thousands of pre-activations of 0 up to 1e-7: any screen without a margin would lose half of them."""
    sae = make_sae(kind, d_in=64, d_sae=64)
    sae = replace(sae, k=64 if kind == "topk" else None, subtract_b_dec=False)
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
    sae = replace(sae, b_enc=-(x[0] @ sae.W_enc))
    near = x[0] + 1e-7 * x
    expected = exactly(sae, near)
    assert 3000 < (expected > 0).sum() < 10000
    np.testing.assert_array_equal(as_dense(ActiveEncoder(sae, screen=screen)(near)), expected)


def test_ties_of_topk_go_to_the_smaller_feature():
    sae = make_sae("topk", d_in=4, d_sae=12)
    sae = replace(sae, W_enc=torch.ones(4, 12), b_enc=torch.zeros(12), subtract_b_dec=False)
    found = ActiveEncoder(sae)(torch.ones(3, 4))
    assert found.feature.tolist() == [0, 1, 2, 3, 4] * 3
    assert found.value.tolist() == [4.0] * 15


def test_groupmax_is_encoded_as_the_sae_does():
    sae = replace(make_sae("relu", d_sae=60), activation="groupmax", k=6)
    x = torch.randn(50, 20, generator=torch.Generator().manual_seed(1))
    np.testing.assert_array_equal(as_dense(ActiveEncoder(sae)(x)), sae.encode(x).numpy())


def test_few_candidates_are_decided_one_by_one():
    """The point of the screen: for a sparse SAE, hardly more features are decided than are active."""
    sae = make_sae("relu", d_in=256, d_sae=4096)
    sae = replace(sae, W_enc=sae.W_enc / 16, b_enc=torch.full((4096,), -3.0), subtract_b_dec=False)
    x = torch.randn(512, 256, generator=torch.Generator().manual_seed(1))
    encode = ActiveEncoder(sae, screen="bf16")
    asked = sum(len(place) for place, _ in encode._screen.candidates(x, k=None))
    active = len(encode(x).value)
    assert 1000 < active <= asked < 1.6 * active


@pytest.mark.parametrize("where", ["input", "weight", "bias", "overflow"])
def test_numbers_that_are_not_finite_are_refused(where):
    sae, x = make_sae("relu"), torch.ones(5, 20)
    if where == "input":
        x[2, 3] = torch.nan
    elif where == "weight":
        sae.W_enc[3, 3] = torch.inf
    elif where == "bias":
        sae.b_enc[3] = torch.nan
    else:
        x *= 1e30
        sae.W_enc.mul_(1e30)
    with pytest.raises(NumericsError, match="not finite"):
        ActiveEncoder(sae)(x)


def test_no_input_gives_no_activation():
    assert len(ActiveEncoder(make_sae("relu"))(torch.empty(0, 20)).value) == 0


def test_windows_hold_what_is_there_and_zeros():
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((30, 5)) < 0.3, rng.random((30, 5)), 0).astype(np.float32)
    start, feature = rng.integers(0, 27, 40), rng.integers(0, 5, 40)
    found = Active.of_dense(torch.from_numpy(dense)).windows(start, feature, 4)
    np.testing.assert_array_equal(found, dense[start[:, None] + np.arange(4), feature[:, None]])
    assert not Active.of_dense(torch.zeros(4, 3)).windows(np.array([1]), np.array([2]), 2).any()
