"""Trials against a world in closed form, and against plain forward passes; every way to have no outcome;
independence of sharding."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from scipy.special import logsumexp

from polysem.act.base import Recipe, Refused, edited_positions
from polysem.config import Study
from polysem.edits import Add
from polysem.errors import ConfigError, FormatError, MismatchError, NumericsError, UnknownReferenceError
from polysem.plan import trial_ids
from polysem.progress import SILENT
from polysem.readouts import kl, log_odds, target_similarity, weighted_cosine, weighted_overlap
from polysem.store.tables import FEATURES, PLAN, PROMPTS, TRIALS
from polysem.trials import Kept, run_batches
from polysem.types import Site
from polysem.vocabulary import REASONS
from polysem.worlds.linear import SITE, LinearWorld
from polysem.worlds.tables import plain_sae
from polysem.worlds.tiny import tiny_model
from support.planted import LABEL, TOKENS, planted_study

CLOSED_FORM = 1e-9  # float64 throughout
FLOAT32 = 2e-4  # a float32 forward pass in another batch shape, read out in nats


def rows_of(*specs, sae=LABEL, site=SITE, positions="all_but_first", dose_unit="absolute"):
    """PLAN rows of (relation, target, recipe, prompt_id, token_set, dose, batch)."""
    names = ("relation", "target", "recipe", "prompt_id", "token_set", "dose", "batch")
    rows = []
    for spec in specs:
        row = dict(zip(names, spec, strict=True))
        row |= {"sae": sae, "site": str(site), "locus": "feature", "source": None, "draw": 0}
        row |= {"interference_bin": -1, "interference": None, "similarity": None, "split": "confirm"}
        row |= {
            "dose_unit": dose_unit,
            "positions": positions,
            "block": f"{sae}/{row['target']}",
            "trial_id": "",
        }
        rows.append(row)
    table = pa.Table.from_pylist(rows, schema=PLAN.arrow())
    return PLAN.conform(
        table.set_column(table.column_names.index("trial_id"), "trial_id", pa.array(trial_ids(table)))
    )


def decoder(feature):
    return Recipe.of("decoder", feature=feature).text


def run(plan, planted, batches=None, **changes):
    parts = {
        "prompts": planted.prompts,
        "features": planted,
        "model": planted.model,
        "saes": planted.saes,
    } | changes
    if batches is None:
        batches = sorted(set(plan["batch"].to_pylist()))
    return run_batches(plan, **parts, batches=batches, reporter=SILENT)


def by_id(plan, trials):
    """(plan row, trial row) pairs."""
    assert set(trials["trial_id"].to_pylist()) == set(plan["trial_id"].to_pylist())
    found = {row["trial_id"]: row for row in trials.to_pylist()}
    return [(row, found[row["trial_id"]]) for row in plan.to_pylist()]


@pytest.fixture(scope="module")
def planted():
    return planted_study()


@pytest.fixture(scope="module")
def prompt_ids(planted):
    return planted.prompts["prompt_id"].to_pylist()


def test_log_odds_move_by_the_closed_form(planted, prompt_ids):
    sources = sorted(s for t, s in planted.cosine if t == 1)
    plan = rows_of(
        *(
            ("pair", target, decoder(source), prompt_id, "in", dose, k)
            for k, prompt_id in enumerate(prompt_ids)
            for target in (0, 1)
            for source in sources
            for dose in (-2.0, -0.1, 0.1, 2.0)
        )
    )
    ids = {r["prompt_id"]: r["token_ids"] for r in planted.prompts.to_pylist()}
    W_E, W_U = planted.model.W_E.numpy(), planted.model.W_U.numpy()
    for planned, trial in by_id(plan, run(plan, planted)):
        source, target, dose = (
            Recipe.parse(planned["recipe"]).integer("feature"),
            planned["target"],
            planned["dose"],
        )
        z, d = W_U @ W_E[ids[planned["prompt_id"]][-1]], planted.sae.W_dec[source].double().numpy()
        dz, inside = dose * W_U @ d / np.linalg.norm(d), np.arange(len(z)) // TOKENS == target
        expected = (logsumexp((z + dz)[inside]) - logsumexp(z[inside])) - (
            logsumexp((z + dz)[~inside]) - logsumexp(z[~inside])
        )
        moved = trial["logodds_edit"] - trial["logodds_base"]
        assert moved == pytest.approx(expected, abs=CLOSED_FORM)
        if (
            target == 1
        ):  # the source's own target, where the world is linear at any dose: gain x cosine x dose
            assert moved == pytest.approx(
                4.0 * planted.cosine[target, source] * dose, abs=1e-5
            )  # float32 W_dec
        assert trial["alignment"] == pytest.approx(planted.cosine.get((target, source), 0.0), abs=1e-6)
        assert trial["dose_absolute"] == dose


def test_outcomes_are_the_readouts_of_a_plain_forward_pass():
    """Through a real transformer, float32: each trial alone, with its own two forward passes and the public
    readouts."""
    model = tiny_model("gpt_neox", d_model=16)
    rng = np.random.default_rng(0)
    site = Site.parse("blocks.0.hook_resid_post")
    sae = plain_sae(rng.standard_normal((6, 16)), site=site)
    prompts = make_prompts([[1, 5, 9, 13, 2], [4, 8]])
    features = make_features({f: ([f, f + 3], [f + 10]) for f in range(6)})
    p0, p1 = prompts["prompt_id"].to_pylist()
    plan = rows_of(
        *(
            ("pair", target, decoder(source), p, token_set, dose, k)
            for k, p in enumerate((p0, p1))
            for target, source in ((0, 3), (1, 3), (2, 5), (4, 4))
            for token_set in ("in", "out")
            for dose in (-0.3, 0.3)
        ),
        sae="s",
        site=site,
        dose_unit="resid_norm",
    )
    trials = run_batches(plan, prompts, features, model, {"s": sae}, batches=[0, 1])
    ids = {r["prompt_id"]: r["token_ids"] for r in prompts.to_pylist()}
    tokens = {r["feature"]: r for r in features.features.to_pylist()}
    for planned, trial in by_id(plan, trials):
        row = torch.tensor([ids[planned["prompt_id"]]])
        direction = sae.W_dec[Recipe.parse(planned["recipe"]).integer("feature")]
        norm = model.capture(row, [site])[site][0, 1:].norm(dim=-1).mean()
        vector = planned["dose"] * norm * direction / direction.norm()
        mask = torch.ones_like(row, dtype=torch.bool)
        mask[:, 0] = False
        before = model.logits(row)[0, -1]
        after = model.logits(row, [Add(site, vector[None], mask)])[0, -1]
        T = tokens[planned["target"]][f"tokens_{planned['token_set']}"]
        assert trial["status"] == "ok"
        assert trial["resid_norm"] == pytest.approx(float(norm), rel=1e-6)
        assert trial["dose_absolute"] == pytest.approx(planned["dose"] * float(norm), rel=1e-6)
        for name, logits in (("base", before), ("edit", after)):
            p = logits.double().softmax(-1)
            assert trial[f"cosine_{name}"] == pytest.approx(
                float(weighted_cosine(p, T, model.W_E)), abs=FLOAT32
            )
            assert trial[f"mass_{name}"] == pytest.approx(float(weighted_overlap(p, T)), abs=FLOAT32)
            assert trial[f"logodds_{name}"] == pytest.approx(float(log_odds(logits, T)), abs=FLOAT32)
        assert trial["kl"] == pytest.approx(float(kl(before, after)), rel=1e-3)
        assert trial["kl"] > 0
        assert trial["dtype"] == "float32"


def test_self_and_zero_dose(planted, prompt_ids):
    plan = rows_of(
        ("self", 0, decoder(0), prompt_ids[0], "in", 1.5, 0),
        ("pair", 0, decoder(9), prompt_ids[0], "in", 0.0, 0),
    )
    (self_row, zero_row) = sorted(
        (t for _, t in by_id(plan, run(plan, planted))), key=lambda t: -t["dose_absolute"]
    )
    assert self_row["alignment"] == pytest.approx(1.0, abs=1e-12)
    assert self_row["logodds_edit"] - self_row["logodds_base"] == pytest.approx(1.5 * 4.0, abs=CLOSED_FORM)
    for name in ("cosine", "mass", "logodds"):
        # Another batch shape, so the last digit may differ; equality to the bit is tested at equal shape.
        assert zero_row[f"{name}_edit"] == pytest.approx(zero_row[f"{name}_base"], abs=1e-13)
    assert zero_row["kl"] == pytest.approx(0.0, abs=1e-24)


def test_random_direction_is_the_recipe_on_all_prompts(planted, prompt_ids):
    """v = g' (X - mean), X the activations at every position but the first of the prompts by id, whichever
    prompt is run."""
    from polysem.seeds import rng_for

    recipe = Recipe.of("covariance", target=2, draw=1, seed=5)
    plan = rows_of(
        *(("random_direction", 2, recipe.text, p, "in", 1.0, k) for k, p in enumerate(prompt_ids[:2]))
    )
    prompts = {r["prompt_id"]: r["token_ids"] for r in planted.prompts.to_pylist()}
    X = np.concatenate([planted.model.W_E[prompts[p][1:]].numpy() for p in sorted(prompts)])
    v = rng_for(5, "control", LABEL, 2, 1).standard_normal(len(X)) @ (X - X.mean(0))
    v /= np.linalg.norm(v)
    for planned, trial in by_id(plan, run(plan, planted)):
        base = planted.model.W_E[prompts[planned["prompt_id"]][-1]].numpy() @ planted.model.W_U.numpy().T
        edited = base + planted.model.W_U.numpy() @ v
        T = list(range(2 * TOKENS, 3 * TOKENS))
        assert trial["logodds_edit"] == pytest.approx(float(log_odds(edited, T)), abs=CLOSED_FORM)
        assert trial["alignment"] == pytest.approx(
            v @ planted.sae.W_dec[2].numpy() / np.linalg.norm(planted.sae.W_dec[2])
        )


@pytest.mark.parametrize(
    ("positions", "expected"),
    [("last", [0, 0, 1]), ("all", [1, 1, 1]), ("all_but_first", [0, 1, 1])],
)
def test_edited_positions(positions, expected):
    assert edited_positions(positions, 3).astype(int).tolist() == expected


def test_positions_reach_the_model():
    """In a transformer the three choices give three effects, and the norm is that of the edited positions."""
    model = tiny_model("llama")
    sae = plain_sae(np.eye(16)[:3], site=SITE)
    prompts = make_prompts([[1, 5, 9, 13]])
    features = make_features({0: ([3], [3])})
    (p,) = prompts["prompt_id"].to_pylist()
    h = model.capture(torch.tensor([[1, 5, 9, 13]]), [SITE])[SITE][0].norm(dim=-1)
    seen = {}
    for positions, norm in (("last", h[-1]), ("all", h.mean()), ("all_but_first", h[1:].mean())):
        plan = rows_of(
            ("self", 0, decoder(0), p, "in", 0.5, 0), sae="s", positions=positions, dose_unit="resid_norm"
        )
        (row,) = run_batches(plan, prompts, features, model, {"s": sae}, batches=[0]).to_pylist()
        assert row["resid_norm"] == pytest.approx(float(norm), rel=1e-6)
        seen[positions] = row["logodds_edit"] - row["logodds_base"]
    assert len({round(v, 6) for v in seen.values()}) == 3


# Every way to have no outcome


class Features:
    """A feature table by itself."""

    def __init__(self, features):
        self.features = features
        self.embeddings = {}


def make_features(tokens, sae="s"):
    empty = {c.name: None if c.nullable else [] for c in FEATURES.columns}
    rows = [
        empty
        | {"sae": sae, "feature": f, "site": str(SITE), "tokens_in": t_in, "tokens_out": t_out}
        | {"dec_norm": 1.0, "n_glosses": 0}
        for f, (t_in, t_out) in tokens.items()
    ]
    return Features(FEATURES.conform(pa.Table.from_pylist(rows, schema=FEATURES.arrow())))


def make_prompts(rows):
    table = [
        {"prompt_id": f"p{k}", "text": f"prompt {k}", "token_ids": ids, "source": "test", "split": "confirm"}
        for k, ids in enumerate(rows)
    ]
    return PROMPTS.conform(pa.Table.from_pylist(table, schema=PROMPTS.arrow()))


@pytest.fixture
def bad():
    """A world of 8 tokens with everything that can go wrong in one of its parts."""
    rng = np.random.default_rng(0)
    W_E = torch.tensor(rng.standard_normal((8, 4)))
    W_E[6] = 0.0  # a padding row
    model = LinearWorld(W_E, torch.tensor(rng.standard_normal((8, 4))), n_ctx=4)
    W_dec = np.concatenate([np.eye(4), np.zeros((1, 4)), np.full((1, 4), np.nan)])
    features = make_features(
        {
            0: ([1, 2], [2]),
            1: ([], [3]),
            2: ([9], [1]),
            3: (list(range(8)), [6, 1]),
            4: ([1], []),
            5: ([1], [1]),
        }
    )
    prompts = make_prompts([[0, 1, 2], [], [0, 1, 2, 3, 4], [0, 8], [3], [0, 6]])
    return model, plain_sae(W_dec, site=SITE), features, prompts


@pytest.mark.parametrize(
    ("reason", "target", "recipe", "prompt", "token_set"),
    [
        ("empty_target_set", 1, decoder(0), "p0", "in"),
        ("empty_target_set", 4, decoder(0), "p0", "out"),
        ("token_out_of_vocab", 2, decoder(0), "p0", "in"),
        ("full_target_set", 3, decoder(0), "p0", "in"),
        ("zero_embedding", 3, decoder(0), "p0", "out"),
        ("empty_prompt", 0, decoder(0), "p1", "in"),
        ("prompt_too_long", 0, decoder(0), "p2", "in"),
        ("prompt_out_of_vocab", 0, decoder(0), "p3", "in"),
        ("no_edited_position", 0, decoder(0), "p4", "in"),
        ("zero_activation", 0, decoder(0), "p5", "in"),
        ("zero_direction", 0, decoder(4), "p0", "in"),
        ("non_finite_direction", 0, decoder(5), "p0", "in"),
        ("control_unmatched", 0, Recipe.of("unmatched").text, "p0", "in"),
    ],
)
def test_what_cannot_be_measured_is_a_row_with_a_reason(bad, reason, target, recipe, prompt, token_set):
    model, sae, features, prompts = bad
    plan = rows_of(
        ("pair", target, recipe, prompt, token_set, 0.5, 0),
        ("pair", 0, decoder(1), prompt, "in", 0.5, 0),  # a sound trial of the same prompt
        sae="s",
        dose_unit="resid_norm",
    )
    trials = run_batches(plan, prompts, features, model, {"s": sae}, batches=[0])
    for planned, trial in by_id(plan, trials):
        if (planned["target"], planned["recipe"], planned["token_set"]) == (target, recipe, token_set):
            assert (trial["status"], trial["reason"]) == (REASONS[reason].status, reason)
            outcomes = set(trial) - {"trial_id", "status", "reason", "dtype"}
            assert all(trial[name] is None for name in outcomes)
        elif prompt == "p0":
            assert (trial["status"], trial["reason"]) == ("ok", None)


def test_no_covariance_without_activations(bad):
    model, sae, features, prompts = bad
    recipe = Recipe.of("covariance", target=0, draw=0, seed=0).text
    plan = rows_of(("random_direction", 0, recipe, "p4", "in", 0.5, 0), sae="s", positions="last")
    one = prompts.filter(pc.equal(prompts["prompt_id"], "p4"))
    (row,) = run_batches(plan, one, features, model, {"s": sae}, batches=[0]).to_pylist()
    assert (row["status"], row["reason"]) == ("skipped", "no_covariance")


class Overflowing(LinearWorld):
    """Gives infinite logits where an edit is large; raises or not, as models do."""

    def __init__(self, world, *, raises, always=False):
        super().__init__(world.W_E, world.W_U, n_ctx=world.spec.n_ctx)
        self.raises, self.always = raises, always

    def logits(self, tokens, edits=(), *, last_only=False):
        logits = super().logits(tokens, edits, last_only=last_only).clone()
        if edits:
            logits[edits[0].vector.norm(dim=-1) > 10] = torch.inf
        if self.always:
            logits[:] = torch.nan
        if self.raises and not bool(torch.isfinite(logits).all()):
            raise NumericsError("logits are not finite")
        return logits


@pytest.mark.parametrize("raises", [True, False])
def test_a_row_that_overflows_fails_alone(bad, raises):
    model, sae, features, prompts = bad
    doses = (-20.0, -1.0, 1.0, 20.0)
    plan = rows_of(*(("pair", 0, decoder(k), "p0", "in", d, 0) for k in (0, 1) for d in doses), sae="s")
    trials = run_batches(plan, prompts, features, Overflowing(model, raises=raises), {"s": sae}, batches=[0])
    sound = {
        r["trial_id"]: r
        for r in run_batches(plan, prompts, features, model, {"s": sae}, batches=[0]).to_pylist()
    }
    for planned, trial in by_id(plan, trials):
        if abs(planned["dose"]) > 10:
            assert (trial["status"], trial["reason"]) == ("failed", "non_finite_logits")
            assert trial["logodds_edit"] is None
        else:
            assert trial["status"] == "ok"
            assert trial["logodds_edit"] == pytest.approx(
                sound[trial["trial_id"]]["logodds_edit"], abs=CLOSED_FORM
            )


@pytest.mark.parametrize("raises", [True, False])
def test_a_prompt_whose_baseline_is_not_finite_fails(bad, raises):
    model, sae, features, prompts = bad
    plan = rows_of(("pair", 0, decoder(0), "p0", "in", 1.0, 0), sae="s")
    broken = Overflowing(model, raises=raises, always=True)
    (row,) = run_batches(plan, prompts, features, broken, {"s": sae}, batches=[0]).to_pylist()
    assert (row["status"], row["reason"]) == ("failed", "non_finite_baseline")


def test_a_refusal_gives_one_of_the_reasons():
    with pytest.raises(
        UnknownReferenceError, match=r"unknown reason .zero_directoin.; .* did you mean .zero_dir"
    ):
        Refused("zero_directoin")


# What stops a run


def test_parts_that_do_not_belong_together_stop_the_run(bad):
    model, sae, features, prompts = bad
    plan = rows_of(("pair", 0, decoder(0), "p0", "in", 1.0, 0), sae="s")

    def go(plan=plan, prompts=prompts, features=features, saes=None, batches=(0,)):
        return run_batches(
            plan, prompts, features, model, {"s": sae} if saes is None else saes, batches=batches
        )

    with pytest.raises(MismatchError, match="batch 7 is not in the plan"):
        go(batches=[0, 7])
    with pytest.raises(ConfigError, match="asked for twice"):
        go(batches=[0, 0])
    with pytest.raises(MismatchError, match="SAE 's' is not among t"):
        go(saes={"t": sae})
    with pytest.raises(MismatchError, match=r"6 wide .* 4 wide"):
        go(saes={"s": plain_sae(np.eye(6), site=SITE)})
    elsewhere = sae.at(Site.parse("blocks.0.hook_mlp_out"))
    with pytest.raises(Exception, match=r"no site blocks\.0\.hook_mlp_out"):
        go(saes={"s": elsewhere})
    with pytest.raises(MismatchError, match="prompt 'p0' is not in the prompts table"):
        go(prompts=prompts.slice(1))
    with pytest.raises(MismatchError, match="target 0 of SAE 's' is not in the feature table"):
        go(features=Features(features.features.slice(1)))
    with pytest.raises(MismatchError, match="feature 77 of SAE 's'"):
        go(plan=rows_of(("pair", 0, decoder(77), "p0", "in", 1.0, 0), sae="s"))
    with pytest.raises(FormatError, match="no recipe"):
        go(plan=rows_of(("pair", 0, "push hard", "p0", "in", 1.0, 0), sae="s"))
    mixed = rows_of(
        ("pair", 0, decoder(0), "p0", "in", 1.0, 0), ("pair", 0, decoder(0), "p4", "in", 1.0, 0), sae="s"
    )
    with pytest.raises(MismatchError, match="batch 0 mixes 2 combinations"):
        go(plan=mixed)


def test_an_unexpected_error_is_not_swallowed(bad):
    model, sae, features, prompts = bad

    class Broken(LinearWorld):
        def logits(self, tokens, edits=(), *, last_only=False):
            raise RuntimeError("out of memory")

    plan = rows_of(("pair", 0, decoder(0), "p0", "in", 1.0, 0), sae="s")
    with pytest.raises(RuntimeError, match="out of memory"):
        run_batches(plan, prompts, features, Broken(model.W_E, model.W_U, n_ctx=4), {"s": sae}, batches=[0])


# Independence


def sharded_study(family):
    """Three prompts x two chunks of directions (one of them random, one refused), two SAEs at one site."""
    model = tiny_model(family)
    rng = np.random.default_rng(0)
    prompts = make_prompts([rng.integers(0, 64, size=n).tolist() for n in (3, 7, 5)])
    saes = {
        name: plain_sae(rng.standard_normal((8, 16)), site=Site.parse("blocks.1.hook_resid_post"))
        for name in "ab"
    }
    tokens = {f: (rng.integers(0, 64, size=4).tolist(), [f]) for f in range(8)}
    features = Features(pa.concat_tables([make_features(tokens, sae).features for sae in "ab"]))
    parts = []
    for number, (sae, p) in enumerate((s, p) for s in "ab" for p in prompts["prompt_id"].to_pylist()):
        covariance = [Recipe.of("covariance", target=t, draw=0, seed=0).text for t in range(3)]
        recipes = [[decoder(3), decoder(4), covariance[0]], [*covariance[1:], Recipe.of("unmatched").text]]
        specs = [
            ("pair", target, recipe, p, token_set, dose, 2 * number + chunk)
            for chunk in (0, 1)
            for recipe in recipes[chunk]
            for target in (0, 1, 2)
            for token_set in ("in", "out")
            for dose in (-0.4, -0.1, 0.1, 0.4)
        ]
        parts.append(rows_of(*specs, sae=sae, site=saes[sae].site, dose_unit="resid_norm"))
    return PLAN.conform(pa.concat_tables(parts)), prompts, features, model, saes


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_any_sharding_gives_the_same_bytes(family):
    """All batches at once, one by one with what was kept of those before, reversed, and in two interleaved halves:
    byte-identical tables."""
    study = sharded_study(family)
    numbers = list(range(12))
    assert sorted(set(study[0]["batch"].to_pylist())) == numbers
    whole = run_batches(*study, batches=numbers)
    assert whole.num_rows == study[0].num_rows
    kept = Kept()
    singles = [run_batches(*study, batches=[k], kept=kept) for k in numbers]
    halves = [run_batches(*study, batches=numbers[k::2]) for k in (1, 0)]
    for other in (
        run_batches(*study, batches=numbers[::-1]),
        TRIALS.conform(pa.concat_tables(singles)),
        TRIALS.conform(pa.concat_tables(halves)),
    ):
        assert other.equals(whole)
        for name in TRIALS.arrow().names:  # equality of floats is not equality of bits
            assert [b and b.to_pybytes() for b in other[name].combine_chunks().buffers()] == [
                b and b.to_pybytes() for b in whole[name].combine_chunks().buffers()
            ]
    assert {(r["status"], r["reason"]) for r in whole.to_pylist()} == {
        ("ok", None),
        ("skipped", "control_unmatched"),
    }


def test_one_forward_pass_serves_all_trials_of_a_batch(planted, prompt_ids):
    """Never a pass per pair: one for the prompt, one for the rows, whatever the number of targets and
    sets."""
    calls = []

    class Counting(LinearWorld):
        def logits(self, tokens, edits=(), *, last_only=False):
            calls.append(tuple(tokens.shape))
            return super().logits(tokens, edits, last_only=last_only)

    model = Counting(planted.model.W_E, planted.model.W_U)
    plan = rows_of(
        *(
            ("pair", target, decoder(source), prompt_ids[0], token_set, dose, batch)
            for batch, sources in enumerate(((5, 6, 7), (8, 9)))
            for target in (0, 1, 2)
            for source in sources
            for token_set in ("in", "out")
            for dose in (-1.0, 1.0)
        )
    )
    run(plan, planted, model=model)
    n = len(planted.prompts.filter(pc.equal(planted.prompts["prompt_id"], prompt_ids[0]))["token_ids"][0])
    assert calls == [(1, n), (6, n), (4, n)]


def test_progress_is_told_of_every_batch(planted, prompt_ids):
    told = []

    class Loud:
        def track(self, items, *, total, label, done=0):
            told.append((total, label))
            yield from items

        def stage(self, label):
            raise AssertionError

    plan = rows_of(*(("self", 0, decoder(0), p, "in", 1.0, k) for k, p in enumerate(prompt_ids)))
    run_batches(plan, planted.prompts, planted, planted.model, planted.saes, batches=[1, 3], reporter=Loud())
    assert told == [(2, "trials")]


def test_config_and_runner_agree_on_positions_and_units():
    """The study's closed choices are the ones that a run understands."""
    plan = Study.model_fields["plan"].default
    assert edited_positions(plan.positions, 2).any()


def test_what_a_push_spends_is_the_change_of_the_sites_activations():
    model, site = tiny_model("gpt_neox", d_model=16), Site.parse("blocks.0.hook_resid_post")
    sae = plain_sae(np.random.default_rng(0).standard_normal((6, 16)), site=site)
    prompts, features = make_prompts([[1, 5, 9, 13, 2]]), make_features({f: ([f], [f + 3]) for f in range(6)})
    (prompt,) = prompts.to_pylist()
    texts = {2: "5 9", 3: "7 2"}
    recipes = {
        "feature": Recipe.of("decoder", feature=2),
        "neuron": Recipe.of("neuron", neuron=3),
        "clamp": Recipe.of("clamp", feature=2, largest=1.5),
        "prompt": Recipe.of("snippet", form="prefix", match=texts[3], tokens=texts[2]),
        "suffix": Recipe.of("snippet", form="suffix", match=texts[3], tokens=texts[2]),
    }
    rows = []
    for batch, (name, recipe) in enumerate(recipes.items()):
        for dose in (-0.7, 0.7):
            rows.append(
                {
                    "sae": "s",
                    "site": str(site),
                    "locus": "prompt" if name == "suffix" else name,
                    "relation": "pair",
                }
                | {"target": 1, "source": 2, "draw": 0, "recipe": recipe.text, "interference_bin": -1}
                | {
                    "interference": None,
                    "similarity": None,
                    "split": "confirm",
                    "prompt_id": prompt["prompt_id"],
                }
                | {"token_set": "in", "dose": dose, "dose_unit": "absolute", "positions": "all_but_first"}
                | {"block": "s/1", "batch": batch, "trial_id": ""}
            )
    table = pa.Table.from_pylist(rows, schema=PLAN.arrow())
    table = table.set_column(table.column_names.index("trial_id"), "trial_id", pa.array(trial_ids(table)))
    seen = {
        r["trial_id"]: r
        for r in run_batches(
            PLAN.conform(table), prompts, features, model, {"s": sae}, batches=range(len(recipes))
        ).to_pylist()
    }

    def activations(ids):
        return model.capture(torch.tensor([ids]), [site])[site][0].double().numpy()

    ids = prompt["token_ids"]
    h = activations(ids)
    acts = sae.encode(torch.tensor(h, dtype=torch.float32))[1:, 2].numpy()
    row = float(sae.W_dec[2].norm())
    for name, dose, trial in zip(
        [n for n in recipes for _ in range(2)],
        [r["dose"] for r in rows],
        table["trial_id"].to_pylist(),
        strict=True,
    ):
        found = seen[trial]
        assert found["status"] == "ok", (name, found["reason"])
        if name == "suffix":
            assert found["push_norm"] is None
            continue
        expected = {
            "feature": lambda d: abs(d),
            "neuron": lambda d: abs(d) * np.abs(h[1:, 3]).mean(),
            "clamp": lambda d: (np.abs(1.5 * d - acts) * row).mean(),
            "prompt": lambda d: np.linalg.norm(
                activations([*map(int, texts[2 if d > 0 else 3].split()), *ids])[2:] - h, axis=1
            ).mean(),
        }[name](dose)
        assert found["push_norm"] == pytest.approx(expected, rel=1e-4), name


def test_the_papers_rows_leave_bos_out_read_their_own_tokens_and_sum_over_the_likeliest():
    model, site = tiny_model("gpt_neox", d_model=16), Site.parse("blocks.0.hook_resid_post")
    sae = plain_sae(np.random.default_rng(0).standard_normal((6, 16)), site=site)
    bos = model.bos_id
    assert bos is not None
    prompts = make_prompts([[bos, 5, 9, 13, 2]])
    features = make_features({f: ([f], [f + 3]) for f in range(6)})
    rows = []
    for batch, (positions, unit_, reads) in enumerate(
        [
            ("all", "absolute", None),
            ("all_no_bos", "paper_scale", [7, 8]),
            ("all_no_bos", "paper_factor", None),
        ]
    ):
        rows.append(
            {"sae": "s", "site": str(site), "locus": "neuron" if unit_ == "paper_factor" else "feature"}
            | {
                "relation": "pair",
                "target": 1,
                "source": 2,
                "draw": 0,
                "interference_bin": -1,
                "split": "confirm",
            }
            | {"recipe": Recipe.of("neuron", neuron=3).text if unit_ == "paper_factor" else decoder(2)}
            | {"interference": None, "similarity": None, "prompt_id": "p0", "token_set": "in", "reads": reads}
            | {"dose": 0.7, "dose_unit": unit_, "positions": positions, "block": "s/1", "batch": batch}
            | {"trial_id": ""}
        )
    table = pa.Table.from_pylist(rows, schema=PLAN.arrow())
    table = table.set_column(table.column_names.index("trial_id"), "trial_id", pa.array(trial_ids(table)))
    made = run_batches(PLAN.conform(table), prompts, features, model, {"s": sae}, batches=[0, 1, 2])
    seen = {r["trial_id"]: r for r in made.to_pylist()}
    d = sae.W_dec[2].double() / sae.W_dec[2].double().norm()
    for trial, (ids, read, top, kind) in zip(
        table["trial_id"].to_pylist(),
        [
            ([bos, 5, 9, 13, 2], [1], 64, "add"),
            ([5, 9, 13, 2], [7, 8], 64, "add"),
            ([5, 9, 13, 2], [1], 10, "scale"),
        ],
        strict=True,
    ):
        tokens = torch.tensor([ids])
        h = model.capture(tokens, [site])[site][0].double()
        added = 0.7 * d.expand(len(ids), -1) if kind == "add" else 0.7 * h * (torch.arange(16) == 3)
        edits = [
            Add(site, row.float()[None], torch.arange(len(ids))[None] == k) for k, row in enumerate(added)
        ]
        for when, z in (
            ("base", model.logits(tokens, last_only=True)[0, -1]),
            ("edit", model.logits(tokens, edits, last_only=True)[0, -1]),
        ):
            z = z.detach().double()
            p = z.softmax(-1)
            kept = torch.zeros_like(p)
            kept[p.topk(min(top, len(p))).indices] = 1.0
            found = seen[trial]
            assert found[f"mass_{when}"] == pytest.approx(float((p * kept)[read].sum()), abs=FLOAT32)
            assert found[f"logodds_{when}"] == pytest.approx(float(log_odds(z, read)), abs=FLOAT32)
            s = torch.as_tensor(target_similarity(read, model.W_E)).double()
            assert found[f"cosine_{when}"] == pytest.approx(float((p * kept) @ s), abs=FLOAT32)
