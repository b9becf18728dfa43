"""Presets where the plan has the paper's strengths: each end of a walk reads its own trials; the hard stop of KL; and
how the command line says it."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from polysem.cli.said import lines_of, say_presets
from polysem.config import EffectsConfig
from polysem.paper.presets import PaperEstimates
from polysem.stats import estimate
from polysem.stats.arms import join_trials
from polysem.stats.guard import stopped
from polysem.stats.similarity import gloss_reliability
from polysem.store.tables import PLAN, SIMILARITIES, TRIALS
from support.synthetic import SyntheticStudy, synthetic_run, synthetic_tables

CONFIG = EffectsConfig()
WORLD = SyntheticStudy(n_features=120, n_targets=6, n_prompts=6, doses=(0.1, 0.2), preset="both")


@pytest.fixture(scope="module")
def made():
    """Plan and trials; and the same with the paper's strengths: every trial once more, ten times as strong, its c moved
    by 1.5 times as much, no trial of the random features among them, and one in five refused."""
    tables = synthetic_tables(WORLD)
    plan, trials = tables["plan"]["plan"], tables["trials"]["trials"]
    outcome = {t["trial_id"]: t for t in trials.to_pylist()}
    planned, run = [], []
    for k, p in enumerate(plan.to_pylist()):
        if p["relation"] == "random_feature" or p["trial_id"] not in outcome:
            continue
        t = outcome[p["trial_id"]]
        name = p["trial_id"][::-1] + "p"
        planned.append(
            p | {"trial_id": name, "dose": 10 * p["dose"], "dose_unit": "paper_scale", "positions": "all"}
        )
        if t["status"] == "ok" and k % 5:
            moved = t["cosine_base"] + 1.5 * (t["cosine_edit"] - t["cosine_base"])
            run.append(t | {"trial_id": name, "cosine_edit": moved, "kl": 3.0 + t["kl"]})
        else:
            empty = dict.fromkeys(t) | {"dtype": t["dtype"]}
            run.append(empty | {"trial_id": name, "status": "skipped", "reason": "unstable_gradient"})
    both = [
        pa.concat_tables([table, pa.Table.from_pylist(rows, schema=schema.arrow())])
        for table, rows, schema in ((plan, planned, PLAN), (trials, run, TRIALS))
    ]
    return (plan, trials), tuple(both), (planned, {t["trial_id"]: t for t in run})


@pytest.fixture(scope="module")
def found(made):
    return [estimate(*tables, config=CONFIG, seed=0, beside=[PaperEstimates("both")]) for tables in made[:2]]


def walk(effects, question, path="walk", relation="pair"):
    rows = effects.presets.to_pylist()
    keep = {"question": question, "path": path, "relation": relation, "token_set": "in"}
    return sorted((r for r in rows if keep.items() <= r.items()), key=lambda r: r["step"])


def test_strict_estimates_do_not_see_the_papers_strengths(found):
    without, with_them = found
    for name in ("effects", "pair_effects", "dose_response", "specification"):
        assert getattr(without, name).equals(getattr(with_them, name))
    for question in ("slope_b", "difference", "mean"):
        last, same = walk(without, question)[-1], walk(with_them, question)[-1]
        assert (last["estimate"], last["p"]) == (same["estimate"], same["p"])


def test_the_papers_end_is_the_best_of_its_strengths(made, found):
    """The mean over improved cases of the best relative change among the paper's strengths, by hand."""
    planned, outcome = made[2]
    cells = {}
    for p in planned:
        t = outcome[p["trial_id"]]
        if (p["relation"], p["token_set"], p["split"], t["status"]) == ("pair", "in", "confirm", "ok"):
            cells.setdefault((p["sae"], p["target"], p["source"], p["prompt_id"]), []).append(t)
    best = [max(0.0, *(t["cosine_edit"] for t in c), 0.0) / c[0]["cosine_base"] - 1 for c in cells.values()]
    row = walk(found[1], "mean")[0]
    assert row["estimate"] == pytest.approx(np.mean([b for b in best if b > 0]), rel=1e-9)
    assert row["estimate"] != pytest.approx(walk(found[0], "mean")[0]["estimate"], rel=1e-3)
    assert "trials at the paper's strengths have no outcome" in row["note"]
    assert "unstable_gradient" in row["note"]
    assert (
        walk(found[1], "mean")[-1]["note"] is None
        or "paper's strengths" not in walk(found[1], "mean")[-1]["note"]
    )


def test_the_kl_of_what_was_chosen_is_that_of_the_papers_strengths(found):
    at = {r["choice"]: r for r in walk(found[1], "mean", path="optimism")}
    assert at["kl_of_best"]["unit"] == "nats"
    assert at["kl_of_best"]["estimate"] > 3.0
    assert {r["choice"]: r for r in walk(found[0], "mean", path="optimism")}["kl_of_best"]["estimate"] < 3.0


def test_arms_that_the_paper_does_not_push_have_no_walk(found):
    assert walk(found[0], "mean", relation="random_feature")
    assert not walk(found[1], "mean", relation="random_feature")


def test_the_hard_stop_takes_whole_doses_by_the_select_prompts_and_says_so(made):
    joined = join_trials(*made[0])
    assert stopped(joined, stop_kl=None) is joined
    chosen = joined.filter(
        pc.and_(
            pc.equal(joined["split"], "select"),
            pc.and_(pc.equal(joined["relation"], "pair"), pc.equal(joined["status"], "ok")),
        )
    )
    size, kl = np.abs(chosen["dose"].to_numpy()), chosen["kl"].to_numpy()
    small, large = (float(kl[np.isclose(size, dose)].mean()) for dose in (0.1, 0.2))
    assert small < large
    after = stopped(joined, stop_kl=(small + large) / 2)
    ended = set(
        zip(
            np.abs(after["dose"].to_numpy()).round(6),
            after["status"].to_pylist(),
            after["reason"].to_pylist(),
            strict=True,
        )
    )
    assert (0.2, "failed", "over_kl_budget") in ended
    assert (0.1, "ok", None) in ended
    assert not any(dose == 0.2 and status == "ok" for dose, status, _ in ended)
    config = CONFIG.model_copy(update={"stop_kl": small / 2})
    nothing = estimate(*made[0], config=config, seed=0)
    assert {r["reason"] for r in nothing.missing.to_pylist()} >= {"over_kl_budget"}
    slopes = [r for r in nothing.effects.to_pylist() if r["contrast"] == "slope_interference"]
    assert slopes
    assert {r["estimate"] for r in slopes} == {None}


def test_reliability_of_glosses_is_estimated_at_every_locus(made, found):
    """A second measure with as much noise as the first: the agreement is the reliability, the slope keeps its sign."""
    plan = made[0][0]
    pairs = plan.filter(pc.equal(plan["relation"], "pair")).select(["sae", "target", "source", "similarity"])
    rng = np.random.default_rng(0)
    planned = pairs.group_by(pairs.column_names, use_threads=False).aggregate([]).to_pylist()

    def measured(noise):
        """The study's own similarity, and a second measure of it."""
        given = [
            {"sae": r["sae"], "target": r["target"], "source": r["source"], "random": False, "limit": 0.3, "half_1": None}
            | {"measure": name, "place": place, "value": value, "split": "", "made_by": "test", "half_2": None}
            for r in planned
            for place, (name, value) in enumerate({"gloss:minilm": r["similarity"], "tokens:glove": noise(r)}.items())
        ]  # fmt: skip
        return estimate(*made[0], config=CONFIG, seed=0, similarities=SIMILARITIES.of(given))

    effects = measured(lambda r: r["similarity"] + 0.05 * rng.standard_normal())
    table = effects.reliability
    assert {(r["locus"], r["token_set"]) for r in table.to_pylist()} == {
        ("feature", "in"),
        ("feature", "out"),
    }
    for r in table.to_pylist():
        assert 0 < r["r"] < 1
        assert r["r_lo"] < r["r"] < r["r_hi"]
        assert r["lo"] < r["corrected"] < r["hi"]
        assert r["measure"] == "tokens:glove"
        assert r["n_pairs"] > 20
    stuck = measured(lambda r: 0.3).reliability.to_pylist()
    assert {r["r"] for r in stuck} == {None}
    assert all("does not vary" in r["note"] for r in stuck)
    assert gloss_reliability(None, []).num_rows == 0
    curve = effects.specification.to_pylist()
    own = estimate(*made[0], config=CONFIG, seed=0).specification.to_pylist()
    assert [{k: v for k, v in r.items() if k != "p_joint"} for r in curve if r["similarity"] == "gloss"] == [
        {k: v for k, v in r.items() if k != "p_joint"} for r in own
    ]
    assert {r["similarity"] for r in own} == {"gloss"}
    assert len(effects.latent_similarity) == len(planned)


def test_further_measures_are_an_axis_of_the_specification_curve(made):
    """A measure that calls every second pair related: its specifications have the other half, by brute force."""
    plan = made[0][0]
    pairs = plan.filter(pc.equal(plan["relation"], "pair")).select(["sae", "target", "source", "similarity"])
    planned = pairs.group_by(pairs.column_names, use_threads=False).aggregate([]).to_pylist()
    saes = sorted({r["sae"] for r in planned})
    drawn = [
        {"sae": sae, "target": 1000 + k, "source": 2000 + k, "similarity": k / 100, "random": True}
        for sae in saes
        for k in range(100)
    ]
    rows = []
    for k, r in enumerate([*planned, *drawn]):
        second = r["similarity"] if r.get("random") else float(5 * (k % 2) - 1)
        for place, value in enumerate((r["similarity"], second)):
            rows.append({"half_1": None, "half_2": None, "random": False, "limit": 0.3, "split": "", "made_by": "t"} | r
                        | {"measure": ("gloss:minilm", "tokens:glove")[place], "place": place, "value": value})  # fmt: skip
    curve = estimate(*made[0], config=CONFIG, seed=0, similarities=SIMILARITIES.of(rows)).specification
    told = {
        (r["similarity"], r["max_similarity"], r["token_set"], r["min_interference"], r["fixed_effects"]): r[
            "n_pairs"
        ]
        for r in curve.to_pylist()
    }
    whole = told["gloss", 1.0, "in", 0.0, "target"]
    half = told["tokens:glove", 1.0, "in", 0.0, "target"]
    assert abs(half - whole / 2) <= 2
    assert {key[0] for key in told} == {"gloss", "tokens:glove", "all"}
    assert told["all", 1.0, "in", 0.0, "target"] <= min(half, whole)


def test_the_command_line_says_both_ends_side_by_side(tmp_path, capsys):
    run = synthetic_run(tmp_path / "run", WORLD)
    say_presets(run)
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    head = next(line for line in lines if "the paper's way" in line)
    assert "the strict way" in head
    assert "Do pairs do more than random" in " ".join(said.err.split())
    assert "why they differ: " in said.err
    assert "choosing among 4 strengths, interfering features" in said.err
    assert max(map(len, lines)) <= 110
    strict = synthetic_run(tmp_path / "strict", SyntheticStudy(n_features=60, n_targets=3, n_prompts=4))
    say_presets(strict)
    assert capsys.readouterr().err == ""


def test_the_papers_preset_alone_has_one_column():
    section = {
        "both": False, "level": "95",
        "parts": [{
            "name": "feature", "tried": 2, "notes": [], "null": "", "optimism": [],
            "questions": [{"asked": "what?", "paper": {"estimate": "1", "mark": "*", "interval": "(0 to 2)", "p": "p = 0.03"}, "paper_n": "; 3 trials"}],
        }],
    }  # fmt: skip
    text = "\n".join(lines_of(section))
    assert "1* (0 to 2)" in text
    assert "p = 0.03; 3 trials" in text
    assert "strict" not in text
