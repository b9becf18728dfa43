"""Glosses that come with the zoos' dictionaries."""

import json

import pytest

from polysem.errors import ConfigError, MismatchError
from polysem.glosses import shipped, shipped_glosses
from polysem.glosses.failures import is_failure
from polysem.registry import zoo_path

zoo = pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
zoo_real = pytest.importorskip("polysem_zoo_real", reason="polysem-zoo-real is not installed")

ENTRIES = [f"zoo:{n}" for n in zoo.names("glosses")] + [f"zoo-real:{n}" for n in zoo_real.names("glosses")]


def lines_of(ref):
    path = zoo_path("glosses", ref)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("ref", ENTRIES)
def test_every_line_is_read_or_says_unclear(ref):
    lines = lines_of(ref)
    config = json.loads((zoo_path("saes", ref) / "cfg.json").read_text())
    read = {g.feature: g.text for g in shipped_glosses(ref, d_sae=config["d_sae"])}
    assert read == {x["feature"]: x["gloss"] for x in lines if x["gloss"] != "unclear"}
    assert [x["feature"] for x in lines] == sorted({x["feature"] for x in lines})
    for x in lines:
        assert x["senses"] in {"one", "mixed", "unclear"}
        assert (x["senses"] == "unclear") == (x["gloss"] == "unclear") == is_failure(x["gloss"])
        assert len(x["gloss"].split()) <= 32
        for name in ("detection", "marked", "auroc"):
            assert 0 <= x.get(name, 0) <= 1


def test_glosses_tell_what_features_fire_on_better_than_chance():
    lines = [x for ref in ENTRIES for x in lines_of(ref)]
    assert len(lines) >= 600
    for name, least in (("detection", 0.7), ("marked", 0.8), ("auroc", 0.65)):
        known = [x[name] for x in lines if name in x]
        assert len(known) > 600
        assert sum(known) / len(known) > least


def test_an_sae_without_written_glosses_keeps_its_token_glosses(caplog):
    assert shipped_glosses("zoo:llama/blocks.3.hook_resid_post", d_sae=2560) == []
    assert "no glosses were written" in caplog.text


def test_an_sae_of_no_zoo_is_refused():
    with pytest.raises(ConfigError, match="of no zoo"):
        shipped_glosses("saelens:gpt2-small-res-jb", d_sae=8)


def test_a_feature_that_does_not_exist_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "x.jsonl"
    file.write_text('{"feature": 8, "gloss": "rain"}\n')
    monkeypatch.setattr(shipped, "zoo_path", lambda kind, name: file)
    with pytest.raises(MismatchError, match="feature 8 does not exist in an SAE of 8"):
        shipped_glosses("zoo:x", d_sae=8)


def test_written_lines_come_first_and_token_glosses_stay_for_the_others():
    from polysem.features.table import _glosses, _primary_source, _shipped
    from polysem.saes import load_sae

    ref = "zoo:neox/blocks.2.hook_resid_post"
    sae = load_sae(ref)
    rows, contexts = _shipped("x", sae)
    primary = {g.feature: g for g in reversed(_primary_source(_glosses("zoo", rows, contexts, sae)))}
    written = {g.feature: g.text for g in shipped_glosses(ref, d_sae=sae.d_sae)}
    tokens = {g.feature: g.text for g in _glosses("tokens", rows, contexts, sae)}
    assert {f: g.text for f, g in primary.items()} == tokens | written
    assert {g.source for f, g in primary.items() if f in written} == {"zoo"}
