"""The gradient against the measured effect on real models, pushed to a stated KL: what docs/linear-response.md says of
0.01 and of 0.1 nats, on samples small enough for a test."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from polysem.corpus import token_rows
from polysem.linear.response import membership
from polysem.models import load_model
from polysem.positions import positions_of
from polysem.saes import load_sae
from polysem.seeds import rng_for
from polysem.types import Site
from support.linearity import linear_validity

SAES = ("gpt2/blocks.1.hook_mlp_out", "neox/blocks.2.hook_attn_out", "llama/blocks.3.hook_resid_post")
OPEN = 1.0
"""nats: where the next token is nearly certain, no small push reaches a KL of 0.01"""


def open_prompts(model, n):
    rows = token_rows(
        "zoo:samples", model, n_tokens=1200, context=12, positions=positions_of(model, True)
    ).tokens
    for ids in torch.from_numpy(rows):
        p = model.logits(ids[None], last_only=True)[0, -1].double().softmax(-1)
        if float(torch.special.entr(p).sum()) >= OPEN:
            yield ids
            n -= 1
        if not n:
            return


@pytest.mark.parametrize("name", SAES)
def test_the_gradient_stands_for_small_pushes_and_its_path_average_for_all(name):
    polysem_zoo = pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    model, sae = load_model(f"zoo:{name.partition('/')[0]}", device="cpu"), load_sae(f"zoo:{name}")
    table = pq.read_table(polysem_zoo.path("features", name) / "features.parquet").to_pylist()
    own = [r for r in table if len(r["tokens_in"]) >= 3 and 1e-4 < (r["density"] or 0) < 0.05]
    picked = [own[int(k)] for k in rng_for(0, "linearity", name).permutation(len(own))[:6]]
    small, large = linear_validity(
        model,
        list(open_prompts(model, 2)),
        site=sae.site,
        directions=sae.W_dec.detach().double()[[r["feature"] for r in picked[:3]]],
        inside=membership([r["tokens_in"] for r in picked[3:]], model.spec.d_vocab),
        doses=(0.01, 0.1),
        path_points=8,
    )
    assert small.r2 >= 0.99
    # At 0.1 nats the gradient at the prompt depends on which prompts and features: 0.86 to 0.99 on the zoo.
    assert 0.85 <= large.r2 < small.r2
    assert np.array([small.r2_path, large.r2_path]).min() >= 0.9999
    # The change at +dose has an even part, too, which no gradient has.
    assert large.r2_raw < large.r2


def test_where_the_gradient_at_the_prompt_fails_its_path_average_does_not():
    """The embedding of the Llama model, random directions and token sets: 0.90 is missed at 0.1 nats."""
    pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    model, site = load_model("zoo:llama", device="cpu"), Site(0, "hook_resid_pre")
    rng = rng_for(0, "linearity", str(site))
    directions = torch.as_tensor(rng.standard_normal((3, model.spec.d_model)))
    sets = [rng.choice(model.spec.d_vocab, 5, replace=False).tolist() for _ in range(3)]
    small, large = linear_validity(
        model,
        list(open_prompts(model, 2)),
        site=site,
        directions=directions,
        inside=membership(sets, model.spec.d_vocab),
        doses=(0.01, 0.1),
        path_points=8,
    )
    assert small.r2 >= 0.98
    assert large.r2 < 0.90
    assert np.array([small.r2_path, large.r2_path]).min() >= 0.9996
