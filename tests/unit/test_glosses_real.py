"""Published glosses and dashboards as they are, with the counts that their SOURCE.md files give. Skipped where they are not at hand."""

import json
from collections import Counter
from pathlib import Path

import pytest

from polysem.errors import MismatchError
from polysem.glosses import read_glosses, read_neuronpedia_features, token_glosses
from polysem.glosses.raw import read_rows
from polysem.glosses.read import read_files, read_gloss_source
from polysem.glosses.select import Collection, Expected
from polysem.types import Site


def collect(*files: Path, layer: str | None = None) -> Collection:
    """All rows of files, of whatever SAE."""
    rows = Collection()
    for file in files:
        for row in read_rows(file):
            rows.add(row, layer=layer, explainer=file.stem)
    return rows


def test_gemma_export(shared):
    file = shared / "data/glosses-gemma2b-neuronpedia-export/gemma-2-2b_20-gemmascope-res-16k.json"
    site = Site.parse("blocks.20.hook_resid_post")
    glosses, report = read_gloss_source(
        f"neuronpedia:{file}", d_sae=16384, site=site, model_id="google/gemma-2-2b"
    )
    assert (report.n_rows, report.n_glosses, report.n_features) == (17008, 17008, 16383)
    assert report.missing == (5798,)
    by = Counter((g.explainer or "").split()[0] for g in glosses)
    assert (by["gpt-4o-mini"], by["claude-3-5-sonnet-20240620"], by["gpt-3.5-turbo"], sum(by.values())) == (
        16384,
        317,
        303,
        17008,
    )
    # 624 rows beyond one per feature, on 317 features (SOURCE.md counts the rows).
    assert Counter(Counter(g.feature for g in glosses).values()) == {1: 16066, 2: 12, 3: 302, 4: 3}
    assert {g.source for g in glosses} == {"gemma-2-2b/20-gemmascope-res-16k"}
    first = {g.feature: g for g in reversed(glosses)}
    assert sum("gpt-4o-mini" in (g.explainer or "") for g in first.values()) > 16370
    for wrong in ({"site": Site.parse("blocks.19.hook_resid_post")}, {"d_sae": 1000}, {"model_id": "gpt2"}):
        with pytest.raises(MismatchError, match=r"gemma-2-2b_20-gemmascope-res-16k\.json"):
            read_glosses(f"neuronpedia:{file}", **wrong)


def test_delphi_explanations(shared):
    folder = shared / "data/glosses-gpt2small-delphi/saved_explanations"
    total, features, texts, several = 0, set(), set(), 0
    for layer in range(12):
        glosses = read_glosses(
            f"file:{folder}", site=Site.parse(f"blocks.{layer}.hook_resid_post"), d_sae=32768
        )
        total += len(glosses)
        features |= {(layer, g.feature) for g in glosses}
        texts |= {g.text for g in glosses}
        several += sum(len(t) > 1 for t in by_feature(glosses).values())
    # Of SOURCE.md's 4,836 features with different glosses two differ only in a cut "(e".
    assert (total, len(features), several) == (10773, 5424, 4836 - 2)
    assert 9780 < len(texts) <= 9788  # texts that differ only in a cut "(e" are one
    assert not any(text.startswith("Explanation") or text.endswith("(e") for text in texts)


def by_feature(glosses) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for gloss in glosses:
        found.setdefault(gloss.feature, set()).add(gloss.text)
    return found


def test_delphi_records(shared):
    folder = shared / "data/glosses-gpt2small-delphi"
    records = collect(folder / "generation_records.jsonl")
    assert (records.n_rows, len({(p.origin, p.feature) for p in records.parsed})) == (474, 237)
    assert all(p.text for p in records.parsed)
    judged = collect(folder / "fuzz_scored_examples.jsonl")
    assert judged.n_rows == 474
    everybody = next(p for p in judged.parsed if p.origin.layer == 0 and p.feature == 0)
    assert everybody.text.startswith('"everybody"')
    logits = collect(folder / "top_logits.jsonl")
    assert len(logits.parsed) == 268
    assert all(p.text.startswith("promotes ") for p in logits.parsed)
    rows = {f.name: sum(1 for _ in read_rows(f)) for f in sorted((folder / "scored").glob("*.csv"))}
    assert rows == {"gpt2.csv": 300, "gpt2_random.csv": 237, "gpt2_top.csv": 237, "top_heatmap.csv": 300}
    scored = read_files(folder / "scored", expected=Expected(site=Site.parse("blocks.0.hook_resid_post")))
    assert scored.glosses[0].text == 'The word "Everybody".'


def test_llama_output_centric(shared):
    file = shared / "data/glosses-llama8b-output-centric/llama-3.1-8b.csv"
    rows = collect(file)
    features = {(p.origin.name, p.feature) for p in rows.parsed}
    assert (rows.n_rows, len(features)) == (2288, 2287), "one row is there twice"
    assert Counter(p.origin.kind for p in rows.parsed if p.explainer == "MaxAct") == {
        "res": 1152,
        "mlp": 1135,
    }
    assert len({p.explainer for p in rows.parsed}) == 8
    glosses = read_glosses(f"file:{file}", site=Site.parse("blocks.14.hook_mlp_out"), d_sae=32768)
    assert next(g for g in glosses if g.feature == 3433).text == "key terms related to gaming and community"


@pytest.mark.parametrize(
    ("name", "n_rows", "n_named"), [("pythia-70m-deduped", 278, 277), ("gemma-2-2b", 470, 443)]
)
def test_human_annotations(shared, name, n_rows, n_named):
    file = shared / f"data/glosses-pythia70m-human/{name}.jsonl"
    rows = collect(file)
    assert (rows.n_rows, rows.n_headers) == (n_rows, 1)
    annotated = [r for r in read_rows(file) if r.fields.get("Annotation") and r.fields["Name"] != "Name"]
    assert len(annotated) == n_named
    expected = {(r.fields["Name"], r.fields["Annotation"].strip()) for r in annotated}
    assert {(f"{p.origin.name}/{p.feature}", p.text) for p in rows.parsed if p.text} == expected


def test_human_annotations_of_the_other_dictionary(shared):
    folder = shared / "data/glosses-pythia70m-human"
    content = json.loads((folder / "5_32768_annotations.json").read_text())
    rows = collect(folder / "5_32768_annotations.json")
    assert {f"{p.origin.name}/{p.feature}": p.text for p in rows.parsed} == {
        k: v.strip() for k, v in content.items()
    }
    site = Site.parse("blocks.5.hook_attn_out")
    (gloss,) = (
        g for g in read_glosses(f"file:{folder / '5_32768_annotations.json'}", site=site) if g.feature == 7857
    )
    assert gloss.text == "Predictive of plural or infinitive verb forms"


def test_top_logits_are_of_annotated_features(shared):
    folder = shared / "data/glosses-pythia70m-human"
    logits = {
        (p.origin.name, p.feature) for p in collect(folder / "pythia70m_top_logits_delphi.jsonl").parsed
    }
    annotated = {(p.origin.name, p.feature) for p in collect(folder / "pythia-70m-deduped.jsonl").parsed}
    assert len(logits) == 66
    assert logits <= annotated


def test_context_records(shared):
    total, worded = Counter(), 0
    for file in sorted((shared / "data/glosses-pythia70m-human/contexts").glob("*.json")):
        kind = "dense" if file.name.startswith("dense") else "sparse"
        for record in json.loads(file.read_text()).values():
            unit = record.get("component") or record["feature"]
            module, layer = unit["submodule_type"], unit["layer_idx"]
            name = module if module == "embed" else f"{module}_{layer}"
            read = read_neuronpedia_features(
                f"{file}#{'neuron_' if kind == 'dense' else ''}{name}",
                "x",
                site=Site.parse("blocks.0.hook_resid_post"),
            )
            assert unit["feature_idx"] in read.features.column("feature").to_pylist()
            largest = max(max(values) for _, values in record["top_contexts"])
            rows = {r["feature"]: r for r in read.features.to_pylist()}
            assert rows[unit["feature_idx"]]["max_act"] == pytest.approx(largest)
            total[kind] += 1
            worded += any(
                g.feature == unit["feature_idx"] for g in token_glosses(read.features, read.contexts)
            )
    assert total == {"dense": 70, "sparse": 101}  # 171 records
    assert worded >= 168


def test_saedashboard(shared):
    folder = shared / "data/features-gpt2small-saedashboard"
    tokenizers = pytest.importorskip("tokenizers")
    gpt2 = tokenizers.Tokenizer.from_file(str(shared / "data/tokenizer-gpt2/tokenizer.json"))
    read = read_neuronpedia_features(
        str(folder),
        "x",
        site=Site.parse("blocks.0.hook_resid_pre"),
        model_id="gpt2",
        d_sae=4,
        tokenize_string=lambda text: gpt2.encode(text, add_special_tokens=False).ids,
        n_contexts=100,
    )
    rows = read.features.to_pylist()
    assert [r["feature"] for r in rows] == [0, 1, 2, 3]
    assert [r["density"] for r in rows] == pytest.approx([0.0002, 0.0, 0.00036, 0.00023], abs=1e-6)
    assert rows[0]["tokens_in_str"] == [" brigade"]
    assert gpt2.id_to_token(rows[0]["tokens_in"][0]) == "Ġbrigade"
    assert read.report.n_unmapped_tokens == 0
    assert read.report.missing == ()
    assert "Hillary’s reality brigade" in "".join(read.contexts.to_pylist()[0]["tokens"])
    glosses = {g.feature: g.text for g in token_glosses(read.features, read.contexts)}
    assert glosses[0].startswith('"brigade" — as in «')
    assert glosses[1].startswith("promotes ")  # a feature that never fires


@pytest.mark.parametrize("width", [768, 1536, 3072])
def test_cooccurrence_tables(shared, width):
    file = shared / f"data/features-gpt2small-cooccurrence/fs{width}_node_info_1_5.csv"
    glosses, report = read_gloss_source(
        f"file:{file}", d_sae=width, site=Site.parse("blocks.8.hook_resid_pre"), model_id="gpt2"
    )
    assert report.n_rows == width
    assert report.n_features + report.n_without_text == width
    assert len(report.missing) == report.n_without_text < 0.01 * width
    assert glosses[0].source == f"gpt2-small/8-res_fs{width}-jb"
    with pytest.raises(MismatchError, match="does not exist"):
        read_glosses(f"file:{file}", d_sae=width - 1)
