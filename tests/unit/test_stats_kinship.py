"""Slopes with and without pairs that have a relation: as the effects have them, and as an estimate from a plan without."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from polysem.stats import estimate
from polysem.stats.kinship import slopes_without
from polysem.stats.rows import parse_group
from polysem.store.run import RunFolder
from polysem.store.tables import RELATIONS
from polysem.vocabulary import TOKEN_SETS
from support.synthetic import SyntheticStudy, synthetic_run

WORLD = SyntheticStudy(n_features=90, n_targets=5, n_prompts=4, doses=(0.1,), sources_per_bin=2)
LABEL = WORLD.saes[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    return RunFolder.open(synthetic_run(tmp_path_factory.mktemp("kinship") / "run", WORLD))


@pytest.fixture(scope="module")
def planned(run) -> list[tuple[int, int]]:
    plan = run.table("plan").filter((pc.field("sae") == LABEL) & (pc.field("relation") == "pair"))
    return sorted(
        {
            (min(a, b), max(a, b))
            for a, b in zip(plan["source"].to_pylist(), plan["target"].to_pylist(), strict=True)
        }
    )


def _relations(pairs: list[tuple[int, int]], relation: str) -> pa.Table:
    blank = dict.fromkeys(("above", "p", "q", "evidence")) | dict.fromkeys(
        ("fires_i", "fires_j", "both", "n_tokens"), 9
    )
    return RELATIONS.of_rows(
        {"sae": "another name", "i": i, "j": j, "relation": relation, "interference": 0.5} | blank
        for i, j in pairs
    )


def _made(run, relations) -> list[dict]:
    tables = (run.table("plan"), run.table("trials"), {LABEL: relations})
    return slopes_without(*tables, config=run.study().effects, covariates=run.table("covariates")).to_pylist()


def _slopes(effects: pa.Table) -> dict[str, dict]:
    """By token set, of the SAE."""
    found = {}
    for r in effects.to_pylist():
        parts = parse_group(r["group"])
        mine = r["contrast"] == "slope_interference" and parts["sae"] == LABEL
        if mine and parts["outcome"] == TOKEN_SETS[parts["tokens"]].outcome:
            found[parts["tokens"]] = r
    return found


def test_without_is_an_estimate_from_a_plan_without(run, planned) -> None:
    gone = planned[::3]
    made = _made(run, _relations(gone, "parent"))
    plan = run.table("plan")
    ends = zip(*(plan[name].to_pylist() for name in ("sae", "relation", "source", "target")), strict=True)
    kept = plan.filter(
        pa.array(
            [not (s == LABEL and r == "pair" and (min(a, b), max(a, b)) in set(gone)) for s, r, a, b in ends]
        )
    )
    trials = run.table("trials")
    trials = trials.filter(pc.is_in(trials["trial_id"], kept["trial_id"].combine_chunks()))
    config = run.study().effects
    left = estimate(kept, trials, config=config, seed=0, covariates=run.table("covariates")).effects
    for pairs, expected in (("all", run.table("effects")), ("unrelated", left)):
        mine = {r["token_set"]: r for r in made if r["pairs"] == pairs}
        slopes = _slopes(expected)
        assert set(mine) == set(slopes)
        for tokens, r in mine.items():
            for name in ("estimate", "lo", "hi", "p", "n_pairs"):
                assert r[name] == pytest.approx(slopes[tokens][name], rel=1e-9), (pairs, tokens, name)
    counted = [r for r in made if r["pairs"] == "unrelated"]
    assert all(
        r["n_left_out"] > 0 and r["left_out"] == f"parent and child {r['n_left_out']}" for r in counted
    )
    assert any(a["n_pairs"] > b["n_pairs"] for a, b in zip(made[::2], made[1::2], strict=True))


def test_pairs_that_are_nothing_to_each_other_stay(run, planned) -> None:
    made = _made(run, _relations(planned, "unrelated"))
    for one, other in zip(made[::2], made[1::2], strict=True):
        assert other | {"pairs": "all"} == one


def test_no_slope_is_told_where_every_pair_is_left_out(run, planned) -> None:
    for r in _made(run, _relations(planned, "duplicate")):
        assert (r["estimate"] is None) == (r["pairs"] == "unrelated")
        assert r["pairs"] == "all" or "no pairs" in r["note"]
