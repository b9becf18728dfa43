"""Objects of other libraries, on the zoo's weights: each must give the model or the SAE that its file gives."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from polysem.errors import ConfigError, FormatError, MismatchError, UnknownReferenceError
from polysem.models import load_model
from polysem.saes import load_sae
from polysem.types import Site
from polysem.worlds.tiny import tiny_model

zoo = pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")

pytestmark = [
    # of the other libraries, about themselves
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
FAMILIES = ("gpt2", "neox", "llama")
SITE = "blocks.2.hook_resid_post"
TEXT = "The old man looked at the sea"


def transformers_model(name: str):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = zoo.path("models", name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def same_model(ours, reference, *, atol: float = 0.0) -> None:
    """The same logits and the same residual stream."""
    rows = torch.tensor([reference.tokenize(TEXT, prepend_bos=False)])
    assert ours.tokenize(TEXT, prepend_bos=False) == rows[0].tolist()
    torch.testing.assert_close(ours.logits(rows), reference.logits(rows), atol=atol, rtol=0)
    sites = [Site.parse(SITE), Site(1, "hook_mlp_out")]
    seen, expected = ours.capture(rows, sites), reference.capture(rows, sites)
    for site in sites:
        torch.testing.assert_close(seen[site], expected[site], atol=atol, rtol=0)


@pytest.fixture(scope="module")
def reference():
    return load_model("zoo:gpt2")


def test_a_model_of_transformers_is_the_model_of_its_folder(reference):
    model, tokenizer = transformers_model("gpt2")
    ours = load_model(model, tokenizer=tokenizer)
    same_model(ours, reference)
    assert ours.spec.ref == "memory"
    assert len(ours.spec.revision) == 64
    again, _ = transformers_model("gpt2")
    with torch.no_grad():
        again.transformer.h[0].mlp.c_fc.bias[3] += 1e-3
    assert load_model(again, tokenizer=tokenizer).spec.revision != ours.spec.revision
    assert load_model(ours) is ours


def test_a_path_is_a_folder(reference):
    assert load_model(Path(zoo.path("models", "gpt2"))).spec.revision == reference.spec.revision


def test_what_an_object_lacks_is_said():
    model, tokenizer = transformers_model("gpt2")
    with pytest.raises(ConfigError, match="carries no tokenizer"):
        load_model(model)
    with pytest.raises(ConfigError, match="dtype"):
        load_model(model, tokenizer=tokenizer, dtype="float64")
    with pytest.raises(ConfigError, match="tokenizer"):
        load_model("zoo:gpt2", tokenizer=tokenizer)
    with pytest.raises(MismatchError, match="predicts no tokens"):
        load_model(model.transformer, tokenizer=tokenizer)
    with pytest.raises(MismatchError, match="not in memory"):
        load_model(type(model)(model.config).to("meta"), tokenizer=tokenizer)
    with pytest.raises(UnknownReferenceError, match=r"a dict is no model"):
        load_model({})


def hooked(name: str, **processing: bool):
    """A HookedTransformer of the zoo's weights, made by TransformerLens's own conversion."""
    lens = pytest.importorskip("transformer_lens", reason="transformer-lens is not installed")
    from transformer_lens import loading_from_pretrained as loading

    model, tokenizer = transformers_model(name)
    if name == "gpt2":  # their conversion asks transformers 5 for n_ctx, which is gone
        c = model.config
        cfg = {
            **{
                "d_model": c.n_embd,
                "d_head": c.n_embd // c.n_head,
                "n_heads": c.n_head,
                "d_mlp": 4 * c.n_embd,
            },
            **{
                "n_layers": c.n_layer,
                "n_ctx": c.n_positions,
                "eps": c.layer_norm_epsilon,
                "d_vocab": c.vocab_size,
            },
            **{"act_fn": c.activation_function, "normalization_type": "LN"},
        }
    else:
        with tempfile.TemporaryDirectory() as place:  # "llama" in a path is a name to their conversion
            (Path(place) / "model").symlink_to(zoo.path("models", name))
            cfg = loading.convert_hf_model_config(f"{place}/model")
    cfg |= {"original_architecture": type(model).__name__, "model_name": name, "device": "cpu"}
    made = lens.HookedTransformer(lens.HookedTransformerConfig.from_dict(cfg), tokenizer=tokenizer)
    convert = getattr(loading, f"convert_{name}_weights")
    off = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)
    made.load_and_process_state_dict(convert(model, made.cfg), **(off | processing))
    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_a_hooked_transformer_is_the_model_of_its_weights(name: str):
    # sums in another order, over four to six layers
    same_model(load_model(hooked(name)), load_model(f"zoo:{name}"), atol=2e-4)


@pytest.mark.parametrize(
    ("processing", "said"),
    [("fold_ln", "fold_ln"), ("center_writing_weights", "center_writing_weights")],
)
def test_processed_weights_are_named_and_refused(processing: str, said: str):
    with pytest.raises(MismatchError, match=rf"processed \({said}\)"):
        load_model(hooked("gpt2", **{processing: True}))


@pytest.mark.parametrize("processing", ["center_unembed", "fold_value_biases"])
def test_processing_that_changes_neither_stream_nor_distribution_is_let_pass(processing: str, reference):
    ours = load_model(hooked("gpt2", **{processing: True}))
    rows = torch.tensor([reference.tokenize(TEXT, prepend_bos=False)])
    seen, expected = (model.logits(rows).log_softmax(-1) for model in (ours, reference))
    torch.testing.assert_close(seen, expected, atol=2e-4, rtol=0)


def test_a_hooked_transformer_that_is_not_its_weights_is_refused():
    made = hooked("gpt2")
    made.cfg.eps = 0.5
    made.blocks[0].ln1.eps = 0.5
    made.cfg.eps = 1e-5
    with pytest.raises(MismatchError, match="differ by"):
        load_model(made)


def bridge(name: str):
    lens = pytest.importorskip("transformer_lens", reason="transformer-lens is not installed")
    model, tokenizer = transformers_model(name)
    return lens.model_bridge.TransformerBridge.boot_transformers(
        str(zoo.path("models", name)), hf_model=model, tokenizer=tokenizer, device="cpu"
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_bridge_is_its_model(name: str):
    # the bridge runs eager attention, a folder's model does not
    same_model(load_model(bridge(name)), load_model(f"zoo:{name}"), atol=2e-4)


def test_a_processed_bridge_is_refused():
    made = bridge("gpt2")
    made.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(MismatchError, match="processed"):
        load_model(made)


def test_an_nnsight_model_is_its_model(reference):
    nnsight = pytest.importorskip("nnsight", reason="nnsight is not installed")
    model, tokenizer = transformers_model("gpt2")
    same_model(load_model(nnsight.LanguageModel(model, tokenizer=tokenizer)), reference)


# SAEs


def same_sae(ours, reference, x: torch.Tensor) -> None:
    torch.testing.assert_close(ours.W_dec, reference.W_dec, atol=0, rtol=0)
    torch.testing.assert_close(ours.encode(x), reference.encode(x), atol=0, rtol=0)


@pytest.fixture(scope="module")
def sae(reference):
    return load_sae(f"zoo:gpt2/{SITE}", model=reference)


@pytest.fixture(scope="module")
def x(reference):
    rows = torch.tensor([reference.tokenize(TEXT, prepend_bos=False)])
    return reference.capture(rows, [Site.parse(SITE)])[Site.parse(SITE)][0]


def test_an_sae_of_saelens_is_the_sae_of_its_folder(reference, sae, x):
    lens = pytest.importorskip("sae_lens", reason="sae-lens is not installed")
    theirs = lens.SAE.load_from_disk(str(zoo.path("saes", f"gpt2/{SITE}")))
    theirs.to(torch.float32)
    ours = load_sae(theirs, model=reference)
    same_sae(ours, sae, x)
    assert (ours.reads, ours.provenance.ref, ours.provenance.measured["fvu"]) == (
        sae.reads,
        "memory",
        sae.provenance.measured["fvu"],
    )
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(x), theirs.encode(x), atol=2e-5, rtol=1e-5)


def test_a_training_sae_of_saelens_is_what_it_is_used_as(x):
    lens = pytest.importorskip("sae_lens", reason="sae-lens is not installed")
    config = lens.TopKTrainingSAEConfig(d_in=x.shape[1], d_sae=32, k=4)
    config.metadata.hook_name = SITE
    theirs = lens.TopKTrainingSAE(config)
    ours = load_sae(theirs)
    assert (ours.activation, ours.k) == ("topk", 4)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(x), theirs.encode(x), atol=2e-5, rtol=1e-5)


def test_a_transcoder_is_refused_with_the_reason():
    lens = pytest.importorskip("sae_lens", reason="sae-lens is not installed")
    config = lens.TranscoderConfig(d_in=8, d_sae=16, d_out=8, apply_b_dec_to_input=False)
    with pytest.raises(FormatError, match=r"in memory: .*transcoder reads one site and writes another"):
        load_sae(lens.Transcoder(config), site=SITE)


@pytest.mark.parametrize(
    ("kind", "extra"),
    [("AutoEncoder", ()), ("GatedAutoEncoder", ()), ("AutoEncoderTopK", (4,)), ("JumpReluAutoEncoder", ())],
)
def test_a_dictionary_of_dictionary_learning_is_read(kind: str, extra: tuple[int, ...], x):
    learning = pytest.importorskip("dictionary_learning", reason="dictionary-learning is not installed")
    from dictionary_learning import dictionary
    from dictionary_learning.trainers import top_k

    assert learning
    torch.manual_seed(0)
    home = top_k if kind == "AutoEncoderTopK" else dictionary
    theirs = getattr(home, kind)(x.shape[1], 48, *extra)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 1 or kind == "JumpReluAutoEncoder":
                parameter.copy_(torch.randn(parameter.shape) * 0.1)
        ours = load_sae(theirs, site=SITE)
        acts = theirs.encode(x)
        recon = theirs.decode(acts)
    torch.testing.assert_close(ours.decode(ours.encode(x)), recon, atol=1e-4, rtol=1e-4)
    assert ours.provenance.dialect == "dictionary_learning"


def test_tensors_are_an_sae(reference, sae, x):
    given = {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_enc": sae.b_enc, "b_dec": sae.b_dec}
    given |= {} if sae.threshold is None else {"threshold": sae.threshold}
    given |= {} if sae.k is None else {"k": sae.k}
    given |= {name: getattr(sae, name) for name in ("subtract_b_dec", "rescale_by_decoder_norm")}
    ours = load_sae(given, site=SITE, model=reference)
    same_sae(ours, sae, x)
    arrays = {
        name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in given.items()
    }
    same_sae(load_sae(arrays, site=SITE), sae, x)


def test_directions_alone_read_what_they_write(reference, sae, x, caplog):
    ours = load_sae(sae.W_dec, site=SITE, model=reference)
    torch.testing.assert_close(ours.encode(x), torch.relu(x @ sae.W_dec.T))
    assert ours.provenance.dialect == "directions"
    assert "reads what it writes" in caplog.text


def test_tensors_that_are_no_sae_are_refused(sae):
    with pytest.raises(FormatError, match="do not say which activations"):
        load_sae(sae.W_dec)
    with pytest.raises(ConfigError, match="half of an encoder"):
        load_sae({"W_dec": sae.W_dec, "b_enc": sae.b_enc}, site=SITE)
    with pytest.raises(ConfigError, match="there are W_d"):
        load_sae({"W_d": sae.W_dec}, site=SITE)
    with pytest.raises(FormatError, match=r"numpy.ndarray in memory: .*W_dec has shape \(3,\)"):
        load_sae(np.ones(3, np.float32), site=SITE)
    with pytest.raises(UnknownReferenceError, match="no SAE that is known here"):
        load_sae(object())


def test_nothing_is_imported_to_recognise_an_object():
    # other tests have imported them, so a new process is asked
    asked = (
        "import sys, polysem, torch\n"
        "from polysem.worlds.tiny import tiny_model\n"
        "m = tiny_model('gpt2'); polysem.load_model(m.model, tokenizer=m.tokenizer)\n"
        f"polysem.load_sae(torch.ones(3, 16), site={SITE!r})\n"
        "print([n for n in ('transformer_lens', 'sae_lens', 'nnsight', 'dictionary_learning', 'peft') if n in sys.modules])"
    )
    seen = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "[]"
    assert tiny_model("gpt2").spec.ref == "tiny:gpt2"
