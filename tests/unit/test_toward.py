"""Toward a category: its own words, read from the pass that reads everything else; each push once."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
import torch

from polysem.categories import is_about
from polysem.readouts import CategoryWords, log_odds, log_odds_of_sets
from polysem.stats.arms import join_trials
from polysem.stats.toward import toward
from polysem.vocabulary import CATEGORIES
from support.synthetic import SyntheticStudy, synthetic_tables

WORLD = SyntheticStudy(
    n_features=80, n_targets=4, n_prompts=6, doses=(0.1, 0.2), sources_per_bin=1, failures=0.1
)


def test_log_odds_of_sets_are_the_log_odds_of_each():
    logits = torch.from_numpy(np.random.default_rng(0).standard_normal((19, 40)) * 6)
    logits[3, 5] = 900.0  # the others underflow
    sets = [[1, 2, 3], [5], list(range(39))]
    inside = torch.zeros(3, 40, dtype=torch.float64)
    for row, ids in zip(inside, sets, strict=True):
        row[ids] = 1.0
    seen = log_odds_of_sets(logits, inside)
    for k, ids in enumerate(sets):
        torch.testing.assert_close(seen[:, k], log_odds(logits, ids), rtol=1e-12, atol=1e-12)


TOKENS = [" London", "London", " two", "7", " the", " red", " RED", ""]


@pytest.mark.parametrize(
    ("word_start", "held"),
    [
        (True, {"location": [0], "number": [2, 3], "color": [5, 6]}),
        (False, {"location": [0, 1], "number": [2, 3], "color": [5, 6]}),
    ],
)
def test_the_tokens_of_a_category_are_its_words_and_categories_without_any_are_left_out(word_start, held):
    words = CategoryWords.of(TOKENS, word_start=word_start)
    assert {n: row.nonzero()[:, 0].tolist() for n, row in zip(words.names, words.inside, strict=True)} == held
    base, after = torch.zeros(1, 8, dtype=torch.float64), torch.zeros(2, 8, dtype=torch.float64)
    after[1, 0] = 1.0
    change = words.change(base, after)
    assert all(still == 0.0 for still, _ in change.values())
    moved = {name: values[1] for name, values in change.items()}
    assert moved["toward_location"] == pytest.approx(
        float(log_odds(after[1], held["location"]) - log_odds(base[0], held["location"]))
    )
    assert moved["toward_location"] > 0 > moved["toward_color"]


def test_each_push_counts_once_and_its_effect_is_the_odd_part_over_prompts():
    tables = synthetic_tables(WORLD)
    joined = join_trials(tables["plan"]["plan"], tables["trials"]["trials"])
    # one source under two relations is one push
    recipes = joined["recipe"].to_pylist()
    same = [
        r if s is None else f"feature {s}" for r, s in zip(recipes, joined["source"].to_pylist(), strict=True)
    ]
    joined = joined.set_column(joined.column_names.index("recipe"), "recipe", pa.array(same))
    seen = {(r["sae"], r["push"], r["dose"], r["category"]): r for r in toward(joined).to_pylist()}
    cells = defaultdict(dict)
    for r in joined.to_pylist():
        if r["status"] == "ok":
            at = (r["sae"], r["recipe"], abs(r["dose"]), r["prompt_id"], r["split"])
            cells[at][r["dose"] > 0] = r
    for category, word in CATEGORIES.items():
        odd = defaultdict(list)
        for (sae, recipe, dose, _, split), sides in cells.items():
            if len(sides) == 2:
                odd[sae, recipe, dose, split].append(
                    (sides[True][word.column] - sides[False][word.column]) / 2
                )
        expected = sorted(float(np.mean(v)) for (*_, split), v in odd.items() if split == "confirm")
        mine = [r for key, r in seen.items() if key[3] == category]
        np.testing.assert_allclose(sorted(r["effect"] for r in mine), expected, rtol=1e-6, atol=1e-7)
        chosen = sorted(float(np.mean(v)) for (*_, split), v in odd.items() if split == "select")
        np.testing.assert_allclose(
            sorted(r["select"] for r in mine if r["select"] is not None), chosen, rtol=1e-6, atol=1e-7
        )
    sources = [(key[0], r["source"], key[2], key[3]) for key, r in seen.items() if r["source"] >= 0]
    assert len(set(sources)) == len(sources)
    selfs = {(r["sae"], r["target"]) for r in joined.to_pylist() if r["relation"] == "self"}
    pairs = {(r["sae"], r["source"]) for r in joined.to_pylist() if r["relation"] == "pair"}
    for key, r in seen.items():
        if (key[0], r["source"]) in selfs & pairs:
            assert r["relation"] == "pair"


@pytest.mark.parametrize(
    ("gloss", "tokens", "about"),
    [
        ("streets of London", [], True),
        ("a word — as in «the road to London»", ["the"], False),
        ("a word", [" Paris"], True),
        ("endings", ["Paris"], True),
        (None, [" parish"], False),
    ],
)
def test_a_feature_is_about_a_category_by_its_own_words_and_what_it_fires_on(gloss, tokens, about):
    assert is_about(gloss, tokens, frozenset({"london", "paris"})) is about
