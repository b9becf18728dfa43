"""Questions to a study: the same rows as a loop over the tables gives, and nothing of a question becomes SQL."""

import random
import re

import pyarrow as pa
import pytest

from polysem.errors import ConfigError, StoreError
from polysem.explore import Book
from polysem.explore.query import Query, category_words
from polysem.store import io
from polysem.store.tables import FEATURES
from support.synthetic import SyntheticStudy, synthetic_run

WORLD = SyntheticStudy(n_features=90, n_targets=4, n_prompts=4, doses=(0.1, 0.2), sources_per_bin=2)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    made = Book(synthetic_run(tmp_path_factory.mktemp("run"), WORLD))
    yield made
    made.close()


@pytest.fixture(scope="module")
def pairs(book):
    rows, total = book.page(Query.parse(book.relation("pairs"), limit=1000))
    while len(rows) < total:
        rows += book.page(Query.parse(book.relation("pairs"), limit=1000, offset=len(rows)))[0]
    return rows


def ask(book, name, **kwargs):
    return book.page(Query.parse(book.relation(name), **kwargs))


def keys(rows):
    return [(r["sae"], r["i"], r["j"]) for r in rows]


@pytest.mark.parametrize(
    ("filters", "keeps"),
    [
        (["interference>=0.3"], lambda r: r["interference"] >= 0.3),
        (
            ["interference<=-0.25", "similarity<0"],
            lambda r: r["interference"] <= -0.25 and r["similarity"] < 0,
        ),
        (["is_duplicate=false"], lambda r: not r["is_duplicate"]),
        (["sae=blocks.2.hook_mlp_out"], lambda r: r["sae"] == "blocks.2.hook_mlp_out"),
        (["i=7"], lambda r: r["i"] == 7),
        (["i!=7", "strength>0.4"], lambda r: r["i"] != 7 and abs(r["interference"]) > 0.4),
        (["gloss_i~SHIP"], lambda r: "ship" in r["gloss_i"]),
        (["steered>=1"], lambda r: r["steered"] >= 1),
    ],
)
def test_filters_keep_what_a_loop_keeps(book, pairs, filters, keeps):
    rows, total = ask(book, "pairs", filters=filters, limit=1000)
    wanted = [r for r in pairs if keeps(r)]
    assert wanted, "the test must have something to find"
    assert total == len(wanted)
    assert keys(rows) == keys(wanted)[:1000]


@pytest.mark.parametrize("sort", ["-strength", "interference", "-similarity", "gloss_j", "-i"])
def test_order_is_that_of_python_with_ties_in_the_order_of_the_key(book, pairs, sort):
    name = sort.removeprefix("-")
    wanted = sorted(pairs, key=lambda r: r[name], reverse=sort.startswith("-"))
    first, _ = ask(book, "pairs", sort=sort, limit=40)
    second, _ = ask(book, "pairs", sort=sort, limit=40, offset=40)
    assert keys(first + second) == keys(wanted)[:80]


def test_search_looks_into_both_glosses_for_any_word(book, pairs):
    rows, total = ask(book, "pairs", search="River, horses ,", limit=1000)
    wanted = [r for r in pairs if any(w in r["gloss_i"] + r["gloss_j"] for w in ("river", "horses"))]
    assert 0 < total == len(wanted) < len(pairs)
    assert keys(rows) == keys(wanted)[:1000]


def test_a_feature_is_found_by_its_tokens(book):
    rows, total = ask(book, "steering", filters=["target~danube"], limit=1000)
    everything, _ = ask(book, "steering", limit=1000)
    assert all(r["gloss_target"] == "names of rivers" for r in rows)
    assert total == len(rows)
    assert rows or not any(r["gloss_target"] == "names of rivers" for r in everything)
    by_gloss, n = ask(book, "steering", filters=["source~ship"], limit=1000)
    assert n
    assert {r["gloss_source"] for r in by_gloss} == {"parts of a ship"}


def test_a_feature_is_found_by_the_words_of_a_category(book):
    rows, _ = ask(book, "features", limit=1000)
    words = category_words("location")
    wanted = {
        (r["sae"], r["feature"])
        for r in rows
        if words
        & set(re.findall(r"\w+", " ".join([r["gloss"], *r["tokens_in_str"], *r["tokens_out_str"]]).lower()))
    }
    found, total = ask(book, "features", filters=["feature~@location"], limit=1000)
    assert {(r["sae"], r["feature"]) for r in found} == wanted
    assert 0 < total < len(rows)
    # a whole word: "sea" is a place, "seal" and "season" are not
    assert not {r["gloss"] for r in found} & {"endings of letters", "expressions of doubt"}


def test_a_push_toward_a_word_is_one_of_the_tokens_that_were_read(tmp_path):
    """Features that write a place but are activated by none: only what was read of them counts."""
    world = SyntheticStudy(n_features=60, n_targets=4, n_prompts=4, doses=(0.1,), sources_per_bin=1)
    run = synthetic_run(tmp_path / "run", world)
    path = run / "features" / "features.parquet"
    table = io.read_table(path, FEATURES, rebuild="")
    some = {
        "gloss": ["sounds"] * 60 * 2,
        "tokens_in_str": [["hm"]] * 120,
        "tokens_out_str": [["oh", " London"]] * 120,
    }
    for name, values in some.items():
        k = table.column_names.index(name)
        table = table.set_column(k, table.schema.field(k), pa.array(values, type=table.schema.field(k).type))
    io.write_table(path, table, FEATURES)
    own = Book(run)
    everything, _ = ask(own, "steering", limit=1000)
    assert {r["token_set"] for r in everything} == {"in", "out"}
    for words in ("target~london", "target~@location"):
        rows, total = ask(own, "steering", filters=[words], limit=1000)
        assert {r["token_set"] for r in rows} == {"out"}
        assert total == sum(r["token_set"] == "out" for r in everything)
    # of a source nothing was read: any of its tokens counts
    _, total = ask(own, "steering", filters=["source~london"], limit=1000)
    assert total == sum(r["source"] >= 0 for r in everything)
    own.close()


def test_what_a_gloss_quotes_is_not_what_a_feature_is_about(tmp_path):
    world = SyntheticStudy(n_features=40, n_targets=2, n_prompts=2, doses=(0.1,), sources_per_bin=1)
    run = synthetic_run(tmp_path / "run", world)
    path = run / "features" / "features.parquet"
    table = io.read_table(path, FEATURES, rebuild="")
    glosses = ['"of" — as in «the road to London» and', '"London"', "a «city» of «rain"]
    some = {"gloss": [glosses[k % 3] for k in range(80)], "tokens_in_str": [["hm"]] * 80}
    some["tokens_out_str"] = [["oh"]] * 80
    for name, values in some.items():
        k = table.column_names.index(name)
        table = table.set_column(k, table.schema.field(k), pa.array(values, type=table.schema.field(k).type))
    io.write_table(path, table, FEATURES)
    own = Book(run)
    for words in ("feature~@location", "feature~london"):
        rows, _ = ask(own, "features", filters=[words], limit=1000)
        assert {r["gloss"] for r in rows} == {'"London"'}
    # A search in glosses still finds every word of them.
    rows, _ = ask(own, "features", search="london", limit=1000)
    assert {r["gloss"] for r in rows} == set(glosses[:2])
    own.close()


def test_near_and_among_are_about_numbers_of_features(book, pairs):
    some = random.Random(1).sample(range(WORLD.n_features), 30)
    _, near = ask(book, "pairs", near="5")
    _, among = ask(book, "pairs", among=",".join(map(str, some)))
    assert near == sum(5 in (r["i"], r["j"]) for r in pairs) > 0
    assert among == sum(r["i"] in some and r["j"] in some for r in pairs) > 0


def test_intervals_of_pushes_are_student_t(book):
    from scipy.stats import t

    rows, _ = ask(book, "steering", filters=["relation=pair"], limit=5)
    for row in rows:
        half = t.ppf(0.975, row["n_prompts"] - 1) * row["logodds_se"]
        assert row["lo"] == pytest.approx(row["logodds"] - half, rel=1e-9)
        assert row["hi"] == pytest.approx(row["logodds"] + half, rel=1e-9)


def test_hubs_count_both_sides(book, pairs):
    rows, _ = ask(book, "hubs", sort="-n_pairs", limit=1000)
    for row in rows[:20]:
        mine = [r for r in pairs if r["sae"] == row["sae"] and row["feature"] in (r["i"], r["j"])]
        assert row["n_pairs"] == len(mine) == row["n_positive"] + row["n_negative"]
        assert row["n_unflagged"] == sum(not (r["is_duplicate"] or r["is_dense"]) for r in mine)
        assert row["strongest"] == max(abs(r["interference"]) for r in mine)


@pytest.mark.parametrize(
    "name", ["pairs", "steering", "features", "effects", "plan", "trials", "coordinates"]
)
def test_every_relation_can_be_sorted_and_read_by_every_column(book, name):
    relation = book.relation(name)
    for field in relation.fields:
        if field.kind != "list":
            rows, total = ask(book, name, sort=f"-{field.name}", limit=3)
            assert total
            assert rows
            assert set(rows[0]) == {f.name for f in relation.fields}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"filters": ["interference>=much"]}, "is no number"),
        ({"filters": ["interference>=nan"]}, "is no number"),
        ({"filters": ["nothing=1"]}, "has no column 'nothing'"),
        ({"filters": ["gloss_i>=3"]}, "can be compared with"),
        ({"filters": ["is_dense=maybe"]}, "true or false"),
        ({"filters": ["DROP TABLE names"]}, "expected COLUMN OPERATOR VALUE"),
        ({"filters": ["i=1"] * 25}, "at most 24"),
        ({"filters": ["i~@nowhere"]}, "there is no category 'nowhere'"),
        ({"sort": "i; DROP TABLE names"}, "can be sorted by"),
        ({"near": "1 OR 1=1"}, "number of a feature"),
        ({"among": "1,2;"}, "numbers of features"),
        ({"limit": 100_000}, "expected 0 to 1000"),
        ({"offset": -1}, "expected 0 to 1000"),
    ],
)
def test_a_wrong_question_says_what_is_wrong(book, asked, said):
    with pytest.raises(ConfigError, match=said.replace("'", ".")):
        Query.parse(book.relation("pairs"), **asked)


def test_values_are_bound_never_spliced(book):
    hostile = "x' OR '1'='1"
    for asked in ({"filters": [f"gloss_i={hostile}"]}, {"search": hostile}, {"filters": [f"i~{hostile}"]}):
        query = Query.parse(book.relation("pairs"), **asked)
        for sql in (query.page(), query.count(), query.everything()):
            assert hostile not in sql.text.lower()
        assert book.page(query)[1] == 0


def test_what_is_not_there_is_said(book):
    with pytest.raises(StoreError, match="there is no 'secrets'"):
        book.relation("secrets")
