"""The harvest against dense activations of a real (tiny) model; the feature table against the paper's rules."""

import gzip
import json
import logging
import re
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from polysem.config import CorpusConfig, Study, parse_study
from polysem.corpus import TokenRows, token_rows
from polysem.edits import Add
from polysem.errors import ConfigError, FormatError, NumericsError, UnknownReferenceError
from polysem.features import build_features, feature_table
from polysem.features.best import HarvestPlan
from polysem.features.encoder import ActiveEncoder
from polysem.features.harvest import harvest
from polysem.features.tokens_out import N_TEXTS, N_TOKENS, SHARE, caused_effects
from polysem.positions import positions_of
from polysem.saes.base import SAE, Provenance
from polysem.store.tables import CONTEXTS, FEATURES
from polysem.types import Site
from polysem.worlds.tiny import tiny_model

SITE = Site.parse("blocks.0.hook_resid_post")
D_SAE = 24
DEAD = 7


def random_sae(d_in: int, *, seed: int = 0, bos: bool = True, site: Site = SITE, **more) -> SAE:
    """A ReLU SAE whose feature `DEAD` never fires."""
    generator = torch.Generator().manual_seed(seed)
    decoder = torch.randn(D_SAE, d_in, generator=generator)
    bias = torch.full((D_SAE,), -3.0 * d_in**0.5)
    bias[DEAD] = -1e6
    sae = SAE(
        W_enc=decoder.T.contiguous(),
        W_dec=decoder,
        b_enc=bias,
        b_dec=torch.zeros(d_in),
        activation="relu",
        reads=site,
        writes=site,
        model_id=None,
        model_revision=None,
        provenance=Provenance("memory", "memory", "test"),
        prepend_bos=bos,
    )
    return replace(sae, **more)


def random_rows(n: int, context: int, *, vocab: int, seed: int, n_special: int = 1) -> TokenRows:
    tokens = np.random.default_rng(seed).integers(1, vocab, (n, context)).astype(np.int32)
    return TokenRows(tokens, ("doc",), np.zeros(1, np.int64), n_special)


def dense(model, sae, rows):
    """Activations of all features everywhere, from float64 weights, rounded to float32."""
    wide = replace(
        sae, **{name: getattr(sae, name).double() for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    )
    tokens = torch.from_numpy(rows.tokens.astype(np.int64))
    # The same batches as the harvest: a forward pass of other shape may differ in the last bit.
    blocks = [wide.encode(model.capture(t, [sae.site])[sae.site]) for t in tokens.split(16)]
    return torch.cat(blocks).float().numpy()


@pytest.mark.parametrize("n_special", [0, 1])
@pytest.mark.parametrize(
    ("family", "rule"),
    [("gpt2", {}), ("gemma2", {"activation": "topk", "k": 3, "b_enc": torch.zeros(D_SAE)})],
)
def test_harvest_equals_dense_activations(family, rule, n_special):
    model = tiny_model(family)
    saes = {
        "a": random_sae(model.spec.d_model, **rule),
        "b": random_sae(model.spec.d_model, seed=1, site=Site.parse("blocks.1.hook_mlp_out")),
    }
    rows = random_rows(50, 12, vocab=60, seed=0, n_special=n_special)
    states = harvest(model, saes, rows, plan=HarvestPlan(n_contexts=5, window=6, n_tokens=4))
    for label, sae in saes.items():
        got, acts = states[label], dense(model, sae, rows)
        live = acts[:, 1:]  # the first position is a sink, BOS or not
        assert (live > 0).any(), "the test needs active features"
        assert got.n_active.tolist() == (live > 0).sum((0, 1)).tolist()
        assert got.max_act.tolist() == live.max((0, 1)).clip(0).tolist()
        by_row = np.sort(live.max(1), axis=0)[::-1][:5].T
        np.testing.assert_array_equal(np.where(by_row > 0, by_row, -np.inf), got.context_value)
        for f, rank in zip(*np.nonzero(got.context_row >= 0), strict=True):
            row, start = got.context_row[f, rank], got.context_start[f, rank]
            np.testing.assert_array_equal(got.context_acts[f, rank], acts[row, start : start + 6, f])
        for f, rank in zip(*np.nonzero(got.token_id >= 0), strict=True):
            where = rows.tokens[:, 1:] == got.token_id[f, rank]
            assert got.token_act[f, rank] == live[..., f][where].max()


def test_one_forward_pass_serves_all_saes(monkeypatch):
    model = tiny_model("gpt2")
    saes = {str(n): random_sae(model.spec.d_model, seed=n) for n in range(3)}
    saes["c"] = random_sae(model.spec.d_model, site=Site.parse("blocks.0.hook_mlp_out"))
    calls = []
    capture = model.capture
    monkeypatch.setattr(model, "capture", lambda *a: calls.append(a[1]) or capture(*a))
    harvest(model, saes, random_rows(40, 10, vocab=60, seed=0), plan=HarvestPlan(2, 4, 2))
    assert calls == [[Site.parse("blocks.0.hook_mlp_out"), SITE]] * 3


def test_blocks_of_rows_bound_memory_and_change_nothing(monkeypatch):
    model = tiny_model("gpt2")
    sae = random_sae(model.spec.d_model)
    rows = random_rows(30, 10, vocab=60, seed=0)
    plan = HarvestPlan(3, 4, 3)
    whole = harvest(model, {"a": sae}, rows, plan=plan)["a"]
    monkeypatch.setattr("polysem.features.harvest.ENCODED_AT_ONCE", 10 * D_SAE * 5)
    places = []
    encode = ActiveEncoder.__call__
    monkeypatch.setattr(ActiveEncoder, "__call__", lambda self, x: places.append(len(x)) or encode(self, x))
    blocks = harvest(model, {"a": sae}, rows, plan=plan)["a"]
    assert max(places) == 5 * 9
    assert sum(places) == 30 * 9
    for name, values in whole.arrays().items():
        np.testing.assert_array_equal(values, blocks.arrays()[name], err_msg=name)


def test_activations_that_are_not_finite_stop_the_harvest():
    model = tiny_model("gpt2")
    sae = random_sae(model.spec.d_model)
    bias = sae.b_enc.clone()
    bias[3] = float("nan")
    with pytest.raises(NumericsError, match=r"SAE a at blocks\.0\.hook_resid_post .* rows 0 to 3"):
        harvest(
            model,
            {"a": replace(sae, b_enc=bias)},
            random_rows(4, 10, vocab=60, seed=0),
            plan=HarvestPlan(2, 4, 2),
        )


@pytest.fixture
def corpus(tmp_path):
    model = tiny_model("gpt2")
    words = np.random.default_rng(0).integers(2, 60, 4000)
    path = tmp_path / "text.txt"
    text = model.detokenize(words.tolist())
    path.write_text("\n\n".join(text[k : k + 150] for k in range(0, len(text), 150)), encoding="utf-8")
    return path


def test_features_follow_the_papers_rules(corpus):
    model = tiny_model("gpt2")
    sae = random_sae(model.spec.d_model)
    table = feature_table(sae, model, corpus=str(corpus), n_tokens=600, context=16, label="a")
    rows = table.features.to_pylist()
    assert [row["feature"] for row in rows] == list(range(D_SAE))
    text = token_rows(str(corpus), model, n_tokens=600, context=16, positions=positions_of(model, True))
    acts = dense(model, sae, text)[:, 1:]
    alive = [row for row in rows if row["n_active"]]
    assert len(alive) > 5
    for row in rows:
        f = row["feature"]
        assert row["density"] == (acts[..., f] > 0).mean()
        assert row["max_act"] == max(acts[..., f].max(), 0)
        best = {}
        for token, value in zip(text.tokens[:, 1:].reshape(-1), acts[..., f].reshape(-1), strict=True):
            best[int(token)] = max(best.get(int(token), 0), value)
        kept = [(t, v) for t, v in best.items() if v > 0 and v >= np.float32(0.8) * row["max_act"]]
        kept = sorted(kept, key=lambda item: (-item[1], item[0]))[:10]
        assert row["tokens_in"] == [t for t, _ in kept]
        assert row["tokens_in_act"] == [v for _, v in kept]
        assert row["tokens_in_str"] == model.token_strings(row["tokens_in"])


def test_features_tell_what_the_decoder_rows_write(corpus):
    model = tiny_model("gpt2")
    sae = random_sae(model.spec.d_model)
    decoder = sae.W_dec.clone()
    decoder[2] = -decoder[2].abs()
    decoder[2, 5] = 0.25
    decoder[4] = 0
    sae = replace(sae, W_dec=decoder)
    rows = feature_table(sae, model, corpus=str(corpus), n_tokens=200, context=16).features.to_pylist()
    assert rows[2]["neuron_alignment"] == [5]
    assert rows[2]["neuron_alignment_values"] == [0.25]
    assert rows[4]["neuron_alignment"] == []
    assert rows[4]["tokens_out_logit"] == [0] * 10
    for row, d in zip(rows, decoder.double().numpy(), strict=True):
        positive = [n for n in np.argsort(-d)[:3] if d[n] > 0]
        assert row["neuron_alignment"] == positive
        assert row["dec_norm"] == pytest.approx(np.linalg.norm(d), rel=1e-6)
        if row["feature"] != 4:
            effects = model.W_U.double().numpy() @ (d / np.linalg.norm(d))
            assert row["tokens_out"] == np.argsort(-effects, kind="stable")[:10].tolist()
            assert row["tokens_out_logit"] == pytest.approx(np.sort(effects)[::-1][:10], rel=1e-4, abs=1e-6)
            assert row["tokens_out_str"] == model.token_strings(row["tokens_out"])
            assert row["tokens_bottom_str"] == model.token_strings(
                np.argsort(effects, kind="stable")[:10].tolist()
            )


def test_sites_outside_the_residual_basis_have_no_direct_effect(corpus):
    model = tiny_model("gpt2")
    site = Site.parse("blocks.0.attn.hook_z")
    sae = random_sae(model.site_width(site), site=site, b_enc=torch.zeros(D_SAE))
    rows = feature_table(sae, model, corpus=str(corpus), n_tokens=200, context=16).features.to_pylist()
    assert all(row["tokens_out"] == row["tokens_bottom_str"] == [] for row in rows)
    assert any(row["n_active"] for row in rows)


def test_tokens_out_by_effect_are_those_that_steering_raises(corpus, tmp_path):
    """Against the model steered by hooks, text by text; W_U d chooses others."""
    model = tiny_model("gpt2")
    sae = random_sae(model.spec.d_model)
    rows = token_rows(str(corpus), model, n_tokens=600, context=40, positions=positions_of(model, sae))
    ids, values = caused_effects(sae, model, rows, 5)
    texts = torch.as_tensor(
        rows.tokens[np.unique(np.linspace(0, len(rows.tokens) - 1, N_TEXTS).astype(int)), :N_TOKENS]
    )
    d, rise = torch.nn.functional.normalize(sae.W_dec[3], dim=0), 0
    for text in texts.long():
        norms = model.capture(text[None], [SITE])[SITE][0, 1:].norm(dim=-1)
        assert norms.max() < 3 * norms.median(), "no massive token, which the mean would leave out"
        length = SHARE * norms.mean()
        pushed = torch.arange(len(text)) > 0
        ends = [
            model.logits(text[None], [Add(SITE, sign * length * d[None], pushed[None])])[0, -1]
            .double()
            .log_softmax(-1)
            for sign in (1, -1)
        ]
        rise = rise + (ends[0] - ends[1]) / (2 * length * len(texts))
    assert ids[3].tolist() == torch.argsort(-rise, stable=True)[:5].tolist()
    np.testing.assert_allclose(values[3], rise[ids[3].tolist()].numpy(), rtol=1e-3)
    config = CorpusConfig(ref=str(corpus), n_tokens=600, context=40)
    told = _build_one(sae, model, config, tmp_path / "effect", tokens_out="effect")
    plain = _build_one(sae, model, config, tmp_path / "decoder")
    assert told["tokens_out"][3][:5] == ids[3].tolist()
    assert told["tokens_out"] != plain["tokens_out"]
    assert told["tokens_bottom_str"] == plain["tokens_bottom_str"]


def _build_one(sae, model, corpus, folder, **features):
    study = Study.model_validate(
        {
            **{"name": "x", "model": {"ref": "zoo:gpt2"}, "saes": [{"ref": "zoo:x"}]},
            **{"corpus": corpus.model_dump(), "features": features},
        }
    )
    made = build_features(study, model, {"a": sae}, workdir=folder)
    return made.features.to_pydict()


@pytest.mark.parametrize(
    ("features", "controls", "said"),
    [
        ({"source": "zoo"}, ["random_feature"], 'set source = "harvest"'),
        ({}, ["frozen_decoder"], "frozen_decoder, whose T_out is chosen through the unembedding"),
    ],
)
def test_tokens_out_by_effect_are_refused_where_they_cannot_be_had(features, controls, said):
    text = f"""name = "x"
[model]
ref = "zoo:gpt2"
[[saes]]
ref = "zoo:gpt2/blocks.1.hook_resid_post"
[features]
tokens_out = "effect"
{"".join(f"{k} = {v!r}" for k, v in features.items())}
[plan]
controls = {controls!r}
"""
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse_study(text)


def test_contexts_show_the_text_that_is_there(corpus):
    model = tiny_model("gpt2")
    sae = random_sae(model.spec.d_model)
    table = feature_table(sae, model, corpus=str(corpus), n_tokens=600, context=16)
    blocks = [block.strip() for block in corpus.read_text().split("\n\n")]
    for row in table.contexts.to_pylist():
        assert len(row["token_ids"]) == len(row["tokens"]) == len(row["values"]) == 15
        assert row["values"][row["position"]] == row["max_value"] > 0
        assert row["tokens"] == model.token_strings(row["token_ids"])
        assert model.bos_id not in row["token_ids"]
        name, _, offset = row["source"].rpartition(":")
        document = int(name.removeprefix("text[").removesuffix("]"))
        ids = model.tokenize(blocks[document] + "\n", prepend_bos=False)[int(offset) :][:15]
        assert ids == row["token_ids"][: len(ids)]
    assert table.contexts.num_rows > 20


def test_a_feature_that_never_fires_is_a_row_without_gloss(corpus):
    model = tiny_model("gpt2")
    table = feature_table(
        random_sae(model.spec.d_model), model, corpus=str(corpus), n_tokens=600, context=16, label="a"
    )
    row = table.features.to_pylist()[DEAD]
    assert (row["density"], row["n_active"], row["max_act"], row["n_glosses"]) == (0, 0, 0, 0)
    assert row["gloss"] is None
    assert row["tokens_in"] == []
    assert row["tokens_out"], "what it would write is still told"
    lengths = np.linalg.norm(table.embeddings["a"], axis=1)
    expected = [1.0 if row["gloss"] else 0.0 for row in table.features.to_pylist()]
    assert expected[DEAD] == 0
    assert 1 in expected
    np.testing.assert_allclose(lengths, expected, atol=1e-5)
    assert DEAD not in table.clusters["feature"].to_pylist()


def study_of(corpus, **saes_and_glosses):
    return Study.model_validate(
        {
            "model": {"ref": "memory"},
            "corpus": {"ref": str(corpus), "n_tokens": 600, "context": 16},
            "features": {"n_contexts": 3, "window": 6},
            **saes_and_glosses,
        }
    )


def test_study_with_several_saes(corpus, tmp_path):
    """BOS and no BOS, one SAE with glosses of its own: made ones are kept, and embedded only where no other
    is."""
    model = tiny_model("gpt2")
    path = tmp_path / "glosses.jsonl"
    path.write_text(
        '{"feature": 3, "description": "ships at sea"}\n{"feature": 3, "description": "boats"}\n'
        f'{{"feature": {DEAD}, "description": "colours"}}\n'
    )
    study = study_of(corpus, saes=[{"ref": "x"}, {"ref": "y", "glosses": f"file:{path}"}])
    saes = {
        "x": random_sae(model.spec.d_model, bos=False),
        "y": random_sae(model.spec.d_model, seed=5),
    }
    table = build_features(study, model, saes, workdir=tmp_path / "work")
    assert table.features.schema.equals(FEATURES.arrow())
    assert table.contexts.schema.equals(CONTEXTS.arrow())
    x, y = ([r for r in table.features.to_pylist() if r["sae"] == label] for label in "xy")
    assert [len(x), len(y)] == [D_SAE, D_SAE]
    alone = feature_table(saes["x"], model, corpus=str(corpus), n_tokens=600, context=16, label="x")
    assert [r["n_active"] for r in x] == alone.features["n_active"].to_pylist()
    glosses = [g for g in table.glosses.to_pylist() if g["sae"] == "y" and g["feature"] == 3]
    assert [g["text"] for g in glosses[:2]] == ["boats", "ships at sea"]
    assert [g["source"] for g in glosses[2:]] == ["tokens"] * bool(y[3]["n_active"])
    assert y[3]["gloss"] == "boats"
    assert y[3]["n_glosses"] == len(glosses)
    assert y[DEAD]["gloss"] == "colours"
    others = {r["gloss_source"] for r in y if r["feature"] not in (3, DEAD)}
    assert others <= {"tokens", None}
    from polysem.glosses import embed_texts

    two = embed_texts(["ships at sea", "boats"], "minilm", cache=None).vectors.mean(0)
    np.testing.assert_allclose(table.embeddings["y"][3], two / np.linalg.norm(two), atol=1e-5)
    assert table.embedder[0]
    assert len(table.embedder[1]) == 64


def test_features_from_an_export_need_no_text(tmp_path):
    model = tiny_model("gpt2")
    sae = random_sae(model.spec.d_model)
    about = {"modelId": "tiny", "layer": "0-res-test", "index": "3"}
    tokens = model.token_strings(model.tokenize("the old sea", prepend_bos=False))
    values = [0.0] * (len(tokens) - 1) + [6.0]
    for kind, row in (
        ("features", about | {"frac_nonzero": 0.5}),
        ("activations", about | {"id": "t1", "tokens": tokens, "values": values}),
    ):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "batch-0.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    table = feature_table(
        sae, model, source=f"neuronpedia:{tmp_path}", corpus=str(tmp_path / "nowhere.txt"), label="a"
    )
    (row,) = table.features.to_pylist()
    assert row["feature"] == 3
    assert row["density"] == 0.5
    # Published activations are those of a unit decoder row.
    assert row["max_act"] == pytest.approx(6.0 / row["dec_norm"], rel=1e-5)
    assert row["gloss_source"] == "tokens", "n_active is not known, and is not zero"


def test_corpus_errors_come_through(tmp_path):
    model = tiny_model("gpt2")
    sae = random_sae(model.spec.d_model)
    with pytest.raises(UnknownReferenceError, match="nowhere"):
        feature_table(sae, model, corpus=str(tmp_path / "nowhere.txt"))
    short = tmp_path / "short.txt"
    short.write_text("a b")
    with pytest.raises(FormatError, match="not one row"):
        feature_table(sae, model, corpus=str(short))


def test_a_short_corpus_is_used_whole_and_said(corpus, caplog):
    model = tiny_model("gpt2")
    with caplog.at_level(logging.WARNING):
        table = feature_table(
            random_sae(model.spec.d_model), model, corpus=str(corpus), n_tokens=9_000, context=16
        )
    assert "of the 9,000 tokens asked for are there" in caplog.text
    assert table.features.num_rows == D_SAE


def test_tables_are_the_same_bytes_after_a_kill(corpus, tmp_path, monkeypatch):
    """The whole table, through parquet, after the harvest was stopped at several places in turn."""
    monkeypatch.setattr("polysem.features.harvest.CHECKPOINT_EVERY", 1)
    model = tiny_model("gpt2")
    sae = random_sae(model.spec.d_model)

    def run(folder, reporter):
        return feature_table(
            sae, model, corpus=str(corpus), n_tokens=1000, context=16, workdir=folder, reporter=reporter
        )

    def files(table):
        for name, rows in table.tables().items():
            pq.write_table(rows, tmp_path / name)
            yield name, (tmp_path / name).read_bytes()
        yield from ((label, vectors.tobytes()) for label, vectors in table.embeddings.items())

    whole = dict(files(run(tmp_path / "once", StopsAfter(None))))
    for stop in (0, 1, 2):
        with pytest.raises(Stop):
            run(tmp_path / "killed", StopsAfter(stop))
    assert dict(files(run(tmp_path / "killed", StopsAfter(None)))) == whole


class Stop(Exception):
    pass


class StopsAfter:
    """A reporter whose n-th item of the harvest never comes."""

    def __init__(self, n):
        self.n = n

    def track(self, items, *, total, label, done=0):
        for k, item in enumerate(items):
            if k == self.n and label == "harvest":
                raise Stop
            yield item

    def stage(self, label):
        raise AssertionError
