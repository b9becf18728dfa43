"""Categories, arms, pools, prompts, the study file: what a user gives, and what is refused."""

import numpy as np
import pytest
from scipy import sparse

from polysem.categories import DEFAULT, load_categories
from polysem.errors import ConfigError, FormatError, UnknownReferenceError
from polysem.paper.transfer import join_sets, paper_sets
from polysem.paper.welch import inflation, sign_test, welch
from polysem.stats.multiple import adjust_p
from polysem.transfer import parse_transfer
from polysem.transfer.arms import arm_sets, common_structure, is_plain, is_related, matched_arms, overlaps
from polysem.transfer.ask import frame, injected, is_refusal
from polysem.transfer.categories import check_coverage, coverage, load_sentences
from polysem.transfer.config import SharedConfig
from polysem.transfer.pools import make_pools, universe, word_class
from polysem.transfer.run import unseen
from polysem.transfer.source import SourceModel

SOURCES = '[[sources]]\nmodel = "a"\nsae = "b"\n[[sources]]\nmodel = "c"\nsae = "d"\n'
TARGET = '[[targets]]\nname = "t"\nmodel = "m"\n'


@pytest.fixture(scope="module")
def categories():
    return load_categories("builtin", DEFAULT)


def test_built_in_categories_are_whole_and_apart(categories):
    assert categories.names == DEFAULT
    assert all(len(words) >= 40 for words in categories.words.values())
    every = [w for words in categories.words.values() for w in words]
    assert len(every) == len(set(every))
    sentences = load_sentences("builtin", DEFAULT, n=16)
    assert all(len(rows) == 16 for rows in sentences.values())
    flat = [s for rows in sentences.values() for s in rows]
    assert len(set(flat)) == len(flat)
    for name, rows in sentences.items():
        last = [s.split()[-1].strip(",:").casefold() for s in rows]
        assert not categories.words[name] & set(last), "a sentence does not end with its own category's word"


def test_a_token_counts_at_the_beginning_of_a_word(categories):
    def of(token, *, word_start=True):
        return categories.of_token(token, word_start=word_start)

    assert of(" Paris") == of(" paris") == "location"
    assert of("red") is None, "the end of another word, perhaps"
    assert of("red", word_start=False) == "color"
    assert of("42") == of(" 42") == "number"
    assert of("") is None
    assert of(" xyzzy") is None
    inside = categories.inside([" red", " two", "x"], word_start=True)
    assert inside.shape == (8, 3)
    assert inside.sum() == 2


def test_coverage_and_a_category_without_tokens(categories):
    rows = coverage(categories, [" red", " blue", "red", " two"])
    found = {r.category: (r.n_words_covered, r.n_tokens) for r in rows}
    assert found["color"] == (2, 2)
    assert found["number"] == (1, 1)
    with pytest.raises(ConfigError, match="no token of gpt9 belongs to the categories location, science"):
        check_coverage(rows, who="gpt9")


def test_tables_of_ones_own(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('fruit = ["apple", "Pear"]\ntool = "hammer saw"\n')
    own = load_categories(str(path), ["tool", "fruit"])
    assert own.of_token(" pear", word_start=True) == "fruit"
    assert own.of_token(" 7", word_start=True) is None
    with pytest.raises(ConfigError, match="has no category metal"):
        load_categories(str(path), ["metal"])
    path.write_text('fruit = "apple"\ntool = "apple"\n')
    with pytest.raises(FormatError, match="'apple' is in fruit and in tool"):
        load_categories(str(path), ["fruit", "tool"])
    path.write_text("fruit = [1]\n")
    with pytest.raises(FormatError, match="no list of words"):
        load_categories(str(path), ["fruit"])
    with pytest.raises(UnknownReferenceError, match=r"none\.toml is missing"):
        load_categories(str(tmp_path / "none.toml"), ["x"])
    path.write_text('fruit = ["I ate an", "I ate an "]\n')
    with pytest.raises(ConfigError, match="'I ate an' twice"):
        load_sentences(str(path), ["fruit"], n=9)


def test_paper_sets_and_joins():
    strings = {0: (" a", " b"), 1: (" b", " c"), 2: (" d",), 3: (" e",)}
    sets = paper_sets(
        value={0: 0.6, 1: 0.3, 2: 0.1, 3: 0.25},
        strings=strings,
        target=[" t"],
        vocabulary=[" a", " b", " c", " d", " e", " t", " z"],
        high=0.5,
    )
    assert sets.high == {" a"}, "a string in both goes from both"
    assert sets.medium == {" c", " e"}
    assert sets.random == {" d", " z"}, "as it was before that: ' b' is in neither"
    union, both = (join_sets([sets, sets], how=how) for how in ("union", "intersection"))
    assert union == both == sets
    assert overlaps({"x": frozenset("ab"), "y": frozenset("bc")}) == {("x", "y"): 1}


def test_welch_and_holm_are_the_textbooks():
    from scipy import stats
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(0)
    a, b = (rng.random(200) < 0.3).astype(float), (rng.random(180) < 0.4).astype(float)
    expected = stats.ttest_ind(a, b, equal_var=False)
    found = welch(a, b)
    assert (found.t, found.p, found.df) == pytest.approx((expected.statistic, expected.pvalue, expected.df))
    assert welch(a, b, design_effect=4.0).t == pytest.approx(found.t / 2)
    assert welch(np.ones(5), np.ones(5)).p == 1
    p = rng.random(20) ** 3
    assert adjust_p(p, method="holm").tolist() == pytest.approx(multipletests(p, method="holm")[1].tolist())
    assert sign_test([1.0, 2.0, -1.0, 0.0]) == (2, 3, pytest.approx(1.0))


def test_welch_on_trials_is_inflated_where_pools_differ():
    rng = np.random.default_rng(1)
    clean = inflation(sentences=100, trials=100, sentence_sd=0.0, pool_sd=0.0, rate=0.3, worlds=400, rng=rng)
    pools = inflation(sentences=100, trials=100, sentence_sd=0.4, pool_sd=0.5, rate=0.3, worlds=400, rng=rng)
    assert clean < 0.09
    assert pools > 0.6


def test_reference_pools_match_what_they_are_matched_on():
    rng = np.random.default_rng(2)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    strings = sorted(
        {
            (" " if rng.random() < 0.7 else "") + "".join(rng.choice(letters, rng.integers(2, 9)))
            for _ in range(900)
        }
    )
    frequency = {t: int(rng.lognormal(2, 1.5)) for t in strings}
    among = universe(
        strings,
        frequency=frequency,
        leakage=rng.normal(size=len(strings)),
        count_tokens=lambda t: 1 + len(t) // 4,
    )
    # an arm of frequent, long strings: unlike the universe
    likely = sorted(strings, key=lambda t: -frequency[t] - 3 * len(t))[:350]
    members = sorted(rng.choice(likely, 60, replace=False).tolist())
    pools = make_pools(
        "shared", "x", members, among=among, barred=frozenset(strings[:20]), size=20, n_treated=2, n_reference=99,
        nearest=12, seed=0,
    )  # fmt: skip
    assert [len(p) for p in pools.treated] == [20, 20]
    assert not set(pools.treated[0]) & set(pools.treated[1])
    place = among.place
    far = among.covariates[[place[t] for t in pools.treated[0]]].mean(axis=0)
    for name, gap, before in zip(pools.imbalance, pools.imbalance.values(), far, strict=True):
        assert abs(gap) < 0.35, name
        assert abs(gap) <= max(abs(before), 0.1), f"{name}: matching made it worse"
    for n, pool in enumerate(pools.reference):
        assert len(set(pool)) == 20
        assert not set(pool) & (set(members) | set(strings[:20]))
        for text, other in zip(pools.treated[n % 2], pool, strict=True):
            assert among.kind[place[text]] == among.kind[place[other]]
    assert len(set(pools.reference)) == 99
    again = make_pools(
        "shared", "x", members, among=among, barred=frozenset(strings[:20]), size=20, n_treated=2, n_reference=99,
        nearest=12, seed=0,
    )  # fmt: skip
    assert again == pools
    with pytest.raises(ConfigError, match="pools cannot be matched"):
        make_pools(
            "shared", "x", members, among=among, barred=frozenset(strings), size=20, n_treated=1, n_reference=19,
            nearest=12, seed=0,
        )  # fmt: skip


def test_related_and_plain_strings():
    words = frozenset(["london", "red", "horse"])
    assert is_related(" London", words)
    assert is_related(" horses", words)
    assert is_related(" hors", words)
    assert not is_related(" hot", words)
    assert not is_related("...", words)
    assert is_plain(" a")
    assert not is_plain("\ufffd")
    assert not is_plain("  ")
    assert not is_plain(" a\n")


def planted_source(rng, *, order):
    """A source of 24 features, each firing on one word; feature 0 on " red", and 1 to 3 overlap with it."""
    n, d = 24, 64
    vocabulary = (" red", *(f" w{chr(97 + k)}" for k in range(n - 1)), " blue", " hm")
    tokens = rng.integers(0, len(vocabulary), 1200)
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
    directions = basis[:n].copy()
    directions[1:4] = 0.5 * basis[0] + np.sqrt(0.75) * basis[1:4]
    acts = np.zeros((len(tokens), n))
    for f in range(n):
        at = np.flatnonzero(tokens == f)
        acts[at, f] = 1 + rng.random(len(at))
    ends = np.cumsum([len(vocabulary[t]) for t in tokens])
    return SourceModel(
        "planted", directions[order], sparse.csr_matrix(acts[:, order]), tokens, ends, vocabulary, frozenset(),
        rng.normal(size=(len(vocabulary), 8)), "r",
    )  # fmt: skip


def test_snippets_end_at_peaks_and_stay_in_their_arms(categories):
    first = planted_source(np.random.default_rng(5), order=np.arange(24))
    second = planted_source(np.random.default_rng(5), order=np.arange(24)[::-1])
    rows = first.snippets(width=3, first=4)
    for feature, snippets in enumerate(rows):
        assert len(snippets) == 4
        assert {s[-1] for s in snippets} == {first.vocabulary[feature]}, (
            "a snippet ends with what the feature fires on"
        )
        assert all(len(s) == 3 for s in snippets)
    config = SharedConfig(n_strings=4)
    structure = common_structure(
        first, second, config=config, level=0.95, rng=np.random.default_rng(0), snippet_tokens=3
    )
    assert structure.matching.m == 24
    arms = arm_sets("color", categories, (first, second), structure, config).sets
    of_feature = dict(enumerate(structure.texts[0]))
    assert set(arms["target"]) == set(of_feature[0])
    for arm in ("shared", "source_only", "neither", "high", "low", "random"):
        for text in arms[arm]:
            assert not {"red", "blue"} & set(text.split()), (
                "no word of the category in any arm but the ceiling"
            )
    assert set(arms["shared"]) <= {t for f in (1, 2, 3) for t in of_feature[f]}
    assert len(arms["shared"]) > 4
    assert set(arms["neither"]) <= {t for f in range(4, 24) for t in of_feature[f]}
    assert arms["shared"][0] in structure.pieces
    plain = common_structure(first, second, config=config, level=0.95, rng=np.random.default_rng(0))
    assert arm_sets("color", categories, (first, second), plain, config).sets["shared"] == (
        " wa",
        " wb",
        " wc",
    )
    members = matched_arms("color", categories, plain)
    assert [len(members[a]) for a in ("target", "shared", "source_only", "neither")] == [1, 3, 0, 20]


def test_parts_of_speech_are_told_by_form():
    assert word_class(" The") == (1, 0, 0)
    assert word_class(" running") == word_class("walked") == (0, 1, 0)
    assert word_class(" slowly") == (0, 0, 1)
    assert word_class(" red") == word_class(" king") == (0, 0, 0)


def test_a_category_of_which_nothing_is_seen_is_said():
    (line,) = unseen("server", {"animal": 0, "time": 3})
    assert line.startswith("server: animal: none of its words")
    assert "\n" not in line


def test_prompts():
    strings = [" sea", "ship"]
    assert injected("paren", strings) == "( seaship)"
    assert injected("list", strings) == "Words: sea, ship.\n"
    text = frame("He saw the", strings, template="paren", position="prefix", chat=False)
    assert text.text == "( seaship)He saw the"
    system = frame("He saw the", strings, template="bare", position="system", chat=True)
    assert system.system == "seaship"
    assert system.text.endswith("\n\nHe saw the")
    suffix = frame("He saw the", strings, template="stars", position="suffix", chat=True)
    assert suffix.text.endswith("He saw the\n\n**seaship**")
    assert frame("He", (), template="paren", position="prefix", chat=False, repeat=2).repeat == 2
    with pytest.raises(ConfigError, match="needs a chat target"):
        frame("He", strings, template="bare", position="suffix", chat=False)
    assert is_refusal("I’m sorry, but")
    assert not is_refusal("sorrow")


def test_the_study_file():
    study = parse_transfer(SOURCES + TARGET)
    assert study.pools.n_reference == 199
    paper = parse_transfer('preset = "paper"\n' + SOURCES + TARGET + "[pools]\nn_tokens = 20\n")
    assert (paper.pools.n_tokens, paper.test.success_k) == (20, 30)
    assert paper.pools.arms == ("target", "high", "low", "random")
    assert (paper.pools.draws, paper.pools.reference_draws, paper.categories.n_sentences) == (100, 1, 100)
    for text, what in (
        (SOURCES, "targets: Field required"),
        (TARGET, "sources: Field required"),
        (
            SOURCES + TARGET + "[pools]\nn_referense = 5\n",
            "unknown key 'pools.n_referense'; did you mean 'n_reference'",
        ),
        (SOURCES + TARGET + "[pools]\nn_reference = 5\n", "greater than or equal to 19"),
        (SOURCES + TARGET + "[pools]\nsize = 5\n", "below pools.n_tokens"),
        (SOURCES + TARGET + TARGET, "targets need different names"),
        (SOURCES + TARGET + 'kind = "chat"\n', "a served one needs one"),
        (SOURCES + TARGET + 'kind = "chat"\nurl = "http://x"\n', "needs a budget"),
        (SOURCES + TARGET + '[categories]\ntable = "x.toml"\n', "needs categories.purpose"),
        ("x = ", "is not TOML"),
    ):
        with pytest.raises(ConfigError) as error:
            parse_transfer(text)
        assert what in str(error.value)
