"""The fidelity gate: SAEs that reconstruct exactly, spoiled in one respect, must be refused with that respect
named."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polysem.errors import ConfigError, FidelityError, MismatchError, NumericsError, SiteError
from polysem.positions import positions_of
from polysem.saes import load_sae
from polysem.saes.base import SAE, Provenance
from polysem.saes.fidelity import fidelity, measure, sample_rows
from polysem.saes.gate import check_fidelity
from polysem.saes.load import check_match
from polysem.saes.names import site_of_hook
from polysem.worlds.tiny import tiny_model
from support import sae_fixtures as fx

HERE = "blocks.1.hook_resid_post"


class Spec:
    def __init__(self, ref: str):
        self.ref, self.n_ctx = ref, 64
        self.family, self.n_layers, self.d_model, self.norm, self.named = "gpt2", 12, 768, "layer", ""


class Recorded:
    """A model whose activations are given, by site. Tokens are characters."""

    def __init__(self, activations: dict[str, torch.Tensor], ref: str = "openai-community/gpt2"):
        self.spec = Spec(ref)
        self.activations = {site_of_hook(name): x for name, x in activations.items()}

    def tokenize(self, text: str, *, prepend_bos: bool) -> list[int]:
        return [1 + ord(c) % 90 for c in text]

    @property
    def bos_id(self) -> int | None:
        return 0

    def sites(self) -> list:
        return list(self.activations)

    def site_width(self, site) -> int:
        if site not in self.activations:
            raise SiteError(f"no {site}")
        return self.activations[site].shape[-1]

    def capture(self, tokens: torch.Tensor, sites) -> dict:
        rows, length = tokens.shape
        return {s: self.activations[s][: rows * length].unflatten(0, (rows, length)) for s in sites}


def perfect(d: int = 12, *, seed: int = 0, b_dec: float = 0.0, **facts) -> tuple[SAE, torch.Tensor]:
    """An SAE that reconstructs exactly what lies in its subspace (plus and minus of d/2 orthonormal rows),
    and that subspace's basis.

    The subspace is orthogonal to the vector of ones. 4 d features, all but d of them dead.
    """
    g = torch.Generator().manual_seed(seed)
    free = torch.randn(d, d // 2, generator=g)
    basis = torch.linalg.qr(free - free.mean(dim=0)).Q.T
    W_dec = torch.zeros(4 * d, d)
    W_dec[: d // 2], W_dec[d // 2 : 2 * (d // 2)] = basis, -basis
    sae = SAE(
        W_enc=W_dec.T.contiguous(),
        W_dec=W_dec,
        b_enc=torch.zeros(4 * d),
        b_dec=b_dec * basis.sum(dim=0),
        activation="relu",
        reads=site_of_hook(HERE),
        writes=site_of_hook(HERE),
        model_id="gpt2-small",
        model_revision=None,
        provenance=Provenance(ref="perfect", revision="0", dialect="test"),
    )
    return replace(sae, **facts), basis


def in_subspace(basis: torch.Tensor, *, n: int = 2000, seed: int = 5) -> torch.Tensor:
    return torch.randn(n, basis.shape[0], generator=torch.Generator().manual_seed(seed)) @ basis


def gate(sae: SAE, model: Recorded, *, max_fvu: float = 0.7):
    rows = sample_rows(model, positions=positions_of(model, True))
    return check_fidelity(sae, model, rows, max_fvu=max_fvu)


# FVU and L0


def test_fvu_against_its_definition():
    """Twenty tokens by hand in float64, on an SAE that reconstructs badly."""
    weights = fx.planted()
    x = fx.inputs(weights, n=20)
    sae, _ = perfect(fx.D_IN)
    sae = replace(sae, W_enc=weights.W_enc, W_dec=weights.W_dec, b_enc=weights.b_enc, b_dec=weights.b_dec)
    seen = measure(sae, x)
    raw, hat = x.double(), sae.decode(sae.encode(x)).double()
    unexplained = sum(float(((a - b) ** 2).sum()) for a, b in zip(raw, hat, strict=True))
    total = sum(float(((a - raw.mean(dim=0)) ** 2).sum()) for a in raw)
    assert seen.fvu == pytest.approx(unexplained / total, rel=1e-5)
    assert seen.l0 == pytest.approx(sum(int((row > 0).sum()) for row in sae.encode(x)) / 20)
    assert seen.n_tokens == 20


def test_predicting_the_mean_has_fvu_one():
    sae, basis = perfect()
    x = in_subspace(basis)
    dead = replace(sae, b_enc=torch.full((sae.d_sae,), -1e6), b_dec=x.mean(dim=0))
    assert measure(dead, x).fvu == pytest.approx(1.0, rel=1e-5)


def test_exact_reconstruction_has_fvu_zero():
    sae, basis = perfect()
    seen = gate(sae, Recorded({HERE: in_subspace(basis)}))
    assert seen.fvu < 1e-10
    assert seen.l0 == basis.shape[0]


def test_first_positions_are_left_out():
    """Outliers at position 0 of every row, where BOS stands, must not reach the measurement."""
    sae, basis = perfect()
    x = in_subspace(basis)
    clean = Recorded({HERE: x})
    rows = sample_rows(clean, positions=positions_of(clean, True))
    spoiled = x.clone()
    spoiled[: rows.numel() : rows.shape[1]] += 1e4
    assert fidelity(sae, Recorded({HERE: spoiled}), rows) == fidelity(sae, clean, rows)


def test_sample_rows_are_equal_long_begin_with_bos_and_respect_the_context():
    model = Recorded({})
    rows = sample_rows(model, positions=positions_of(model, True), context=16, n_tokens=64)
    assert tuple(rows.shape) == (4, 16)
    assert (rows[:, 0] == 0).all()
    assert not (rows[:, 1:] == 0).any()
    without = sample_rows(model, positions=positions_of(model, False), context=16, n_tokens=64)
    assert without.flatten().tolist()[:15] == rows[0, 1:].tolist()


def test_text_that_is_too_short_is_an_error():
    with pytest.raises(ConfigError, match="has 0 tokens"):
        sample_rows(Recorded({}), [""], positions=positions_of(Recorded({}), True))


def test_activations_that_overflow():
    sae, basis = perfect()
    x = in_subspace(basis)
    x[5] = float("inf")
    with pytest.raises(NumericsError, match="float32"):
        gate(sae, Recorded({HERE: x}))


# What is probably wrong


def refusal(sae: SAE, activations: dict[str, torch.Tensor], *, max_fvu: float = 0.3) -> FidelityError:
    with pytest.raises(FidelityError) as caught:
        gate(sae, Recorded(activations), max_fvu=max_fvu)
    return caught.value


def test_wrong_site_names_the_right_one():
    sae, basis = perfect()
    _, elsewhere = perfect(seed=9)
    activations = {
        HERE: in_subspace(elsewhere),
        "blocks.1.hook_mlp_out": in_subspace(elsewhere, seed=6),
        "blocks.2.hook_resid_post": in_subspace(basis),
        "blocks.1.mlp.hook_post": torch.randn(2000, 48),
    }
    error = refusal(sae, activations)
    assert "It would pass at blocks.2.hook_resid_post: FVU" in str(error)
    assert error.hint is not None
    assert 'site="blocks.2.hook_resid_post"' in error.hint


def test_of_two_names_of_one_tensor_the_usual_one_is_named():
    sae, basis = perfect()
    _, elsewhere = perfect(seed=9)
    x = in_subspace(basis)
    activations = {HERE: in_subspace(elsewhere), "blocks.1.attn.hook_out": x, "blocks.1.hook_attn_out": x}
    assert "would pass at blocks.1.hook_attn_out" in str(refusal(sae, activations))


def test_missing_subtraction_of_the_bias_is_named():
    sae, basis = perfect(b_dec=4.0)
    x = in_subspace(basis) + sae.b_dec
    assert gate(sae, Recorded({HERE: x})).fvu < 1e-10
    error = refusal(replace(sae, subtract_b_dec=False), {HERE: x})
    assert "would pass with subtraction of b_dec" in str(error)
    assert "subtract_b_dec=True" in str(error.hint)


def test_superfluous_subtraction_of_the_bias_is_named():
    sae, basis = perfect(b_dec=4.0)
    # Without subtraction the planted rows see all of x; b_enc takes the bias away again.
    shifted = replace(sae, b_enc=-(sae.b_dec @ sae.W_enc), subtract_b_dec=False)
    x = in_subspace(basis) + sae.b_dec
    assert gate(shifted, Recorded({HERE: x})).fvu < 1e-10
    assert "would pass without subtraction of b_dec" in str(
        refusal(replace(shifted, subtract_b_dec=True), {HERE: x})
    )


def test_missing_centring_is_named():
    sae, basis = perfect()
    x = in_subspace(basis)
    x = x + 3 * torch.randn(x.shape[0], 1, generator=torch.Generator().manual_seed(3))
    assert gate(replace(sae, centre_input=True), Recorded({HERE: x})).fvu < 1e-10
    error = refusal(sae, {HERE: x})
    assert "would pass with centred input" in str(error)
    assert "centre_input=True" in str(error.hint)


def test_missing_layer_norm_is_named():
    """Thresholds of the normalised scale, raw activations a hundred times smaller: nothing fires."""
    sae, basis = perfect(activation="jumprelu", threshold=torch.full((48,), 0.05), normalization="layer_norm")
    x = 0.01 * in_subspace(basis) + 0.02
    assert gate(sae, Recorded({HERE: x})).fvu < 0.01
    error = refusal(replace(sae, normalization="none"), {HERE: x})
    assert "with normalization layer_norm" in str(error) or "scaled to an average norm" in str(error)


def test_relu_in_place_of_topk_is_named():
    """Eight of four orthonormal bases' rows are active; ReLU lets all half-aligned rows of the other bases
    fire."""
    d, k, g = 128, 8, torch.Generator().manual_seed(0)
    bases = [torch.linalg.qr(torch.randn(d, d, generator=g)).Q for _ in range(4)]
    W_dec = torch.cat(bases)
    codes = torch.zeros(600, d).scatter_(1, torch.rand(600, d, generator=g).topk(k, dim=1).indices, 1.0)
    x = codes @ bases[0]
    sae, _ = perfect()
    topk = replace(
        sae,
        W_enc=W_dec.T.contiguous(),
        W_dec=W_dec,
        b_enc=torch.zeros(4 * d),
        b_dec=torch.zeros(d),
        activation="topk",
        k=k,
    )
    assert gate(topk, Recorded({HERE: x})).fvu < 0.3
    error = refusal(replace(topk, activation="relu", k=None), {HERE: x})
    assert "would pass with activation topk, k = 8" in str(error)


def test_two_faults_are_both_named():
    sae, basis = perfect(b_dec=4.0)
    x = in_subspace(basis) + sae.b_dec
    _, elsewhere = perfect(seed=9)
    activations = {HERE: in_subspace(elsewhere), "blocks.0.hook_resid_post": x}
    error = refusal(replace(sae, subtract_b_dec=False), activations)
    assert "would pass at blocks.0.hook_resid_post and with subtraction of b_dec" in str(error)


def test_when_nothing_helps_it_says_so():
    sae, _ = perfect()
    _, elsewhere = perfect(seed=9)
    error = refusal(sae, {HERE: in_subspace(elsewhere)}, max_fvu=0.05)
    assert "none passes" in str(error)
    assert "gpt2-small" in str(error.hint)


def test_an_sae_that_never_fires_is_refused_even_if_the_limit_is_lax():
    sae, basis = perfect()
    silent = replace(sae, b_enc=torch.full((sae.d_sae,), -1e6))
    error = refusal(silent, {HERE: in_subspace(basis)}, max_fvu=5.0)
    assert "L0 0 (expected more than 0" in str(error)


# load_sae with a model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sae, _ = perfect(fx.D_IN)
    weights = replace(fx.planted(), W_enc=sae.W_enc, W_dec=sae.W_dec, b_enc=sae.b_enc, b_dec=sae.b_dec)
    return fx.write_saelens_v6(tmp_path / "sae", weights)


def test_loading_with_a_model_records_what_the_gate_saw(folder: Path):
    _, basis = perfect(fx.D_IN)
    sae = load_sae(str(folder), model=Recorded({HERE: in_subspace(basis)}))
    assert sae.provenance.measured["fvu"] < 1e-10
    assert sae.provenance.measured["l0"] == basis.shape[0]
    assert sae.provenance.measured["n_tokens"] == 512 - 8
    assert load_sae(str(folder)).provenance.measured == {}


def test_the_gate_runs_at_load(folder: Path):
    with pytest.raises(FidelityError, match="sae"):
        load_sae(str(folder), model=Recorded({HERE: torch.randn(2000, fx.D_IN)}), max_fvu=0.1)


def test_another_model_is_a_mismatch(folder: Path):
    _, basis = perfect(fx.D_IN)
    other = Recorded({HERE: in_subspace(basis)}, ref="EleutherAI/pythia-70m-deduped")
    with pytest.raises(
        MismatchError,
        match="trained on openai-community/gpt2, but the model is EleutherAI/pythia-70m-deduped",
    ):
        load_sae(str(folder), model=other)
    assert load_sae(str(folder), model=other, allow_other_model=True).provenance.measured["fvu"] < 1e-10


@pytest.mark.parametrize("ref", ["gpt2", "gpt2-small", "openai-community/gpt2", "memory"])
def test_the_same_model_under_another_name_fits(ref: str, folder: Path):
    _, basis = perfect(fx.D_IN)
    load_sae(str(folder), model=Recorded({HERE: in_subspace(basis)}, ref=ref))


def test_a_model_in_a_local_folder_is_compared_by_what_is_known_of_the_name(
    folder: Path, tmp_path: Path, caplog
):
    """The files name gpt2-small; the folder holds a model of another family, depth or width."""
    _, basis = perfect(fx.D_IN)
    (tmp_path / "my-model").mkdir()
    here = Recorded({HERE: in_subspace(basis)}, ref=str(tmp_path / "my-model"))
    for family, layers, width in (("llama", 12, 768), ("gpt2", 2, 768), ("gpt2", 12, 16)):
        here.spec.family, here.spec.n_layers, here.spec.d_model = family, layers, width
        with pytest.raises(
            MismatchError, match=f"{family} of {layers} layers, width {width}, not gpt2 of 12, 768"
        ):
            load_sae(str(folder), model=here)
        load_sae(str(folder), model=here, allow_other_model=True)
    here.spec.family, here.spec.n_layers, here.spec.d_model = "gpt2", 12, 768
    load_sae(str(folder), model=here)
    here.spec.named = "openai-community/gpt2-medium"
    with pytest.raises(MismatchError, match="its configuration says openai-community/gpt2-medium"):
        load_sae(str(folder), model=here)


def test_another_width_is_a_mismatch(folder: Path):
    with pytest.raises(
        MismatchError, match=r"reads 16 numbers, but blocks\.1\.hook_resid_post of .* is 20 wide"
    ):
        load_sae(str(folder), model=Recorded({HERE: torch.randn(2000, 20)}))


def test_a_site_that_the_model_lacks(folder: Path):
    with pytest.raises(SiteError):
        load_sae(str(folder), model=Recorded({"blocks.0.hook_resid_post": torch.randn(2000, 16)}))


def test_check_match_alone_measures_nothing():
    sae, _ = perfect()
    check_match(sae, Recorded({HERE: torch.full((1, 12), math.nan)}))


def test_zoo_references_name_their_model(tmp_path: Path, monkeypatch):
    """Whatever the files say: the SAEs of the zoo belong to the zoo's models, not to the published model of
    that name."""
    import polysem.saes.load as load

    path = fx.write_saelens_v6(tmp_path / "sae", fx.planted(model="gpt2"))
    monkeypatch.setattr(load, "zoo_path", lambda kind, name: path)
    assert load_sae("zoo:gpt2/blocks.1.hook_resid_post").model_id == "zoo:gpt2"


# A real forward pass


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2"])
def test_on_a_tiny_model_the_gate_finds_the_layer(family: str):
    """An SAE made to reconstruct one layer's activations exactly (their top principal directions) fails at
    the layer before."""
    model = tiny_model(family, n_layers=3)
    site = site_of_hook("blocks.1.hook_resid_post")
    rows = sample_rows(model, positions=positions_of(model, True))
    x = model.capture(rows, [site])[site][:, 1:].flatten(0, 1)
    mean = x.mean(dim=0)
    top = torch.linalg.svd(x - mean, full_matrices=False).Vh[: x.shape[1] // 2]
    W_dec = torch.cat([top, -top, torch.zeros(2 * x.shape[1], x.shape[1])])
    sae, _ = perfect()
    sae = replace(
        sae,
        W_enc=W_dec.T.contiguous(),
        W_dec=W_dec,
        b_enc=torch.zeros(W_dec.shape[0]),
        b_dec=mean,
        reads=site,
        writes=site,
        model_id=None,
    )
    here = fidelity(sae, model, rows)
    total = torch.linalg.svdvals(x - mean) ** 2
    assert here.fvu == pytest.approx(float(total[x.shape[1] // 2 :].sum() / total.sum()), rel=1e-3)
    check_fidelity(sae, model, rows, max_fvu=here.fvu + 0.01)
    elsewhere = sae.at(site_of_hook("blocks.0.hook_resid_pre"))
    with pytest.raises(FidelityError, match=r"blocks\.1\.hook_resid_post"):
        check_fidelity(elsewhere, model, rows, max_fvu=here.fvu + 0.01)
