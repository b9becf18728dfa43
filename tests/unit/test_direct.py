"""What lies beyond the direct path: log-odds less what the same push does through final norm and unembedding."""

import numpy as np
import pytest
import torch

from polysem.edits import Add, Clamp, Scale
from polysem.linear.direct import direct_logits, promoted
from polysem.linear.response import log_odds_of
from polysem.readouts import Outcomes, TokenSets
from polysem.selftest.identities import tiny_tokens
from polysem.types import Site
from polysem.worlds.tiny import tiny_model


@pytest.fixture(scope="module", params=["gpt2", "gpt_neox", "llama"])
def model(request):
    return tiny_model(request.param, seed=0)


def final(model, hidden):
    """Final norm and unembedding of the stream behind the last block, by plain torch."""
    inner = model.model
    norm = next(
        m for name, m in inner.named_modules() if name.split(".")[-1] in ("ln_f", "final_layer_norm", "norm")
    )
    with torch.no_grad():
        return norm(hidden) @ model.W_U.T


def test_the_direct_path_is_norm_and_unembedding_of_the_stream_plus_the_push(model):
    tokens = tiny_tokens(model, 0)[:1]
    end = Site(model.spec.n_layers - 1, "hook_resid_post")
    site = Site(0, "hook_resid_post")
    push = torch.randn(3, model.spec.d_model, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, tokens.shape[1], dtype=torch.bool)
    edits = [Add(site, push, mask)]
    many = tokens.expand(3, -1)
    base = model.logits(tokens, last_only=True)[:, -1].double()
    edited = model.logits(many, edits, last_only=True)[:, -1].double()
    found = direct_logits(
        model, (many, mask), edits, base=base, edited=edited, seen=lambda s: model.capture(tokens, [s])[s][0]
    )
    hidden = model.capture(tokens, [end])[end][0, -1]
    expected = final(model, hidden + push)
    centred = [x - x.mean(-1, keepdim=True) for x in (found.float(), expected)]
    torch.testing.assert_close(*centred, rtol=1e-4, atol=1e-4)
    assert float((found - edited).abs().max()) > 1e-3
    # at the last block all is direct; a changed prompt has nothing that is; no push at the last position, no direct path
    at_end = [Add(end, push, mask)]
    assert (
        direct_logits(
            model, (many, mask), at_end, base=base, edited=edited, seen=lambda site: torch.zeros(0, 0)
        )
        is edited
    )
    torch.testing.assert_close(
        direct_logits(model, (many, mask), [], base=base, edited=edited, seen=lambda site: torch.zeros(0, 0)),
        base.expand(3, -1),
    )
    early = mask.clone()
    early[:, -1] = False
    none = direct_logits(
        model,
        (many, mask),
        [Add(site, push, early)],
        base=base,
        edited=edited,
        seen=lambda site: torch.zeros(0, 0),
    )
    torch.testing.assert_close(none.float(), base.expand(3, -1).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["add", "scale", "clamp"])
def test_what_an_edit_adds_at_the_last_position_is_what_the_model_sees_there(kind):
    model = tiny_model("gpt2", seed=0)
    tokens, site, d = tiny_tokens(model, 0)[:1], Site(0, "hook_resid_post"), model.spec.d_model
    mask, vector = torch.ones(1, tokens.shape[1], dtype=torch.bool), torch.linspace(-1, 1, d)[None]
    edit = {
        "add": Add(site, vector, mask),
        "scale": Scale(site, torch.tensor([3]), torch.tensor([2.5]), mask),
        "clamp": Clamp(site, vector, vector / 2, torch.tensor([4.0]), torch.tensor([0.5]), mask),
    }[kind]
    base, edited = (model.logits(tokens, e, last_only=True)[:, -1].double() for e in ([], [edit]))
    seen = lambda s: model.capture(tokens, [s])[s][0]  # noqa: E731
    found = direct_logits(model, (tokens, mask), [edit], base=base, edited=edited, seen=seen)
    change = model.capture(tokens, [site], [edit])[site][0, -1] - seen(site)[-1]
    assert float(change.norm()) > 0.1
    end = Site(model.spec.n_layers - 1, "hook_resid_post")
    a, b = (x - x.mean(-1, keepdim=True) for x in (found[0].float(), final(model, seen(end)[-1] + change)))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_outcome_is_log_odds_less_the_direct_change():
    rng = torch.Generator().manual_seed(0)
    base, edited, direct = (torch.randn(n, 12, generator=rng, dtype=torch.float64) for n in (1, 3, 3))
    sets = TokenSets.of([[1, 2], [5]], torch.randn(12, 4, generator=rng))
    inside = torch.zeros(2, 12, dtype=torch.bool)
    inside[0, [1, 2]] = inside[1, 5] = True
    seen = Outcomes.of(base, edited, sets, direct)
    odds = [[log_odds_of(x, inside[k]) for k in range(2)] for x in (base, edited, direct)]
    rows, columns = (axis.ravel() for axis in np.indices((3, 2)))
    got = seen.at(rows, columns)
    for at, (row, k) in enumerate(zip(rows, columns, strict=True)):
        beyond = (odds[1][k][row] - odds[0][k][0]) - (odds[2][k][row] - odds[0][k][0])
        assert got["beyond_edit"][at] - got["beyond_base"][at] == pytest.approx(float(beyond), abs=1e-10)
    unknown = Outcomes.of(base, edited, sets).at(rows, columns)
    assert np.isnan(unknown["beyond_edit"]).all()
    assert np.isfinite(unknown["logodds_edit"]).all()


def test_promoted_tokens_are_the_top_of_the_unembedding():
    W_U = torch.tensor([[1.0, 0], [0, 1], [1, 0], [2, 0]])
    assert promoted(W_U, torch.tensor([1.0, 0]), 3) == [3, 0, 2]
    assert promoted(W_U, torch.tensor([1.0]), 3) == []
