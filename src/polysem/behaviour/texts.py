"""Numbers of texts: what they hold, what a dictionary sees in them, and what they cost under the model without a push."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.models.base import WhiteBoxModel
from polysem.models.hf import HFModel
from polysem.models.replay import last_logits
from polysem.saes.base import SAE
from polysem.types import Site

LOGITS = 2e7
"""logits in memory at once"""


def chunks(n: int, each: int) -> list[slice]:
    """Rows whose logits fit: `each` numbers a row."""
    size = max(1, int(LOGITS // max(each, 1)))
    return [slice(k, min(k + size, n)) for k in range(0, n, size)]


def said(
    logits: Float[Tensor, "rows pos d_vocab"], tokens: Int[Tensor, "rows pos"]
) -> Float[Tensor, "rows pos"]:
    """Log-probability of each token under the logits of its place, float64."""
    own = logits.gather(2, tokens[..., None])[..., 0].double()
    return own - torch.stack([row.double().logsumexp(-1) for row in logits])


class TextsRead(NamedTuple):
    """Texts as the model without a push reads them."""

    nats: Float[np.ndarray, " rows"]
    """cross-entropy per drawn token"""
    acts: Float[np.ndarray, "rows n features"]
    """activations"""

    @property
    def fires(self) -> Bool[np.ndarray, "rows n features"]:
        """Where features are active."""
        return self.acts > 0


def read_texts(
    model: WhiteBoxModel, sae: SAE, features: Sequence[int], whole: Int[Tensor, "rows pos"], *, prompt: int
) -> TextsRead:
    """Texts behind a prompt, read without a push."""
    nats, acts = [], []
    columns = torch.tensor(list(features), dtype=torch.long)
    for some in chunks(len(whole), whole.shape[1] * model.spec.d_vocab):
        rows = whole[some].to(model.spec.device)
        seen, logits = _read(model, sae.reads, rows)
        nats.append(-said(logits[:, prompt - 1 : -1], rows[:, prompt:]).mean(1).cpu().numpy())
        seen = seen[:, prompt:].cpu()
        codes = sae.encode(seen.flatten(0, 1)).detach()[:, columns]
        acts.append(codes.reshape(len(rows), -1, len(columns)).numpy())
    return TextsRead(np.concatenate(nats), np.concatenate(acts))


def _read(
    model: WhiteBoxModel, site: Site, rows: Int[Tensor, "rows pos"]
) -> tuple[Float[Tensor, "rows pos d"], Float[Tensor, "rows pos d_vocab"]]:
    """Activations at a site and logits: of one forward pass, where the model's modules are at hand."""
    if not isinstance(model, HFModel):
        return model.capture(rows, [site])[site], model.logits(rows)
    end = Site(model.spec.n_layers - 1, "hook_resid_post")
    seen = model.capture(rows, [site, end])
    with torch.no_grad():
        return seen[site], last_logits(model, seen[end].to(model.model.dtype))


def distinct(text: Sequence[int], n: int = 2) -> float:
    """Distinct runs of n tokens over all of them; 1 for a text that has none (Li et al., arXiv 1510.03055)."""
    runs = [tuple(text[k : k + n]) for k in range(len(text) - n + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0


def repeated(text: Sequence[int], n: int = 4) -> float:
    """Share of runs of n tokens that came before in the text (seq-rep-n, Welleck et al., arXiv 1908.04319)."""
    return 1.0 - distinct(text, n)


def same_tokens(text: Sequence[int], other: Sequence[int]) -> int:
    """Tokens before the first that differs: the coupling time."""
    return next((k for k, (a, b) in enumerate(zip(text, other, strict=True)) if a != b), len(text))


def on_target(text: Sequence[int], tokens: Collection[int]) -> int:
    """How many tokens of the text are the target's."""
    wanted = set(tokens)
    return sum(t in wanted for t in text)
