"""Reading glosses: every column convention and every trap, on files that the tests write."""

import gzip
import json
import logging
from pathlib import Path

import httpx
import numpy as np
import pytest

from polysem.errors import ConfigError, FormatError, MismatchError, UnknownReferenceError
from polysem.glosses import read_glosses
from polysem.glosses.base import Gloss, ordered
from polysem.glosses.read import read_explanations, read_gloss_source
from polysem.glosses.select import Expected
from polysem.http import Retries
from polysem.types import Site

RESID_6 = Site.parse("blocks.6.hook_resid_post")
SOURCE = {"modelId": "gpt2-small", "layer": "6-res_post_32k-oai"}


def explanation(index: int, text: str, *, row_id: str | None = None, **more: object) -> dict[str, object]:
    row = SOURCE | {"index": str(index), "description": text, "explanationModelName": "gpt-4o-mini"}
    return row | ({"id": row_id} if row_id else {}) | more


def write_batches(folder: Path, batches: list[list[dict[str, object]]], *, suffix: str = ".jsonl.gz") -> None:
    folder.mkdir(parents=True)
    for number, rows in enumerate(batches):
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode() + b"\n"
        name = folder / f"batch-{number}{suffix}"
        name.write_bytes(gzip.compress(text) if suffix.endswith(".gz") else text)


def texts(glosses: list[Gloss]) -> list[tuple[int, str]]:
    return [(g.feature, g.text) for g in glosses]


# --- Neuronpedia -----------------------------------------------------------------------------------------------------------


def test_bucket_in_text_order_with_repeats_gaps_and_two_explainers(tmp_path, caplog):
    first = [
        explanation(0, "zero", row_id="a"),
        explanation(1, "one", row_id="b"),
        explanation(10, "ten", row_id="c"),
    ]
    second = [
        explanation(10, "ten", row_id="c"),
        explanation(2, "two", row_id="d"),
        explanation(2, "two, said otherwise", row_id="e", explanationModelName="claude"),
    ]
    write_batches(tmp_path / "explanations", [first, second])
    with caplog.at_level(logging.WARNING):
        reading = read_gloss_source(f"neuronpedia:{tmp_path}", d_sae=12, site=RESID_6)
    assert texts(reading.glosses) == [
        (0, "zero"),
        (1, "one"),
        (2, "two"),
        (2, "two, said otherwise"),
        (10, "ten"),
    ]
    assert reading.glosses[0].source == "gpt2-small/6-res_post_32k-oai"
    assert [g.explainer for g in reading.glosses if g.feature == 2] == ["gpt-4o-mini", "claude"]
    assert reading.report.n_duplicates == 1
    assert reading.report.missing == (3, 4, 5, 6, 7, 8, 9, 11)
    assert "8 of 12 features have no gloss: 3, 4, 5" in caplog.text


def test_batches_are_read_by_number_and_all_of_them(tmp_path):
    write_batches(tmp_path / "explanations", [[explanation(n, f"text {n}")] for n in range(12)])
    assert len(read_glosses(f"neuronpedia:{tmp_path}")) == 12


def test_order_of_rows_does_not_matter(tmp_path):
    rows = [explanation(n % 7, f"text {n}", explanationModelName=f"model {n % 3}") for n in range(20)]
    write_batches(tmp_path / "a" / "explanations", [rows])
    write_batches(tmp_path / "b" / "explanations", [rows[::-1][:5], rows[::-1][5:]])
    assert read_glosses(f"neuronpedia:{tmp_path / 'a'}") == read_glosses(f"neuronpedia:{tmp_path / 'b'}")


def test_variants_of_the_folder_are_read_too(tmp_path):
    write_batches(tmp_path / "explanations", [[explanation(0, "by one")]])
    write_batches(
        tmp_path / "explanations-claude", [[explanation(0, "by two", explanationModelName="claude")]]
    )
    assert [g.text for g in read_glosses(f"neuronpedia:{tmp_path}")] == ["by two", "by one"]


@pytest.mark.parametrize("vector", ["[0.25,-0.5,1e-3]", [0.25, -0.5, 0.001]])
def test_embeddings_as_text_and_as_array(tmp_path, vector):
    write_batches(
        tmp_path / "explanations",
        [[explanation(0, "a", embedding=vector), explanation(1, "b", embedding=None)]],
    )
    glosses = read_glosses(f"neuronpedia:{tmp_path}")
    embedding = glosses[0].embedding
    assert embedding is not None
    assert embedding.dtype == np.float32
    np.testing.assert_allclose(embedding, [0.25, -0.5, 0.001])
    assert glosses[1].embedding is None


@pytest.mark.parametrize("vector", ["[0.1, nan-ish]", [0.1, None], "[]", [[1.0]], "[NaN]"])
def test_embedding_that_is_none(tmp_path, vector):
    write_batches(tmp_path / "explanations", [[explanation(0, "a", embedding=vector)]])
    with pytest.raises(FormatError, match=r"batch-0\.jsonl\.gz:1: embedding"):
        read_glosses(f"neuronpedia:{tmp_path}")


def test_line_separators_inside_texts_do_not_cut_rows(tmp_path):
    write_batches(tmp_path / "explanations", [[explanation(0, "one\u2028two\u0085three\x1cfour")]])
    assert texts(read_glosses(f"neuronpedia:{tmp_path}")) == [(0, "one\u2028two\u0085three\x1cfour")]


def test_list_form_and_nested_explanations(tmp_path):
    listed = tmp_path / "list.json"
    listed.write_text(
        json.dumps(
            [explanation(3, "three"), SOURCE | {"index": "4", "explanations": [{"description": "four"}]}]
        )
    )
    assert texts(read_glosses(f"neuronpedia:{listed}")) == [(3, "three"), (4, "four")]


def test_truncated_archive(tmp_path):
    write_batches(tmp_path / "explanations", [[explanation(n, "some text") for n in range(200)]])
    whole = tmp_path / "explanations" / "batch-0.jsonl.gz"
    whole.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(FormatError, match=r"batch-0\.jsonl\.gz is not whole") as caught:
        read_glosses(f"neuronpedia:{tmp_path}")
    assert "download" in (caught.value.hint or "")


def test_cut_line_and_missing_batch(tmp_path):
    write_batches(
        tmp_path / "explanations",
        [[explanation(0, "a")], [explanation(1, "b")], [explanation(2, "c")]],
        suffix=".jsonl",
    )
    cut = tmp_path / "explanations" / "batch-1.jsonl"
    cut.write_text('{"index": "1", "descr')
    with pytest.raises(FormatError, match=r"batch-1\.jsonl:1 is not JSON"):
        read_glosses(f"neuronpedia:{tmp_path}")
    cut.unlink()
    with pytest.raises(FormatError, match="batch 1 is missing"):
        read_glosses(f"neuronpedia:{tmp_path}")


def test_absent_folder_and_absent_kind(tmp_path):
    with pytest.raises(UnknownReferenceError, match="no Neuronpedia export at"):
        read_glosses(f"neuronpedia:{tmp_path}/nothing/of/this")
    (tmp_path / "features").mkdir()
    with pytest.raises(UnknownReferenceError, match="no folder 'explanations'"):
        read_glosses(f"neuronpedia:{tmp_path}")


# --- over the network ------------------------------------------------------------------------------------------------------


class Bucket:
    """A server with some batches; answers the given statuses first."""

    def __init__(self, batches: list[bytes], *, before: list[httpx.Response] | None = None):
        self.batches = {
            f"/v1/gpt2-small/6-res/explanations/batch-{n}.jsonl.gz": b for n, b in enumerate(batches)
        }
        self.before = list(before or [])
        self.asked: list[str] = []
        self.slept: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path)
        if self.before:
            return self.before.pop(0)
        content = self.batches.get(request.url.path)
        return httpx.Response(404) if content is None else httpx.Response(200, content=content)

    def read(self) -> list[Gloss]:
        with httpx.Client(transport=httpx.MockTransport(self)) as client:
            reading = read_explanations(
                "https://host.test/v1/gpt2-small/6-res/",
                expected=Expected(),
                client=client,
                retries=Retries(attempts=3, first=1.0, longest=30.0, sleep=self.slept.append),
            )
        return reading.glosses


def lines(*rows: dict[str, object]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def test_address_is_read_until_404():
    bucket = Bucket(
        [gzip.compress(lines(explanation(0, "a"))), lines(explanation(1, "b"))]
    )  # the second unpacked on the way
    assert texts(bucket.read()) == [(0, "a"), (1, "b")]
    assert len(bucket.asked) == 3


def test_busy_server_is_asked_again_as_it_wishes():
    date = {"date": "Sat, 21 Nov 2026 08:00:00 GMT", "retry-after": "Sat, 21 Nov 2026 08:00:07 GMT"}
    before = [httpx.Response(429, headers={"retry-after": "2.5"}), httpx.Response(503, headers=date)]
    bucket = Bucket([lines(explanation(0, "a"))], before=before)
    assert texts(bucket.read()) == [(0, "a")]
    assert bucket.slept == [2.5, 7.0]


def test_server_that_stays_busy_or_asks_too_long():
    bucket = Bucket([], before=[httpx.Response(500, text="oops")] * 3)
    with pytest.raises(UnknownReferenceError, match="after 3 attempts; last: HTTP 500: oops"):
        bucket.read()
    assert bucket.slept == [1.0, 2.0]
    patient = Bucket([], before=[httpx.Response(429, headers={"retry-after": "3600"})])
    with pytest.raises(UnknownReferenceError, match="3600 s"):
        patient.read()
    assert patient.slept == []


def test_no_export_no_right_no_network():
    with pytest.raises(UnknownReferenceError, match="does not exist"):
        Bucket([]).read()
    with pytest.raises(UnknownReferenceError, match="HTTP 403"):
        Bucket([], before=[httpx.Response(403)]).read()

    def absent(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("name or service not known", request=request)

    with (
        httpx.Client(transport=httpx.MockTransport(absent)) as client,
        pytest.raises(UnknownReferenceError, match="name or service not known"),
    ):
        read_explanations(
            "https://host.test/x",
            expected=Expected(),
            client=client,
            retries=Retries(attempts=2, sleep=lambda _: None),
        )


def test_a_refusal_after_some_batches_is_no_end_of_the_export():
    """S3 answers 403 where it may not list: taking it for the end would lose features without a word."""

    def server(request: httpx.Request) -> httpx.Response:
        return (
            httpx.Response(200, content=lines(explanation(0, "a")))
            if "batch-0" in request.url.path
            else httpx.Response(403)
        )

    with (
        httpx.Client(transport=httpx.MockTransport(server)) as client,
        pytest.raises(UnknownReferenceError, match="batch-1"),
    ):
        read_explanations("https://host.test/x", expected=Expected(), client=client)


# --- files -----------------------------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return f"file:{path}"


@pytest.mark.parametrize(
    "feature", ["feature", "Index", "latent", "feature_index", "Feature Idx", "latent_idx", "node_id"]
)
@pytest.mark.parametrize("text", ["gloss", "Description", "explanation", "text", "Annotation"])
def test_columns_of_tables_and_lines(tmp_path, feature, text):
    table = write(
        tmp_path / "g.csv", f'\ufeff{feature},{text},extra\n7,"of the sea, and\nships",x\n12,letters,\n'
    )
    assert texts(read_glosses(table)) == [(7, "of the sea, and\nships"), (12, "letters")]
    rows = write(
        tmp_path / "g.jsonl",
        json.dumps({feature: 7, text: "sea"}) + "\n\n" + json.dumps({feature: "12", text: "x"}) + "\n",
    )
    assert texts(read_glosses(rows)) == [(7, "sea"), (12, "x")]


def test_map_with_answer_format_and_cut_examples(tmp_path):
    content = {
        "3": "Explanation: words of the sea",
        "10": ["[EXPLANATION]: ships", 'such as "watch" (e'],
        "11": " ",
    }
    reading = read_gloss_source(write(tmp_path / "g.json", json.dumps(content)))
    assert texts(reading.glosses) == [(3, "words of the sea"), (10, "ships"), (10, 'such as "watch"')]
    assert reading.report.n_without_text == 1


def test_tab_separated_and_gzipped(tmp_path):
    path = tmp_path / "g.tsv.gz"
    path.write_bytes(gzip.compress(b"feature\tgloss\n1\tcommas, here\n"))
    assert texts(read_glosses(f"file:{path}")) == [(1, "commas, here")]


def test_annotations_with_their_quirks(tmp_path):
    rows = [
        {
            "Component": "resid",
            "Layer": "5",
            "Feature": "3036",
            "Name": "resid_5/3036",
            "Annotation": "singular",
            "Notes": "",
        },
        {
            "Component": "Component",
            "Layer": "",
            "Feature": "",
            "Name": "Name",
            "Annotation": "Annotation",
            "Notes": "Notes",
        },
        {
            "Component": "resid",
            "Layer": 5,
            "Feature": "12",
            "Name": "resid_5/12",
            "Annotation": "plural",
            "notes": "x",
        },
        {"Name": "resid_5/7", "Annotation": "she"},
        {"Name": "mlp_5/7", "Annotation": "he"},
        {"Component": "embed", "Feature": "7", "Name": "embed/7"},
    ]
    source = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    reading = read_gloss_source(source, site=Site.parse("blocks.5.hook_resid_post"))
    assert texts(reading.glosses) == [(7, "she"), (12, "plural"), (3036, "singular")]
    assert (reading.report.n_headers, reading.report.n_other_source) == (1, 2)
    assert texts(read_glosses(f"{source}#mlp_5")) == [(7, "he")]
    with pytest.raises(
        MismatchError, match="several SAEs that fit: it names embed, mlp_5, resid_5; expected one SAE"
    ):
        read_glosses(source)
    with pytest.raises(MismatchError, match="another SAE"):
        read_glosses(source, site=Site.parse("blocks.4.hook_resid_post"))


def test_output_centric_table_gives_one_gloss_per_description(tmp_path):
    header = "Layer,Feature,Sae Type,Sae Size,VocabProj Description,MaxAct Description,MaxAct Input Success\n"
    source = write(
        tmp_path / "o.csv", header + "14,34,mlp,32k,promoted,fires,True\n14,34,res,32k,other,other,False\n"
    )
    glosses = read_glosses(source, site=Site.parse("blocks.14.hook_mlp_out"))
    assert [(g.text, g.explainer, g.source) for g in glosses] == [
        ("fires", "MaxAct", "o.csv#14-mlp"),
        ("promoted", "VocabProj", "o.csv#14-mlp"),
    ]


def test_folder_of_runs_named_by_layer(tmp_path):
    write(tmp_path / "all_explanations_layer_4.json", '{"9": "Explanation: four"}')
    write(tmp_path / "more_explanations_layer_4.json", '{"9": "Explanation: four again"}')
    write(tmp_path / "all_explanations_layer_5.json", '{"9": "Explanation: five"}')
    glosses = read_glosses(f"file:{tmp_path}", site=Site.parse("blocks.4.hook_resid_post"))
    assert [(g.text, g.explainer) for g in glosses] == [
        ("four", "all_explanations"),
        ("four again", "more_explanations"),
    ]


def test_tokens_and_marked_examples_are_worded(tmp_path):
    link = "https://neuronpedia.org/gpt2-small/8-res_fs768-jb/3"
    table = write(
        tmp_path / "t.csv",
        f'node_id,top_10_tokens,neuronpedia_link\n3,"["" sea"", \' Sea\', ""\\n""]",{link}\n',
    )
    (gloss,) = read_glosses(table)
    assert (gloss.text, gloss.source) == ('promotes "sea", line break', "gpt2-small/8-res_fs768-jb")
    examples = [
        {"text": "fell<< apart>> again", "ground_truth": False},
        {"text": "the << sea>> and a<< sea>>, a<< ship>>", "ground_truth": True},
    ]
    marked = write(tmp_path / "m.jsonl", json.dumps({"layer": 0, "feature": 2, "examples": examples}))
    assert texts(read_glosses(marked)) == [(2, '"sea", "ship" — as in «the sea and a sea, a ship»')]


# --- another SAE, and other bad input --------------------------------------------------------------------------------------


def test_feature_beyond_the_sae(tmp_path):
    source = write(tmp_path / "g.jsonl", '{"feature": 5, "gloss": "a"}\n{"feature": 64, "gloss": "b"}')
    with pytest.raises(
        MismatchError, match=r"g\.jsonl:2: feature 64 does not exist in an SAE of 64 features"
    ):
        read_glosses(source, d_sae=64)
    assert len(read_glosses(source, d_sae=65)) == 2


@pytest.mark.parametrize(
    ("layer", "site", "fits"),
    [
        ("6-res_post_32k-oai", "blocks.6.hook_resid_post", True),
        ("6-res_post_32k-oai", "blocks.5.hook_resid_post", False),
        ("6-res_mid_32k-oai", "blocks.6.hook_mlp_out", False),
        ("6-att_32k-oai", "blocks.6.hook_attn_out", True),
        ("6-att-sm", "blocks.6.attn.hook_z", True),
        ("6-mlp-sm", "blocks.6.hook_attn_out", False),
        ("6-res-jb", "blocks.6.hook_resid_pre", True),
        ("12-res-jb", "blocks.11.hook_resid_post", True),
        ("6-res-jb", "blocks.6.hook_resid_post", False),
        ("e-res-sm", "blocks.0.hook_resid_pre", True),
        ("e-res-sm", "blocks.0.hook_resid_post", False),
        ("20-gemmascope-res-16k", "blocks.20.hook_resid_post", True),
        ("6", "blocks.6.hook_resid_post", False),  # a bare layer: the MLP's neurons
        ("6-tres-dc", "blocks.6.hook_resid_post", True),  # a name that says nothing of the kind
    ],
)
def test_which_names_fit_which_site(tmp_path, layer, site, fits):
    source = write(
        tmp_path / "g.json",
        json.dumps([{"modelId": "gpt2-small", "layer": layer, "index": "1", "description": "x"}]),
    )
    if fits:
        assert len(read_glosses(source, site=Site.parse(site))) == 1
    else:
        with pytest.raises(MismatchError, match="another SAE"):
            read_glosses(source, site=Site.parse(site))


@pytest.mark.parametrize(
    ("named", "model", "fits"),
    [
        ("gpt2-small", "openai-community/gpt2", True),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped", True),
        ("llama3.1-8b", "meta-llama/Llama-3.1-8B", True),
        ("llama3.1-8b-it", "meta-llama/Llama-3.1-8B-Instruct", True),
        ("gemma-2-2b", "google/gemma-2-9b", False),
        ("gpt2-small", "EleutherAI/pythia-70m-deduped", False),
    ],
)
def test_which_names_of_models_are_one(tmp_path, named, model, fits):
    source = write(
        tmp_path / "g.json",
        json.dumps([{"modelId": named, "layer": "6-res", "index": "1", "description": "x"}]),
    )
    if fits:
        assert len(read_glosses(source, model_id=model)) == 1
    else:
        with pytest.raises(MismatchError, match=named):
            read_glosses(source, model_id=model)


def test_expected_source_by_name(tmp_path):
    write_batches(tmp_path / "explanations", [[explanation(1, "x")]])
    for name in ("6-res_post_32k-oai", "gpt2-small/6-res_post_32k-oai"):
        assert len(read_glosses(f"neuronpedia:{tmp_path}", expected_source=name)) == 1
    with pytest.raises(MismatchError, match=r"it names gpt2-small/6-res_post_32k-oai; expected '7-res-jb'"):
        read_glosses(f"neuronpedia:{tmp_path}", expected_source="7-res-jb")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("g.jsonl", '{"gloss": "a"}', r"g\.jsonl:1: no feature number: got None"),
        ("g.jsonl", '{"feature": -3, "gloss": "a"}', "got -3"),
        ("g.jsonl", '{"feature": 1.5, "gloss": "a"}', r"got 1\.5"),
        ("g.jsonl", '{"feature": true, "gloss": "a"}', "got True"),
        ("g.jsonl", '{"feature": 1, "gloss": 7}', "the gloss of feature 1 is 7; expected text"),
        ("g.jsonl", "[1, 2]", "expected a JSON object, got int 1"),
        ("g.json", '{"1": "a"', "is not JSON"),
        ("g.csv", "feature,gloss\n1,a,b\n", r"g\.csv:2: 3 cells, expected 2"),
        ("g.csv", "feature,feature\n1,2\n", r"repeated: \['feature'\]"),
        ("g.csv", "", "it is empty"),
        ("g.csv", 'feature,gloss\n1,"a', "not a table"),
        ("g.csv", "feature,gloss\n1,\n", "no gloss in 1 rows"),
        ("g.txt", "hello", "unknown kind of file"),
    ],
)
def test_bad_files_are_named_with_place_and_value(tmp_path, name, content, message):
    with pytest.raises(FormatError, match=message) as caught:
        read_glosses(write(tmp_path / name, content))
    assert name in str(caught.value)


def test_bytes_that_are_no_text(tmp_path):
    for name in ("g.jsonl", "g.json"):
        (tmp_path / name).write_bytes(b'{"1": "caf\xe9"}')
        with pytest.raises(FormatError, match="not UTF-8"):
            read_glosses(f"file:{tmp_path / name}")


def test_absent_file_and_unknown_reference(tmp_path):
    with pytest.raises(UnknownReferenceError, match="no gloss file"):
        read_glosses(f"file:{tmp_path / 'absent.csv'}")
    with pytest.raises(UnknownReferenceError, match="holds no gloss file"):
        read_glosses(f"file:{tmp_path}")
    with pytest.raises(ConfigError, match="unknown source of glosses 'web:x'"):
        read_glosses("web:x")


def test_primary_gloss_is_by_the_explainer_that_covers_most():
    glosses = [Gloss(0, "a", "s", "rare"), Gloss(0, "b", "s", "common"), Gloss(1, "c", "s", "common")]
    assert [g.text for g in ordered(glosses)] == ["b", "a", "c"]
    assert [g.text for g in ordered(glosses[::-1], first=("rare",))] == ["a", "b", "c"]
