"""The gate's word where some tokens are massive, where the site is not the files' own, and where files ask for what their
training tool would not have done. On the zoo's own models and SAEs."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import polysem_zoo
from polysem.errors import FidelityError, FormatError, MismatchError
from polysem.models import load_model
from polysem.positions import positions_of
from polysem.saes import load_sae
from polysem.saes.fidelity import fidelity, measure, sample_rows
from polysem.saes.gate import check_fidelity
from polysem.saes.known import VOCABULARIES
from polysem.saes.load import check_match
from polysem.types import Site
from support import sae_fixtures as fx

ZOO = Path(polysem_zoo.__file__).parent / "saes"
GOOD = "llama/blocks.3.hook_resid_post"
NORM = 4728.0


@pytest.fixture(scope="module")
def llama():
    return load_model("zoo:llama", device="cpu")


@pytest.fixture(scope="module")
def gpt2():
    return load_model("zoo:gpt2", device="cpu")


class Sinks:
    """A model in which commas are attention sinks: far away in the stream, and like others behind a norm."""

    def __init__(self, model, norm: float = NORM):
        self._model, self._norm = model, norm
        self._comma = model.tokenize("a, b", prepend_bos=False)[1]

    def __getattr__(self, name):
        return getattr(self._model, name)

    def capture(self, tokens, sites):
        seen = self._model.capture(tokens, sites)
        away = torch.nn.functional.normalize(
            torch.randn(self.spec.d_model, generator=torch.Generator().manual_seed(1)), dim=0
        )
        return {
            site: x + self._norm * away * (tokens == self._comma)[..., None] if "resid" in site.point else x
            for site, x in seen.items()
        }


def test_massive_tokens_stand_apart_and_a_good_sae_passes(llama):
    model = Sinks(llama)
    sae = load_sae(f"zoo:{GOOD}")
    rows = sample_rows(model, positions=positions_of(model, sae))
    share = float((rows[:, 1:] == model._comma).float().mean())
    assert 0.01 < share < 0.1
    seen, without = check_fidelity(sae, model, rows, max_fvu=0.7), fidelity(sae, llama, rows)
    assert without.n_massive == 0
    assert seen.n_massive == int((rows[:, 1:] == model._comma).sum())
    assert seen.n_tokens + seen.n_massive == without.n_tokens
    assert seen.fvu == pytest.approx(without.fvu, abs=0.02)
    assert seen.fvu_massive > 0.7, "together they would have been refused"
    measured = load_sae(f"zoo:{GOOD}", model=model).provenance.measured
    assert (measured["fvu"], measured["n_massive"]) == (seen.fvu, seen.n_massive)


def test_no_token_of_the_zoo_is_massive(llama, gpt2):
    for model, ref in ((llama, GOOD), (gpt2, "gpt2/blocks.1.hook_mlp_out")):
        measured = load_sae(f"zoo:{ref}", model=model).provenance.measured
        assert set(measured) == {"fvu", "l0", "n_tokens"}


def test_massive_tokens_do_not_hide_a_wrong_site(llama):
    """Sinks that are reconstructed well, and ordinary tokens that are not: refused, and the right site named."""
    model = Sinks(llama)
    wrong = load_sae(f"zoo:{GOOD}").at(Site.parse("blocks.2.hook_attn_out"))
    with pytest.raises(FidelityError) as caught:
        check_fidelity(wrong, model, sample_rows(model, positions=positions_of(model)), max_fvu=0.4)
    assert "It would pass at blocks.3.hook_resid_post" in str(caught.value)


@pytest.fixture(scope="module")
def early(llama) -> Path:
    return ZOO / GOOD


@pytest.mark.parametrize("site", ["blocks.3.hook_resid_mid", "blocks.2.hook_resid_post"])
def test_a_site_that_is_not_the_files_own_and_fits_worse_is_warned_of(llama, early, site, caplog):
    with caplog.at_level(logging.WARNING, logger="polysem"):
        load_sae(str(early), model=llama, site=site, allow_other_model=True)
    assert f"site = {site} is asked for, but its files say blocks.3.hook_resid_post" in caplog.text
    assert "but blocks.3.hook_resid_post fits better" in caplog.text
    assert 'next: site = "blocks.3.hook_resid_post"' in caplog.text


@pytest.mark.parametrize("ref", [f"{p.parent.name}/{p.name}" for p in sorted(ZOO.glob("*/*"))])
def test_a_site_that_is_right_is_not_warned_of(ref, llama, gpt2, caplog):
    with caplog.at_level(logging.WARNING, logger="polysem"):
        load_sae(f"zoo:{ref}", model=load_model(f"zoo:{ref.split('/')[0]}", device="cpu"))
    assert not caplog.records


def test_a_wrong_threshold_is_explained_by_the_files_own_k(gpt2):
    sae = load_sae("zoo:gpt2/blocks.1.hook_resid_post")
    wrong = replace(
        sae,
        activation="jumprelu",
        threshold=torch.full((sae.d_sae,), 1e3),
        k=None,
        provenance=replace(sae.provenance, declared={"k": sae.k}),
    )
    with pytest.raises(FidelityError, match=r"with activation topk, the file's own k = 16: FVU 0\.1\d"):
        check_fidelity(wrong, gpt2, sample_rows(gpt2, positions=positions_of(gpt2)), max_fvu=0.7)


def saelens(folder: Path, ref: str, **fields) -> Path:
    """A zoo SAE as another user's folder, with some fields of its configuration changed."""
    target = Path(shutil.copytree(ZOO / ref, folder / "sae"))
    config = json.loads((target / "cfg.json").read_text())
    metadata = config.get("metadata", {})
    for name, value in fields.items():
        (metadata if name in metadata or "metadata" in config else config)[name] = value
    (target / "cfg.json").write_text(json.dumps(config))
    return target


CENTRED = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}


def test_models_with_rms_norms_are_not_centred(llama, tmp_path, caplog):
    path = saelens(tmp_path, GOOD, **CENTRED)
    with caplog.at_level(logging.WARNING, logger="polysem"):
        asked = load_sae(str(path), model=llama)
    assert not asked.centre_input
    assert "RMS norms, where TransformerLens does not centre" in caplog.text
    assert asked.provenance.measured == load_sae(f"zoo:{GOOD}", model=llama).provenance.measured


def test_models_with_layer_norms_are_centred_where_the_stream_is_written(gpt2, tmp_path):
    path = saelens(tmp_path, "gpt2/blocks.1.hook_mlp_out", **CENTRED)
    assert load_sae(str(path), model=gpt2).centre_input
    assert not load_sae(str(path), site="blocks.1.attn.hook_z").centre_input
    assert not load_sae(str(path), site="blocks.1.mlp.hook_post").centre_input


def test_what_transformerlens_is_asked_for_is_not_asked_of_other_models(gpt2, tmp_path):
    path = saelens(tmp_path, "gpt2/blocks.1.hook_mlp_out", model_class_name="AutoModelForCausalLM", **CENTRED)
    sae = load_sae(str(path))
    assert (sae.centre_input, sae.bos_stand_in) == (False, "none")


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("transformer.h.2", "blocks.2.hook_resid_post"),
        ("transformer.h.1.mlp", "blocks.1.hook_mlp_out"),
        ("model.layers.5", "blocks.5.hook_resid_post"),
        ("gpt_neox.layers.3.attention", "blocks.3.hook_attn_out"),
    ],
)
def test_module_paths_are_understood_as_hook_names(tmp_path, hook, site):
    path = saelens(tmp_path, "gpt2/blocks.1.hook_mlp_out", hook_name=hook)
    assert str(load_sae(str(path)).reads) == site


def test_a_site_of_ones_own_comes_before_what_the_files_say(tmp_path):
    path = saelens(tmp_path, "gpt2/blocks.1.hook_mlp_out", hook_name="somewhere.else")
    with pytest.raises(FormatError, match=r"declare 'somewhere.else'.*") as caught:
        load_sae(str(path))
    assert "name the site" in str(caught.value.hint)
    assert str(load_sae(str(path), site="blocks.2.hook_resid_post").reads) == "blocks.2.hook_resid_post"
    assert str(load_sae(str(path), site="transformer.h.2").reads) == "blocks.2.hook_resid_post"


def test_an_sae_of_a_published_model_is_not_one_of_a_local_folder_of_another(llama, tmp_path):
    model = Path(shutil.copytree(Path(polysem_zoo.__file__).parent / "models" / "llama", tmp_path / "mine"))
    path = saelens(tmp_path, GOOD, model_name="gpt2-small")
    here = load_model(str(model), device="cpu")
    with pytest.raises(
        MismatchError, match=r"was trained on openai-community/gpt2, but the model is .*: llama of 6 layers"
    ):
        load_sae(str(path), model=here)
    assert load_sae(str(path), model=here, allow_other_model=True).provenance.measured["fvu"] < 0.2
    own = saelens(tmp_path / "own", GOOD, model_name="zoo:llama")
    load_sae(str(own), model=here)
    other = saelens(tmp_path / "other", GOOD, model_name="zoo:gpt2")
    with pytest.raises(MismatchError, match="not gpt2 of 4"):
        load_sae(str(other), model=here)


def test_a_local_model_with_other_tokens_is_another_model(tmp_path):
    """Family, layers and width are the same: Chinese GPT-2 has them all."""
    model = Path(shutil.copytree(Path(polysem_zoo.__file__).parent / "models" / "llama", tmp_path / "mine"))
    told = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = told["model"]["vocab"]
    vocab[1000], vocab[1001] = vocab[1001], vocab[1000]
    (model / "tokenizer.json").write_text(json.dumps(told), encoding="utf-8")
    sae = load_sae(str(saelens(tmp_path / "own", GOOD, model_name="zoo:llama")))
    here = load_model(str(model), device="cpu")
    with pytest.raises(MismatchError, match=r"its tokenizer does not have the .* tokens of zoo:llama"):
        check_match(sae, here)
    check_match(sae, here, compare_ids=False)


def test_known_vocabularies_are_those_of_the_published_tokenizers(shared):
    own = json.loads((shared / "data" / "tokenizer-gpt2" / "encoder.json").read_text(encoding="utf-8"))
    assert VOCABULARIES["gpt2"].fits(own | {"<|added|>": 50257})
    assert not VOCABULARIES["gpt2"].fits({**own, "the": own["in"], "in": own["the"]})
    neox = json.loads((shared / "data" / "tokenizer-neox" / "20B_tokenizer.json").read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in neox["added_tokens"]}
    assert VOCABULARIES["gpt_neox"].fits(neox["model"]["vocab"] | added)


def test_a_tensor_that_nobody_reads_is_named(tmp_path):
    weights = fx.planted()
    path = fx.WRITERS["saelens-v6"](tmp_path, weights) if "saelens-v6" in fx.WRITERS else None
    path = path or saelens(tmp_path, "gpt2/blocks.2.hook_resid_post-jumprelu")
    from safetensors.torch import load_file, save_file

    file = path / "sae_weights.safetensors"
    state = load_file(file)
    state["log_threshold"] = torch.zeros(state["W_dec"].shape[0])
    save_file(state, file)
    with pytest.raises(FormatError, match="holds log_threshold"):
        load_sae(str(path))
    state.pop("threshold", None)
    save_file(state, file)
    with pytest.raises(FormatError, match="log_threshold"):
        load_sae(str(path))


LAYOUTS = {
    "AutoEncoder": {"encoder.weight": "W_enc.T", "decoder.weight": "W_dec.T", "encoder.bias": "b_enc", "bias": "b_dec"},
    "AutoEncoderTopK": {
        "encoder.weight": "W_enc.T", "decoder.weight": "W_dec.T", "encoder.bias": "b_enc", "b_dec": "b_dec", "k": "k",
    },
    "GatedAutoEncoder": {
        "encoder.weight": "W_enc.T", "decoder.weight": "W_dec.T", "decoder_bias": "b_dec", "r_mag": "r_mag",
        "mag_bias": "b_mag", "gate_bias": "b_gate",
    },
}  # fmt: skip


def state_dict(kind: str, weights: fx.Weights) -> dict:
    values = {
        "W_enc.T": weights.W_enc.T.contiguous(), "W_dec.T": weights.W_dec.T.contiguous(), "k": torch.tensor(weights.k),
        **{name: getattr(weights, name) for name in ("b_enc", "b_dec", "r_mag", "b_mag", "b_gate")},
    }  # fmt: skip
    return {theirs: values[ours] for theirs, ours in LAYOUTS[kind].items()}


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("named", ["file", "folder"])
def test_a_lone_state_dict_of_dictionary_learning_is_told_by_its_keys(tmp_path, kind, named):
    weights = fx.planted()
    torch.save(state_dict(kind, weights), tmp_path / "ae.pt")
    ref = str(tmp_path / "ae.pt" if named == "file" else tmp_path)
    with pytest.raises(FormatError, match="do not say which activations") as caught:
        load_sae(ref)
    assert "site=" in str(caught.value.hint)
    alone = load_sae(ref, site="blocks.1.hook_resid_post")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": kind, "k": weights.k}}))
    told = load_sae(str(tmp_path), site="blocks.1.hook_resid_post")
    x = fx.inputs(weights, n=30)
    assert torch.equal(alone.encode(x), told.encode(x))
    assert (alone.activation, alone.k) == (told.activation, told.k)


def test_a_lone_top_k_dictionary_without_its_k_asks_for_it_and_the_hint_works(tmp_path):
    weights = fx.planted()
    state = state_dict("AutoEncoderTopK", weights)
    del state["k"]
    torch.save(state, tmp_path / "ae.pt")
    with pytest.raises(FormatError, match="does not hold its k") as caught:
        load_sae(str(tmp_path / "ae.pt"), site="blocks.1.hook_resid_post")
    written = str(caught.value.hint).split("beside it: ")[1].split(" with")[0].replace("K}", f"{weights.k}}}")
    (tmp_path / "config.json").write_text(written)
    assert load_sae(str(tmp_path), site="blocks.1.hook_resid_post").k == weights.k


def test_a_link_to_nothing_is_named(tmp_path):
    (tmp_path / "cfg.json").write_text("{}")
    (tmp_path / "sae_weights.safetensors").symlink_to("../../blobs/0123")
    with pytest.raises(FormatError, match="which is not there"):
        load_sae(str(tmp_path))
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FormatError, match="gone is a link to"):
        load_sae(str(tmp_path / "gone"))


def test_measure_is_over_ordinary_tokens_by_its_definition():
    weights = fx.planted()
    x = fx.inputs(weights, n=40)
    far = x.clone()
    far[[3, 17]] = 500 * torch.nn.functional.normalize(
        torch.randn(2, x.shape[1], generator=torch.Generator().manual_seed(0)), dim=1
    )
    sae = load_sae(f"zoo:{GOOD}")
    sae = replace(
        sae,
        W_enc=weights.W_enc,
        W_dec=weights.W_dec,
        b_enc=weights.b_enc,
        b_dec=weights.b_dec,
        activation="relu",
        k=None,
    )
    usual = [n for n in range(40) if n not in (3, 17)]
    seen, wanted = measure(sae, far), measure(sae, far[usual])
    assert (seen.fvu, seen.l0, seen.n_tokens) == (wanted.fvu, wanted.l0, 38)
    mean = far[usual].double().mean(dim=0)
    error = (far - sae.decode(sae.encode(far))).double()[[3, 17]]
    distance = far.double()[[3, 17]] - mean
    assert seen.n_massive == 2
    assert seen.fvu_massive == pytest.approx(float(error.pow(2).sum() / distance.pow(2).sum()), rel=1e-6)
    assert not np.isnan(seen.fvu_massive)
