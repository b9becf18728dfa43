"""What lies outside a run folder is known by its content, whatever kind of reference leads to it."""

import pytest

from polysem.config import parse_study
from polysem.engine.sources import Pins, content_of, is_local
from polysem.glosses import shipped
from polysem.places import here

STUDY = '[model]\nref = "{model}"\n[[saes]]\nref = "{sae}"\n[corpus]\nref = "{corpus}"\n'


def seen(**refs):
    found, unseen = content_of(
        parse_study(STUDY.format(**refs)), "features", places=here(), pins=Pins({}, {}), recorded=None
    )
    assert unseen == []
    return found


@pytest.mark.parametrize("form", ["gguf:{}", "{}"])
def test_a_gguf_file_is_hashed_so_that_another_one_in_its_place_is_seen(form, tmp_path):
    file, text = tmp_path / "model.gguf", tmp_path / "text.txt"
    text.write_text("words")
    file.write_bytes(b"GGUF one")
    refs = {"model": form.format(file), "sae": str(text), "corpus": str(text)}
    name = f"model {refs['model']}"
    before = seen(**refs)[name]
    assert before.startswith("sha256:")
    assert is_local(refs["model"])
    file.write_bytes(b"GGUF two")
    assert seen(**refs)[name] != before


def test_a_dictionary_of_the_zoo_of_real_models_is_hashed(tmp_path):
    pytest.importorskip("polysem_zoo_real", reason="polysem-zoo-real is not installed")
    text = tmp_path / "text.txt"
    text.write_text("words")
    ref = "zoo-real:smollm2/blocks.14.hook_resid_post"
    found = seen(model=str(tmp_path), sae=ref, corpus=str(text))
    assert found[f"saes {ref}"].startswith("sha256:")


@pytest.mark.parametrize("where", ["study", "sae", "nowhere"])
def test_written_glosses_of_a_zoo_are_hashed_where_they_are_taken(where, tmp_path, monkeypatch):
    pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    ref, text, lines = "zoo:neox/blocks.2.hook_resid_post", tmp_path / "text.txt", tmp_path / "lines.jsonl"
    text.write_text("words")
    lines.write_text('{"feature": 8, "gloss": "rain"}\n')
    monkeypatch.setattr(shipped, "zoo_path", lambda kind, name: lines)
    study = STUDY.format(model=tmp_path, sae=ref, corpus=text)
    if where == "study":
        study += '[glosses]\nsource = "zoo"\n'
    elif where == "sae":
        study = study.replace("[corpus]", 'glosses = "zoo"\n[corpus]')

    def known():
        found, _ = content_of(parse_study(study), "features", places=here(), pins=Pins({}, {}), recorded=None)
        return found.get(f"glosses {ref}")

    before = known()
    assert (before is None) == (where == "nowhere")
    lines.write_text('{"feature": 8, "gloss": "snow"}\n')
    assert (known() == before) == (where == "nowhere")


def test_a_model_of_the_hub_is_not_local():
    assert not is_local("openai-community/gpt2")
