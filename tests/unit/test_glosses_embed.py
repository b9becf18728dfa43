"""Embedders and their cache: MiniLM against pooling by hand, a served model against a server that behaves like one."""

import base64
import json
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from polysem.errors import (
    ConfigError,
    FormatError,
    MismatchError,
    NumericsError,
    StoreError,
    UnknownReferenceError,
)
from polysem.glosses import Gloss, bert, embed_glosses, embed_texts
from polysem.glosses.cache import VectorCache
from polysem.glosses.embedders import minilm_folder
from polysem.http import Retries

TEXTS = ["the sea, ships and sailing", "names of women", "punctuation; such as: commas", "a", "of the " * 300]
FLOAT32 = 1e-5
"""agreement asked of two ways through the same float32 network"""


@pytest.fixture(scope="module")
def minilm() -> np.ndarray:
    return embed_texts(TEXTS, "minilm", cache=None).vectors


def test_minilm_is_mean_pooling_by_hand(minilm):
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    model = AutoModel.from_pretrained(minilm_folder(), add_pooling_layer=False).eval()
    for text, vector in zip(TEXTS, minilm, strict=True):  # one text alone: no padding, no batch
        tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        with torch.inference_mode():
            mean = model(**tokens).last_hidden_state[0].numpy().mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=FLOAT32)


def test_minilm_is_what_sentence_transformers_gives(minilm):
    library = pytest.importorskip(
        "sentence_transformers", reason="optional extra sentence-transformers is not installed"
    )
    reference = library.SentenceTransformer(str(minilm_folder()), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(minilm, reference, atol=FLOAT32)
    through = embed_texts(TEXTS, f"sentence-transformers:{minilm_folder()}", cache=None)
    np.testing.assert_allclose(through.vectors, minilm, atol=FLOAT32)
    assert len(through.sha256) == 64


def test_minilm_vector_does_not_depend_on_company(minilm):
    """Alone, or among texts of its own and of other lengths, elsewhere in a panel or in another."""
    alone = embed_texts([TEXTS[1]], "minilm", cache=None)
    np.testing.assert_array_equal(alone.vectors[0], minilm[1])
    assert alone.name == "sentence-transformers/all-MiniLM-L6-v2"
    company = [f"a {'ship ' * (n % 9)}{n}" for n in range(90)]
    crowd = embed_texts([*company, TEXTS[1], TEXTS[2]], "minilm", cache=None).vectors
    np.testing.assert_array_equal(crowd[-2:], minilm[1:3])


def test_panels_hold_every_text_once_and_no_more_tokens_than_fit():
    lengths = np.random.default_rng(0).integers(2, 257, 200).tolist()
    panels = list(bert._panels(lengths))
    assert sorted(n for panel in panels for n in panel) == list(range(200))
    filled = [sum(lengths[n] for n in panel) for panel in panels]
    assert max(filled) <= bert.PANEL
    following = [lengths[panel[0]] for panel in panels[1:]]
    assert all(at + length > bert.PANEL for at, length in zip(filled, following, strict=False))
    assert list(bert._panels([])) == []


def test_minilm_places_meanings(minilm):
    sea, women = embed_texts(["ocean and waves", "Judith, Elizabeth and Amy"], "minilm", cache=None).vectors
    assert minilm[0] @ sea > minilm[0] @ women + 0.2
    assert minilm[1] @ women > minilm[1] @ sea + 0.2


def test_sentence_transformers_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UnknownReferenceError, match="not installed") as caught:
        embed_texts(["a"], "sentence-transformers:all-mpnet-base-v2", cache=None)
    assert caught.value.hint == 'pip install "polysem[sentence-transformers]"'


@pytest.mark.parametrize("reference", ["word2vec", "openai:", "sentence-transformers:"])
def test_unknown_embedder(reference):
    with pytest.raises(ConfigError, match="unknown embedder"):
        embed_texts(["a"], reference, cache=None)


def test_nothing_to_embed():
    with pytest.raises(ConfigError, match="text 1 is blank"):
        embed_texts(["a", " \n"], "minilm", cache=None)


# --- a served model --------------------------------------------------------------------------------------------------------


def meaning(text: str) -> list[float]:
    """A vector of 4 numbers that depends on the text alone; not of length 1."""
    return [float(len(text)), float(sum(map(ord, text)) % 97 + 1), float(ord(text[0])), 2.0]


class Server:
    """An OpenAI-compatible embeddings endpoint: checks what it is sent, answers out of order, counts what it was asked."""

    def __init__(self, *, before: list[httpx.Response] | None = None, encode: str = "float", spoil: str = ""):
        self.before = list(before or [])
        self.encode = encode
        self.spoil = spoil
        self.texts: list[str] = []
        self.keys: list[str | None] = []
        self.slept: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.keys.append(request.headers.get("authorization"))
        if self.before:
            return self.before.pop(0)
        body = json.loads(request.content)
        if request.method != "POST" or request.url.path != "/v1/embeddings" or body["model"] != "text-3":
            return httpx.Response(404, json={"error": {"message": f"no model {body['model']}"}})
        if len(body["input"]) > 128 or any(not t for t in body["input"]):
            return httpx.Response(400, json={"error": {"message": "bad input"}})
        self.texts += body["input"]
        data = [
            {"object": "embedding", "index": n, "embedding": self._vector(t)}
            for n, t in enumerate(body["input"])
        ]
        if self.spoil == "short":
            data = data[1:]
        return httpx.Response(200, json={"object": "list", "data": data[::-1], "model": body["model"]})

    def _vector(self, text: str) -> object:
        vector = {"nan": [float("nan")] * 4, "zero": [0.0] * 4}.get(self.spoil, meaning(text))
        if self.spoil == "nan":
            vector = [1e39, 1.0, 1.0, 1.0]  # JSON has no nan; beyond float32
        return (
            base64.b64encode(np.array(vector, "<f4").tobytes()).decode()
            if self.encode == "base64"
            else vector
        )

    def embed(
        self,
        texts: list[str],
        *,
        cache: Path | None = None,
        reference: str = "openai:text-3@http://host.test",
        **more,
    ):
        with httpx.Client(transport=httpx.MockTransport(self)) as client:
            retries = Retries(attempts=3, first=1.0, longest=30.0, sleep=self.slept.append)
            return embed_texts(texts, reference, cache=cache, client=client, retries=retries, **more)


def unit(text: str) -> np.ndarray:
    vector = np.array(meaning(text))
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("encode", ["float", "base64"])
def test_served_vectors_go_with_their_texts(encode):
    texts = [f"text number {n}" for n in range(300)][::-1]
    server = Server(encode=encode)
    embedded = server.embed(texts)
    np.testing.assert_allclose(embedded.vectors, [unit(t) for t in texts], rtol=1e-6)
    assert embedded.name == "openai:text-3@http://host.test/v1"
    assert len(server.keys) == 3


def test_repeated_texts_are_sent_once():
    server = Server()
    embedded = server.embed(["b", "a", "b", "b"])
    assert sorted(server.texts) == ["a", "b"]
    np.testing.assert_array_equal(embedded.vectors[0], embedded.vectors[3])


def test_busy_server_is_asked_again():
    server = Server(before=[httpx.Response(429, headers={"retry-after": "3"}), httpx.Response(500)])
    server.embed(["a"])
    assert server.slept == [3.0, 2.0]


def test_key_is_sent_where_it_belongs(monkeypatch, caplog):
    server = Server()
    server.embed(["a"], api_key="given")
    server.embed(["b"])
    assert not caplog.text
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.embed(["c"])
    assert "http://host.test is sent no key: OPENAI_API_KEY is for https://api.openai.com" in caplog.text
    server.embed(["d"], reference="openai:text-3")
    monkeypatch.setenv("POLYSEM_API_KEY", "general")
    server.embed(["e"])
    monkeypatch.setenv("POLYSEM_API_BASE", "http://host.test/v1")
    server.embed(["f"])
    assert server.keys == ["Bearer given", None, None, "Bearer secret", None, "Bearer general"]


def test_answers_that_are_none():
    with pytest.raises(FormatError, match=r"2 texts were sent"):
        Server(spoil="short").embed(["a", "b"])
    with pytest.raises(FormatError, match="not finite"):
        Server(spoil="nan").embed(["a"])
    with pytest.raises(NumericsError, match="vector 0 has length 0"):
        Server(spoil="zero").embed(["a"])
    with pytest.raises(FormatError, match="no list of embeddings"):
        Server(before=[httpx.Response(200, json={"embeddings": []})]).embed(["a"])
    with pytest.raises(UnknownReferenceError, match=r"HTTP 404 for model 'other'.*no model other"):
        Server().embed(["a"], reference="openai:other@http://host.test")
    with pytest.raises(UnknownReferenceError, match=r"POLYSEM_API_BASE=http://host\.test"):
        Server(before=[httpx.Response(401, text="who?")]).embed(["a"])


def test_the_key_stands_in_no_message():
    with pytest.raises(UnknownReferenceError) as caught:
        Server(before=[httpx.Response(401, text="who?")]).embed(["a"], api_key="very-secret")
    assert "very-secret" not in str(caught.value)


# --- the cache -------------------------------------------------------------------------------------------------------------


def test_cached_texts_are_not_asked_again_and_come_back_to_the_bit(tmp_path):
    server = Server()
    first = server.embed(["a", "b"], cache=tmp_path)
    server.texts.clear()
    second = server.embed(["c", "b", "a"], cache=tmp_path)
    assert server.texts == ["c"]
    np.testing.assert_array_equal(second.vectors[[2, 1]], first.vectors)
    assert not list(tmp_path.rglob("*.part"))


def test_other_model_other_vectors(tmp_path):
    server = Server()
    server.embed(["a"], cache=tmp_path)
    server.embed(["a"], cache=tmp_path, reference="openai:text-3@http://other.test")
    assert server.texts == ["a", "a"]


def test_what_was_paid_for_is_kept_when_the_server_fails_later(tmp_path):
    texts = [f"t{n:05d}" for n in range(1300)]
    server = Server()
    original = server.__class__.__call__

    class Failing(Server):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(400, text="quota") if len(self.texts) >= 1200 else original(self, request)

    failing = Failing()
    with pytest.raises(UnknownReferenceError, match="quota"):
        failing.embed(texts, cache=tmp_path)
    server.embed(texts, cache=tmp_path)
    assert len(server.texts) == 1300 - len(failing.texts)


LLAMA_CPP = "input is too large to process. increase the physical batch size"


@pytest.mark.parametrize(
    "refusal",
    [
        httpx.Response(500, json={"error": {"code": 500, "message": LLAMA_CPP, "type": "server_error"}}),
        httpx.Response(400, json={"error": {"message": "This model's maximum context length is 512 tokens"}}),
        httpx.Response(413, json={"error": "`inputs` must have less than 512 tokens. Given: 3001"}),
        httpx.Response(
            200, json={"error": {"code": 400, "message": "the input length exceeds the context length"}}
        ),
        httpx.Response(500, text="Internal Server Error"),
    ],
    ids=["llama.cpp", "vllm", "tei", "in a good answer", "unsaid"],
)
def test_a_batch_that_is_too_large_is_split_and_the_gloss_that_is_named(refusal, tmp_path):
    class Small(Server):
        """Takes 1,000 characters in a request."""

        def __call__(self, request: httpx.Request) -> httpx.Response:
            large = sum(map(len, json.loads(request.content)["input"])) > 1000
            if large:
                self.keys.append("refused")
            return refusal if large else super().__call__(request)

    texts = [f"gloss {n:03d} " + "x" * 90 for n in range(40)]
    fitting = Small()
    np.testing.assert_allclose(fitting.embed(texts).vectors, [unit(t) for t in texts], rtol=1e-6)
    long = "gloss 017 and " + "a word " * 3000
    server = Small()
    with pytest.raises(
        UnknownReferenceError, match=r"text of 21014 characters that begins with 'gloss 017 and"
    ) as caught:
        server.embed([*texts, long], cache=tmp_path)
    assert "network" not in str(caught.value)
    if "Internal" not in refusal.text:
        assert caught.value.hint.startswith("shorten or leave out this gloss")
        assert not server.slept, "what is too large is not tried again as it is"
    again = Server()
    again.embed(texts, cache=tmp_path)
    assert len(again.texts) == len(texts) - len(server.texts) < len(texts), (
        "what was embedded before it is kept"
    )


def test_another_model_is_not_split_for():
    server = Server(before=[httpx.Response(200, json={"model": "text-4", "data": []})])
    with pytest.raises(UnknownReferenceError, match="asked for the model 'text-3' and answers as 'text-4'"):
        server.embed(["a", "b"])
    assert len(server.keys) == 1


def test_damaged_cache_is_named(tmp_path):
    Server().embed(["a"], cache=tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(StoreError, match=file.name) as caught:
        Server().embed(["a"], cache=tmp_path)
    assert caught.value.hint == f"rm {file}"


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write the cache"):
        VectorCache(tmp_path / "file", name="n", sha256="s").add({"a": np.ones(2, np.float32)})


# --- glosses to features ---------------------------------------------------------------------------------------------------


def carried(feature: int, vector: list[float] | None) -> Gloss:
    return Gloss(
        feature, f"g{feature}", "s", None, None if vector is None else np.array(vector, dtype=np.float32)
    )


def test_export_means_of_unit_vectors(caplog):
    glosses = [carried(4, [3.0, 0.0]), carried(4, [0.0, 0.5]), carried(9, [0.0, -2.0]), carried(6, None)]
    embedded = embed_glosses(glosses, np.array([9, 4, 6, 5]), "export", cache=None)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(embedded.vectors, [[0, -1], [half, half], [0, 0], [0, 0]], atol=1e-7)
    assert embedded.name == "export"
    assert "1 features have glosses but no vector" in caplog.text
    changed = embed_glosses([carried(4, [1.0, 0.1])], np.array([4]), "export", cache=None)
    assert embedded.sha256 != changed.sha256


def test_several_glosses_of_a_feature_are_averaged():
    server = Server()
    with httpx.Client(transport=httpx.MockTransport(server)) as client:
        glosses = [Gloss(0, "a", "s"), Gloss(0, "bcd", "s"), Gloss(2, "a", "s")]
        embedded = embed_glosses(
            glosses, np.array([0, 1, 2]), "openai:text-3@http://host.test", cache=None, client=client
        )
    mean = unit("a") + unit("bcd")
    np.testing.assert_allclose(embedded.vectors[0], mean / np.linalg.norm(mean), rtol=1e-6)
    np.testing.assert_allclose(embedded.vectors[2], unit("a"), rtol=1e-6)
    assert not embedded.vectors[1].any()
    assert sorted(server.texts) == ["a", "bcd"]


def test_gloss_vectors_that_do_not_serve():
    with pytest.raises(ConfigError, match="none of 1 glosses carries a vector"):
        embed_glosses([carried(0, None)], np.array([0]), "export", cache=None)
    with pytest.raises(FormatError, match=r"different lengths \[2, 3\]"):
        embed_glosses([carried(0, [1, 2]), carried(1, [1, 2, 3])], np.array([0, 1]), "export", cache=None)
    with pytest.raises(MismatchError, match="of feature 7"):
        embed_glosses([carried(7, [1, 2])], np.array([0]), "export", cache=None)
    with pytest.raises(NumericsError, match="opposite"):
        embed_glosses([carried(0, [1, 2]), carried(0, [-1, -2])], np.array([0]), "export", cache=None)
    with pytest.raises(ConfigError, match="embed_glosses"):
        embed_texts(["a"], "export", cache=None)
