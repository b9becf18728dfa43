"""Every SAE dialect against sae-lens, or, where sae-lens cannot read the format or reads it wrongly, against
its written rule.

The files are made here, by the writers of `support.sae_fixtures`; sae-lens loads the same files
through its own loaders.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from polysem.saes import load_sae
from polysem.saes.base import SAE
from polysem.testing.conformance_sae import check_sae_loader
from support import sae_fixtures as fx

pytestmark = [
    # sae-lens warns about kwargs of the model and about its own settings; none of it concerns the comparison.
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

ATOL = 2e-5
"""float32 sums over 16 to 64 terms of size about one, in another order"""


@pytest.fixture(scope="module")
def lens():
    """sae-lens, imported once; it takes some seconds."""
    return pytest.importorskip("sae_lens")


def agree(ours: SAE, theirs, x: torch.Tensor) -> None:
    """Same activations and same reconstruction on the same input."""
    heads = 4  # sae-lens takes hook_z by heads, we take it flat
    with torch.no_grad():
        acts = theirs.encode(x.unflatten(-1, (heads, -1)) if theirs.hook_z_reshaping_mode else x)
        recon = theirs.decode(acts).reshape(x.shape)
    assert (acts > 0).any(), "the comparison is empty: nothing is active"
    torch.testing.assert_close(ours.encode(x), acts, atol=ATOL, rtol=1e-5)
    torch.testing.assert_close(ours.decode(ours.encode(x), like=x), recon, atol=1e-4, rtol=1e-5)


SAELENS = {
    "v6 standard": lambda f, w: fx.write_saelens_v6(f, w),
    "v6 without b_dec": lambda f, w: fx.write_saelens_v6(f, w, apply_b_dec_to_input=False),
    "v6 layer_norm": lambda f, w: fx.write_saelens_v6(f, w, normalize_activations="layer_norm"),
    "v6 constant_norm": lambda f, w: fx.write_saelens_v6(f, w, normalize_activations="constant_norm_rescale"),
    "v6 topk": lambda f, w: fx.write_saelens_v6(f, w, architecture="topk"),
    "v6 topk rescaled": lambda f, w: fx.write_saelens_v6(
        f, w, architecture="topk", rescale_acts_by_decoder_norm=True
    ),
    "v6 jumprelu": lambda f, w: fx.write_saelens_v6(f, w, architecture="jumprelu"),
    "v6 gated": lambda f, w: fx.write_saelens_v6(f, w, architecture="gated"),
    "v6 unknown keys": lambda f, w: fx.write_saelens_v6(f, w, l0_coefficient=1.0, decoder_init_norm=0.1),
    "pre-v6": fx.write_saelens_pre_v6,
    "pre-v6 gated": lambda f, w: fx.write_saelens_pre_v6(f, w, architecture="gated"),
    "pre-v6 jumprelu": lambda f, w: fx.write_saelens_pre_v6(f, w, architecture="jumprelu"),
    "pre-v6 normalize null": lambda f, w: fx.write_saelens_pre_v6(f, w, normalize_activations=None),
    "pre-v6 openai": fx.write_openai_v5_pre_v6,
    "oldest": fx.write_saelens_oldest,
}


@pytest.mark.parametrize("variant", SAELENS)
def test_saelens_folder_agrees_with_sae_lens(variant: str, lens, tmp_path: Path):
    weights = fx.planted(decoder_norms=True)
    folder = SAELENS[variant](tmp_path / "sae", weights)
    theirs = lens.SAE.load_from_disk(folder)
    ours = load_sae(str(folder))
    agree(ours, theirs, fx.inputs(weights))
    assert str(ours.site) == theirs.cfg.metadata.hook_name
    assert ours.prepend_bos == theirs.cfg.metadata.prepend_bos
    assert ours.context_size == theirs.cfg.metadata.context_size


def convert(
    lens,
    loader: str,
    local: Path,
    *,
    patch: pytest.MonkeyPatch,
    repo: str,
    folder: str,
    fold: float | None = None,
    **sizes,
):
    """The SAE that a sae-lens converter builds, with `local` standing for the repository `repo`."""
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from safetensors.torch import load_file

    def download(repo_id: str, filename: str, subfolder: str | None = None, **_: object) -> str:
        path = local / (subfolder or "") / filename
        if not path.exists():
            raise loaders.EntryNotFoundError(filename)
        return str(path)

    patch.setattr(loaders, "hf_hub_download", download)
    patch.setattr(
        loaders,
        "get_safetensors_tensor_shapes",
        lambda _, name: {k: list(t.shape) for k, t in load_file(local / name).items()},
    )
    overrides = {"dtype": "float32", "device": "cpu", **sizes}

    def converter(path, device, cfg_overrides):
        return loaders.NAMED_PRETRAINED_SAE_LOADERS[loader](
            repo_id=repo, folder_name=folder, device="cpu", force_download=False, cfg_overrides=overrides
        )[:2]

    sae = lens.SAE.load_from_disk(local, converter=converter)
    if fold is not None:
        sae.fold_activation_norm_scaling_factor(fold)
    return sae


SIZES = {"d_in": fx.D_IN, "d_sae": fx.D_SAE}


@pytest.mark.parametrize("lower_case", [False, True])
@pytest.mark.parametrize("part", ["res", "mlp", "att"])
def test_gemma_scope_agrees(part: str, lower_case: bool, lens, tmp_path: Path, monkeypatch):
    weights = fx.planted()
    path = fx.write_gemma_scope(tmp_path, weights, part=part, lower_case=lower_case)
    repo = tmp_path / f"gemma-scope-2b-pt-{part}"
    theirs = convert(
        lens,
        "gemma_2",
        repo,
        patch=monkeypatch,
        repo=f"google/{repo.name}",
        folder=str(path.relative_to(repo)),
        **SIZES,
    )
    ours = load_sae(str(path))
    agree(ours, theirs, fx.inputs(weights))
    assert str(ours.site) == theirs.cfg.metadata.hook_name
    assert ours.model_id == "google/gemma-2-2b"


def test_gemma_scope_embedding_acts_on_scaled_embeddings_as_the_original_on_unscaled_ones(tmp_path: Path):
    """Not against sae-lens, which leaves b_dec unscaled: f(s x) must be f(x), and the reconstruction s times
    as long."""
    weights = fx.planted()
    ours = load_sae(str(fx.write_gemma_scope(tmp_path, weights, embedding=True)))
    x = fx.inputs(weights)
    pre = x @ weights.W_enc + weights.b_enc
    acts = torch.relu(pre) * (pre > weights.threshold)
    scale = math.sqrt(weights.d_in)
    torch.testing.assert_close(ours.encode(scale * x), acts, atol=ATOL, rtol=1e-5)
    torch.testing.assert_close(
        ours.decode(acts), scale * (acts @ weights.W_dec + weights.b_dec), atol=1e-4, rtol=1e-5
    )
    assert str(ours.site) == "hook_embed"


@pytest.mark.parametrize("config", [True, False])
def test_gemma_scope_2_agrees(config: bool, lens, tmp_path: Path, monkeypatch):
    weights = fx.planted()
    path = fx.write_gemma_scope_2(tmp_path, weights, config=config)
    repo = tmp_path / "gemma-scope-2-1b-pt"
    theirs = convert(
        lens,
        "gemma_3",
        repo,
        patch=monkeypatch,
        repo=f"google/{repo.name}",
        folder=str(path.relative_to(repo)),
    )
    ours = load_sae(str(path))
    agree(ours, theirs, fx.inputs(weights))
    assert str(ours.site) == theirs.cfg.metadata.hook_name
    assert ours.model_id == theirs.cfg.metadata.model_name == "google/gemma-3-1b-pt"


def test_llama_scope_agrees(lens, tmp_path: Path, monkeypatch):
    weights = fx.planted()
    norm = 2.5
    path = fx.write_llama_scope(tmp_path, weights, norm=norm)
    scale = math.sqrt(fx.D_IN) / norm
    theirs = convert(
        lens,
        "llama_scope",
        tmp_path,
        patch=monkeypatch,
        repo="fnlp/Llama3_1-8B-Base-LXR-8x",
        folder=path.name,
        fold=scale,
    )
    ours = load_sae(str(path))
    agree(ours, theirs, fx.inputs(weights))
    assert str(ours.site) == theirs.cfg.metadata.hook_name
    assert ours.model_id == theirs.cfg.metadata.model_name


def test_goodfire_agrees(lens, tmp_path: Path, monkeypatch):
    weights = fx.planted()
    path = fx.write_goodfire(tmp_path, weights)
    repo = "Goodfire/Llama-3.1-8B-Instruct-SAE-l19"
    theirs = convert(lens, "goodfire", tmp_path, patch=monkeypatch, repo=repo, folder=path.name, **SIZES)
    ours = load_sae(str(path))
    agree(ours, theirs, fx.inputs(weights))
    assert str(ours.site) == theirs.cfg.metadata.hook_name
    assert ours.model_id == theirs.cfg.metadata.model_name


def test_qwen_scope_agrees(lens, tmp_path: Path, monkeypatch):
    weights = fx.planted()
    path = fx.write_qwen_scope(tmp_path, weights)
    repo = path.parent.name
    theirs = convert(
        lens, "qwen_scope", path.parent, patch=monkeypatch, repo=f"Qwen/{repo}", folder=path.name, **SIZES
    )
    ours = load_sae(str(path))
    agree(ours, theirs, fx.inputs(weights))
    assert ours.k == theirs.cfg.k == weights.k
    assert str(ours.site) == theirs.cfg.metadata.hook_name
    assert ours.model_id == theirs.cfg.metadata.model_name


@pytest.mark.parametrize("dict_class", [c for c in fx.DICT_CLASSES if c not in ("AutoEncoderNew",)])
def test_dictionary_learning_agrees(dict_class: str, lens, tmp_path: Path, monkeypatch):
    """Decoder norms are one here, so that folding them, which sae-lens leaves to the user, changes
    nothing."""
    weights = fx.planted()
    path = tmp_path / "resid_post_layer_1" / "trainer_0"
    path.mkdir(parents=True)
    fx.write_dictionary_learning(path, weights, dict_class=dict_class)
    theirs = convert(
        lens,
        "dictionary_learning_1",
        tmp_path,
        patch=monkeypatch,
        repo="somebody/saes",
        folder="resid_post_layer_1/trainer_0",
    )
    agree(load_sae(str(path)), theirs, fx.inputs(weights))


# Written rules, in float64 and with numpy only.


def _np(t: torch.Tensor) -> np.ndarray:
    return t.double().numpy()


def _topk(pre: np.ndarray, k: int) -> np.ndarray:
    kept = np.zeros_like(pre)
    for row, out in zip(pre, kept, strict=True):
        best = np.argsort(row)[-k:]
        out[best] = row[best]
    return kept


def rule_dictionary(w: fx.Weights, x: np.ndarray, dict_class: str) -> tuple[np.ndarray, np.ndarray]:
    """dictionary_learning's own encode and decode (dictionary.py and trainers/), with its loader's unit
    decoder."""
    W_enc, W_dec, b_enc, b_dec = _np(w.W_enc), _np(w.W_dec), _np(w.b_enc), _np(w.b_dec)
    norms = np.linalg.norm(W_dec, axis=1)
    shifted = x if dict_class in ("AutoEncoderNew", "JumpReluAutoEncoder") else x - b_dec
    pre = shifted @ W_enc + b_enc
    match dict_class:
        case "AutoEncoder" | "AutoEncoderNew":
            acts = np.maximum(pre, 0)
            return acts * norms, acts @ W_dec + b_dec
        case "GatedAutoEncoder":
            product = shifted @ W_enc
            acts = (product + _np(w.b_gate) > 0) * np.maximum(
                product * np.exp(_np(w.r_mag)) + _np(w.b_mag), 0
            )
        case "AutoEncoderTopK":
            acts = _topk(np.maximum(pre, 0), w.k)
        case "BatchTopKSAE" | "MatryoshkaBatchTopKSAE":
            acts = np.maximum(pre, 0) * (np.maximum(pre, 0) > 0.25)
        case _:
            acts = np.maximum(pre, 0) * (pre > _np(w.threshold))
    return acts, acts @ W_dec + b_dec


@pytest.mark.parametrize("dict_class", fx.DICT_CLASSES)
def test_dictionary_learning_follows_its_rule(dict_class: str, tmp_path: Path):
    weights = fx.planted(decoder_norms=True)
    ours = load_sae(str(fx.write_dictionary_learning(tmp_path, weights, dict_class=dict_class)))
    x = fx.inputs(weights)
    acts, recon = rule_dictionary(weights, _np(x), dict_class)
    np.testing.assert_allclose(ours.encode(x), acts, atol=ATOL)
    np.testing.assert_allclose(ours.decode(ours.encode(x), like=x), recon, atol=1e-4)
    assert str(ours.site) == "blocks.1.hook_resid_post"
    assert ours.context_size == 128


@pytest.mark.parametrize("activation", ["topk", "groupmax"])
def test_sparsify_follows_its_rule(activation: str, tmp_path: Path):
    """sparse_coder.py: x - b_dec, linear, ReLU, top k or maximum per group; sae-lens transposes W_dec and
    cannot load it."""
    k = 8
    weights = fx.planted(k=k)
    ours = load_sae(str(fx.write_sparsify(tmp_path, weights, activation=activation)))
    x = fx.inputs(weights)
    pre = np.maximum((_np(x) - _np(weights.b_dec)) @ _np(weights.W_enc) + _np(weights.b_enc), 0)
    if activation == "topk":
        acts = _topk(pre, k)
    else:
        acts = np.zeros_like(pre)
        for row, out in zip(pre, acts, strict=True):
            for start in range(0, weights.d_sae, weights.d_sae // k):
                best = start + np.argmax(row[start : start + weights.d_sae // k])
                out[best] = row[best]
    np.testing.assert_allclose(ours.encode(x), acts, atol=ATOL)
    np.testing.assert_allclose(
        ours.decode(ours.encode(x)), acts @ _np(weights.W_dec) + _np(weights.b_dec), atol=1e-4
    )


@pytest.mark.parametrize(
    ("hookpoint", "site"),
    [
        ("layers.3", "blocks.3.hook_resid_post"),
        ("layers.3.mlp", "blocks.3.hook_mlp_out"),
        ("layers.3.attention", "blocks.3.hook_attn_out"),
        ("h.3.attn", "blocks.3.hook_attn_out"),
        ("embed_in", "hook_embed"),
    ],
)
def test_sparsify_site_is_its_hookpoint(hookpoint: str, site: str, tmp_path: Path):
    sae = load_sae(str(fx.write_sparsify(tmp_path, fx.planted(), hookpoint=hookpoint)))
    assert str(sae.site) == site
    assert sae.model_id == "EleutherAI/pythia-70m-deduped"


@pytest.mark.parametrize("activation", ["TopK", "ReLU"])
def test_openai_follows_its_rule(activation: str, tmp_path: Path):
    """openai/sparse_autoencoder: recon = (decoder(act(encoder(LN(x) - pre_bias) + latent_bias)) + pre_bias) *
    std + mu."""
    weights = fx.planted()
    ours = load_sae(str(fx.write_openai(tmp_path, weights, activation=activation)))
    x = fx.inputs(weights)
    raw = _np(x)
    mu, std = raw.mean(axis=1, keepdims=True), raw.std(axis=1, ddof=1, keepdims=True)
    inner, back, shift = ((raw - mu) / (std + 1e-5), std, mu) if activation == "TopK" else (raw, 1.0, 0.0)
    pre = (inner - _np(weights.b_dec)) @ _np(weights.W_enc) + _np(weights.b_enc)
    acts = np.maximum(_topk(pre, weights.k) if activation == "TopK" else pre, 0)
    np.testing.assert_allclose(ours.encode(x), acts, atol=ATOL)
    expected = (acts @ _np(weights.W_dec) + _np(weights.b_dec)) * back + shift
    np.testing.assert_allclose(ours.decode(ours.encode(x), like=x), expected, atol=1e-4)
    assert str(ours.site) == "blocks.1.hook_resid_post"
    assert ours.model_id == "openai-community/gpt2"
    assert (ours.prepend_bos, ours.context_size) == (False, 64)


@pytest.mark.parametrize("dialect", fx.WRITERS)
def test_every_dialect_passes_the_checks_for_loaders(dialect: str, tmp_path: Path):
    writer: Callable[[Path, fx.Weights], Path] = fx.WRITERS[dialect]
    (tmp_path / "sae").mkdir()
    path = writer(tmp_path / "sae", fx.planted())
    check_sae_loader(lambda where: load_sae(str(where)), path)


@pytest.mark.parametrize("dialect", fx.WRITERS)
def test_every_dialect_gives_the_planted_directions(dialect: str, tmp_path: Path):
    (tmp_path / "sae").mkdir()
    sae = load_sae(str(fx.WRITERS[dialect](tmp_path / "sae", fx.planted())))
    unit = torch.nn.functional.normalize(sae.W_dec, dim=-1)
    assert float(unit[0] @ unit[1]) == pytest.approx(fx.COSINE, abs=5e-3)  # bfloat16 in Llama Scope's files
    assert float(unit[0] @ unit[2]) == pytest.approx(-1.0, abs=5e-3)


def test_the_registry_agrees_with_the_one_in_sae_lens(lens):
    """Ids, paths, repositories and Neuronpedia ids of every release we share, except the corrections we
    know."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    from polysem.saes.releases import find, releases

    directory = get_pretrained_saes_directory()
    compared = 0
    for release, spec in releases().items():
        theirs = directory[release]
        assert theirs.repo_id == spec["repo"]
        for sae_id, path in theirs.saes_map.items():
            entry = find(release, sae_id)
            assert entry.path == path, (release, sae_id)
            compared += 1
            # They name e-att-sm, which is no source of Neuronpedia; ids with an explicit l0 have dashboards
            # only under "canonical".
            corrected = (release, sae_id) == ("pythia-70m-deduped-res-sm", "blocks.0.hook_resid_pre")
            if not corrected and "average_l0" not in sae_id:
                assert entry.neuronpedia == theirs.neuronpedia_id.get(sae_id), (release, sae_id)
    assert compared > 2000
    assert (
        find("pythia-70m-deduped-res-sm", "blocks.0.hook_resid_pre").neuronpedia
        == "pythia-70m-deduped/e-res-sm"
    )
