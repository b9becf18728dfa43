"""Trials against a world in closed form, and against plain forward passes; independence of sharding."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from scipy.special import logsumexp

from polysem.act.base import Recipe, edited_positions
from polysem.config import Study
from polysem.edits import Add
from polysem.plan import trial_ids
from polysem.progress import SILENT
from polysem.readouts import kl, log_odds, target_similarity, weighted_cosine, weighted_overlap
from polysem.store.tables import PLAN, TRIALS
from polysem.trials import Kept, run_batches
from polysem.types import Site
from polysem.worlds.linear import SITE, LinearWorld
from polysem.worlds.tables import plain_sae
from polysem.worlds.tiny import tiny_model
from support.planted import LABEL, TOKENS, planted_study
from support.trial_rows import CLOSED_FORM, Features, by_id, decoder, make_features, make_prompts, rows_of

FLOAT32 = 2e-4  # a float32 forward pass in another batch shape, read out in nats


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
