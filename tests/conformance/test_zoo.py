"""The zoo: everything in it loads, is what its card says, and is small; and the law of chance on its dictionaries."""

import json
from pathlib import Path

import pytest

polysem_zoo = pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")

from polysem.corpus import corpus_path, documents  # noqa: E402  (only where the zoo is)
from polysem.errors import UnknownReferenceError  # noqa: E402
from polysem.geometry import cosine_tail, covariance_null  # noqa: E402
from polysem.models import load_model  # noqa: E402
from polysem.registry import zoo_names, zoo_path  # noqa: E402
from polysem.saes import load_sae  # noqa: E402
from polysem.saes.transcoders import load_transcoders  # noqa: E402

PACKAGE = Path(polysem_zoo.__file__).parent
CARD = json.loads((PACKAGE / "card.json").read_text())


def test_it_stays_within_its_budget():
    size = sum(f.stat().st_size for f in PACKAGE.rglob("*") if f.is_file() and f.suffix != ".pyc")
    assert size <= 72e6


def test_families_sizes_and_tokenizers():
    models = {name: load_model(f"zoo:{name}", device="cpu") for name in zoo_names("models")}
    assert {name: model.spec.family for name, model in models.items()} == {
        "gpt2": "gpt2", "neox": "gpt_neox", "llama": "llama",
    }  # fmt: skip
    sizes = {name: sum(p.numel() for p in model.model.parameters()) for name, model in models.items()}
    assert sizes["llama"] >= 3 * sizes["gpt2"]
    config = models["neox"].model.config
    assert config.use_parallel_residual
    assert not config.tie_word_embeddings
    text = "The captain went down to the boat, and the sea was calm."
    ids = {name: model.tokenize(text, prepend_bos=False) for name, model in models.items()}
    assert ids["gpt2"] == ids["neox"] != ids["llama"]
    for name, model in models.items():
        assert model.detokenize(ids[name]).strip() == text


def test_every_model_beats_the_five_gram():
    for name, row in CARD["models"].items():
        assert row["bits_per_character"] < row["kneser_ney_bits_per_character"], name


@pytest.mark.parametrize("name", sorted(CARD["saes"]))
def test_every_sae_reconstructs_as_its_card_says(name):
    model = load_model(f"zoo:{name.split('/')[0]}", device="cpu")
    sae = load_sae(f"zoo:{name}", model=model, max_fvu=0.5)
    assert sae.d_sae >= 8 * sae.d_in
    measured = sae.provenance.measured
    # other text than the card's, so near, not equal
    assert measured["fvu"] == pytest.approx(CARD["saes"][name]["fvu"], abs=0.1)
    assert measured["l0"] == pytest.approx(CARD["saes"][name]["l0"], rel=0.25)
    assert zoo_path("features", name).is_dir()


@pytest.mark.parametrize("name", sorted(CARD["transcoders"]))
def test_every_set_of_transcoders_writes_as_its_card_says(name):
    model = load_model(f"zoo:{name.split('/')[0]}", device="cpu")
    found = load_transcoders(f"zoo:{name}", model=model, max_fvu=0.5)
    assert len(found.layers) == model.spec.n_layers
    assert found.cross_layer == name.endswith("clt")
    for layer, one in enumerate(CARD["transcoders"][name]["layers"]):
        assert found.provenance.measured[f"fvu blocks.{layer}.hook_mlp_out"] == pytest.approx(
            one["fvu"], abs=0.1
        )


def test_its_texts_are_found_by_name():
    for name in polysem_zoo.names("texts"):
        assert corpus_path(f"zoo:{name}").is_file()
        assert next(documents(f"zoo:{name}")).name == f"{name}[0]"
    with pytest.raises(UnknownReferenceError, match="no texts entry 'atlantis'"):
        corpus_path("zoo:atlantis")


@pytest.mark.parametrize(
    ("site", "too_few", "simulated"),
    [
        ("blocks.1.hook_resid_post", 633, 901),
        ("blocks.2.hook_resid_post", 1575, 2044),
        ("blocks.2.hook_mlp_out", 729, 1048),
    ],
)
def test_pairs_as_uneven_as_the_zoos_dictionaries(site, too_few, simulated):
    """Pairs over 0.3 that one simulation of each dictionary gave, and the number of an isotropic law of the same
    variance, which leaves the diagonal out of the moments."""
    null = covariance_null(load_sae(f"zoo:gpt2/{site}").W_dec)
    assert null.n_pairs * float(cosine_tail(0.3 - null.mean, d=1 / null.variance)) == pytest.approx(
        too_few, abs=1
    )
    assert null.expected_above(0.3) == pytest.approx(simulated, rel=0.08)
    assert null.expected_se(0.3) < 0.03 * simulated
