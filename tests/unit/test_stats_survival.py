"""Survival of effects by stratum, and the variance of effects taken apart: planted components, closed forms, nothing planted."""

from itertools import product

import numpy as np
import pyarrow as pa
import pytest
import torch

from polysem.linear.replicated import _dealt
from polysem.seeds import rng_for
from polysem.stats.heterogeneity import between_saes, heterogeneity
from polysem.stats.survival import COMPONENTS, components_of, effect_survival, variance_components
from polysem.store.tables import REPLICATED

PLANTED = dict(zip(COMPONENTS, (1.0, 0.5, 2.0, 0.8, 0.4, 0.6, 1.5), strict=True))


def drawn(
    rng: np.random.Generator, n: int, n_dictionaries: int, sd: dict[str, float], *, lost: float = 0.0
) -> tuple[np.ndarray, ...]:
    """Effects of all ordered pairs of n features in some dictionaries, and whose they are; some are lost."""
    t, s, d = np.array([(t, s, d) for t, s, d in product(range(n), range(n), range(n_dictionaries)) if t != s]).T  # fmt: skip
    levels = (t, s, t * n + s, d, t * n_dictionaries + d, s * n_dictionaries + d, np.arange(len(t)))
    y = 3.0 + sum(
        sd[name] * rng.standard_normal(int(code.max()) + 1)[code]
        for name, code in zip(COMPONENTS, levels, strict=True)
    )
    kept = rng.random(len(y)) >= lost
    return y[kept], t[kept], s[kept], d[kept]


@pytest.mark.parametrize("lost", [0.0, 0.2])
def test_planted_components_are_recovered_within_a_tenth(lost: float) -> None:
    rng = rng_for(0, "components", str(lost))
    sd = {name: value**0.5 for name, value in PLANTED.items()}
    found = np.mean([components_of(*drawn(rng, 16, 6, sd, lost=lost)) for _ in range(300)], axis=0)
    for name, value in zip(COMPONENTS, found.tolist(), strict=True):
        assert value == pytest.approx(PLANTED[name], rel=0.1), name


def test_what_is_not_there_is_found_to_be_nothing() -> None:
    rng = rng_for(0, "components", "none")
    sd = dict.fromkeys(COMPONENTS, 0.0) | {"rest": 1.0}
    found = np.mean([components_of(*drawn(rng, 12, 2, sd)) for _ in range(200)], axis=0)
    assert found[-1] == pytest.approx(1.0, rel=0.05)
    assert np.abs(found[:-1]).max() < 0.02


def test_a_whole_design_gives_the_classical_analysis_of_variance() -> None:
    """All cells of targets x sources x dictionaries once: components from mean squares, as in any textbook."""
    rng = rng_for(0, "components", "anova")
    a, b, c = 5, 4, 3
    y = rng.standard_normal((a, b, c)) + 2 * rng.standard_normal((a, 1, 1)) + rng.standard_normal((a, b, 1))
    t, s, d = (axis.ravel() for axis in np.indices(y.shape))
    found = dict(zip(COMPONENTS, components_of(y.ravel(), t, s, d), strict=True))

    def mean_square(*axes: int) -> float:
        """Of the interaction of some axes: means over the others, all lower means taken off."""
        others = tuple(k for k in range(3) if k not in axes)
        m = y.mean(axis=others, keepdims=True)
        for k in axes:
            m = m - m.mean(axis=k, keepdims=True)
        df = np.prod([y.shape[k] - 1 for k in axes])
        return float((m**2).sum() * np.prod([y.shape[k] for k in others]) / df)

    ms = {axes: mean_square(*axes) for axes in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))}
    rest = ms[0, 1, 2]
    expected = {
        "rest": rest,
        "pair": (ms[0, 1] - rest) / c,
        "target_in_dictionary": (ms[0, 2] - rest) / b,
        "source_in_dictionary": (ms[1, 2] - rest) / a,
        "target": (ms[0,] - ms[0, 1] - ms[0, 2] + rest) / (b * c),
        "source": (ms[1,] - ms[0, 1] - ms[1, 2] + rest) / (a * c),
        "dictionary": (ms[2,] - ms[0, 2] - ms[1, 2] + rest) / (a * b),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_one_dictionary_tells_nothing_apart() -> None:
    rng = rng_for(0, "components", "one")
    y, t, s, _ = drawn(rng, 6, 1, dict.fromkeys(COMPONENTS, 1.0))
    assert np.isnan(components_of(y, t, s, np.zeros(len(y), dtype=np.int64))).all()


def rows(n: int, kept: dict[int, float], *, by_cosine: float = 0.0, seed: int = 0) -> pa.Table:
    """REPLICATED of n features, the first half stable: the share of an effect that comes back by the number of stable members."""
    rng = rng_for(seed, "survival")
    found = []
    for t, s in product(range(n), range(n)):
        if t == s:
            continue
        stable = int(t < n // 2) + int(s < n // 2)
        own, rest, dealt = rng.standard_normal(3).tolist()
        r = kept[stable]
        other = r * own + (1 - r**2) ** 0.5 * rest
        null = by_cosine * own + (1 - by_cosine**2) ** 0.5 * dealt
        effects = {"": own, "other_": other, "dealt_": null}
        found.append(
            {"sae": "a", "other": "b", "token_set": "in", "target": t, "source": s, "other_target": t, "other_source": s}
            | {f"{side}{m}": v for side, v in effects.items() for m in ("linear", "steered")}
            | {"stable_target": t < n // 2, "stable_source": s < n // 2, "shared": True, "n_steered": 2}
            | {"matched": 0.3, "best_cosine": 0.5, "n_prompts": 2}
        )  # fmt: skip
    return pa.Table.from_pylist(found, schema=REPLICATED.arrow())


def test_survival_is_told_by_stratum_and_beyond_what_the_cosine_gives() -> None:
    made = effect_survival(rows(40, {2: 0.9, 1: 0.5, 0: 0.0}, by_cosine=0.3), level=0.95, seed=0)
    found = {r["stratum"]: r for r in made.to_pylist() if r["measure"] == "steered"}
    assert set(found) == {"all", "both", "one", "none"}
    for stratum, r in (("both", 0.9), ("one", 0.5), ("none", 0.0)):
        one = found[stratum]
        assert one["correlation"] == pytest.approx(r, abs=0.15), stratum  # three standard errors of 380 pairs
        assert one["null"] == pytest.approx(0.3, abs=0.15)
        assert one["correlation_lo"] < one["correlation"] < one["correlation_hi"]
        assert one["excess"] == pytest.approx(one["correlation"] - one["null"])
    assert found["both"]["excess_lo"] > 0 > found["none"]["excess_hi"]
    assert sum(found[s]["n_pairs"] for s in ("both", "one", "none")) == found["all"]["n_pairs"] == 40 * 39


def test_no_excess_is_found_where_matches_are_alike_by_cosine_alone() -> None:
    """The interval of the excess misses zero in no more than one world of ten (nominal: one of twenty)."""
    missed = 0
    for seed in range(40):
        made = effect_survival(
            rows(14, {2: 0.4, 1: 0.4, 0: 0.4}, by_cosine=0.4, seed=seed), level=0.95, seed=seed
        )
        (one,) = (r for r in made.to_pylist() if (r["measure"], r["stratum"]) == ("linear", "all"))
        missed += not one["excess_lo"] <= 0 <= one["excess_hi"]
    assert missed <= 5


def test_too_few_pairs_are_told_as_such() -> None:
    few = rows(4, {2: 1.0, 1: 1.0, 0: 1.0})
    for r in effect_survival(few, level=0.95, seed=0).to_pylist():
        assert (r["correlation"] is None) == (r["stratum"] in ("both", "none", "one"))
        assert r["correlation"] is not None or "are needed" in r["note"]
    for r in variance_components(few, level=0.95).to_pylist():
        assert r["value"] is None
        assert "are needed" in r["note"]


def test_components_of_a_table_have_intervals_and_reliabilities() -> None:
    made = variance_components(rows(16, {2: 0.9, 1: 0.9, 0: 0.9}), level=0.95).to_pylist()
    all_ = {r["component"]: r for r in made if (r["measure"], r["stratum"]) == ("steered", "all")}
    assert all_["pair"]["lo"] < 0.9 < all_["pair"]["hi"]  # of y and r y + noise the covariance is r
    assert all_["reliability_one"]["value"] == pytest.approx(0.9, abs=0.06)
    one, both = (all_[f"reliability_{k}"]["value"] for k in ("one", "both"))
    assert both == pytest.approx(2 * one / (1 + one))  # Spearman and Brown
    assert sum(all_[name]["share"] for name in COMPONENTS) == pytest.approx(1)


def test_directions_alike_by_cosine_keep_it() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.nn.functional.normalize(torch.randn(7, 12, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2)
    )  # fmt: skip
    made = _dealt(first, second, order=np.random.default_rng(0).permutation(7))
    assert torch.allclose(made.norm(dim=-1), torch.ones(7, dtype=torch.float64))
    assert torch.allclose((made * first).sum(-1), (second * first).sum(-1))
    assert not torch.isclose(made, second).all(dim=-1).any()


def test_a_site_with_several_saes_has_its_own_mean() -> None:
    group = "locus=feature; sae={}; outcome=logodds; tokens=in; dose=0.1"
    blank = {"contrast": "slope_interference", "level": 0.95, "unit": "nats", "se": 0.1}
    own = [blank | {"group": group.format(s), "estimate": e} for s, e in (("a", 0.1), ("b", 0.3), ("c", 0.9))]
    whole = blank | {"group": group.format("*"), "estimate": 0.4, "locus": "feature", "token_set": "in"}
    sites = {"a": "x", "b": "x", "c": "y"}
    made = {r["site"]: r for r in between_saes([whole], own, sites=sites)}
    assert set(made) == {"*", "x"}
    expected = heterogeneity(np.array([0.1, 0.3]), np.array([0.1, 0.1]), level=0.95)
    assert made["x"]["mean"] == pytest.approx(expected.mean)
    assert made["x"]["lo"] == pytest.approx(expected.lo)
    assert (made["x"]["n_saes"], made["x"]["estimate"], made["*"]["n_saes"]) == (2, None, 3)
    assert [r["site"] for r in between_saes([whole], own, sites=dict.fromkeys("abc", "x"))] == ["*"]
