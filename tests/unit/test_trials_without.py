"""Every way to have no outcome, and what stops a run."""

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from polysem.act.base import Recipe, Refused
from polysem.errors import ConfigError, FormatError, MismatchError, NumericsError, UnknownReferenceError
from polysem.trials import run_batches
from polysem.types import Site
from polysem.vocabulary import REASONS
from polysem.worlds.linear import SITE, LinearWorld
from polysem.worlds.tables import plain_sae
from support.trial_rows import CLOSED_FORM, Features, by_id, decoder, make_features, make_prompts, rows_of


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
