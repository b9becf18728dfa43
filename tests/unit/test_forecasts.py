"""Forecasts of side effects, screens of pairs and published tables, against closed forms and simulated rates."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from polysem.errors import FormatError, MismatchError
from polysem.linear.response import membership
from polysem.selftest.side_effects import exact_responses, planted_world
from polysem.side_effects import forecast
from polysem.side_effects.firing import firing
from polysem.side_effects.linear import linear_effects
from polysem.side_effects.public import read_feature_table
from polysem.side_effects.push import Sets
from polysem.worlds.tables import plain_sae

RNG = np.random.default_rng(0)
SETS = [[3, 7], [11], [40, 41, 42, 3], [5, 30]]


def planted(rng, n=120):
    X = rng.standard_normal((n, 4))
    return X, X[:, 0] + 0.5 * X[:, 1] + 0.3 * rng.standard_normal(n)


def test_a_forecast_finds_what_is_there_and_nothing_else():
    from polysem.rank import rank_correlation

    rng = np.random.default_rng(5)
    X, y = planted(rng)
    told = forecast.held_out(forecast.ranks(X), forecast.ranks(y), rng=np.random.default_rng(0))
    assert rank_correlation(told, y) > 0.9
    nothing = [
        rank_correlation(
            forecast.held_out(rng.standard_normal((60, 3)), forecast.ranks(rng.standard_normal(60)), rng=rng),
            rng.standard_normal(60),
        )
        for _ in range(60)
    ]
    assert abs(np.mean(nothing)) < 3 * np.std(nothing) / np.sqrt(60)


def test_held_out_forecasts_of_noise_do_not_lean_to_the_other_side():
    """The mean of the training part is larger where the held-out part is small: a forecast must not show it."""
    from polysem.rank import rank_correlation

    rng = np.random.default_rng(6)
    found, leaning = [], []
    for k in range(80):
        y = forecast.ranks(rng.standard_normal(60))
        told = forecast.held_out(rng.standard_normal((60, 1)), y, rng=np.random.default_rng(k))
        fold = np.random.default_rng(k).permutation(60) % forecast.FOLDS
        means = np.array([y[fold != one].mean() for one in fold])
        found.append(rank_correlation(told, y))
        leaning.append(rank_correlation(told - forecast.CENTRE + means, y))
    assert np.mean(found) > -0.1  # the slopes lean a little, too
    assert np.mean(leaning) < -0.15


def test_no_feature_decides_its_own_forecast():
    rng = np.random.default_rng(7)
    X, y = planted(rng, n=50)
    first = forecast.held_out(X, forecast.ranks(y), rng=np.random.default_rng(0))
    changed = forecast.ranks(y)
    changed[3] = 9.0
    second = forecast.held_out(X, changed, rng=np.random.default_rng(0))
    fold = np.random.default_rng(0).permutation(50) % forecast.FOLDS
    assert second[3] == first[3]
    assert (second != first)[fold != fold[3]].all()


def test_a_partial_correlation_is_that_of_the_inverse_matrix():
    x, y, given = RNG.standard_normal(40), RNG.standard_normal(40), RNG.standard_normal((40, 2))
    y = y + x + given[:, 0]
    inverse = np.linalg.inv(np.corrcoef(forecast.ranks(np.column_stack([x, y, given])).T))
    expected = -inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1])
    assert forecast.partial_correlation(x, y, given) == pytest.approx(expected)
    assert np.isnan(forecast.partial_correlation(x, np.ones(40), given))


def test_reliability_is_that_of_the_mean_of_both_halves():
    rng = np.random.default_rng(8)
    truth = rng.standard_normal(20_000)
    halves = [truth + rng.standard_normal(20_000) for _ in range(2)]
    # variance 1 of 1.5 in the mean of two; ranks lose a little
    assert forecast.split_half(*halves) == pytest.approx(2 / 3, abs=0.03)
    assert forecast.split_half(truth, -truth) == 0


def labelled(rng, n=80, *, crowding: float) -> forecast.Labelled:
    known = {name: rng.standard_normal(n) for name in forecast.PREDICTORS["all"]}
    truth = known["lr_reach"] + crowding * known["crowding"]
    one, two = (truth + 0.5 * rng.standard_normal(n) for _ in range(2))
    return forecast.Labelled(known, (one + two) / 2, one, two, np.arange(n) % 10)


def test_whether_crowding_adds_to_the_gradient_is_told():
    rng = np.random.default_rng(9)
    rows = {
        (crowding, row["predictors"]): row
        for crowding in (0.0, 1.0)
        for row in forecast.forecast_rows(
            labelled(rng, n=800, crowding=crowding), seed_rng=lambda _: np.random.default_rng(0)
        )
    }
    name = "crowding given linear response and density"
    assert rows[0.0, name]["p_equivalent"] < 0.05
    assert rows[1.0, name]["p"] < 0.001
    assert rows[1.0, name]["p_equivalent"] > 0.5
    assert rows[1.0, "all minus linear response"]["lo"] > 0
    assert rows[0.0, "linear response"]["spearman"] > 0.8
    assert rows[0.0, "all"]["p"] == 1 / (1 + forecast.PERMUTATIONS)
    assert rows[0.0, "density"]["hi"] < 0.2
    # half the noise variance in the mean of two halves: reliability 1 / (1 + 0.125)
    assert rows[0.0, "all"]["reliability"] == pytest.approx(0.89, abs=0.03)
    assert rows[0.0, "all"]["ceiling"] == pytest.approx(rows[0.0, "all"]["reliability"] ** 0.5)


def test_firing_is_counted_token_by_token():
    scene = planted_world(causal=True, seed=3).scene
    rows = np.random.default_rng(0).integers(1, 200, (40, 6))
    counted, features = np.array([False] + [True] * 5), [0, 7, 30]
    found = firing(scene.model, scene.dictionary, rows, counted, features)
    site = scene.dictionary.reads
    codes = scene.dictionary.encode(scene.model.capture(torch.from_numpy(rows), [site])[site]).detach()
    acts, tokens = codes[:, 1:].flatten(0, 1).numpy(), rows[:, 1:].ravel()
    for k, feature in enumerate(features):
        on = acts[:, feature] > 0
        assert on.any()
        kinds = Counter(tokens[on].tolist()).values()
        beside = np.delete((acts[on] > 0).sum(0), feature)
        assert found.mean_act[k] == pytest.approx(acts[on, feature].mean(), rel=1e-6)
        assert found.firing_entropy[k] == pytest.approx(stats.entropy(list(kinds)))
        assert found.coactivation_entropy[k] == pytest.approx(stats.entropy(beside))
    silent = firing(scene.model, scene.dictionary, rows[:1, :2], np.array([False, True]), features)
    assert (np.stack(silent) == 0).any()
    assert np.isfinite(np.stack(silent)).all()


def test_a_feature_is_as_stable_as_its_nearest_in_other_dictionaries_of_its_site():
    world = planted_world(causal=True, seed=4)
    scene, rng = world.scene, np.random.default_rng(5)
    twins = [
        plain_sae(rng.permutation(scene.all_rows) + s * rng.standard_normal((106, 160))) for s in (0, 0.1)
    ]
    linear = linear_effects(scene.all_rows, exact_responses(scene), dose=1e-3)
    W_U, own = scene.model.W_U.double().numpy(), np.arange(106)
    found = forecast.predictors(scene.dictionary, W_U, scene.table, linear, own, twins=twins)
    rows = twins[1].W_dec.double().numpy()
    best = (scene.all_rows @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T).max(1)
    np.testing.assert_allclose(found["seed_cosine"], (1 + best) / 2, atol=1e-6)
    alone = forecast.predictors(scene.dictionary, W_U, scene.table, linear, own)
    assert np.isnan(alone["seed_cosine"]).all()
    assert set(alone) == set(forecast.PREDICTORS["all"])


def test_too_few_features_give_no_forecast():
    few = labelled(np.random.default_rng(0), n=20, crowding=0.0)
    (row,) = forecast.forecast_rows(few, seed_rng=lambda _: np.random.default_rng(0))
    assert "at least 30" in row["note"]
    assert "spearman" not in row


def screened(rng, *, effect: float, n=100, prompts=6):
    """Features and prompts as a real screen has them: each has its own level, and every cell its noise."""
    told = rng.standard_normal(n)
    outcome = effect * told[:, None] + rng.standard_normal((n, 1)) + rng.standard_normal(prompts)
    return forecast.screen_row(told, rng.standard_normal(n), outcome + rng.standard_normal((n, prompts)))


def test_the_screen_rejects_a_true_null_at_its_level_and_sees_a_difference():
    rng = np.random.default_rng(10)
    p = np.array([screened(rng, effect=0.0)["p"] for _ in range(500)])
    assert 0.03 <= (p < 0.05).mean() <= 0.07
    found = screened(rng, effect=1.0)
    assert found["lo"] > 0
    assert found["n_pairs"] == 10


def test_a_screen_pairs_features_on_their_target():
    told = np.arange(40.0)
    on = np.concatenate([np.linspace(0, 1, 20), np.linspace(0, 1, 20)])
    outcome = np.repeat(told[:, None], 5, axis=1) + RNG.standard_normal((40, 5))
    found = forecast.screen_row(told, on, outcome)
    assert found["n_pairs"] == 4
    ends = [set(np.argsort(told)[:8]), set(np.argsort(told)[-8:])]
    best = min(abs(a - b) for a in on[list(ends[0])] for b in on[list(ends[1])])
    assert abs(found["on_difference"]) >= best


def test_partial_correlations_of_a_published_table(tmp_path):
    rng = np.random.default_rng(11)
    columns = {
        "feature": np.arange(60),
        **{c: rng.standard_normal(60) for c in ("crowding", "enc_dec_cos", "density")},
    }
    columns["collateral_raw"] = columns["crowding"] + columns["density"] + rng.standard_normal(60)
    columns["stab_signed"] = rng.standard_normal(60)
    rows = [",".join(columns), *(",".join(str(columns[c][k]) for c in columns) for k in range(60))]
    rows[5] = ",".join(
        "" if name == "density" else cell for name, cell in zip(columns, rows[5].split(","), strict=True)
    )
    (tmp_path / "features.csv").write_text("\n".join(rows) + "\n")
    table = read_feature_table(tmp_path / "features.csv")
    assert table.predictors == ("crowding", "enc_dec_cos", "density")
    value, lo, hi, n = table.partial("crowding", "collateral_raw")
    keep = np.arange(60) != 4
    inverse = np.linalg.inv(
        np.corrcoef(
            [
                stats.rankdata(columns[c][keep])
                for c in ("crowding", "collateral_raw", "enc_dec_cos", "density")
            ]
        )
    )
    assert n == 59
    assert value == pytest.approx(-inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1]), abs=1e-12)
    assert lo < value < hi
    plain, *_ = table.partial("crowding", "collateral_raw", given=[])
    assert plain == pytest.approx(stats.spearmanr(columns["crowding"], columns["collateral_raw"])[0])
    with pytest.raises(MismatchError, match="no column l0"):
        table.partial("l0", "collateral_raw")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("crowding,collateral_raw\n1,2\n", "1 rows"),
        ("feature,crowding\n1,2\n1,3\n", "each once"),
        ("feature,crowding\n1,high\n2,3\n", "numbers and high"),
        ("feature;crowding\n1;0,5\n2;1,5\n", "column crowding holds 0,5"),
        ('feature,crowding\n1,"1,000"\n2,3\n', "column crowding holds 1,000"),
        ("feature,crowding\n1,1_000\n2,3\n", "numbers and 1_000"),
        ("feature,crowding\n1.5,1\n2,3\n", "whole number from 0"),
        ("feature,crowding\n-1,1\n2,3\n", "whole number from 0"),
        ("feature,crowding\n,1\n2,3\n", "whole number from 0"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, text, said):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(FormatError, match=said):
        read_feature_table(tmp_path / "t.csv")


def test_membership_and_sets_agree():
    """The two ways of naming sets say the same."""
    inside = membership(SETS, 50)
    z = torch.from_numpy(RNG.standard_normal((2, 50)))
    odds = Sets(SETS, 50).log_odds(z)
    np.testing.assert_allclose(odds[:, 1], z[:, 11] - torch.where(inside[1], -torch.inf, z).logsumexp(-1))
