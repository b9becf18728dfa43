"""Laws of the codec over random shapes and weights: batching, permutation, rotation, scale, folding."""

from dataclasses import replace
from typing import NamedTuple

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polysem.saes.base import SAE, Provenance, decoder_norms
from polysem.saes.parts import fold_decoder_norm, fold_input_scale
from polysem.types import Site

TOLERANCE = {"atol": 1e-3, "rtol": 1e-3}
"""float32 on values of size ten; the laws move terms between factors"""
few = settings(max_examples=40, deadline=None)


class Spec(NamedTuple):
    """What hypothesis draws. SAEs are built in the tests: the checks on them may draw random numbers
    themselves."""

    d_in: int
    groups: int
    size: int
    seed: int
    activation: str
    normalization: str
    subtract_b_dec: bool
    centre_input: bool

    def build(self) -> SAE:
        """An SAE with random weights; d_sae = groups * size, and k = groups."""
        g = torch.Generator().manual_seed(self.seed)
        d_in, d_sae = self.d_in, self.groups * self.size

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=g)

        return SAE(
            W_enc=noise(d_in, d_sae),
            W_dec=noise(d_sae, d_in),
            b_enc=0.1 * noise(d_sae),
            b_dec=noise(d_in),
            activation=self.activation,
            reads=Site(0, "hook_resid_post"),
            writes=Site(0, "hook_resid_post"),
            model_id=None,
            model_revision=None,
            provenance=Provenance(ref="random", revision="0", dialect="test"),
            threshold=noise(d_sae).abs() if self.activation == "jumprelu" else None,
            k=self.groups if self.activation in ("topk", "groupmax") else None,
            gate=(0.1 * noise(d_sae), noise(d_sae), noise(d_sae)) if self.activation == "gated" else None,
            normalization=self.normalization,
            subtract_b_dec=self.subtract_b_dec,
            centre_input=self.centre_input,
        )


def saes(
    *, activations: tuple[str, ...] = ("relu", "topk", "jumprelu", "gated", "groupmax")
) -> st.SearchStrategy[Spec]:
    """Random shapes, weights and rules."""
    return st.builds(
        Spec,
        d_in=st.integers(2, 9),
        groups=st.integers(1, 4),
        size=st.integers(2, 6),
        seed=st.integers(0, 10_000),
        activation=st.sampled_from(activations),
        normalization=st.sampled_from(["none", "layer_norm", "constant_norm_rescale"]),
        subtract_b_dec=st.booleans(),
        centre_input=st.booleans(),
    )


def rows(sae: SAE, n: int = 6, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(n, sae.d_in, generator=torch.Generator().manual_seed(seed)) + 1


@few
@given(saes(), st.sampled_from([(6,), (2, 3), (3, 1, 2)]))
def test_shapes_and_batching(spec: Spec, shape: tuple[int, ...]):
    sae = spec.build()
    x = rows(sae)
    acts = sae.encode(x.reshape(*shape, -1))
    assert acts.shape == (*shape, sae.d_sae)
    torch.testing.assert_close(acts.reshape(6, -1), sae.encode(x), **TOLERANCE)
    assert sae.decode(acts, like=x.reshape(*shape, -1)).shape == (*shape, sae.d_in)
    assert (acts >= 0).all()


@few
@given(saes())
def test_inputs_and_weights_are_not_changed(spec: Spec):
    sae = spec.build()
    x = rows(sae)
    before, weights = x.clone(), sae.W_dec.clone()
    sae.decode(sae.encode(x), like=x)
    assert torch.equal(x, before)
    assert torch.equal(sae.W_dec, weights)


@few
@given(saes(activations=("relu", "jumprelu", "topk", "gated")), st.integers(0, 10_000))
def test_features_may_be_listed_in_any_order(spec: Spec, seed: int):
    sae = spec.build()
    order = torch.randperm(sae.d_sae, generator=torch.Generator().manual_seed(seed))
    gate = None if sae.gate is None else (sae.gate[0][order], sae.gate[1][order], sae.gate[2][order])
    shuffled = replace(
        sae,
        W_enc=sae.W_enc[:, order].contiguous(),
        W_dec=sae.W_dec[order],
        b_enc=sae.b_enc[order],
        threshold=None if sae.threshold is None else sae.threshold[order],
        gate=gate,
    )
    x = rows(sae)
    torch.testing.assert_close(shuffled.encode(x), sae.encode(x)[:, order], **TOLERANCE)
    torch.testing.assert_close(
        shuffled.decode(shuffled.encode(x), like=x), sae.decode(sae.encode(x), like=x), **TOLERANCE
    )


@few
@given(saes(activations=("relu", "jumprelu")))
def test_folding_decoder_norms_leaves_the_reconstruction(spec: Spec):
    sae = spec.build()
    names = ("W_enc", "W_dec", "b_enc", "threshold")
    tensors = {name: getattr(sae, name) for name in names if getattr(sae, name) is not None}
    folded = replace(sae, **fold_decoder_norm(tensors))
    x = rows(sae)
    torch.testing.assert_close(folded.encode(x), sae.encode(x) * decoder_norms(sae), **TOLERANCE)
    torch.testing.assert_close(
        folded.decode(folded.encode(x), like=x), sae.decode(sae.encode(x), like=x), **TOLERANCE
    )
    torch.testing.assert_close(decoder_norms(folded), torch.ones(sae.d_sae))


@few
@given(saes(activations=("topk", "relu")))
def test_rescaling_by_decoder_norm_is_folding_it(spec: Spec):
    """The rule of rescale_acts_by_decoder_norm, said twice."""
    sae = spec.build()
    rescaled = replace(sae, rescale_by_decoder_norm=True)
    folded = replace(
        sae, **fold_decoder_norm({name: getattr(sae, name) for name in ("W_enc", "W_dec", "b_enc")})
    )
    x = rows(sae)
    torch.testing.assert_close(rescaled.encode(x), folded.encode(x), **TOLERANCE)
    torch.testing.assert_close(
        rescaled.decode(rescaled.encode(x), like=x), folded.decode(folded.encode(x), like=x), **TOLERANCE
    )


@few
@given(saes(), st.floats(0.2, 5))
def test_folding_an_input_scale_is_scaling_the_input(spec: Spec, scale: float):
    sae = spec.build()
    sae = replace(sae, normalization="none", centre_input=False)
    folded = replace(
        sae, **fold_input_scale({"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}, scale)
    )
    x = rows(sae)
    torch.testing.assert_close(folded.encode(x), sae.encode(scale * x), **TOLERANCE)
    torch.testing.assert_close(
        folded.decode(folded.encode(x)), sae.decode(sae.encode(scale * x)) / scale, **TOLERANCE
    )


@few
@given(saes(), st.floats(-20, 20))
def test_layer_norm_and_centring_ignore_a_common_offset(spec: Spec, offset: float):
    sae = spec.build()
    for invariant in (replace(sae, normalization="layer_norm"), replace(sae, centre_input=True)):
        x = rows(sae)
        torch.testing.assert_close(invariant.encode(x + offset), invariant.encode(x), **TOLERANCE)
        moved = invariant.decode(invariant.encode(x), like=x + offset) - invariant.decode(
            invariant.encode(x), like=x
        )
        torch.testing.assert_close(moved, torch.full_like(moved, offset), **TOLERANCE)


@few
@given(saes(), st.floats(0.2, 5))
def test_constant_norm_is_homogeneous(spec: Spec, scale: float):
    sae = spec.build()
    sae = replace(sae, normalization="constant_norm_rescale")
    x = rows(sae)
    torch.testing.assert_close(sae.encode(scale * x), sae.encode(x), **TOLERANCE)
    acts = sae.encode(x)
    torch.testing.assert_close(
        sae.decode(acts, like=scale * x) - _mean(sae, scale * x),
        scale * (sae.decode(acts, like=x) - _mean(sae, x)),
        **TOLERANCE,
    )


def _mean(sae: SAE, x: torch.Tensor) -> torch.Tensor:
    return x.mean(dim=-1, keepdim=True) if sae.centre_input else torch.zeros_like(x)


@few
@given(saes(), st.integers(0, 10_000))
def test_rotating_the_space_rotates_the_reconstruction(spec: Spec, seed: int):
    sae = spec.build()
    sae = replace(sae, normalization="none", centre_input=False)
    turn = torch.linalg.qr(torch.randn(sae.d_in, sae.d_in, generator=torch.Generator().manual_seed(seed))).Q
    turned = replace(sae, W_enc=turn.T @ sae.W_enc, W_dec=sae.W_dec @ turn, b_dec=sae.b_dec @ turn)
    x = rows(sae)
    torch.testing.assert_close(turned.decode(sae.encode(x)), sae.decode(sae.encode(x)) @ turn, **TOLERANCE)
    # Encoding is compared through pre-activations that are far from a threshold or a tie: rounding may flip
    # those that are near.
    close = (turned.encode(x @ turn) - sae.encode(x)).abs() < 1e-3
    assert close.float().mean() > 0.9
