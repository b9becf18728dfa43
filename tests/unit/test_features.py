"""The harvest against a dense store and a full sort; the feature table against the paper's rule."""

import numpy as np
import pytest
import torch

from polysem.corpus import TokenRows
from polysem.errors import FormatError, UnknownReferenceError
from polysem.features import feature_table
from polysem.features import harvest as harvest_module
from polysem.features.harvest import HarvestPlan, harvest
from polysem.saes.base import SAE, Provenance
from polysem.testing.tiny import tiny_model
from polysem.types import Site

SITE = Site.parse("blocks.0.hook_resid_post")
D_SAE = 24


def random_sae(d_in: int, *, seed: int = 0, bos: bool = True) -> SAE:
    generator = torch.Generator().manual_seed(seed)
    decoder = torch.randn(D_SAE, d_in, generator=generator)
    return SAE(
        W_enc=decoder.T.contiguous(),
        W_dec=decoder,
        b_enc=torch.full((D_SAE,), -3.0 * d_in**0.5),
        b_dec=torch.zeros(d_in),
        activation="relu",
        site=SITE,
        model_id=None,
        model_revision=None,
        provenance=Provenance("memory", "memory", "test"),
        prepend_bos=bos,
    )


def random_rows(n: int, context: int, *, vocab: int, seed: int) -> TokenRows:
    tokens = np.random.default_rng(seed).integers(1, vocab, (n, context))
    return TokenRows(tokens, tuple(f"doc:{k}" for k in range(n)))


def dense(model, sae, rows):
    tokens = torch.from_numpy(rows.tokens)
    # The same batches as the harvest: a forward pass of other shape may differ in the last bit.
    blocks = [sae.encode(model.capture(t, [SITE])[SITE]) for t in tokens.split(16)]
    return torch.cat(blocks).numpy()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("skip_first", [True, False])
def test_harvest_equals_dense_store_and_full_sort(seed, skip_first):
    model = tiny_model("gpt2", seed=seed)
    sae = random_sae(model.spec.d_model, seed=seed)
    rows = random_rows(50, 12, vocab=model.spec.d_vocab, seed=seed)
    plan = HarvestPlan(n_contexts=5, window=6, n_tokens=4)
    got = harvest(model, {"a": sae}, rows, plan=plan, skip_first=skip_first)["a"]
    acts = dense(model, sae, rows)
    first = int(skip_first)
    assert (acts[:, first:] > 0).any(), "the test needs active features"
    assert got.n_positions == 50 * (12 - first)
    for f in range(D_SAE):
        live = acts[:, first:, f]
        assert got.n_active[f] == (live > 0).sum()
        assert got.max_act[f] == max(live.max(), 0)
        by_row = sorted((-live[r].max(), r) for r in range(50) if live[r].max() > 0)[:5]
        assert [
            (-float(v), int(r))
            for v, r in zip(got.context_value[f], got.context_row[f], strict=True)
            if r >= 0
        ] == [(v, r) for v, r in by_row]
        for rank, (_, r) in enumerate(by_row):
            start = got.context_start[f, rank]
            assert first <= start <= got.context_peak[f, rank] < start + 6 <= 12
            np.testing.assert_array_equal(got.context_acts[f, rank], acts[r, start : start + 6, f])
            assert got.context_peak[f, rank] == live[r].argmax() + first
        best: dict[int, float] = {}
        for r, p in zip(*np.nonzero(live), strict=True):
            token = int(rows.tokens[r, p + first])
            best[token] = max(best.get(token, 0.0), float(live[r, p]))
        expected = sorted(best.items(), key=lambda item: (-item[1], item[0]))[:4]
        assert [
            (int(t), float(a)) for t, a in zip(got.token_id[f], got.token_act[f], strict=True) if t >= 0
        ] == expected


class Stop(Exception):
    pass


class StopsAfter:
    """A reporter whose n-th item never comes."""

    def __init__(self, n):
        self.n = n

    def track(self, items, *, total, label, done=0):
        for k, item in enumerate(items):
            if k == self.n:
                raise Stop
            yield item

    def stage(self, label):
        raise AssertionError


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_interrupted_harvest_continues_and_gives_the_same(tmp_path, monkeypatch, stop):
    monkeypatch.setattr(harvest_module, "CHECKPOINT_EVERY", 1)
    model = tiny_model("llama")
    sae = random_sae(model.spec.d_model)
    rows = random_rows(60, 10, vocab=model.spec.d_vocab, seed=1)
    arguments = {"plan": HarvestPlan(4, 5, 4), "skip_first": True}
    whole = harvest(model, {"a": sae}, rows, **arguments)["a"]
    path = tmp_path / "state.safetensors"
    with pytest.raises(Stop):
        harvest(model, {"a": sae}, rows, **arguments, checkpoint=path, reporter=StopsAfter(stop))
    calls = []
    capture = model.capture
    monkeypatch.setattr(model, "capture", lambda *a: calls.append(1) or capture(*a))
    resumed = harvest(model, {"a": sae}, rows, **arguments, checkpoint=path)["a"]
    assert len(calls) == 4 - stop
    for name, array in whole.arrays("x").items():
        np.testing.assert_array_equal(array, resumed.arrays("x")[name])


def test_damaged_or_foreign_checkpoint_is_left_and_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(harvest_module, "CHECKPOINT_EVERY", 1)
    model = tiny_model("gpt2")
    sae = random_sae(model.spec.d_model)
    rows = random_rows(40, 10, vocab=model.spec.d_vocab, seed=1)
    path = tmp_path / "state.safetensors"
    plan = HarvestPlan(4, 5, 4)
    whole = harvest(model, {"a": sae}, rows, plan=plan, skip_first=True, checkpoint=path)["a"]
    other = random_rows(40, 10, vocab=model.spec.d_vocab, seed=2)
    changed = harvest(model, {"a": sae}, other, plan=plan, skip_first=True, checkpoint=path)["a"]
    assert "another model, SAE, corpus or setting" in caplog.text
    assert not np.array_equal(whole.context_value, changed.context_value)
    path.write_bytes(path.read_bytes()[:100])
    again = harvest(model, {"a": sae}, rows, plan=plan, skip_first=True, checkpoint=path)["a"]
    assert "starts again" in caplog.text
    np.testing.assert_array_equal(whole.context_acts, again.context_acts)


@pytest.fixture
def corpus(tmp_path):
    model = tiny_model("gpt2")
    words = np.random.default_rng(0).integers(2, model.spec.d_vocab, 4000)
    path = tmp_path / "text.txt"
    path.write_text(model.detokenize(words.tolist()), encoding="utf-8")
    return path


def test_feature_table_follows_the_papers_rule(corpus):
    model = tiny_model("gpt2")
    sae = random_sae(model.spec.d_model)
    table = feature_table(sae, model, corpus=str(corpus), n_tokens=600, context=16)
    rows = table.features.to_pylist()
    assert [row["feature"] for row in rows] == list(range(D_SAE))
    alive = [row for row in rows if row["n_active"]]
    assert alive
    for row in alive:
        assert all(a >= 0.8 * row["max_act"] * (1 - 1e-6) for a in row["tokens_in_act"])
        assert row["tokens_in_act"][0] == row["max_act"]
        assert row["gloss"]
    for row in rows:
        effects = model.W_U.float().numpy() @ sae.W_dec[row["feature"]].numpy()
        assert row["tokens_out"] == np.argsort(-effects, kind="stable")[:10].tolist()
        assert row["dec_norm"] == pytest.approx(sae.W_dec[row["feature"]].norm().item(), rel=1e-6)
    vectors = table.embeddings[str(SITE)]
    lengths = np.linalg.norm(vectors, axis=1)
    assert np.allclose(lengths, [1.0 if row["gloss"] else 0.0 for row in rows], atol=1e-5)


def test_file_glosses_are_primary_and_made_ones_are_kept(corpus, tmp_path):
    model = tiny_model("gpt2")
    sae = random_sae(model.spec.d_model)
    path = tmp_path / "glosses.jsonl"
    path.write_text(
        '{"feature": 3, "description": "ships at sea"}\n{"feature": 5, "description": "colours"}\n'
    )
    table = feature_table(sae, model, corpus=str(corpus), n_tokens=600, context=16, glosses=f"file:{path}")
    row = table.features.to_pylist()[3]
    assert row["gloss"] == "ships at sea"
    texts = [g for g in table.glosses.to_pylist() if g["feature"] == 3]
    assert texts[0]["text"] == "ships at sea"
    assert len(texts) == row["n_glosses"]


def test_corpus_errors_name_the_file(tmp_path):
    model = tiny_model("gpt2")
    sae = random_sae(model.spec.d_model)
    with pytest.raises(UnknownReferenceError, match="nowhere"):
        feature_table(sae, model, corpus=str(tmp_path / "nowhere.txt"))
    short = tmp_path / "short.txt"
    short.write_text("a b")
    with pytest.raises(FormatError, match="not one row"):
        feature_table(sae, model, corpus=str(short))
    latin = tmp_path / "latin.txt"
    latin.write_bytes("caf\xe9 ".encode("latin-1") * 50)
    with pytest.raises(FormatError, match="not UTF-8"):
        feature_table(sae, model, corpus=str(latin))
