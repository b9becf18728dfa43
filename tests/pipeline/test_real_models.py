"""`run_study` on models that nobody here made for it: a real language model with an SAE trained here, and every family at random."""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from polysem.config import parse_study
from polysem.engine import run_study
from polysem.models import load_model
from polysem.positions import positions_of
from polysem.store.run import RunFolder
from polysem.types import Site
from polysem.worlds.tiny import TINY_FAMILIES
from support.sae_fixtures import WRITERS, planted
from support.tiny import save_tiny_model

TRAINING = Path(__file__).resolve().parents[2] / "zoo" / "training"

STUDY = """
name = "{name}"
[model]
ref = "{model}"
device = "cpu"
[[saes]]
ref = "{sae}"
site = "{site}"
allow_other_model = true
max_fvu = {max_fvu}
[corpus]
ref = "{corpus}"
n_tokens = {n_tokens}
context = 32
[prompts]
source = "{prompts}"
n = 4
length = 10
[pairs]
max_similarity = 1.0
[plan]
n_targets = 3
sources_per_bin = 2
n_random = 1
doses = [0.1]
dose_unit = "resid_norm"
"""


def finished(study: str, out: Path) -> RunFolder:
    report = run_study(parse_study(study), out)
    assert "</html>" in report.read_text(encoding="utf-8")
    run = RunFolder(out)
    trials = run.table("trials").to_pylist()
    assert trials
    assert run.table("plan").num_rows == len(trials)
    assert np.mean([t["status"] == "ok" for t in trials]) > 0.5
    assert any(abs(t["logodds_edit"] - t["logodds_base"]) > 1e-6 for t in trials if t["status"] == "ok")
    return run


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_study_finishes_on_every_family(family, tmp_path):
    folder = save_tiny_model(family, tmp_path / "model")
    model = load_model(str(folder), device="cpu")
    rng = np.random.default_rng(0)
    text = "\n\n".join(model.detokenize(rng.integers(4, model.spec.d_vocab, 40).tolist()) for _ in range(80))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    prompts = [model.detokenize(rng.integers(4, model.spec.d_vocab, 8).tolist()) for _ in range(4)]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    sae = WRITERS["saelens-v6-topk"](
        tmp_path / "sae", planted(d_in=model.spec.d_model, layer=1, hook="hook_mlp_out", k=4)
    )
    study = STUDY.format(
        name=family, model=folder, sae=sae, site="blocks.1.hook_mlp_out", corpus=tmp_path / "text.txt",
        n_tokens=1000, prompts=f"file:{tmp_path / 'prompts.txt'}", max_fvu=1e6,
    )  # fmt: skip
    finished(study, tmp_path / "run")


def test_a_study_of_stories260k_with_an_sae_trained_on_it(shared, tmp_path, monkeypatch):
    pytest.importorskip("sae_lens", reason="sae-lens, which trains the SAE, is not installed")
    monkeypatch.syspath_prepend(str(TRAINING))
    for name in ("corpus", "models", "saes"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    from saes import SAERecipe, train

    from polysem.corpus import token_rows

    folder = shared / "data" / "stories260k" / "hf"
    corpus = shared / "data" / "text-tinystories-1000" / "tinystories_1000.json"
    model = load_model(str(folder), device="cpu")
    site = Site.parse("blocks.2.hook_resid_post")
    rows = torch.from_numpy(
        token_rows(
            str(corpus), model, n_tokens=60_000, context=64, positions=positions_of(model, True)
        ).tokens
    )
    acts = torch.cat([model.capture(r, [site])[site][:, 1:].flatten(0, 1) for r in rows.split(64)]).numpy()
    sae = tmp_path / "sae"
    train(SAERecipe(str(site)), acts, model_ref=str(folder), n_samples=200_000, out=sae)
    study = STUDY.format(
        name="stories", model=folder, sae=sae, site=site, corpus=corpus, n_tokens=20_000,
        prompts="corpus", max_fvu=0.7,
    )  # fmt: skip
    run = finished(study, tmp_path / "run")
    density = run.table("features")["density"].to_numpy()
    assert (density > 0).mean() > 0.5
    glosses = [g for g in run.table("features")["gloss"].to_pylist() if g]
    assert len(set(glosses)) > 0.9 * len(glosses) > 100
    written = pq.read_table(tmp_path / "run" / "pairs" / run.files("pairs")[0].split("/")[-1])
    assert written.num_rows > 0
