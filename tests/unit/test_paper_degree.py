"""The paper's neurons: which are planned, and what is told of them, by brute force."""

from dataclasses import replace
from itertools import product

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from polysem.act.base import Recipe
from polysem.config import parse_study
from polysem.pairs import map_pairs
from polysem.paper.degree import degree_rows
from polysem.paper.strengths import PAPER_CHANGES
from polysem.plan import make_plan
from polysem.plan.degrees import BINS
from polysem.plan.strengths import own_strengths, paper_neurons, paper_strengths, single_neurons
from polysem.store.tables import CLUSTERS
from support.planted import LABEL, planted_study

STUDY = """
preset = "{preset}"
[model]
ref = "world:linear"
[[saes]]
ref = "planted"
[plan]
loci = ["feature", "neuron"]
n_targets = 3
sources_per_bin = 1
n_random = 2
doses = [0.1]
"""


@pytest.fixture(scope="module")
def planted():
    """With gloss clusters of two features each, at the paper's cut and at another."""
    known = planted_study()
    number = np.arange(known.sae.d_sae) // 2
    rows = [
        {"sae": LABEL, "feature": f, "similarity_cut": cut, "cluster": int(c)}
        for cut, clusters in ((0.4, number), (0.3, np.zeros_like(number)))
        for f, c in enumerate(clusters)
    ]
    return replace(known, clusters=pa.Table.from_pylist(rows, schema=CLUSTERS.arrow()))


def planned(planted, preset):
    study = parse_study(STUDY.format(preset=preset))
    pairs = map_pairs(planted.sae, planted, config=study.pairs, label=LABEL)
    return make_plan(study, planted, pairs, planted.prompts, planted.saes).plan


def test_one_neuron_of_every_bin_is_read_on_features_of_three_of_its_clusters(planted):
    table = planned(planted, "both")
    mine = paper_neurons(table)
    rows = np.asarray(planted.sae.W_dec.detach(), dtype=np.float64)
    cosine = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    own = planted.clusters.filter(pc.equal(planted.clusters["similarity_cut"], 0.4))
    cluster = dict(zip(own["feature"].to_pylist(), own["cluster"].to_pylist(), strict=True))
    tied = {n: set() for n in range(planted.sae.d_in)}
    for feature in cluster:
        for n in np.argsort(-cosine[feature])[:3]:
            if cosine[feature, n] > 0.2:
                tied[int(n)].add(feature)
    degree = {n: len({cluster[f] for f in features}) for n, features in tied.items()}
    inside = [
        {n for n, k in degree.items() if low <= k and (high is None or k <= high)} for low, high in BINS
    ]
    drawn = {}
    for row in mine.to_pylist():
        n = Recipe.parse(row["recipe"]).integer("neuron")
        assert row["source"] == planted.sae.d_sae + n
        assert row["relation"] == "single_neuron"
        assert row["target"] in tied[n]
        assert row["interference"] == pytest.approx(cosine[row["target"], n])
        drawn.setdefault(row["interference_bin"], {}).setdefault(n, set()).add(row["target"])
    assert len(drawn) > 1
    assert set(drawn) == {k for k, those in enumerate(inside, 1) if those}
    for k, neurons in drawn.items():
        (n,) = neurons
        assert n in inside[k - 1]
        groups = [cluster[f] for f in neurons[n]]
        assert len(set(groups)) == min(3, degree[n])
        assert max(groups.count(g) for g in groups) <= 3
    assert set(mine["dose"].to_pylist()) == set(PAPER_CHANGES)
    assert set(mine["positions"].to_pylist()) == {"all_no_bos"}


def test_nothing_else_reads_them(planted):
    table = planned(planted, "both")
    parts = [of(table) for of in (own_strengths, paper_strengths, single_neurons, paper_neurons)]
    assert sum(part.num_rows for part in parts) == table.num_rows
    assert len(set(table["trial_id"].to_pylist())) == table.num_rows
    strict = planned(planted, "strict")
    assert paper_neurons(strict).num_rows == 0
    assert set(strict["trial_id"].to_pylist()) <= set(table["trial_id"].to_pylist())


def trials(rng, *, neurons=(1, 1, 2, 4), features=3, prompts=4, doses=(-1.0, 0.5, 19.0)):
    """Trials of neurons in the bins given, each of an SAE of its own."""
    rows = []
    for k, index in enumerate(neurons):
        for f, p, dose in product(range(features), range(prompts), doses):
            base = float(rng.uniform(0.05, 0.4)) * (-1 if p == 1 else 1)
            rows.append(
                {"sae": f"s{k}", "locus": "neuron", "token_set": "in", "source": 100 + k, "target": f}
                | {
                    "interference_bin": index,
                    "prompt_id": f"p{p}",
                    "dose": dose,
                    "status": "ok",
                    "reason": None,
                }
                | {"split": "select" if p % 2 else "confirm", "cosine_base": base}
                | {"cosine_edit": base + float(rng.normal(0, 0.1))}
            )
    return rows


def test_rise_and_drop_are_the_largest_over_reported_prompts_and_factors():
    rows = trials(np.random.default_rng(0))
    found = list(degree_rows(pa.Table.from_pylist(rows), level=0.95))
    at = {(r["question"], r["path"], r["step"]): r for r in found}
    for side, sign in (("rise", 1), ("drop", -1)):
        means, held = {}, {}
        for k, index in enumerate((1, 1, 2, 4)):
            best, later = [], []
            for f in range(3):
                mine = [r for r in rows if (r["sae"], r["target"]) == (f"s{k}", f)]
                change = {
                    (r["split"], r["prompt_id"], r["dose"]): (r["cosine_edit"] - r["cosine_base"])
                    / abs(r["cosine_base"])
                    for r in mine
                }
                best.append(sign * max(sign * v for (s, _, _), v in change.items() if s == "confirm"))
                by_dose = {
                    (s, d): np.mean([v for (t, _, e), v in change.items() if (t, e) == (s, d)])
                    for s, _, d in change
                }
                chosen = max((-1.0, 0.5, 19.0), key=lambda d: sign * by_dose["select", d])
                later.append(by_dose["confirm", chosen])
            means.setdefault(index, []).append(np.mean(best))
            held.setdefault(index, []).append(np.mean(later))
        for path, values in (("degree", means), ("degree_held_out", held)):
            for index, mine in values.items():
                assert at[side, path, index]["estimate"] == pytest.approx(np.mean(mine))
            assert (at[side, path, 1]["n_rows"], at[side, path, 1]["n_pairs"]) == (2, 6)
            assert at[side, path, 1]["lo"] < at[side, path, 1]["estimate"] < at[side, path, 1]["hi"]
            assert at[side, path, 4]["lo"] is None  # one neuron
            x = [index for index, mine in values.items() for _ in mine]
            y = [v for mine in values.values() for v in mine]
            assert at[side, path, 0]["estimate"] == pytest.approx(np.polyfit(x, y, 1)[0])
    assert at["rise", "degree", 1]["estimate"] > at["rise", "degree_held_out", 1]["estimate"]


def test_trials_without_an_outcome_are_counted_and_none_gives_no_number():
    rows = trials(np.random.default_rng(1), neurons=(1, 2))
    for row in rows:
        if row["sae"] == "s1":
            row |= {
                "cosine_edit": None,
                "cosine_base": None,
                "status": "failed",
                "reason": "non_finite_logits",
            }
    found = list(degree_rows(pa.Table.from_pylist(rows), level=0.95))
    assert {r["step"] for r in found} == {0, 1}
    assert all("36 of 72 trials" in r["note"] for r in found)
    for row in rows:
        row |= {"cosine_edit": None, "cosine_base": None, "status": "failed", "reason": "non_finite_logits"}
    (r,) = {r["estimate"] for r in degree_rows(pa.Table.from_pylist(rows), level=0.95)}
    assert r is None


def test_one_neuron_has_no_slope_and_equal_ones_no_interval():
    for neurons in ((3,), (2, 2)):
        rows = trials(np.random.default_rng(2), neurons=neurons, features=1)
        for row in rows:
            row |= {"cosine_base": 0.5, "cosine_edit": 0.5 + 0.01 * row["dose"]}
        found = list(degree_rows(pa.Table.from_pylist(rows), level=0.95))
        slopes = [r for r in found if r["step"] == 0]
        assert all(r["estimate"] is None and "not estimated" in r["note"] for r in slopes)
        means = [r for r in found if r["step"]]
        assert {round(r["estimate"], 9) for r in means if r["question"] == "rise"} == {0.38}
        assert all(r["lo"] is None and "no interval" in r["note"] for r in means)
