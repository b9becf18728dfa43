"""References, errors, the codec and the fidelity gate. Dialects are compared with sae-lens in
tests/conformance."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from polysem.errors import (
    ConfigError,
    FormatError,
    NumericsError,
    PolysemError,
    SiteError,
    UnknownReferenceError,
)
from polysem.saes import load_sae
from polysem.saes.names import hub_id, same_model, site_of_hook, site_of_module
from polysem.saes.releases import find, find_by_path, releases
from support import sae_fixtures as fx


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors of a SAELens folder; None removes one."""
    path = folder / "sae_weights.safetensors"
    tensors = {**load_file(path), **changes}
    save_file({name: t for name, t in tensors.items() if t is not None}, path)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "cfg.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A SAELens v6 folder."""
    return fx.write_saelens_v6(tmp_path / "sae", fx.planted())


# The record


def test_decoder_is_rows_of_float32(folder: Path):
    sae = load_sae(str(folder))
    assert tuple(sae.W_dec.shape) == (fx.D_SAE, fx.D_IN)
    assert sae.W_dec.dtype == torch.float32
    assert sae.W_dec.is_contiguous()
    torch.testing.assert_close(sae.W_dec, fx.planted().W_dec)


def test_bfloat16_weights_become_float32(folder: Path):
    tensors = load_file(folder / "sae_weights.safetensors")
    edit_weights(folder, **{name: t.bfloat16() for name, t in tensors.items()})
    sae = load_sae(str(folder))
    assert sae.W_dec.dtype == torch.float32
    torch.testing.assert_close(sae.W_dec, tensors["W_dec"].bfloat16().float())


def test_provenance_says_which_files_were_read(folder: Path):
    import hashlib

    provenance = load_sae(str(folder)).provenance
    expected = {
        n: hashlib.sha256((folder / n).read_bytes()).hexdigest()
        for n in ("cfg.json", "sae_weights.safetensors")
    }
    assert dict(provenance.files) == expected
    assert provenance.revision == expected["sae_weights.safetensors"]
    assert provenance.ref == str(folder)
    assert provenance.declared["metadata"]["dataset_path"] == "somebody/some-text"  # pyright: ignore[reportIndexIssue]


def test_importing_the_package_does_not_import_torch():
    code = "import polysem.saes, polysem.saes.releases, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_file_reference_is_its_folder(folder: Path):
    by_file = load_sae(str(folder / "sae_weights.safetensors"))
    torch.testing.assert_close(by_file.W_enc, load_sae(str(folder)).W_enc)


def test_site_argument_wins(folder: Path):
    assert str(load_sae(str(folder), site="blocks.0.hook_mlp_out").site) == "blocks.0.hook_mlp_out"
    with pytest.raises(SiteError, match=r"blocks\.0\.hook_nonsense"):
        load_sae(str(folder), site="blocks.0.hook_nonsense")


def test_moving_keeps_every_tensor(tmp_path: Path):
    sae = load_sae(str(fx.write_saelens_v6(tmp_path / "sae", fx.planted(), architecture="gated")))
    moved = sae.to("cpu")
    assert moved.gate is not None
    assert sae.gate is not None
    torch.testing.assert_close(moved.gate[1], sae.gate[1])
    torch.testing.assert_close(moved.W_dec, sae.W_dec)


# Rules of the SAELens forms


def test_expected_average_normalisation_is_folded(tmp_path: Path):
    """x -> s x in, /s out, computed here on the unfolded weights; b_enc is untouched."""
    weights, s = fx.planted(), 0.7
    path = fx.write_saelens_v6(
        tmp_path / "sae", weights, normalize_activations="expected_average_only_in", norm_scaling_factor=s
    )
    sae = load_sae(str(path))
    x = fx.inputs(weights)
    # SAELens folds b_dec / s and subtracts it from raw x, so that the encoder sees s x - b_dec, which is what
    # was trained.
    acts = torch.relu((s * x - weights.b_dec) @ weights.W_enc + weights.b_enc)
    torch.testing.assert_close(sae.encode(x), acts, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(
        sae.decode(acts), (acts @ weights.W_dec + weights.b_dec) / s, atol=1e-4, rtol=1e-5
    )


def test_old_boolean_normalisation_needs_the_factor_too(tmp_path: Path):
    path = fx.write_saelens_pre_v6(tmp_path / "sae", fx.planted(), normalize_activations=True)
    with pytest.raises(FormatError, match="norm_scaling_factor"):
        load_sae(str(path))


def test_finetuning_factor_scales_the_decoder_or_is_refused(tmp_path: Path):
    weights = fx.planted()
    factor = torch.linspace(0.5, 1.5, weights.d_sae)
    path = fx.write_saelens_pre_v6(tmp_path / "sae", weights)
    edit_weights(path, scaling_factor=factor)
    with pytest.raises(FormatError, match="finetuning_scaling_factor"):
        load_sae(str(path))
    edit_config(path, finetuning_scaling_factor=True)
    torch.testing.assert_close(load_sae(str(path)).W_dec, weights.W_dec * factor[:, None])


def test_centring_is_read_from_the_model_kwargs(tmp_path: Path):
    weights = fx.planted()
    path = fx.write_saelens_pre_v6(
        tmp_path / "sae", weights, model_from_pretrained_kwargs={"center_writing_weights": True}
    )
    sae = load_sae(str(path))
    x = fx.inputs(weights)
    plain = replace(sae, centre_input=False)
    centred = x - x.mean(dim=-1, keepdim=True)
    torch.testing.assert_close(sae.encode(x), plain.encode(centred))
    torch.testing.assert_close(
        sae.decode(sae.encode(x), like=x) - plain.decode(plain.encode(centred)), x - centred
    )
    torch.testing.assert_close(sae.encode(x), sae.encode(x + 5.0), atol=1e-4, rtol=1e-4)


def test_old_hook_z_and_feature_splitting_names():
    assert str(site_of_hook("blocks.3.hook_z")) == "blocks.3.attn.hook_z"
    assert str(site_of_hook("blocks.8.hook_resid_pre_768")) == "blocks.8.hook_resid_pre"


def test_unset_batchtopk_threshold_falls_back_to_topk_and_says_so(tmp_path: Path, caplog):
    weights = fx.planted()
    path = fx.write_dictionary_learning(tmp_path, weights, dict_class="BatchTopKSAE")
    state = fx.dictionary_state(weights, "BatchTopKSAE")
    torch.save({**state, "threshold": torch.tensor(-1.0)}, path / "ae.pt")
    sae = load_sae(str(path))
    assert (sae.activation, sae.k) == ("topk", weights.k)
    assert "threshold was never set" in caplog.text


def test_dictionary_learning_without_submodule_asks_for_the_site(tmp_path: Path):
    path = fx.write_dictionary_learning(tmp_path, fx.planted(), submodule_name=None)
    with pytest.raises(FormatError, match="do not say which activations"):
        load_sae(str(path))
    assert str(load_sae(str(path), site="blocks.2.hook_mlp_out").site) == "blocks.2.hook_mlp_out"


@pytest.mark.parametrize(
    ("submodule", "site"),
    [
        ("resid_post_layer_1", "blocks.1.hook_resid_post"),
        ("resid_pre_layer_1", "blocks.1.hook_resid_pre"),
        ("mlp_out_layer_1", "blocks.1.hook_mlp_out"),
        ("attention_layer_1", "blocks.1.hook_attn_out"),
        ("embed", "hook_embed"),
    ],
)
def test_dictionary_learning_site_is_its_submodule(submodule: str, site: str, tmp_path: Path):
    assert (
        str(
            load_sae(str(fx.write_dictionary_learning(tmp_path, fx.planted(), submodule_name=submodule))).site
        )
        == site
    )


# Decode needs its input where the normalisation depends on it


@pytest.mark.parametrize("normalization", ["layer_norm", "constant_norm_rescale"])
def test_decode_without_like_is_refused(normalization: str, tmp_path: Path):
    sae = load_sae(
        str(fx.write_saelens_v6(tmp_path / "sae", fx.planted(), normalize_activations=normalization))
    )
    with pytest.raises(ConfigError, match="like=x"):
        sae.decode(torch.zeros(2, fx.D_SAE))


def test_topk_may_leave_fewer_than_k_active(tmp_path: Path):
    weights = fx.planted(k=10)
    sae = load_sae(str(fx.write_saelens_v6(tmp_path / "sae", weights, architecture="topk")))
    sae = replace(sae, b_enc=torch.full((fx.D_SAE,), -100.0))
    assert int((sae.encode(fx.inputs(weights)) > 0).sum()) == 0


# Bad input: each names the file and the value


def test_truncated_safetensors(folder: Path):
    path = folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match=r"sae_weights\.safetensors \(\d+ bytes\) is truncated"):
        load_sae(str(folder))


def test_git_lfs_pointer(folder: Path):
    (folder / "sae_weights.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"
    )
    with pytest.raises(FormatError, match="git lfs"):
        load_sae(str(folder))


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec"])
def test_nan_names_tensor_and_count(name: str, folder: Path):
    tensor = load_file(folder / "sae_weights.safetensors")[name]
    tensor.view(-1)[3] = float("nan")
    tensor.view(-1)[5] = float("inf")
    edit_weights(folder, **{name: tensor})
    with pytest.raises(NumericsError, match=rf"{name} holds 2 values"):
        load_sae(str(folder))


def test_missing_tensor(folder: Path):
    edit_weights(folder, b_dec=None)
    with pytest.raises(FormatError, match="lacks b_dec; a relu SAE has W_enc, W_dec, b_enc, b_dec"):
        load_sae(str(folder))


def test_transposed_weights(folder: Path):
    w = fx.planted()
    edit_weights(folder, W_dec=w.W_dec.T.contiguous())
    edit_config(folder, d_in=None, d_sae=None)
    with pytest.raises(FormatError, match=r"W_enc has shape \(16, 64\), expected \(64, 16\)"):
        load_sae(str(folder))


def with_tensor(file: Path, name: str, tensor: torch.Tensor) -> None:
    """Replace one tensor of a file of any kind."""
    if file.suffix == ".safetensors":
        save_file({**load_file(file), name: tensor.contiguous()}, file)
    elif file.suffix == ".npz":
        with np.load(file) as arrays:
            kept = dict(arrays)
        np.savez(file, **{**kept, name: tensor.numpy()})
    else:
        torch.save({**torch.load(file, weights_only=True), name: tensor}, file)


@pytest.mark.parametrize(
    ("dialect", "file", "name"),
    [
        ("dictionary_learning-AutoEncoder", "ae.pt", "encoder.weight"),
        ("dictionary_learning-AutoEncoder", "ae.pt", "decoder.weight"),
        ("dictionary_learning-AutoEncoderNew", "ae.pt", "encoder.bias"),
        ("dictionary_learning-BatchTopKSAE", "ae.pt", "encoder.bias"),
        ("llama-scope", "final.safetensors", "encoder.weight"),
        ("llama-scope", "final.safetensors", "encoder.bias"),
        ("gemma-scope", "params.npz", "W_enc"),
        ("sparsify", "sae.safetensors", "encoder.weight"),
        ("saelens-oldest", "sae_weights.safetensors", "b_enc"),
    ],
)
def test_weights_that_are_none_are_refused_before_anything_is_computed_from_them(
    dialect: str, file: str, name: str, tmp_path: Path
):
    """Also where scales are folded into them: whatever they are stored as comes out of that as float32."""
    ref = fx.WRITERS[dialect](tmp_path / "sae", fx.planted())
    (path,) = (tmp_path / "sae").rglob(file)
    own = torch.ones(fx.D_SAE, fx.D_IN) if name.endswith(("weight", "W_enc")) else torch.ones(fx.D_SAE)
    if name in ("decoder.weight", "W_enc"):
        own = own.T
    site = "blocks.1.hook_resid_post"
    kinds = (torch.bool, torch.int64, torch.int8, torch.complex64)
    kinds += (torch.float8_e4m3fn,) if path.suffix != ".npz" else ()
    for dtype in kinds:
        with_tensor(path, name, own.to(dtype))
        with pytest.raises(FormatError, match=r"expected (floating-point|real) numbers"):
            load_sae(str(ref), site=site)
    for other in (own.T if own.ndim == 2 else own[None], own[:8], torch.tensor(1.0), torch.zeros(0)):
        with_tensor(path, name, other)
        with pytest.raises(FormatError, match="has shape"):
            load_sae(str(ref), site=site)


@pytest.mark.parametrize(
    "k", [torch.tensor([1, 2]), torch.tensor(float("nan")), torch.tensor([]), "4", True, 2.5]
)
def test_a_stored_k_that_is_none_is_refused(k: object, tmp_path: Path):
    ref = fx.WRITERS["dictionary_learning-AutoEncoderTopK"](tmp_path / "sae", fx.planted())
    with_tensor(tmp_path / "sae" / "ae.pt", "k", k)  # pyright: ignore[reportArgumentType]
    with pytest.raises(FormatError, match="k is"):
        load_sae(str(ref), site="blocks.1.hook_resid_post")


def test_declared_width_that_the_weights_contradict(folder: Path):
    edit_config(folder, d_sae=128)
    with pytest.raises(FormatError, match="d_sae is 64 by W_dec, but the configuration declares 128"):
        load_sae(str(folder))


@pytest.mark.parametrize("k", [0, 65, None, "32"])
def test_impossible_k(k: object, tmp_path: Path):
    path = fx.write_saelens_v6(tmp_path / "sae", fx.planted(), architecture="topk")
    edit_config(path, k=k)
    with pytest.raises(FormatError, match="expected an integer from 1 to d_sae = 64"):
        load_sae(str(path))


def test_broken_json(folder: Path):
    (folder / "cfg.json").write_text('{"d_in": 16,')
    with pytest.raises(FormatError, match=r"cfg\.json is not JSON"):
        load_sae(str(folder))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_a_configuration_in_another_unicode_is_read(folder: Path, encoding: str):
    text = (folder / "cfg.json").read_text(encoding="utf-8")
    expected = load_sae(str(folder))
    (folder / "cfg.json").write_bytes(text.encode(encoding))
    assert torch.equal(load_sae(str(folder)).W_enc, expected.W_enc)


def test_missing_weights_are_named(folder: Path):
    (folder / "sae_weights.safetensors").unlink()
    with pytest.raises(FormatError, match=r"beside cfg\.json it lacks sae_weights\.safetensors"):
        load_sae(str(folder))


def test_folder_without_sae(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(FormatError, match=r"holds no SAE of a known format; it holds notes\.txt"):
        load_sae(str(tmp_path))


def test_absent_path():
    with pytest.raises(UnknownReferenceError, match="expected saelens:RELEASE/ID"):
        load_sae("no/such/folder")


@pytest.mark.parametrize(
    "architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
)
def test_transcoders_are_refused_with_the_reason(architecture: str, folder: Path):
    edit_config(folder, architecture=architecture)
    with pytest.raises(FormatError, match="reads one site and writes another"):
        load_sae(str(folder))


def test_unknown_architecture(folder: Path):
    edit_config(folder, architecture="temporal")
    with pytest.raises(FormatError, match="'temporal', expected one of standard, topk, jumprelu, gated"):
        load_sae(str(folder))


@pytest.mark.parametrize("setting", ["transcode", "skip_connection", "signed"])
def test_sparsify_refuses_what_is_no_autoencoder(setting: str, tmp_path: Path):
    path = fx.write_sparsify(tmp_path, fx.planted(), **{setting: True})
    with pytest.raises(FormatError, match=f"{setting} is true"):
        load_sae(str(path))


def test_gemma_scope_transcoders_are_refused(tmp_path: Path):
    path = fx.write_gemma_scope(tmp_path, fx.planted(), part="transcoders")
    with pytest.raises(FormatError, match="is a transcoder"):
        load_sae(str(path))


class _Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


@pytest.mark.parametrize("name", ["layer0.sae.pt", "weights.pth", "1.pt"])
def test_code_in_torch_files_is_never_run(name: str, tmp_path: Path, capsys):
    torch.save({"pre_bias": _Evil()}, tmp_path / name)
    with pytest.raises(FormatError, match=r"safetensors\.torch\.save_file"):
        load_sae(str(tmp_path / name))
    assert "never run" not in capsys.readouterr().out


def test_pickles_are_refused_unread(tmp_path: Path, capsys):
    (tmp_path / "sae.pkl").write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(FormatError, match="is a pickle"):
        load_sae(str(tmp_path / "sae.pkl"))
    assert "never run" not in capsys.readouterr().out


def test_pickled_arrays_in_npz_are_refused(tmp_path: Path):
    path = fx.write_gemma_scope(tmp_path, fx.planted())
    np.savez(path / "params.npz", W_enc=np.array([_Evil()], dtype=object))
    with pytest.raises(FormatError, match="pickled"):
        load_sae(str(path))


def test_foreign_torch_file_lists_its_keys(tmp_path: Path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(FormatError, match="has the keys weight"):
        load_sae(str(tmp_path / "a.pt"))


def test_openai_file_with_unknown_postact(tmp_path: Path):
    path = fx.write_openai(tmp_path, fx.planted())
    state = torch.load(path, weights_only=True)
    torch.save({**state, "activation_state_dict": {"k": 4, "postact_fn": "Identity"}}, path)
    with pytest.raises(FormatError, match="postact_fn is 'Identity'"):
        load_sae(str(path))


def test_qwen_file_without_its_repository_name(tmp_path: Path):
    path = fx.write_qwen_scope(tmp_path, fx.planted())
    bare = tmp_path / "layer1.sae.pt"
    path.rename(bare)
    with pytest.raises(FormatError, match="SAE-Res-MODEL"):
        load_sae(str(bare))


@pytest.mark.parametrize("norm", [0, None, "much"])
def test_llama_scope_needs_its_norm(norm: object, tmp_path: Path):
    path = fx.write_llama_scope(tmp_path, fx.planted())
    config = json.loads((path / "hyperparams.json").read_text())
    (path / "hyperparams.json").write_text(
        json.dumps({**config, "dataset_average_activation_norm": {"in": norm}})
    )
    with pytest.raises(FormatError, match="dataset_average_activation_norm: in is"):
        load_sae(str(path))


def _with_one_value_changed(config: dict, value: object):
    """Copies of a configuration, each with one entry replaced, at any depth; `...` removes the entry."""

    def places(node: dict, path: tuple[str, ...] = ()):
        for key, child in node.items():
            yield (*path, key)
            if isinstance(child, dict):
                yield from places(child, (*path, key))

    for path in places(config):
        changed = json.loads(json.dumps(config))
        node = changed
        for key in path[:-1]:
            node = node[key]
        if value is ...:
            del node[path[-1]]
        else:
            node[path[-1]] = value
        yield changed


@pytest.mark.parametrize(
    "dialect", [d for d in fx.WRITERS if d not in ("openai", "goodfire", "qwen-scope", "gemma-scope")]
)
def test_no_wrong_value_in_a_configuration_is_a_crash(dialect: str, tmp_path: Path):
    """Every entry, absent or of every wrong kind: the SAE loads and works, or the error is one of ours and
    names the path."""
    (tmp_path / "sae").mkdir()
    path = fx.WRITERS[dialect](tmp_path / "sae", fx.planted())
    x = torch.randn(2, fx.D_IN)
    loaded, refusals = 0, []
    for file in sorted(tmp_path.rglob("*.json")):
        config = json.loads(file.read_text())
        for value in (..., None, "x", -1, 3.5, True, [], ["a"], {}, {"k": "v"}):
            for changed in _with_one_value_changed(config, value):
                file.unlink()  # some file systems wait for the disk when a file is written over
                file.write_text(json.dumps(changed))
                try:
                    sae = load_sae(str(path))
                    sae.decode(sae.encode(x), like=x)
                    loaded += 1
                except PolysemError as error:
                    refusals.append(str(error))
        file.write_text(json.dumps(config))
    assert loaded > 0
    assert refusals
    assert all(str(tmp_path) in message or "sae" in message for message in refusals)


# Names


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("gpt2-small", "gpt2"),
        ("gpt2-small", "openai-community/gpt2"),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped"),
        ("gemma-2-2b", "google/gemma-2-2b"),
        ("llama3.1-8b", "meta-llama/Llama-3.1-8B"),
        ("zoo:gpt2", "zoo:gpt2"),
    ],
)
def test_aliases_of_one_model(one: str, other: str):
    assert same_model(one, other)
    assert same_model(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("gpt2", "gpt2-medium"),
        ("gpt2", "zoo:gpt2"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"),
        ("EleutherAI/pythia-70m", "EleutherAI/pythia-70m-deduped"),
        ("google/gemma-2-9b", "google/gemma-2-9b-it"),
    ],
)
def test_different_models(one: str, other: str):
    assert not same_model(one, other)


def test_unknown_model_names_stay():
    assert hub_id("somebody/model") == "somebody/model"


@pytest.mark.parametrize(
    ("path", "model", "site"),
    [
        ("model.layers.17.output", "google/gemma-3-1b", "blocks.17.hook_resid_post"),
        ("model.layers.17.self_attn.o_proj.input", "google/gemma-3-1b", "blocks.17.attn.hook_z"),
        ("model.layers.17.post_feedforward_layernorm.output", "google/gemma-3-1b", "blocks.17.hook_mlp_out"),
        ("layers.4.mlp", "google/gemma-2-2b", "blocks.4.mlp.hook_out"),
        ("layers.4.mlp", "EleutherAI/pythia-70m", "blocks.4.hook_mlp_out"),
        ("transformer.h.4.mlp.c_proj.input", "gpt2", "blocks.4.mlp.hook_post"),
    ],
)
def test_module_paths(path: str, model: str, site: str):
    assert str(site_of_module(path, model_id=model)) == site


def test_unknown_module_path():
    with pytest.raises(FormatError, match="names no site"):
        site_of_module("layers.4.post_attention_layernorm", model_id="meta-llama/Llama-3.1-8B")


# The registry of releases


def test_registry_entries():
    entry = find("pythia-70m-deduped-res-sm", "blocks.3.hook_resid_post")
    assert (entry.repo, entry.path) == ("ctigges/pythia-70m-deduped__res-sm_processed", "3-res-sm")
    assert (entry.d_in, entry.d_sae, entry.neuronpedia) == (512, 32768, "pythia-70m-deduped/3-res-sm")
    assert find("gpt2-small-resid-post-v5-32k", "blocks.6.hook_resid_post").path == "v5_32k_layer_6.pt"
    assert find("gpt2-small-res-jb", "blocks.8.hook_resid_pre").centre_input
    assert (
        find("gemma-scope-2b-pt-res-canonical", "layer_0/width_16k/canonical").path
        == "layer_0/width_16k/average_l0_105"
    )
    assert find("gemma-scope-9b-it-res", "layer_20/width_131k/average_l0_13").model == "google/gemma-2-9b-it"
    assert find("llama_scope_lxr_8x", "l31r_8x").path == "Llama3_1-8B-Base-L31R-8x"


def test_every_release_names_repository_model_and_width():
    for release, spec in releases().items():
        assert spec["repo"].count("/") == 1, release
        assert spec["model"].count("/") == 1, release
        assert spec["d_in"] > 0, release
        assert spec["revision"] is None or len(spec["revision"]) == 40, release


def test_unknown_release_and_id_suggest():
    with pytest.raises(UnknownReferenceError, match="did you mean 'gpt2-small-res-jb'"):
        find("gpt2-small-res-bj", "blocks.8.hook_resid_pre")
    with pytest.raises(UnknownReferenceError, match=r"blocks\.\{0\.\.5\}\.hook_mlp_out"):
        find("pythia-70m-deduped-mlp-sm", "blocks.6.hook_mlp_out")


def test_hub_paths_get_the_corrections_of_the_registry():
    entry = find_by_path("jbloom/GPT2-Small-SAEs-Reformatted", "blocks.8.hook_resid_pre")
    assert entry is not None
    assert (entry.release, entry.centre_input) == ("gpt2-small-res-jb", True)
    assert find_by_path("somebody/else", "blocks.8.hook_resid_pre") is None
