"""The atlas against finite differences, brute force, and the model itself."""

import numpy as np
import pytest
import torch

from polysem import atlas
from polysem.act.base import edited_positions
from polysem.atlas import Dictionary, Sampled, effect_blocks, explained, set_responses, verify_sample
from polysem.edits import Add
from polysem.errors import ConfigError, MismatchError
from polysem.models.hf import HFModel
from polysem.readouts import log_odds
from polysem.types import Site
from polysem.worlds.tiny import TINY_FAMILIES, tiny_model

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, 64, n).tolist() for n in (6, 9)]
SETS = [[3, 7], [11], [40, 41, 42, 3], [0, 63]]
STEP, FINITE_DIFFERENCE_RTOL = 1e-3, 3e-3
"""central differences err by STEP^2; Llama and Gemma compute norms in float32 always, which leaves 1e-6 / STEP"""
VARIANTS = {family: {} for family in TINY_FAMILIES} | {
    "gpt_neox sequential": {"use_parallel_residual": False}
}


def double(family: str, **config) -> HFModel:
    model = tiny_model(family, n_layers=3, **config)
    return HFModel.from_parts(model.model.double(), model.tokenizer)


def finite_difference(model, site, positions, ids, vector):
    """d log-odds of every set along `vector` x the activation norm, by central differences in float64."""
    tokens = torch.tensor([ids])
    mask = torch.as_tensor(edited_positions(positions, len(ids)))[None]
    norm = model.capture(tokens, [site])[site][0][mask[0]].norm(dim=1).mean()
    ends = [
        model.logits(tokens, [Add(site, sign * STEP * norm * vector[None], mask)], last_only=True)[0, -1]
        for sign in (1, -1)
    ]
    return np.array([float(log_odds(ends[0], T) - log_odds(ends[1], T)) / (2 * STEP) for T in SETS])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("point", ["hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post"])
def test_responses_are_finite_differences_of_the_log_odds(variant, point):
    model, site = double(variant.split()[0], **VARIANTS[variant]), Site(1, point)
    vector = torch.from_numpy(RNG.standard_normal(16))
    vector /= vector.norm()
    for positions in ("all_but_first", "last"):
        seen = set_responses(model, site, PROMPTS, SETS, positions=positions) @ vector.numpy()
        expected = np.mean([finite_difference(model, site, positions, ids, vector) for ids in PROMPTS], 0)
        np.testing.assert_allclose(
            seen, expected, rtol=FINITE_DIFFERENCE_RTOL, atol=FINITE_DIFFERENCE_RTOL * np.abs(expected).max()
        )


def test_many_targets_share_the_jacobian_and_few_do_not_need_it():
    """16 coordinates: 4 sets are pulled back one by one, 40 through the Jacobian; the answers are the same."""
    model, site = tiny_model("llama", n_layers=3), Site(0, "hook_resid_post")
    many = [[k, (k + 5) % 64] for k in range(40)]
    whole = set_responses(model, site, PROMPTS, many)
    part = set_responses(model, site, PROMPTS, many[7:11])
    np.testing.assert_allclose(whole[7:11], part, rtol=1e-4, atol=1e-5 * np.abs(whole).max())


@pytest.fixture
def dictionary() -> Dictionary:
    rows, texts = RNG.standard_normal((600, 16)), RNG.standard_normal((600, 8))
    rows[5] = 0.0
    texts[9] = 0.0
    return Dictionary.of(rows, texts)


def test_blocks_together_are_the_whole_matrix(dictionary):
    targets = np.arange(0, 600, 2)
    gradients = RNG.standard_normal((300, 16))
    effect = gradients @ dictionary.directions.T
    blocks = list(effect_blocks(gradients, targets, dictionary))
    np.testing.assert_allclose(torch.cat([b.effect for b in blocks]).numpy(), effect, rtol=1e-4, atol=1e-5)
    counts = {"interference": 0, "similarity": 0}
    for block in blocks:
        for name, more in atlas.count_block(block)._asdict().items():
            counts[name] = counts[name] + more
    cosine = dictionary.directions[targets] @ dictionary.directions.T
    keep = np.ones_like(cosine, dtype=bool)
    keep[np.arange(300), targets] = False
    keep[:, 5] = False
    whole = torch.cat([b.effect for b in blocks]).numpy()
    expected, *_ = np.histogram2d(
        np.clip(cosine[keep], -1, 1), whole[keep], bins=[atlas.COSINE_EDGES, atlas.EFFECT_EDGES]
    )
    assert counts["interference"].sum() == keep.sum()
    # float32 and float64 may put a value on an edge into either cell
    assert np.abs(counts["interference"] - expected).sum() <= 4
    assert counts["similarity"].sum() == keep.sum() - keep[:, 9].sum()
    for block in blocks:
        top, values = atlas.largest(block, 7)
        for row, target in enumerate(targets[block.rows]):
            mine = np.abs(whole[block.rows][row])
            mine[[target, 5]] = -1
            assert set(top[row]) == set(np.argsort(-mine)[:7])
            np.testing.assert_array_equal(values[row], whole[block.rows][row][top[row]])


def test_real_pushes_at_small_kl_are_what_the_gradient_says():
    model, site = tiny_model("gpt_neox", n_layers=3), Site(1, "hook_resid_post")
    dictionary = Dictionary.of(RNG.standard_normal((40, 16)), RNG.standard_normal((40, 8)))
    pairs = [(k, (7 * k + 3) % 40) for k in range(12)]
    sets = [SETS[k % 4] for k, _ in pairs]
    options = {"sets": sets, "dictionary": dictionary}
    small = verify_sample(model, site, PROMPTS, pairs, target_kl=1e-5, **options)
    assert len(small) == len(pairs) * len(PROMPTS)
    assert all(abs(row.kl / 1e-5 - 1) <= 0.06 for row in small)
    assert explained(small, seed=0).r2 > 0.99
    large = verify_sample(model, site, PROMPTS, pairs, target_kl=0.5, **options)
    assert explained(large, seed=0).r2 < explained(small, seed=0).r2


def test_r2_is_that_of_the_formula_and_its_interval_holds_it():
    rows = [
        Sampled(k // 2, k, k % 2, 0.1, 0.01, p, p + e)
        for k, (p, e) in enumerate(zip(RNG.standard_normal(200), 0.5 * RNG.standard_normal(200), strict=True))
    ]
    m, p = np.array([r.measured for r in rows]), np.array([r.predicted for r in rows])
    fit = explained(rows, seed=1)
    assert fit.r2 == pytest.approx(1 - ((m - p) ** 2).sum() / ((m - m.mean()) ** 2).sum())
    assert fit.lo < fit.r2 < fit.hi
    assert fit.slope == pytest.approx(m @ p / (p @ p))
    assert explained(rows, seed=1) == fit
    assert np.isnan(explained(rows[:1], seed=1).r2)


def test_what_cannot_be_is_refused():
    model, site = tiny_model("gpt2"), Site(0, "hook_resid_post")
    with pytest.raises(ConfigError, match="at least one prompt"):
        set_responses(model, site, [], SETS)
    with pytest.raises(ConfigError, match="holds no token"):
        set_responses(model, site, PROMPTS, [[]])
    with pytest.raises(MismatchError, match="outside the vocabulary"):
        set_responses(model, site, PROMPTS, [[64]])
    with pytest.raises(MismatchError, match="no position among 'all_but_first'"):
        set_responses(model, site, [[1]], SETS)
    with pytest.raises(MismatchError, match="2 decoder rows but 3"):
        Dictionary.of(np.ones((2, 4)), np.ones((3, 4)))
    with pytest.raises(MismatchError, match="1 of 2 decoder rows hold NaN"):
        Dictionary.of(np.array([[1.0, np.nan], [1, 1]]), np.ones((2, 4)))
