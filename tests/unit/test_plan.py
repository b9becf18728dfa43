"""The plan: who is drawn, what is controlled, how it is laid out, and what it does not depend on."""

import itertools
import logging
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polysem.act.arms import Arm
from polysem.act.base import Recipe
from polysem.config import parse_study
from polysem.errors import ConfigError, MismatchError
from polysem.plan import describe_plan, make_plan
from polysem.plan.arms import Source, nearest_in_size
from polysem.plan.targets import draw_targets
from polysem.store.tables import CLUSTERS, CONTEXTS, GLOSSES, PAIRS, PARTNERS, PLAN
from polysem.worlds.tables import plain_sae
from support.arms import arms_of
from support.planted import LABEL, TOKENS, brute_pairs, planted_study

STUDY = """
seed = {seed}
[model]
ref = "world:linear"
[[saes]]
ref = "planted"
[plan]
n_targets = 3
sources_per_bin = 1
n_random = 2
doses = [0.1, 0.2]
batch_rows = 7
{more}
"""


def study_of(more="", seed=0):
    return parse_study(STUDY.format(more=more, seed=seed))


@pytest.fixture(scope="module")
def planted():
    return planted_study()


def plan_of(planted, study, **changes):
    arguments = {
        "features": planted,
        "pairs": brute_pairs(planted, study.pairs),
        "prompts": planted.prompts,
        "saes": planted.saes,
    } | changes
    return make_plan(study, **arguments)


def features_of(features, embeddings):
    return SimpleNamespace(
        features=features,
        embeddings=embeddings,
        contexts=CONTEXTS.empty(),
        glosses=GLOSSES.empty(),
        clusters=CLUSTERS.empty(),
    )


def distinct(table, *columns):
    return set(zip(*(table[c].to_pylist() for c in columns), strict=True))


def of(table, relation):
    return table.filter(pc.equal(table["relation"], relation))


class Stored:
    """Tables that are read one dictionary at a time."""

    def __init__(self, embeddings=None, **tables):
        self.embeddings, self.tables = embeddings, tables
        vars(self).update(dict.fromkeys(tables))  # nobody may read them whole

    def only(self, label):
        own = {name: t.filter(pc.equal(t["sae"], label)) for name, t in self.tables.items()}
        return SimpleNamespace(**own, embeddings=self.embeddings)


def test_tables_read_one_dictionary_at_a_time_give_the_same_plan(planted):
    study = study_of()
    names = ("features", "contexts", "glosses", "clusters")
    features = Stored(planted.embeddings, **{name: getattr(planted, name) for name in names})
    apart = plan_of(planted, study, features=features, pairs=Stored(**brute_pairs(planted, study.pairs)))
    assert apart.tables() == plan_of(planted, study).tables()


def test_every_target_has_every_arm(planted):
    study = study_of()
    plan = plan_of(planted, study).plan
    targets = {t for (t,) in distinct(plan, "target")}
    assert len(targets) == 3
    assert targets <= set(planted.targets)
    pairs = distinct(of(plan, "pair"), "target", "source", "interference_bin")
    assert {(t, b) for t, _, b in pairs} == set(itertools.product(targets, range(5)))
    assert len(pairs) == 15
    assert distinct(of(plan, "self"), "target", "source", "interference", "similarity") == {
        (t, t, 1, 1) for t in targets
    }
    for relation in ("random_feature", "random_direction"):
        assert distinct(of(plan, relation), "target", "draw") == set(itertools.product(targets, range(2)))
    assert distinct(of(plan, "random_direction"), "source", "interference") == {(None, None)}


def test_planted_cosines_and_similarities_are_written(planted):
    plan = of(plan_of(planted, study_of()).plan, "pair")
    for target, source, cosine, gloss, index in distinct(
        plan, "target", "source", "interference", "similarity", "interference_bin"
    ):
        if (target, source) in planted.cosine:
            assert cosine == pytest.approx(planted.cosine[target, source], abs=1e-6)
            assert gloss == pytest.approx(0.1, abs=1e-6)
        low, high = (0.0, 0.1, 0.2, 0.3, 0.4, 1.0)[index : index + 2]
        assert low <= cosine < high
        assert gloss < 0.3
        if index > 1:  # the map covers these bins, and there the sources are planted ones
            assert (target, source) in planted.cosine


def test_forbidden_features_are_never_drawn(planted):
    """A dense feature, a duplicate, one without gloss and one with a similar gloss, each at a tempting
    cosine with target 0."""
    study = study_of()
    wide = study.model_copy(
        update={"plan": study.plan.model_copy(update={"sources_per_bin": 99, "n_targets": 4})}
    )
    plan = plan_of(planted, wide).plan
    assert 0 in {t for (t,) in distinct(plan, "target")}
    sources = {
        s for (s,) in distinct(of(plan, "pair").filter(pc.equal(of(plan, "pair")["target"], 0)), "source")
    }
    assert not sources & set(planted.forbidden.values())
    assert {s for t, s in planted.cosine if t == 0} <= sources
    controls = {s for (s,) in distinct(of(plan, "random_feature"), "source")}
    assert planted.forbidden["dense"] not in controls


def test_random_features_are_matched(planted):
    plan = of(plan_of(planted, study_of()).plan, "random_feature")
    assert plan.num_rows
    assert max(abs(c) for (c,) in distinct(plan, "interference")) < 0.05
    assert not any(s == t for t, s in distinct(plan, "target", "source"))


def test_a_control_without_match_is_planned_and_counted(caplog):
    bare = planted_study(n_plain=0)
    study = study_of()
    plan = plan_of(bare, study)
    unmatched = of(plan.plan, "random_feature").filter(
        pc.equal(of(plan.plan, "random_feature")["recipe"], Recipe.of("unmatched").text)
    )
    assert describe_plan(plan)["unmatched"] == unmatched.num_rows > 0
    assert distinct(unmatched, "source", "interference") == {(None, None)}


def test_rows_are_arms_by_prompts_by_sets_by_signed_doses(planted):
    result = plan_of(planted, study_of())
    plan = result.plan
    arms = 3 * (5 + 1 + 2 + 2 + 10)  # pairs, self, two random controls, two directions matched to every pair
    assert plan.num_rows == arms * 6 * 2 * 4
    assert {d for (d,) in distinct(plan, "dose")} == {-0.2, -0.1, 0.1, 0.2}
    assert {s for (s,) in distinct(plan, "token_set")} == {"in", "out"}
    split = dict(
        zip(planted.prompts["prompt_id"].to_pylist(), planted.prompts["split"].to_pylist(), strict=True)
    )
    assert all(split[p] == s for p, s in distinct(plan, "prompt_id", "split"))
    assert PLAN.conform(plan).equals(plan)


def test_batches_are_one_prompt_and_at_most_batch_rows_distinct_rows(planted):
    result = plan_of(planted, study_of())
    plan = result.plan
    assert {b for (b,) in distinct(plan, "batch")} == set(range(describe_plan(result)["batches"]))
    assert len(distinct(plan, "batch", "sae", "prompt_id")) == describe_plan(result)["batches"]
    rows = distinct(plan, "batch", "recipe", "dose")
    sizes = Counter(b for b, _, _ in rows)
    assert max(sizes.values()) == 7
    # Only the last batch of a prompt may be short.
    assert sum(size < 7 for size in sizes.values()) <= planted.prompts.num_rows
    # A row is never run twice for one prompt.
    assert len(rows) == len(distinct(plan, "prompt_id", "recipe", "dose"))


def test_targets_that_share_a_direction_share_its_row():
    planted = planted_study()
    study = study_of()
    result = plan_of(planted, study)
    counts = describe_plan(result)
    assert counts["trials"] == result.plan.num_rows
    assert counts["forward_rows"] == len(distinct(result.plan, "prompt_id", "recipe", "dose"))
    assert counts["trials"] >= 2 * counts["forward_rows"]
    lengths = dict(
        zip(
            planted.prompts["prompt_id"].to_pylist(),
            map(len, planted.prompts["token_ids"].to_pylist()),
            strict=True,
        )
    )
    tokens = sum(lengths[p] for p, _, _ in distinct(result.plan, "prompt_id", "recipe", "dose"))
    assert counts["forward_tokens"] == tokens
    assert counts["targets"] == 3
    assert counts["pairs"] == 15
    assert counts["prompts_select"] == counts["prompts_confirm"] == 3
    assert counts["trials"] == sum(v for k, v in counts.items() if k.startswith("trials_"))


def test_same_study_same_bytes_and_another_seed_another_plan(planted):
    first, second = plan_of(planted, study_of()), plan_of(planted, study_of())
    assert first.plan.equals(second.plan)
    other = plan_of(planted, study_of(seed=1)).plan
    assert set(other["trial_id"].to_pylist()) != set(first.plan["trial_id"].to_pylist())


def test_trial_ids_do_not_depend_on_what_else_is_planned(planted):
    """More sources, doses, prompts' order or another batch size only add rows or move them between
    batches."""
    small = plan_of(planted, study_of()).plan
    study = study_of()
    update = {"batch_rows": 64, "doses": (0.4, 0.2, 0.1), "token_sets": ("out", "in"), "n_random": 3}
    more = study.model_copy(update={"plan": study.plan.model_copy(update=update)})
    shuffled = planted.prompts.take(pa.array([3, 0, 5, 1, 4, 2]))
    large = plan_of(planted, more, prompts=shuffled).plan
    assert set(small["trial_id"].to_pylist()) < set(large["trial_id"].to_pylist())


def test_trial_ids_differ_between_saes(planted):
    study = study_of()
    renamed = {"other" if name == LABEL else name: sae for name, sae in planted.saes.items()}

    def relabel(table):
        names = pa.array(["other"] * table.num_rows, pa.string())
        for column in {"sae", "sae_j"} & set(table.column_names):
            at = table.column_names.index(column)
            table = table.set_column(at, table.schema.field(column), names)
        return table

    doubled = features_of(
        pa.concat_tables([planted.features, relabel(planted.features)]),
        {**planted.embeddings, "other": planted.embeddings[LABEL]},
    )
    tables = {k: pa.concat_tables([t, relabel(t)]) for k, t in brute_pairs(planted, study.pairs).items()}
    both = plan_of(planted, study, features=doubled, pairs=tables, saes={**planted.saes, **renamed})
    alone = plan_of(planted, study)
    mine = both.plan.filter(pc.equal(both.plan["sae"], LABEL))
    assert mine["trial_id"].equals(alone.plan["trial_id"])
    batches = sorted(distinct(both.plan, "batch", "sae"))
    assert [b for b, _ in batches] == list(range(len(batches)))  # numbered through, and no batch has two SAEs
    assert {s for _, s in batches} == {LABEL, "other"}
    assert both.plan.num_rows == 2 * alone.plan.num_rows


def test_targets_with_all_bins_come_first_and_a_lack_is_said(planted, caplog):
    study = study_of()
    tables = brute_pairs(planted, study.pairs)
    # Target 0 loses its partners in the highest bin on paper: the other three are preferred.
    keep = pc.invert(
        pc.and_(
            pc.equal(tables["partners"]["feature"], 0), pc.equal(tables["partners"]["interference_bin"], 4)
        )
    )
    tables["partners"] = tables["partners"].filter(keep)
    with caplog.at_level(logging.WARNING):
        plan = plan_of(planted, study, pairs=tables).plan
        assert {t for (t,) in distinct(plan, "target")} == {1, 2, 3}
        assert not caplog.records
        more = study.model_copy(update={"plan": study.plan.model_copy(update={"n_targets": 4})})
        plan = plan_of(planted, more, pairs=tables).plan
    assert {t for (t,) in distinct(plan, "target")} == {0, 1, 2, 3}
    assert "4 targets of 4 asked for, 3 of them with partners in all 5 interference bins" in caplog.text


def test_thresholds_that_were_not_counted_fall_back_on_the_map(planted):
    study = study_of()
    tables = brute_pairs(planted, study.pairs)
    tables["partners"] = PARTNERS.empty()
    assert plan_of(planted, study, pairs=tables).plan.num_rows == plan_of(planted, study).plan.num_rows


def test_without_any_target_it_says_which_knobs_there_are(planted):
    study = study_of()
    with pytest.raises(ConfigError, match=r"no feature of the SAEs planted .* interference >= 0\.2") as error:
        plan_of(planted, study, pairs={"pairs": PAIRS.empty(), "partners": PARTNERS.empty()})
    assert "max_similarity" in str(error.value)


def test_a_feature_without_tokens_is_no_target(planted):
    rows = planted.features.to_pylist()
    rows[0]["tokens_out"] = []

    bare = features_of(pa.Table.from_pylist(rows, schema=planted.features.schema), planted.embeddings)
    wide = study_of().model_copy(update={"plan": study_of().plan.model_copy(update={"n_targets": 99})})
    targets = {t for (t,) in distinct(plan_of(planted, wide, features=bare).plan, "target")}
    assert 0 not in targets
    assert {1, 2, 3} <= targets


def test_inputs_that_do_not_belong_together(planted):
    study = study_of()
    with pytest.raises(MismatchError, match="no gloss embeddings for SAE 'stranger'"):
        plan_of(planted, study, saes={"stranger": planted.sae})

    short = features_of(planted.features, {LABEL: planted.embeddings[LABEL][:-1]})
    with pytest.raises(MismatchError, match="88 features but 87 rows of gloss embeddings"):
        plan_of(planted, study, features=short)
    small = plain_sae(planted.sae.W_dec[:80].numpy())
    with pytest.raises(MismatchError, match="features 0 to 79 but the feature table goes from 0 to 87"):
        plan_of(planted, study, saes={LABEL: small})
    with pytest.raises(ConfigError, match="no prompts"):
        plan_of(planted, study, prompts=planted.prompts.slice(0, 0))


@pytest.mark.parametrize(
    "line", ["doses = [0.1, -0.1]", "doses = []", "doses = [0.1, 0.1]", "token_sets = []"]
)
def test_choices_that_make_no_plan_are_refused_in_the_study(line):
    text = STUDY.replace("doses = [0.1, 0.2]", "") if line.startswith("doses") else STUDY
    with pytest.raises(ConfigError, match=line.split()[0]):
        parse_study(text.format(more=line, seed=0))


def test_draws_do_not_depend_on_other_draws(planted):
    """A target's arms are the same whichever other targets are drawn, and a draw whichever other draws
    are."""
    from polysem.plan.index import FeatureIndex

    study = study_of()
    tables = brute_pairs(planted, study.pairs)
    atlas = FeatureIndex.of(
        LABEL,
        planted.sae,
        features=planted.features,
        embeddings=planted.embeddings[LABEL],
        contexts=planted.contexts,
        **tables,
    )
    three = study.plan.model_copy(update={"n_random": 3})
    few = arms_of(atlas, [2], pairs=study.pairs, plan=study.plan, seed=0)
    many = arms_of(atlas, [1, 2, 3], pairs=study.pairs, plan=three, seed=0)
    assert set(few) < set(many)
    assert draw_targets(atlas, pairs=study.pairs, plan=study.plan, seed=0) == sorted(
        draw_targets(atlas, pairs=study.pairs, plan=three, seed=0)
    )
    assert all(len(tokens) == TOKENS for tokens in atlas.tokens_in[:4])


def atlas_about(planted, texts):
    """The atlas of the planted study with other activating tokens, by feature."""
    from polysem.plan.index import FeatureIndex

    study = study_of()
    rows = [
        {**row, "tokens_in_str": texts.get(row["feature"], ["hm"])} for row in planted.features.to_pylist()
    ]
    features = pa.Table.from_pylist(rows, schema=planted.features.schema)
    tables = brute_pairs(planted, study.pairs)
    return FeatureIndex.of(
        LABEL,
        planted.sae,
        features=features,
        embeddings=planted.embeddings[LABEL],
        contexts=planted.contexts,
        **tables,
    )


def test_targets_are_drawn_from_every_category_in_turn(planted):
    """The feature with the largest share of a category's words comes first, categories take turns, and features about
    none of them are not drawn."""
    anyone = draw_targets(
        atlas_about(planted, {}),
        pairs=study_of().pairs,
        plan=study_of().plan.model_copy(update={"n_targets": 20}),
        seed=0,
    )
    a, b, c, d = anyone
    texts = {
        a: [" London", "x", "y", "z"],
        b: [" London", " Paris", "x"],
        c: [" seven", " eight"],
        d: [" Londoner", "sevenfold"],
    }
    atlas = atlas_about(planted, texts)

    def drawn(n, *about):
        study = study_of(f"about = {list(about)!r}")
        plan = study.plan.model_copy(update={"n_targets": n})
        return draw_targets(atlas, pairs=study.pairs, plan=plan, seed=0)

    assert drawn(1, "location", "number") == [b]
    assert drawn(2, "location", "number") == sorted([b, c])
    assert drawn(3, "location", "number") == sorted([a, b, c])
    # A category that has run out leaves its turns to the others; no feature stands in for it.
    assert drawn(9, "number", "location") == sorted([a, b, c])
    assert drawn(2, "color", "number") == [c]


def test_a_study_names_categories_that_there_are():
    with pytest.raises(ConfigError, match="about"):
        study_of('about = ["location", "location"]')
    with pytest.raises(ConfigError, match="location"):
        study_of('about = ["places"]')


def test_targets_and_arms_are_drawn_once(planted, caplog):
    """A plan with a model screens its pairs, and says what it has to say of the targets one time."""
    many = study_of().model_copy(update={"plan": study_of().plan.model_copy(update={"n_targets": 99})})
    made = plan_of(planted, many, model=planted.model)
    assert made.signals.num_rows > 0
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len([line for line in said if "targets of 99 asked for" in line]) == 1
    assert len(set(said)) == len(said)


def test_rows_name_the_dictionary_of_their_source(planted):
    table = plan_of(planted, study_of()).plan
    assert pc.all(pc.equal(table["source"].is_null(), table["source_sae"].is_null())).as_py()
    assert set(table["source_sae"].drop_null().to_pylist()) == {LABEL}


def test_covariates_are_attribution_overlap_and_frequency_of_the_planned_sources(planted):
    """By brute force from the unembedding, the tokens and the densities."""
    from polysem.plan.covariates import covariates
    from polysem.plan.index import FeatureIndex

    study = study_of()
    made = plan_of(planted, study)
    arms = {(r["target"], r["source"]) for r in of(made.plan, "pair").to_pylist()}
    table = made.covariates.to_pylist()
    assert arms <= {(r["target"], r["source"]) for r in table}
    assert {r["token_set"] for r in table} == set(study.plan.token_sets)
    rows = {r["feature"]: r for r in planted.features.to_pylist()}
    for r in table:
        read = set(rows[r["target"]][f"tokens_{r['token_set']}"])
        own = set(rows[r["source"]]["tokens_in"]) | set(rows[r["source"]]["tokens_out"])
        assert r["overlap"] == pytest.approx(len(read & own) / len(read)) if read else r["overlap"] is None
        assert r["frequency"] == pytest.approx(np.log10(rows[r["source"]]["density"]))
        assert r["attribution"] is None  # no model
    sae = planted.saes[LABEL]
    W_U = planted.model.W_U.double().numpy()
    index = FeatureIndex.of(
        LABEL,
        sae,
        features=planted.features,
        embeddings=planted.embeddings[LABEL],
        pairs=PAIRS.empty(),
        partners=PARTNERS.empty(),
        contexts=CONTEXTS.empty(),
    )
    target, source = sorted(arms)[0]
    arm = Arm("pair", target, source, 0, "", 0, 0.3, 0.1)
    (found,) = covariates(index, [arm], ["in"], planted.model).to_pylist()
    direction = sae.W_dec[source].double().numpy()
    logits = W_U @ (direction / np.linalg.norm(direction))
    wanted = logits[rows[target]["tokens_in"]].mean() - logits.mean()
    assert found["attribution"] == pytest.approx(wanted, rel=1e-6)


@given(
    pairs=st.lists(st.tuples(st.integers(0, 2), st.floats(0.01, 0.9)), max_size=8),
    across=st.lists(st.lists(st.floats(-0.9, -0.01), max_size=5), min_size=3, max_size=3),
)
def test_a_pair_meets_the_source_of_negative_interference_nearest_to_it_in_size(pairs, across):
    arms = [Arm("pair", 0, k, 0, "", b, size, 0.1) for k, (b, size) in enumerate(pairs)]
    number = itertools.count(100)
    sources = [[Source(next(number), b, x, 0.1) for x in xs] for b, xs in enumerate(across)]
    chosen = nearest_in_size(arms, sources)
    left = {b: {s.feature: s for s in some} for b, some in enumerate(sources)}
    expected = set()
    for arm in arms:
        pool = left[arm.interference_bin]
        if pool:
            best = min(pool.values(), key=lambda s: (abs(-s.interference - arm.interference), s.feature))
            expected.add(pool.pop(best.feature))
    assert set(chosen) == expected
    assert len(chosen) == len(expected)
    for b, some in enumerate(sources):
        assert sum(s.bin == b for s in chosen) == min(len(some), sum(a.interference_bin == b for a in arms))
    assert all(s.interference < 0 for s in chosen)
