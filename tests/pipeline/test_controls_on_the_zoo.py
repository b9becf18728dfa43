"""Controls on a real model: those that must find nothing find it at the rate that was promised, and the
cosine-matched one does what its closed form says.

Effects for the rates are linear responses (the gradient of the target's log-odds, times the direction): each of some
hundred replicates is a whole study, and no forward pass is needed for one. That they stand for measured effects at
small doses is checked here for the closed form, and elsewhere in general.
"""

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from polysem.act.base import Recipe, SiteContext, decoder_row, unit
from polysem.act.directions import cosine_matched_direction, frozen_row
from polysem.config import CorpusConfig, PairsConfig, PlanConfig, PromptsConfig
from polysem.edits import Add
from polysem.linear.decompose import split_push
from polysem.linear.response import log_odds_of, membership, odds_gradients
from polysem.models import load_model
from polysem.plan.index import FeatureIndex
from polysem.positions import positions_of
from polysem.prompts import make_prompts
from polysem.saes import load_sae
from polysem.stats.regress import clustered_ols
from polysem.store.tables import CONTEXTS, PAIRS, PARTNERS
from support.arms import arms_of

REPLICATES = 60
N_TARGETS = 24
LABEL = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def zoo():
    pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    from sklearn.feature_extraction.text import HashingVectorizer

    from polysem.registry import zoo_path

    model, sae = load_model("zoo:gpt2", device="cpu"), load_sae(f"zoo:gpt2/{LABEL}")
    features = pq.read_table(zoo_path("features", f"gpt2/{LABEL}") / "features.parquet")
    # words of the glosses instead of an embedder: the same glosses, in a second
    vectors = HashingVectorizer(n_features=256).transform([g or "" for g in features["gloss"].to_pylist()])
    atlas = FeatureIndex.of(
        LABEL, sae, features=features, embeddings=vectors.toarray(),
        pairs=PAIRS.empty(), partners=PARTNERS.empty(), contexts=CONTEXTS.empty(),
    )  # fmt: skip
    prompts = make_prompts(
        PromptsConfig(n=6, length=16),
        CorpusConfig(n_tokens=100_000),
        model,
        positions=positions_of(model, sae),
        seed=0,
    )
    ok = np.flatnonzero(atlas.usable & atlas.glossed & np.array([len(t) > 0 for t in atlas.tokens_in]))
    targets = np.sort(np.random.default_rng(0).choice(ok, 120, replace=False))
    inside = membership([sorted(atlas.tokens_in[t]) for t in targets], model.spec.d_vocab)
    rows = [torch.tensor(ids) for ids in prompts["token_ids"].to_pylist()]
    gradients = [
        odds_gradients(model, ids, site=sae.site, pushed=torch.arange(len(ids)) > 0, inside=inside)
        for ids in rows
    ]
    return SimpleNamespace(
        model=model, sae=sae, atlas=atlas, rows=rows, targets=targets, inside=inside,
        gradients=gradients, mean=torch.stack(gradients).mean(0).numpy(),
        bench=SiteContext(LABEL, sae, model.spec, activations=lambda: np.zeros((0, sae.d_in)), model=model),
    )  # fmt: skip


def p_values(zoo, control, wanted):
    """One p value per replicate: other targets, another decoder or deal of glosses, other sources."""
    place = {int(t): k for k, t in enumerate(zoo.targets)}
    found, estimates = [], []
    for seed in range(REPLICATES):
        targets = sorted(np.random.default_rng(seed).choice(zoo.targets, N_TARGETS, replace=False).tolist())
        drawn = arms_of(
            zoo.atlas, targets, pairs=PairsConfig(), plan=PlanConfig(controls=(control,)), seed=seed
        )
        arms = [arm for arm in drawn if arm.relation == control]
        if control == "frozen_decoder":
            push = [frozen_row(a.source, zoo.sae.d_in, seed=seed, label=LABEL) for a in arms]
        else:
            push = [unit(decoder_row(zoo.bench, a.source)) for a in arms]
        effect = np.array([zoo.mean[place[a.target]] @ v for a, v in zip(arms, push, strict=True)])
        columns = [[1.0, a.interference, a.similarity] for a in arms]
        clusters = np.array([[a.target, a.source] for a in arms])
        fit = clustered_ols(effect, np.array(columns), clusters, level=0.95)
        assert not fit.reason
        found.append(fit.p[wanted])
        estimates.append(fit.estimate[wanted] / effect.std())
    return np.array(found), np.array(estimates)


@pytest.mark.parametrize(("control", "wanted"), [("frozen_decoder", 1), ("shuffled_gloss", 2)])
def test_negative_controls_find_nothing_more_often_than_promised(zoo, control, wanted):
    """At a nominal 5 % at most 8 of 60 replicates (binomial, probability 0.99); the estimates have no lean."""
    p, estimates = p_values(zoo, control, wanted)
    assert (p < 0.05).sum() <= 8
    assert (p < 0.5).mean() > 0.3  # a test that never rejects would pass the line above
    assert abs(estimates.mean()) < 4 * estimates.std() / np.sqrt(REPLICATES)


def test_the_same_test_finds_the_real_slope(zoo):
    """Real decoder rows, the same design: what the controls miss is there to be seen."""
    real = zoo.sae.W_dec.double().numpy()
    real /= np.linalg.norm(real, axis=1, keepdims=True)
    rng = np.random.default_rng(0)
    effect, design, clusters = [], [], []
    for k, target in enumerate(zoo.targets[:60]):
        cosines = real @ real[target]
        high, low = np.argsort(-cosines)[1:6], rng.choice(np.flatnonzero(np.abs(cosines) < 0.1), 5)
        for source in (*high, *low):
            effect.append(zoo.mean[k] @ real[source])
            design.append([1.0, cosines[source]])
            clusters.append([target, source])
    fit = clustered_ols(np.array(effect), np.array(design), np.array(clusters), level=0.95)
    assert fit.lo[1] > 0


def test_the_mean_of_cosine_matched_controls_is_their_closed_form(zoo):
    """Measured on the model at 1 % of the stream's norm: odd change of log-odds, mean of the two signs of the
    random part, against dose x g . (G d_j + c_i). Within 3 % over pairs with a high cosine."""
    real = zoo.sae.W_dec.double().numpy()
    real /= np.linalg.norm(real, axis=1, keepdims=True)
    bench = zoo.bench
    measured, closed = [], []
    for k, target in enumerate(zoo.targets[:12].tolist()):
        sources = np.argsort(-(real @ real[target]))[1:4].tolist()
        for source in sources:
            directions = [
                cosine_matched_direction(
                    Recipe.of("cosine_matched", target=target, source=source, draw=draw, seed=0), bench
                )
                for draw in (0, 1)
            ]
            parts = split_push(
                torch.from_numpy(real[source])[None],
                torch.from_numpy(real[target])[None],
                bench.mean_direction,
            )
            kept = (parts.shared + parts.common)[0]
            for ids, gradient in zip(zoo.rows[:3], zoo.gradients[:3], strict=True):
                mask = (torch.arange(len(ids)) > 0).expand(4, -1)
                norm = float(
                    zoo.model.capture(ids[None], [zoo.sae.site])[zoo.sae.site][0, 1:].norm(dim=-1).mean()
                )
                dose = 0.01 * norm
                vectors = torch.from_numpy(
                    np.stack([s * dose * d for d in directions for s in (1, -1)])
                ).float()
                logits = zoo.model.logits(
                    ids.expand(4, -1), [Add(zoo.sae.site, vectors, mask)], last_only=True
                )
                odds = log_odds_of(logits[:, -1], zoo.inside[k])
                measured.append(float((odds[0] - odds[1] + odds[2] - odds[3]) / 4))
                closed.append(dose * float(gradient[k] @ kept))
    measured, closed = np.array(measured), np.array(closed)
    ratio = (measured * np.sign(closed)).sum() / np.abs(closed).sum()
    assert ratio == pytest.approx(1.0, abs=0.03)
    assert np.corrcoef(measured, closed)[0, 1] > 0.99
