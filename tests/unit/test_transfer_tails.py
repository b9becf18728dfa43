"""Truncated answers: estimates near the truth with errors that are honest, nothing where nothing can be measured, and tests
of their size, on answers that were whole before they were cut."""

import math

import numpy as np
import pyarrow.compute as pc
import pytest

from polysem.categories import Categories
from polysem.report.text import count, interval, number
from polysem.seeds import rng_for
from polysem.stats.units import looked_pool_test, pool_test
from polysem.store.tables import TRANSFER_TRIALS
from polysem.targets import Answer
from polysem.targets.tail import SPREADS
from polysem.transfer import parse_transfer
from polysem.transfer.effects import effects, is_decided, truncation_sd, unmeasured, widened
from polysem.transfer.tails import TailCollector, k_that_would_do
from polysem.worlds.transfer import pool_trials

N_OWN, N_OTHER = 24, 500
OWN = tuple(f" own{n}" for n in range(N_OWN))
WORDS = (*OWN, *(f" other{n}" for n in range(N_OTHER)))
CATEGORIES = Categories({"own": frozenset(w.strip() for w in OWN)}, "test")


def answers(rng, levels, sentence, *, own_level=-3.2):
    """Whole log-probabilities [answers tokens] in which the answers' levels move the category's tokens."""
    n_s = int(sentence.max()) + 1
    size = len(WORDS)
    # Head and tail of a real answer: a steep head, a long tail.
    common = -1.1 * np.log1p(np.arange(size)) + rng.normal(0, 0.6, size)
    own = np.isin(WORDS, OWN)
    common[own] = rng.normal(own_level, SPREADS.token / 2, N_OWN)
    on = rng.normal(0, 0.8, (n_s, size))
    x = common + on[sentence] + rng.normal(0, 0.6, (len(sentence), size)) + np.outer(levels, own)
    return x - np.logaddexp.reduce(x, axis=1, keepdims=True)


def cut(logprobs, k, *, complete=False):
    best = np.argsort(-logprobs)[:k]
    return Answer(tuple(WORDS[i] for i in best), logprobs[best], complete=complete)


def true_change(logprobs, base):
    p = np.exp(logprobs[:, np.isin(WORDS, OWN)]).sum(axis=1)
    odds = np.log(p) - np.log1p(-p)
    return odds - odds[base]


def estimated(logprobs, base, k, *, vocabulary=WORDS):
    seen = TailCollector(CATEGORIES, word_start=True, vocabulary=vocabulary)
    for row in logprobs:
        seen.take(cut(row, k))
    return seen.tails(base.tolist())


def design(rng, *, sentences=5, each=12):
    base = np.concatenate([np.arange(sentences), np.repeat(np.arange(sentences), each)])
    levels = np.where(np.arange(len(base)) < sentences, 0.0, rng.normal(0, 0.7, len(base)))
    return base, levels


def test_estimates_are_near_the_truth_and_their_errors_cover_it():
    errors, old, covered, n = [], [], 0, 0
    for world in range(12):
        rng = rng_for(world, "tails")
        base, levels = design(rng)
        whole = answers(rng, levels, base)
        truth = true_change(whole, base)
        found = estimated(whole, base, 60)
        edited = np.arange(len(base)) >= 5
        granted = [cut(row, 60) for row in whole]
        half = np.array([a.probs[np.isin(a.tokens, OWN)].sum() + a.missing / 2 for a in granted])
        half = np.log(half / (1 - half))
        errors.append(np.abs(found.change[:, 0] - truth)[edited].mean())
        old.append(np.abs(half - half[base] - truth)[edited].mean())
        covered += (np.abs(found.change[:, 0] - truth) <= 1.96 * found.sd[:, 0])[edited].sum()
        n += edited.sum()
        assert 0.5 < found.share[0] < 1
        assert found.k_needed[0] == 60
    assert np.mean(errors) < np.mean(old) / 3
    assert 0.93 < covered / n <= 1


def test_what_cannot_be_measured_has_no_estimate_and_the_k_that_would_do_is_said():
    rng = rng_for(3, "tails")
    base, levels = design(rng)
    whole = answers(rng, levels, base, own_level=-5.5)
    few = estimated(whole, base, 8)
    assert np.isnan(few.change).all()
    assert np.isnan(few.mass).all()
    assert few.share[0] < 0.5
    k = k_that_would_do(few.k_needed[0])
    assert k is not None
    # what it says would do does, and a quarter of it does not
    assert estimated(whole, base, min(2 * k, 400)).share[0] >= 0.5
    assert estimated(whole, base, max(k // 4, 8)).share[0] < 0.75
    assert f"k = {k} would do" in unmeasured(few.share[0], few.k_needed[0])


def test_words_stand_for_tokens_where_the_tokenizer_is_not_known():
    rng = rng_for(4, "tails")
    base, levels = design(rng)
    whole = answers(rng, levels, base)
    with_it, without = estimated(whole, base, 60), estimated(whole, base, 60, vocabulary=None)
    np.testing.assert_allclose(with_it.change, without.change, atol=1e-3)


def test_order_and_other_answers_of_equal_text_change_nothing():
    rng = rng_for(5, "tails")
    base, levels = design(rng, sentences=2, each=6)
    whole = answers(rng, levels, base)
    seen = TailCollector(CATEGORIES, word_start=True, vocabulary=WORDS)
    for row in whole:
        a = cut(row, 60)
        order = rng.permutation(a.n)
        seen.take(Answer(tuple(a.tokens[i] for i in order), a.logprobs[order], complete=False))
    np.testing.assert_allclose(seen.tails(base.tolist()).change, estimated(whole, base, 60).change, atol=1e-6)


def test_an_answer_without_a_word_of_the_category_has_a_finite_estimate():
    rng = rng_for(6, "tails")
    base, levels = design(rng)
    levels[-1] = -6.0
    whole = answers(rng, levels, base)
    found = estimated(whole, base, 60)
    truth = true_change(whole, base)
    assert not np.isin(cut(whole[-1], 60).tokens, OWN).any()
    assert np.isfinite(found.change[-1, 0])
    assert found.change[-1, 0] < -0.8
    assert found.sd[-1, 0] > 2 * np.median(found.sd[5:-1, 0]), f"the truth is {truth[-1]:.1f}"


@pytest.mark.parametrize("k", [40])
def test_the_pool_test_keeps_its_size_with_truncated_answers(k):
    """GT6's world of pools with a potency of their own and no transfer, seen through truncated answers."""
    rejected, n = 0, 120
    for world in range(n):
        trials = pool_trials(seed=world)
        effect = np.concatenate([trials.treated[None], trials.matched[:19]])[:, :2]
        pools, sentences = effect.shape
        base = np.concatenate([np.arange(sentences), np.tile(np.arange(sentences), pools)])
        whole = answers(rng_for(world, "size"), np.concatenate([np.zeros(sentences), effect.ravel()]), base)
        found = estimated(whole, base, k).change[sentences:, 0].reshape(pools, sentences)
        assert np.isfinite(found).all()
        means = found.mean(axis=1)
        test = pool_test(means[None, :1], means[None, 1:], level=0.95, rng=rng_for(world, "test"))
        rejected += test.p[0] <= 0.05
    assert 0.005 <= rejected / n <= 0.11  # binomial at 0.05: 99 % between 1 and 13 of 120


def test_looks_keep_their_size_with_truncated_answers():
    """Each look reads all answers so far anew; the design ends at whichever look shows something."""
    looks, level, n, k = (19, 39), 0.8, 80, 40
    rejected = 0
    for world in range(n):
        trials = pool_trials(seed=world + 500, pools=looks[-1])
        effect = np.concatenate([trials.treated[None], trials.matched])[:, :2]
        pools, sentences = effect.shape
        base = np.concatenate([np.arange(sentences), np.tile(np.arange(sentences), pools)])
        levels = np.concatenate([np.zeros(sentences), effect.ravel()])
        whole, p = answers(rng_for(world, "looks"), levels, base), 1.0
        for look in looks:
            rows = slice(0, (look + 2) * sentences)
            found = estimated(whole[rows], base[rows], k).change[sentences:, 0]
            means = found.reshape(look + 1, sentences).mean(axis=1)
            rng = rng_for(world, "test")
            test = looked_pool_test(means[None, :1], means[None, 1:], looks=looks, level=level, rng=rng).test
            p = min(p, test.p[0])
        rejected += p <= 1 - level
    # the looks spend 0.05 and 0.10 exactly (ranks of 20 and 40): at most 0.15, at least the larger one; 99 % of 80 worlds
    assert 0.02 <= rejected / n <= 0.26


def test_the_error_of_truncation_is_in_the_interval():
    assert widened(1.0, 0.5, 2.0, sd=0.0, level=0.95) == {"lo": 0.5, "hi": 2.0}
    wide = widened(1.0, 0.5, 2.0, sd=1.0, level=0.95)
    assert wide["lo"] == pytest.approx(1 - math.hypot(0.5, 1.96), abs=1e-3)
    assert wide["hi"] == pytest.approx(1 + math.hypot(1.0, 1.96), abs=1e-3)
    assert widened(1.0, -math.inf, 2.0, sd=1.0, level=0.95)["lo"] == -math.inf
    # one error a sentence: four sentences halve it, pools do not
    one = truncation_sd(np.full((3, 1), 0.4))
    assert one == pytest.approx(0.4)
    assert truncation_sd(np.full((7, 4), 0.4)) == pytest.approx(0.2)
    assert truncation_sd(np.full((7, 4), 0.4), np.full((9, 4), 0.4)) == pytest.approx(0.2 * math.sqrt(2))


# what a study makes of it

STUDY = """
[[sources]]
model = "a"
sae = "b"
[[sources]]
model = "c"
sae = "d"
[[targets]]
name = "there"
model = "e"
[categories]
names = ["person", "time", "color"]
[pools]
arms = ["shared", "random"]
n_reference = {pools}
{more}
"""


def trials_of(*, measured, pools=19, sd=0.3):
    """A study's trials on one target, two sentences, of which some categories could not be measured."""
    rng = np.random.default_rng(0)
    names = ["person", "time", "color"]
    gone = [name not in measured for name in names]
    rows = []
    for category in names:
        for arm, numbers in (("shared", (0, *range(-1, -pools - 1, -1))), ("random", range(pools))):
            for pool in numbers:
                for sentence in range(2):
                    change = np.where(gone, np.nan, rng.normal(0.0, 1.0, 3) + (pool == 0) * 9.0)
                    rows.append({
                        "target": "there", "category": category, "arm": arm, "template": "paren", "position": "prefix",
                        "pool": pool, "sentence": sentence, "draw": 0, "categories": names, "logodds": change.tolist(),
                        "logodds_lo": [-math.inf] * 3, "logodds_hi": [math.inf] * 3, "logodds_sd": [sd] * 3,
                        "mass": change.tolist(), "mass_lo": [-1.0] * 3, "mass_hi": [1.0] * 3, "success": [math.nan] * 3,
                        "share": [0.1 if g else 0.8 for g in gone], "k_needed": [143.0 if g else 20.0 for g in gone],
                        "kl_lo": 0.1, "kl_hi": math.inf, "tv_lo": 0.0, "tv_hi": 1.0, "missing": 0.4, "refused": False,
                    })  # fmt: skip
    return TRANSFER_TRIALS.of_rows(rows)


def test_what_is_not_measurable_has_no_p_and_the_rest_is_tested():
    study = parse_transfer(STUDY.format(pools=19, more=""))
    rows = effects(trials_of(measured={"person", "time"}), study, noise={}).to_pylist()
    found = {(r["contrast"], r["arm"], r["category"]): r for r in rows}
    for contrast in ("logodds", "specific"):
        gone = found[contrast, "shared", "color"]
        assert (gone["estimate"], gone["p"], gone["p_adj"], gone["lo"], gone["hi"]) == (None,) * 5
        assert (
            "not measurable: 10% of its probability is granted, expected at least 50%; k = 150 would do"
            in gone["note"]
        )
        for category in ("person", "time"):
            row = found[contrast, "shared", category]
            assert row["p"] is not None
            assert row["truncation_sd"] > 0
            assert (row["bound_lo"], row["bound_hi"]) == (None, None)
    exact = effects(trials_of(measured={"person", "time"}, sd=0.0), study, noise={}).to_pylist()
    (narrow,) = (
        r for r in exact if (r["contrast"], r["arm"], r["category"]) == ("logodds", "shared", "person")
    )
    wide = found["logodds", "shared", "person"]
    assert (narrow["estimate"], narrow["p"]) == (wide["estimate"], wide["p"])
    assert narrow["truncation_sd"] == 0


def test_a_category_is_specific_to_nothing_where_no_other_can_be_measured():
    study = parse_transfer(STUDY.format(pools=19, more=""))
    rows = effects(trials_of(measured={"person"}), study, noise={}).to_pylist()
    found = {(r["contrast"], r["arm"], r["category"]): r for r in rows}
    assert found["logodds", "shared", "person"]["p"] == 0.05
    assert found["specific", "shared", "person"]["estimate"] is None
    assert found["specific", "shared", "person"]["note"] == "not measurable: no other category is"


def test_a_study_of_which_nothing_can_be_measured_ends_with_a_table():
    study = parse_transfer(STUDY.format(pools=199, more="[test]\nlooks = [99]"))
    trials = trials_of(measured=set(), pools=199)
    assert is_decided(trials.filter(pc.equal(trials["arm"], "shared")), study, "shared")
    rows = effects(trials, study, noise={}).to_pylist()
    assert {r["estimate"] for r in rows if r["contrast"] != "success"} == {None}
    assert number(math.inf) == "∞"
    assert number(-math.inf) == "−∞"
    assert interval(-math.inf, 0.5) == "−∞ to +0.500"
    assert interval(math.nan, 0.5) == "no interval"
    assert count(math.inf) == "∞"
