"""T_out: the tokens that a feature writes, by its decoder row or by what steering does.

W_U d is the direct path alone. What later blocks make of a direction may promote other tokens, so a study may choose
T_out by effect, on texts of the corpus that its prompts are not taken from.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from polysem.corpus import TokenRows
from polysem.edits import Add
from polysem.models.base import WhiteBoxModel
from polysem.models.sweep import sweep_of
from polysem.positions import mean_norm
from polysem.saes.base import SAE

BLOCK = 256
"""features whose direct logit effects are in memory together"""
RESIDUAL_POINTS = (
    "hook_embed", "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out",
)  # fmt: skip
"""points that are written in the residual stream's own basis, so that W_U reads them"""
N_TEXTS = 8
N_TOKENS = 24
"""of a text, the last being where the next token is read"""
SHARE = 0.05
"""of the site's mean norm that is added"""
_PUSHED = 64
"""features in one forward pass, with both signs"""


class DirectEffects(NamedTuple):
    """The tokens that each decoder row raises and lowers most; no columns where the site has none."""

    top: Int[np.ndarray, "d_sae n"]
    top_logit: Float[np.ndarray, "d_sae n"]
    bottom: Int[np.ndarray, "d_sae n"]

    def instead(
        self, top: Int[np.ndarray, "d_sae n"], values: Float[np.ndarray, "d_sae n"]
    ) -> "DirectEffects":
        """Other tokens in place of those that are raised most."""
        return self._replace(top=top, top_logit=values)


def direct_effects(sae: SAE, model: WhiteBoxModel, n: int) -> DirectEffects:
    """W_U d of unit decoder rows d: the direct logit effect, but for the final norm.

    The norm's gain is left out, as in published dashboards, and its scale would not change the order. An SAE
    of a site that is not in the residual stream's basis (`RESIDUAL_POINTS`) has no direct effect. Equal
    logits go by token id.
    """
    if sae.writes.point not in RESIDUAL_POINTS or sae.d_out != model.spec.d_model:
        none = np.zeros((sae.d_sae, 0), dtype=np.int32)
        return DirectEffects(none, none.astype(np.float32), none)
    device = model.spec.device
    unembedding = model.W_U.detach().float()
    units = torch.nn.functional.normalize(sae.W_dec.detach().float(), dim=1)
    top, logit, bottom = [], [], []
    for k in range(0, sae.d_sae, BLOCK):
        effects = units[k : k + BLOCK].to(device) @ unembedding.T
        ids, values = _largest(effects, n)
        top.append(ids)
        logit.append(values)
        bottom.append(_largest(-effects, n)[0])
    return DirectEffects(np.concatenate(top), np.concatenate(logit), np.concatenate(bottom))


def _largest(values: torch.Tensor, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(columns, values) of the n largest of each row, largest first, the smaller column first among
    equals."""
    n = min(n, values.shape[1])
    found, columns = torch.topk(values, min(n + 1, values.shape[1]), dim=1)
    best, ids = found[:, :n].cpu().numpy(), columns[:, :n].cpu().numpy().astype(np.int32)
    # topk chooses freely among equals: where the edge is one of several, choose again.
    for row in torch.nonzero(found[:, -1] == found[:, n - 1])[:, 0].tolist() if found.shape[1] > n else ():
        whole = values[row].cpu().numpy()
        able = np.flatnonzero(whole >= best[row, -1])
        ids[row] = able[np.lexsort((able, -whole[able]))][:n]
        best[row] = whole[ids[row]]
    order = np.lexsort((ids, -best), axis=1)
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(best, order, axis=1)


def caused_effects(
    sae: SAE, model: WhiteBoxModel, rows: TokenRows, n: int
) -> tuple[Int[np.ndarray, "d_sae n"], Float[np.ndarray, "d_sae n"]]:
    """The n tokens of every feature whose log-probability steering raises most, best first, equals by id; and by how much
    per unit of the direction: the odd part (half of +push minus -push), mean over texts, all positions but the first pushed.

    Cost: two rows of a forward pass per feature and text.
    """
    picked = np.unique(np.linspace(0, len(rows.tokens) - 1, N_TEXTS).astype(int))
    site, device = sae.writes, model.spec.device
    units = torch.nn.functional.normalize(sae.W_dec.detach().float(), dim=1).to(device)
    texts = torch.as_tensor(rows.tokens[picked, :N_TOKENS], dtype=torch.long, device=device)
    pushed = torch.ones(texts.shape[1], dtype=torch.bool, device=device)
    pushed[0] = False
    seen = model.capture(texts, [site])[site].float().norm(dim=-1).cpu().numpy()
    lengths = [SHARE * mean_norm(norms, pushed.cpu().numpy()) for norms in seen]
    sweep, ids, values = sweep_of(model), [], []
    for start in range(0, len(units), _PUSHED):
        block = units[start : start + _PUSHED]
        rise = torch.zeros(len(block), model.spec.d_vocab, dtype=torch.float64)
        for text, length in zip(texts, lengths, strict=True):
            tokens, mask = (t.expand(2 * len(block), -1) for t in (text, pushed))
            logits = sweep.logits(tokens, [Add(site, length * torch.cat([block, -block]), mask)])
            plus, minus = logits.detach().double().cpu().log_softmax(-1).chunk(2)
            rise += (plus - minus) / (2 * length * len(texts))
        best, by = _largest(rise, n)
        ids.append(best)
        values.append(by.astype(np.float32))
    return np.concatenate(ids), np.concatenate(values)
