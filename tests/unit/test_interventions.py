"""Recipes, directions and edits, and the controls."""

import json

import numpy as np
import pytest
import torch

from polysem.act.base import EditedPrompt, Recipe, Refused, SiteContext, Steer, intervention, unit
from polysem.act.directions import covariance_direction
from polysem.edits import Add
from polysem.errors import FormatError, MismatchError, UnknownReferenceError
from polysem.plan.arms import matched_features
from polysem.plan.index import density_deciles
from polysem.seeds import rng_for
from polysem.types import Site
from polysem.worlds.tables import plain_sae
from polysem.worlds.tiny import TINY_FAMILIES, tiny_model
from support.planted import LABEL, planted_study


@pytest.fixture(scope="module")
def planted():
    return planted_study()


def bench_of(planted, activations=None):
    seen = np.zeros((0, planted.sae.d_in)) if activations is None else activations
    return SiteContext(LABEL, planted.sae, planted.model.spec, activations=lambda: seen)


def test_recipe_text_is_canonical_and_reads_back():
    recipe = Recipe.of("covariance", target=3, seed=0, draw=1)
    assert recipe.text == '{"draw":1,"kind":"covariance","seed":0,"target":3}'
    assert Recipe.parse(recipe.text) == recipe
    assert recipe == Recipe.of("covariance", draw=1, seed=0, target=3)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"kind": "decoder", "feature": 1}',
        '{"feature":[],"kind":"decoder"}',
    ],
)
def test_what_is_no_recipe_is_refused(text):
    with pytest.raises(FormatError, match="recipe"):
        Recipe.parse(text)
    with pytest.raises(FormatError, match="integer 'feature'"):
        Recipe.of("decoder", feature="x").integer("feature")


def test_a_recipe_of_another_kind_is_refused_by_the_locus(planted):
    with pytest.raises(FormatError, match=r"nothing.* is of no kind in decoder, at_cosine, covariance"):
        intervention("feature").realise(Recipe.of("nothing"), bench_of(planted))


def test_unknown_locus_names_the_known_ones():
    with pytest.raises(
        UnknownReferenceError, match="unknown locus 'telepathy'; expected one of feature, clamp"
    ):
        intervention("telepathy")


def test_decoder_direction_is_the_unit_row(planted):
    for feature in (0, 7):
        row = planted.sae.W_dec[feature].double().numpy()
        seen = intervention("feature").realise(Recipe.of("decoder", feature=feature), bench_of(planted))
        assert np.allclose(seen, row / np.sqrt((row**2).sum()), atol=1e-15)
    with pytest.raises(MismatchError, match="feature 999 of SAE 'planted'"):
        intervention("feature").realise(Recipe.of("decoder", feature=999), bench_of(planted))


def test_prepare_makes_one_row_per_push_and_edits_only_the_mask(planted):
    prompt = EditedPrompt((0, 5, 6), np.array([False, True, True]))
    a, b = np.eye(planted.sae.d_in)[:2]
    tokens, (edit,) = intervention("feature").prepare(
        [Steer(a, 2.0), Steer(b, -0.5)], prompt, bench_of(planted)
    )
    assert tokens.tolist() == [[0, 5, 6]] * 2
    assert isinstance(edit, Add)
    assert edit.site == planted.sae.site
    assert torch.equal(edit.vector, torch.tensor(np.stack([2.0 * a, -0.5 * b])))
    assert edit.mask.tolist() == [[False, True, True]] * 2
    before = planted.model.capture(tokens, [edit.site])[edit.site]
    after = planted.model.capture(tokens, [edit.site], [edit])[edit.site]
    moved = (after - before).numpy()
    assert np.allclose(moved[:, 0], 0)
    assert np.allclose(moved[0, 1:], 2.0 * a)
    assert np.allclose(moved[1, 1:], -0.5 * b)


def test_a_dose_of_zero_is_the_identity_to_the_bit(planted):
    prompt = EditedPrompt((0, 5, 6), np.array([False, True, True]))
    direction = unit(planted.sae.W_dec[3].double().numpy())
    tokens, edits = intervention("feature").prepare([Steer(direction, 0.0)] * 3, prompt, bench_of(planted))
    assert torch.equal(planted.model.logits(tokens, edits), planted.model.logits(tokens))


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_dose_of_zero_is_the_identity_to_the_bit_in_every_family(family):
    model = tiny_model(family)
    site = Site.parse("blocks.1.hook_resid_post")
    sae = plain_sae(np.random.default_rng(0).standard_normal((4, 16)), site=site)
    bench = SiteContext("s", sae, model.spec, activations=lambda: np.zeros((0, 16)))
    direction = intervention("feature").realise(Recipe.of("decoder", feature=2), bench)
    prompt = EditedPrompt((1, 5, 6, 9), np.array([False, True, True, True]))
    tokens, edits = intervention("feature").prepare([Steer(direction, 0.0)] * 3, prompt, bench)
    assert torch.equal(model.logits(tokens, edits), model.logits(tokens))
    tokens, edits = intervention("feature").prepare([Steer(direction, 1.0)] * 3, prompt, bench)
    assert not torch.equal(model.logits(tokens, edits), model.logits(tokens))


def test_unit_keeps_tiny_and_huge_vectors_and_refuses_the_rest():
    for scale in (1e-300, 1.0, 1e300):
        assert np.allclose(unit(scale * np.array([3.0, -4.0])), [0.6, -0.8], atol=1e-15)
    for vector, reason in (([0.0, 0.0], "zero_direction"), ([np.nan, 1.0], "non_finite_direction")):
        with pytest.raises(Refused) as refusal:
            unit(np.array(vector))
        assert refusal.value.reason == reason


def test_covariance_direction_has_the_covariance_of_the_activations(planted):
    """Second moments of many draws, before they are made unit, against numpy's covariance: here through the
    angles.

    With activations that vary in two coordinates only, with variances 9 and 1, v ~ N(0, diag(9, 1)) gives
    E[v1^2 / |v|^2] = 3 / (3 + 1) for the unit direction (the mean of a projected normal: sigma1 / (sigma1 +
    sigma2)).
    """
    rng = np.random.default_rng(0)
    seen = np.zeros((400, planted.sae.d_in)) + 5.0  # a mean that must be taken out
    seen[:, 0] += 3 * rng.standard_normal(400)
    seen[:, 1] += rng.standard_normal(400)
    bench = bench_of(planted, seen)
    draws = [
        covariance_direction(Recipe.of("covariance", target=1, draw=k, seed=0), bench) for k in range(2000)
    ]
    draws = np.stack(draws)
    assert np.allclose(np.linalg.norm(draws, axis=1), 1.0)
    assert np.abs(draws[:, 2:]).max() < 1e-12
    sigma = np.sqrt(np.diag(np.cov(seen[:, :2].T)))
    assert (draws[:, 0] ** 2).mean() == pytest.approx(sigma[0] / sigma.sum(), abs=0.02)  # 3 standard errors


def test_covariance_direction_depends_on_seed_sae_target_and_draw_only(planted):
    bench = bench_of(planted, np.random.default_rng(1).standard_normal((30, planted.sae.d_in)))

    def draw(bench=bench, **arguments):
        recipe = Recipe.of("covariance", **{"target": 1, "draw": 0, "seed": 0} | arguments)
        return covariance_direction(recipe, bench)

    assert np.array_equal(draw(), draw())
    other_label = SiteContext("other", planted.sae, planted.model.spec, activations=bench.activations)
    for other in (draw(target=2), draw(draw=1), draw(seed=1), draw(bench=other_label)):
        assert abs(float(draw() @ other)) < 0.7


@pytest.mark.parametrize(
    ("activations", "reason"),
    [
        (np.zeros((1, 64)), "no_covariance"),
        (np.ones((5, 64)), "zero_direction"),
        (np.full((5, 64), np.nan), "non_finite_direction"),
    ],
)
def test_covariance_without_variation_is_refused(planted, activations, reason):
    with pytest.raises(Refused) as refusal:
        covariance_direction(
            Recipe.of("covariance", target=0, draw=0, seed=0), bench_of(planted, activations)
        )
    assert refusal.value.reason == reason


def test_unmatched_control_is_refused(planted):
    with pytest.raises(Refused) as refusal:
        intervention("feature").realise(Recipe.of("unmatched"), bench_of(planted))
    assert refusal.value.reason == "control_unmatched"


def test_matched_features_obey_every_rule():
    rng = np.random.default_rng(0)
    n = 400
    arrays = {
        "alignment": rng.normal(0, 0.06, n),
        "norms": rng.uniform(0.5, 2.0, n),
        "deciles": rng.integers(0, 3, n),
        "usable": rng.random(n) < 0.8,
    }
    rngs = [rng_for(0, k) for k in range(10)]
    chosen = matched_features(7, rngs=rngs, **arrays)
    assert len(set(chosen)) == 10
    assert 7 not in chosen
    fits = (
        arrays["usable"] & (np.abs(arrays["alignment"]) < 0.05) & (arrays["deciles"] == arrays["deciles"][7])
    )
    fits[7] = False
    distance = np.abs(np.log(arrays["norms"] / arrays["norms"][7]))
    # Draw k sees the 20 nearest that are left, so nobody beyond the 29 nearest can come up.
    nearest = sorted(np.flatnonzero(fits), key=lambda f: distance[f])[:29]
    assert set(chosen) <= {int(f) for f in nearest}


def test_matched_features_say_when_there_is_none():
    arrays = {
        "alignment": np.array([1.0, 0.01, 0.2, 0.0]),
        "norms": np.ones(4),
        "deciles": np.array([0, 0, 0, 1]),
        "usable": np.ones(4, dtype=bool),
    }
    assert matched_features(0, rngs=[rng_for(0, 0), rng_for(0, 1)], **arrays) == [1, None]


def test_density_deciles():
    density = np.concatenate([np.linspace(0.001, 0.1, 100), [np.nan, 0.0]])
    deciles = density_deciles(density)
    assert np.bincount(deciles[:100]).tolist() == [10] * 10
    assert (np.diff(deciles[:100]) >= 0).all()
    assert deciles[100:].tolist() == [-1, -1]
    assert len(set(density_deciles(np.full(5, 0.3)).tolist())) == 1


def test_recipes_are_plain_json():
    assert json.loads(Recipe.of("decoder", feature=12).text) == {"kind": "decoder", "feature": 12}
