"""Side effects against closed forms, brute force on tiny models, and planted truth."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats

from polysem.atlas import Responder, set_responses
from polysem.edits import Add
from polysem.errors import ConfigError, FormatError, MismatchError, SiteError
from polysem.models.hf import HFModel
from polysem.positions import positions_of
from polysem.readouts import kl, log_odds, share_of_shift
from polysem.selftest.side_effects import planted_world
from polysem.side_effects.directions import (
    Direction,
    difference_of_means,
    difference_of_models,
    read_direction,
    write_direction,
)
from polysem.side_effects.linear import against, linear_effects, own_sets, participation, stability
from polysem.side_effects.measures import Evidence, jackknife, measure_rows, moved_rows, rank_p
from polysem.side_effects.push import Readout, Sets, push
from polysem.side_effects.repair import least_collateral, protected_sets, repair_rows, second_moment
from polysem.types import Site
from polysem.worlds.linear import LinearWorld
from polysem.worlds.tables import plain_sae
from polysem.worlds.tiny import TINY_FAMILIES, tiny_model

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(2, 48, n).tolist() for n in (6, 9, 7, 8, 5, 10)]
SETS = [[3, 7], [11], [40, 41, 42, 3], [5, 30]]
SITE = Site(1, "hook_resid_post")


def double(family: str, n_layers: int = 3) -> HFModel:
    model = tiny_model(family, n_layers=n_layers)
    return HFModel.from_parts(model.model.double(), model.tokenizer)


def some_directions(n: int, width: int = 16) -> list[Direction]:
    draws = np.random.default_rng(7).standard_normal((n, width))
    return [Direction(f"d{k}", "file", SITE, v, tuple(SETS[k % 4])) for k, v in enumerate(draws)]


def last(model, ids, vector):
    """Last-position logits with a vector added at all positions but the first: the plain forward pass."""
    mask = torch.ones(1, len(ids), dtype=torch.bool)
    mask[:, 0] = False
    edit = Add(SITE, torch.as_tensor(vector)[None], mask)
    return model.logits(torch.tensor([ids]), [edit], last_only=True)[0, -1].double()


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_response_holds_gradients_costs_and_changes_of_logits(family):
    model, ids = double(family), PROMPTS[1]
    made = Responder(model, SITE, SETS)(ids)
    expected = set_responses(model, SITE, [ids], SETS) / made.norm
    np.testing.assert_allclose(made.gradients, expected, rtol=1e-5, atol=1e-6)
    step, v, w = 1e-3, *np.random.default_rng(3).standard_normal((2, 16))
    base = last(model, ids, 0 * v)
    spent = np.mean([float(kl(base, last(model, ids, sign * step * v))) for sign in (1, -1)])
    # families that compute norms in float32 leave rounding of 1e-7 in the logits
    assert v @ made.fisher @ v / 2 == pytest.approx(spent / step**2, rel=2e-2)
    if family != "gemma2":  # whose soft-cap is left out of the change of logits
        centred = [(last(model, ids, step * x) - last(model, ids, -step * x)) / (2 * step) for x in (v, w)]
        centred = [z - z.mean() for z in centred]
        product = (made.logits @ v) @ (made.logits @ w)
        assert product == pytest.approx(float(centred[0] @ centred[1]), rel=5e-3, abs=1e-2)


def test_pushes_are_what_the_plain_forward_pass_gives():
    model = double("gpt2")
    sae = plain_sae(RNG.standard_normal((24, 16)), site=Site(2, "hook_resid_post"))
    directions = some_directions(3)
    seen = push(
        model, PROMPTS[:3], directions, sets=SETS, dose=1e-5, readout=Readout("later", sae, threshold=0.1)
    )
    assert seen.reached.all()
    np.testing.assert_allclose(seen.kl, 1e-5, rtol=0.03)
    for k, d in enumerate(directions):
        for x, ids in enumerate(PROMPTS[:3]):
            base = last(model, ids, 0 * d.vector)
            # each way is brought to its KL within 2 %, so lengths are within 1 % of their mean
            ends = [last(model, ids, sign * seen.length[k, x] * d.unit) for sign in (1, -1)]
            odd = [(float(log_odds(ends[0], s)) - float(log_odds(ends[1], s))) / 2 for s in SETS]
            np.testing.assert_allclose(seen.sets[k, x], odd, rtol=0.02, atol=1e-6)
            change = (ends[0] - ends[1]) / 2
            change = change - change.mean()
            assert seen.products[k, x, x] == pytest.approx(float(change @ change), rel=0.04)
            odds = [torch.tensor([[float(log_odds(z, s)) for s in SETS]]) for z in ends]
            before = torch.tensor([float(log_odds(base, s)) for s in SETS])
            spent = [torch.tensor([float(kl(base, z))]) for z in ends]
            share = [share_of_shift(before, o, c)[0] for o, c in zip(odds, spent, strict=True)]
            np.testing.assert_allclose(seen.rho[k, x], (share[0] - share[1]) / 2, rtol=0.02, atol=1e-3)
            edit = Add(
                SITE,
                torch.as_tensor(seen.length[k, x] * d.unit)[None],
                torch.tensor([[False] + [True] * (len(ids) - 1)]),
            )
            tokens = torch.tensor([ids])
            after, clean = (
                model.capture(tokens, [sae.reads], edits)[sae.reads][0, -1] for edits in ([edit], [])
            )
            moved = (sae.encode(after) - sae.encode(clean)) * sae.W_dec.norm(dim=1)
            np.testing.assert_allclose(
                seen.latents[k, x], moved, rtol=0.02, atol=0.02 * float(moved.abs().max())
            )
            back = sae.decode(sae.encode(after)) - sae.decode(sae.encode(clean))
            missed = float((after - clean - back).square().sum())
            assert seen.missed[k, x] == pytest.approx(missed, rel=0.04)
            assert seen.moved[k, x] == pytest.approx(float((after - clean).square().sum()), rel=0.04)


def test_small_pushes_are_what_the_gradients_say():
    model, directions = double("llama"), some_directions(12)
    sets = [list(s) for s in SETS]
    own = own_sets([d.tokens for d in directions], sets)
    respond = Responder(model, SITE, sets)
    told = linear_effects(
        np.stack([d.unit for d in directions]), [respond(ids) for ids in PROMPTS], dose=1e-4
    )
    seen = push(model, PROMPTS, directions, sets=sets, dose=1e-4)
    measured = Evidence(seen, own, len(sets))
    every = np.arange(len(PROMPTS))
    effect = seen.sets.mean(1)
    assert 1 - ((effect - told.effect) ** 2).sum() / ((effect - effect.mean()) ** 2).sum() > 0.99
    for k in range(12):
        assert measured.value("stability", k, every) == pytest.approx(told.stability[k], abs=0.02)
        assert measured.value("reach_sets", k, every) == pytest.approx(told.ratio[k], rel=0.05)
        assert measured.value("strength", k, every) == pytest.approx(told.strength[k], rel=0.05)
        assert measured.value("cleanliness", k, every) == pytest.approx(told.cleanliness(own)[k], abs=0.05)


def test_a_coefficient_adds_the_vector_that_many_times():
    model, directions = double("gpt2"), some_directions(2)
    seen = push(model, PROMPTS[:2], directions, sets=SETS, dose=0.3, unit="coefficient")
    for k, d in enumerate(directions):
        np.testing.assert_allclose(seen.length[k], 0.3 * d.norm)
        for x, ids in enumerate(PROMPTS[:2]):
            ends = [last(model, ids, sign * 0.3 * d.vector) for sign in (1, -1)]
            odd = [(float(log_odds(ends[0], s)) - float(log_odds(ends[1], s))) / 2 for s in SETS]
            np.testing.assert_allclose(seen.sets[k, x], odd, rtol=1e-4, atol=1e-6)
            spent = np.mean([float(kl(last(model, ids, 0 * d.vector), z)) for z in ends])
            assert seen.kl[k, x] == pytest.approx(spent, rel=1e-4)


def test_pushes_that_cannot_be_are_refused():
    model, d = double("gpt2"), some_directions(1)[0]
    sae = plain_sae(np.eye(16), site=Site(0, "hook_resid_post"))
    with pytest.raises(SiteError, match="before"):
        push(model, PROMPTS[:1], [d], sets=SETS, dose=0.1, readout=Readout("early", sae, 1.0))
    other = Direction("e", "file", Site(0, "hook_resid_post"), d.vector)
    with pytest.raises(MismatchError, match="one site"):
        push(model, PROMPTS[:1], [d, other], sets=SETS, dose=0.1)
    with pytest.raises(MismatchError, match="16 coordinates"):
        push(model, PROMPTS[:1], [Direction("f", "file", SITE, np.ones(5))], sets=SETS, dose=0.1)
    for vector in (np.zeros(16), np.full(16, np.nan)):
        with pytest.raises(MismatchError, match="finite"):
            Direction("bad", "file", SITE, vector)


def test_a_dose_that_is_not_reached_leaves_no_number():
    """A direction that LayerNorm takes out again moves nothing, at any length."""
    model = double("gpt2", n_layers=2)
    flat = Direction("flat", "file", Site(1, "hook_resid_post"), np.ones(16), (3,))
    seen = push(model, PROMPTS[:2], [flat], sets=SETS, dose=0.1)
    assert not seen.reached.any()
    assert np.isnan(seen.sets).all()
    measured = Evidence(seen, np.array([0]), 4)
    none = measured.good(0, np.ones(2, dtype=bool))
    assert len(none) == 0
    assert np.isnan(jackknife(lambda some: measured.value("on_target", 0, some), none).value)


def test_log_odds_of_sets_of_any_size():
    logits = torch.from_numpy(RNG.standard_normal((3, 50)))
    seen = Sets([*SETS, list(range(30))], 50).log_odds(logits)
    for k, ids in enumerate([*SETS, list(range(30))]):
        np.testing.assert_allclose(seen[:, k], [float(log_odds(z, ids)) for z in logits], rtol=1e-12)


# files


def test_directions_come_back_from_the_files_that_tools_read(tmp_path):
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    vector = RNG.standard_normal(16).astype(np.float32)
    d = Direction("d", "repaired", Site(3, "hook_resid_post"), vector.astype(np.float64))
    written = write_direction(tmp_path, "d", d, model_type="llama")
    assert set(written) == {"d.safetensors", "d.gguf"}
    for name in written:
        site, found = read_direction(tmp_path / name)
        assert site == d.site
        np.testing.assert_array_equal(found, vector)
    reader = gguf.GGUFReader(tmp_path / "d.gguf")
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "llama"
    assert [t.name for t in reader.tensors] == ["direction.3"]
    first = Direction("e", "repaired", Site(0, "hook_resid_post"), vector.astype(np.float64))
    assert set(write_direction(tmp_path, "e", first, model_type="llama")) == {"e.safetensors"}


def test_a_control_vector_that_the_gguf_package_writes_is_read(tmp_path):
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    rows = {k: RNG.standard_normal(16).astype(np.float32) for k in (1, 2)}
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "mistral")
    writer.add_uint32("controlvector.layer_count", 2)
    for layer, row in rows.items():
        writer.add_tensor(f"direction.{layer}", row)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    site, found = read_direction(tmp_path / "v.gguf", site=Site(2, "hook_resid_post"))
    assert str(site) == "blocks.2.hook_resid_post"
    np.testing.assert_array_equal(found, rows[2])
    with pytest.raises(ConfigError, match=r"blocks\.1.*, blocks\.2.*; no site"):
        read_direction(tmp_path / "v.gguf")


def test_vectors_of_torch_and_numpy(tmp_path):
    vector = torch.from_numpy(RNG.standard_normal(16))
    np.save(tmp_path / "v.npy", vector.numpy())
    torch.save(vector, tmp_path / "alone.pt")
    torch.save({"layer_activations": {4: vector}, "layer_type": "decoder_block"}, tmp_path / "by_layer.pt")
    save_file({"layers.7": vector}, tmp_path / "named.safetensors")
    for name, where in (("v.npy", None), ("alone.pt", None), ("by_layer.pt", 4), ("named.safetensors", 7)):
        site, found = read_direction(tmp_path / name)
        assert (site and site.layer) == where
        np.testing.assert_array_equal(found, vector.numpy())


def test_what_is_no_vector_is_refused(tmp_path):
    class Code:
        def __reduce__(self):
            return print, ("ran",)

    torch.save({"v": Code()}, tmp_path / "code.pt")
    (tmp_path / "code.npy").write_bytes(pickle.dumps(Code()))
    np.save(tmp_path / "objects.npy", np.array([Code()], dtype=object), allow_pickle=True)
    np.save(tmp_path / "matrix.npy", np.eye(3))
    np.save(tmp_path / "whole.npy", np.arange(4))
    (tmp_path / "v.txt").write_text("1 2 3")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\x00\x00")
    save_file({"a": torch.ones(2, 3)}, tmp_path / "wide.safetensors")
    (tmp_path / "no.gguf").write_bytes(b"GGUF" + bytes(60))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(FormatError, match=path.name):
            read_direction(path)


def test_a_difference_of_means_counts_every_text_once():
    model = double("gpt2")
    sides = [
        ["the man said", "the sea is so cold and the road is long"],
        ["the king had been", "she was here"],
    ]
    positions = positions_of(model, True)
    found = difference_of_means(model, *sides, site=SITE, positions=positions)
    means = []
    for texts in sides:
        each = []
        for text in texts:
            ids = torch.tensor([positions.row(model.tokenize(text, prepend_bos=False))])
            rows = model.capture(ids, [SITE])[SITE][0].double().numpy()[1:]
            each.append(rows[positions.ordinary(np.linalg.norm(rows, axis=1))].mean(0))
        means.append(np.mean(each, axis=0))
    np.testing.assert_allclose(found, means[0] - means[1], rtol=1e-10)
    with pytest.raises(ConfigError, match="1 texts of less"):
        difference_of_means(model, sides[0], ["one"], site=SITE, positions=positions)


def test_a_difference_of_models_is_what_the_other_has_more():
    model, other = double("gpt2"), double("gpt2")
    with torch.no_grad():
        other.model.get_submodule("transformer.h.0.mlp.c_proj").bias += 0.1
    positions = positions_of(model, True)
    found = difference_of_models(model, other, PROMPTS[:3], site=SITE, positions=positions)
    each = []
    for ids in PROMPTS[:3]:
        rows = [m.capture(torch.tensor([ids]), [SITE])[SITE][0].double().numpy()[1:] for m in (other, model)]
        each.append(np.subtract(*(r[positions.ordinary(np.linalg.norm(r, axis=1))].mean(0) for r in rows)))
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-10)
    first = Site(0, "hook_resid_post")  # where the bias is added, and nothing else
    np.testing.assert_allclose(
        difference_of_models(model, other, PROMPTS[:3], site=first, positions=positions), 0.1, rtol=1e-6
    )
    wide = LinearWorld(torch.eye(48), torch.eye(48))
    with pytest.raises((MismatchError, SiteError)):
        difference_of_models(model, wide, PROMPTS[:1], site=SITE, positions=positions)


# numbers


def test_statistics_of_changes_in_closed_form():
    assert participation(np.array([1.0, 1, 1, 0])) == 3
    assert participation(np.array([5.0, 0, 0])) == 1
    assert np.isnan(participation(np.zeros(3)))
    same = np.ones((1, 2, 2))
    assert stability(same) == pytest.approx([1.0])
    vectors = np.array([[1.0, 0], [1, 0], [-0.5, 0]])
    products = vectors @ vectors.T
    assert float(stability(products)) == pytest.approx(1 / 3)  # two along the mean, one against it
    assert against(products) == pytest.approx(1 / 3)
    apart = np.eye(4)  # orthogonal changes: cosine 1/2 with their mean, and none points away from the others
    assert float(stability(apart)) == pytest.approx(0.5)
    assert against(apart) == 0


def test_the_jackknife_of_a_mean_is_the_t_interval():
    x = RNG.standard_normal(9)
    found = jackknife(lambda some: float(x[some].mean()), np.arange(9))
    lo, hi = stats.t.interval(0.95, 8, x.mean(), stats.sem(x))
    np.testing.assert_allclose([found.lo, found.hi], [lo, hi])
    assert np.isnan(jackknife(lambda some: 1.0, np.arange(2)).lo)


def test_a_rank_p_holds_its_level():
    rng = np.random.default_rng(1)
    p = np.array([rank_p(x, rng.standard_normal(39)) for x in rng.standard_normal(4000)])
    assert 0.04 < (p <= 0.05).mean() < 0.06
    assert rank_p(10.0, np.zeros(39)) == 0.05
    assert np.isnan(rank_p(1.0, np.empty(0)))


def pushed_rows(n: int, prompts: int, *, seed: int = 0):
    model = double("gpt2")
    draws = np.random.default_rng(seed).standard_normal((n, 16))
    directions = [Direction(f"i{k}", "isotropic", SITE, v) for k, v in enumerate(draws)]
    return push(model, PROMPTS[:prompts], directions, sets=SETS, dose=0.02)


def test_what_moved_is_chosen_on_one_half_and_reported_on_the_other():
    seen = Evidence(pushed_rows(2, 6), np.array([0, 1]), 4)
    null = Evidence(pushed_rows(5, 6, seed=1), np.full(5, -1), 4)
    select = np.array([True, True, True, False, False, False])
    kinds = {"tokens": list("abcd"), "category": [], "feature": []}
    rows = list(moved_rows(seen, null, ["x", "y"], kinds, select=select, confirm=~select))
    for k, name in enumerate(("x", "y")):
        mine = [row for row in rows if row["direction"] == name]
        order = np.argsort(-np.abs(seen.pushed.sets[k, select].mean(0)))
        assert [row["place"] for row in mine] == order.tolist()
        for row in mine:
            values = seen.pushed.sets[k, ~select, row["place"]]
            assert row["value"] == pytest.approx(values.mean())
            limit = np.quantile(np.abs(null.pushed.sets[:, ~select, row["place"]].mean(1)), 0.95)
            assert row["null_hi"] == pytest.approx(limit)
    table = {(r["direction"], r["measure"]): r for r in measure_rows(seen, null, ["x", "y"], confirm=~select)}
    assert table["x", "on_target"]["value"] == pytest.approx(seen.pushed.sets[0, ~select, 0].mean())
    others = np.median(null.pushed.sets[:, ~select, 1].mean(1))
    assert table["y", "on_target"]["null"] == pytest.approx(others)
    assert np.isnan(table["y", "reach_features"]["value"])  # there is no readout


def test_what_it_costs_where_the_concept_is_absent_is_of_one_length_and_of_those_prompts():
    model, directions = double("gpt2"), some_directions(2)
    seen = push(model, PROMPTS[:4], directions, sets=SETS, dose=0.02)
    for k, d in enumerate(directions):
        for x, ids in enumerate(PROMPTS[:4]):
            edit = Add(
                SITE,
                torch.as_tensor(seen.length[k].mean() * d.unit)[None],
                torch.tensor([[False] + [True] * (len(ids) - 1)]),
            )
            before, after = (model.logits(torch.tensor([ids]), e)[0].double() for e in ([], [edit]))
            assert seen.cost[k, x] == pytest.approx(float(kl(before[-1], after[-1])), rel=1e-4)
            loss = [
                float(torch.nn.functional.cross_entropy(z[:-1], torch.tensor(ids[1:])))
                for z in (before, after)
            ]
            assert seen.cost_text[k, x] == pytest.approx(loss[1] - loss[0], rel=1e-4, abs=1e-7)
    absent = np.array([[True, False, True, True], [False] * 4])
    measured = Evidence(seen, np.array([0, 1]), 4, absent=absent)
    null = Evidence(push(model, PROMPTS[:4], some_directions(3)[2:], sets=SETS, dose=0.02), np.array([-1]), 4)
    confirm = np.array([False, True, True, True])
    rows = {
        (r["direction"], r["measure"]): r for r in measure_rows(measured, null, ["x", "y"], confirm=confirm)
    }
    row = rows["x", "cost_absent"]
    assert (row["value"], row["n_prompts"]) == (pytest.approx(seen.cost[0, 2:].mean()), 2)
    assert row["null"] == pytest.approx(null.pushed.cost[0, 2:].mean())  # on the same prompts
    assert rows["x", "text"]["n_prompts"] == 3
    assert np.isnan(rows["y", "cost_absent"]["value"])


def test_a_concept_is_absent_where_its_feature_does_not_fire_or_its_tokens_are_not():
    scene = planted_world(causal=True, seed=2).scene
    tokens = tuple(scene.prompts[0][1:3])
    directions = [*scene.features([0, 7]), Direction("t", "file", SITE, np.ones(160), tokens)]
    found = scene.absent(directions)
    for x, ids in enumerate(scene.prompts):
        site = scene.dictionary.reads
        codes = scene.dictionary.encode(scene.model.capture(torch.tensor([ids]), [site])[site][0, 1:].cpu())
        for k, d in enumerate(directions[:2]):
            assert found[k, x] == (not bool((codes[:, d.feature] > 0).any()))
        assert found[2, x] == set(tokens).isdisjoint(ids)
    assert found[:2].any()
    assert not found[:2].all()
    assert not found[2, 0]


# repair


def test_no_other_direction_with_the_same_effect_costs_less():
    rng = np.random.default_rng(2)
    vector, target = rng.standard_normal((2, 12))
    protected, moment = rng.standard_normal((30, 12)), second_moment(rng.standard_normal((40, 12)))
    found = least_collateral(vector, target, protected, moment, weight=3.0)
    assert target @ found == pytest.approx(target @ vector)
    scaled = [m * 12 / np.trace(m) for m in (moment, protected.T @ protected)]

    def cost(v):
        return v @ scaled[0] @ v + 3.0 * v @ scaled[1] @ v + 1e-2 * v @ v

    for _ in range(200):
        step = rng.standard_normal(12)
        step -= target * (target @ step) / (target @ target)  # keeps the effect
        assert cost(found + 0.1 * step) > cost(found)
    strict = least_collateral(vector, target, protected[:3], moment, weight=1e9)
    assert np.abs(protected[:3] @ strict).max() < 1e-4 * np.abs(protected[:3] @ vector).max()
    with pytest.raises(ConfigError, match="nothing to keep"):
        least_collateral(vector - target * (target @ vector) / (target @ target), target, protected, moment)


def test_protected_sets_share_no_token_with_the_target():
    effect = np.array([1.0, -5.0, 3.0, -2.0])
    assert protected_sets(effect, 0, SETS) == [1, 3]  # set 2 holds token 3 of the target
    assert protected_sets(effect, 0, SETS, n=1) == [1]


def test_a_repair_is_compared_prompt_by_prompt():
    before, after = (Evidence(pushed_rows(1, 6, seed=k), np.array([0]), 4) for k in (3, 4))
    confirm = np.array([False, False, True, True, True, True])
    rows = {
        row["measure"]: row
        for row in repair_rows("x", before, after, 0, protected=[1, 3], cosine=0.5, confirm=confirm)
    }
    change = (after.pushed.sets - before.pushed.sets)[0, confirm, 0]
    lo, hi = stats.t.interval(0.95, 3, change.mean(), stats.sem(change))
    np.testing.assert_allclose(
        [rows["on_target"][k] for k in ("difference", "lo", "hi")], [change.mean(), lo, hi]
    )
    root = np.sqrt((before.pushed.sets[0, confirm][:, [1, 3]] ** 2).mean())
    assert rows["protected"]["before"] == pytest.approx(root)


# forecast


# tables of others
