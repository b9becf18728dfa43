"""Continuations of prompts under edits: where edits reach, what chance is, and the loop that draws.

An edit's mask says which positions of the prompt it reaches; the scope says what becomes of it while tokens are drawn:

    prompt   the positions of the mask, and none that is drawn
    decode   the positions that tokens are drawn from: the last of the prompt, and every drawn one but the last
    both     the two together
    a number n    as decode, for the first n tokens only

A row whose mask is empty is left alone in every scope, so that a baseline can stand in the batch of what it is compared with.

Chance is the Gumbel-max trick (arXiv 1411.0030): token = argmax(logits / temperature + g), with g a function of seed, prompt,
draw and step alone. Rows of one prompt and draw meet the same chance, so that texts with and without an edit are pairs, and
an edit that changes nothing changes no token. Nothing ends a text: an end-of-text token is a token like others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.edits import Edit
from polysem.errors import MismatchError
from polysem.seeds import rng_for

Scope = Literal["prompt", "decode", "both"] | int
Told = Callable[[Int[Tensor, "batch n"]], None]
NextLogits = Callable[[Int[Tensor, "batch pos"], list[Edit]], Float[Tensor, "batch d_vocab"]]
"""the logits after some tokens, under edits whose masks are as long as the tokens"""


@dataclass(frozen=True)
class Generated:
    """What was drawn."""

    tokens: Int[Tensor, "batch n"]
    """without the prompt"""
    edited: Int[Tensor, "edits batch"]
    """at how many positions every edit ran: as many as its scope says, or there would be an error"""
    logits: Float[Tensor, "batch n d_vocab"] | None = None
    """that tokens were drawn from, where they were asked for"""


def scoped(edits: Sequence[Edit], scope: Scope, *, prompt: int, n: int) -> list[Edit]:
    """The edits with masks over a prompt and n tokens behind it, of which the last is never read.

    Raises:
        MismatchError: a scope that there is not, or a mask that is not as long as the prompt.
    """
    if scope not in ("prompt", "decode", "both") and (not isinstance(scope, int) or scope < 1):
        raise MismatchError(f"scope {scope!r}; expected prompt, decode, both, or a number of tokens")
    return [replace(edit, mask=_scoped(edit, scope, prompt, n)) for edit in edits]


def _scoped(edit: Edit, scope: Scope, prompt: int, n: int) -> Bool[Tensor, "batch pos"]:
    if edit.mask.shape[1] != prompt:
        raise MismatchError(
            f"the mask of an edit at {edit.site} has {edit.mask.shape[1]} positions, the prompt {prompt}",
            hint="give the mask of the prompt alone; the scope says what follows",
        )
    mask = edit.mask.new_zeros(len(edit.mask), prompt + n - 1)
    if scope in ("prompt", "both"):
        mask[:, :prompt] = edit.mask
    if scope != "prompt":
        reached = n if isinstance(scope, str) else min(scope, n)
        mask[:, prompt - 1 : prompt - 1 + reached] |= edit.mask.any(1, keepdim=True)
    return mask


def chance(
    ids: Sequence[int], draw: int, step: int, *, seed: int, d_vocab: int
) -> Float[np.ndarray, " d_vocab"]:
    """Standard Gumbel noise of one prompt, draw and step."""
    return rng_for(seed, "generate", " ".join(map(str, ids)), draw, step).gumbel(size=d_vocab)


def drawn(
    next_logits: NextLogits,
    tokens: Int[Tensor, "batch pos"],
    edits: Sequence[Edit],
    ran: list[Int[Tensor, " batch"]],
    *,
    n: int,
    n_ctx: int,
    scope: Scope = "both",
    temperature: float = 1.0,
    seed: int = 0,
    draws: Sequence[int] | None = None,
    keep_logits: bool = False,
    told: Told | None = None,
) -> Generated:
    """The loop behind `WhiteBoxModel.generate`.

    Args:
        next_logits: runs the model.
        tokens: prompts of one length.
        edits: with masks over the prompt.
        ran: how often each edit ran by row; kept up to date by `next_logits`.
        n: tokens to draw.
        n_ctx: tokens that the model can read.
        scope: where edits reach.
        temperature: 0 takes the most likely token.
        seed: of all chance.
        draws: by row, which of the continuations of its prompt it is; all 0 if left out.
        keep_logits: give the logits, too.
        told: is given what is drawn so far after every token; what it raises ends the drawing.

    Raises:
        MismatchError: no tokens to draw, more than the context holds, a temperature below 0, as many draws as there are not
            rows, or an edit that did not run where its scope says.
    """
    batch, prompt = tokens.shape
    if n < 1 or prompt + n > n_ctx:
        raise MismatchError(
            f"{n} tokens behind a prompt of {prompt}; expected at least 1, and {n_ctx} in all at most",
            hint="draw fewer tokens, or cut the prompts",
        )
    if not 0 <= temperature < float("inf"):
        raise MismatchError(f"temperature {temperature:g}; expected 0 or more")
    which = [0] * batch if draws is None else list(draws)
    if len(which) != batch:
        raise MismatchError(f"{len(which)} draws for {batch} rows; expected one for each")
    whole, reach = tokens, scoped(edits, scope, prompt=prompt, n=n)
    streams = [(tuple(ids), draw) for ids, draw in zip(tokens.tolist(), which, strict=True)]
    kept = []
    for step in range(n):
        length = prompt + step
        logits = next_logits(whole, [replace(edit, mask=edit.mask[:, :length]) for edit in reach])
        score = logits.double()
        if temperature > 0:
            noise = {
                one: torch.from_numpy(chance(*one, step, seed=seed, d_vocab=logits.shape[1]))
                for one in set(streams)
            }
            score = score / temperature + torch.stack([noise[one] for one in streams]).to(score)
        if keep_logits:
            kept.append(logits)
        whole = torch.cat([whole, score.argmax(1, keepdim=True).to(whole)], dim=1)
        if told is not None:
            told(whole[:, prompt:])
    for edit, seen in zip(reach, ran, strict=True):
        if not torch.equal(seen.cpu(), edit.mask.sum(1).cpu()):
            raise MismatchError(
                f"an edit at {edit.site} ran at {seen.tolist()} positions of the rows, not at "
                f"{edit.mask.sum(1).tolist()}: the model did not pass there while it drew",
                hint="check the model with polysem.testing.conformance.check_model",
            )
    edited = torch.stack([seen.cpu() for seen in ran]) if ran else torch.zeros(0, batch, dtype=torch.long)
    return Generated(whole[:, prompt:], edited, torch.stack(kept, dim=1) if keep_logits else None)


def recomputed(
    logits: Callable[[Int[Tensor, "batch pos"], list[Edit]], Float[Tensor, "batch 1 d_vocab"]],
    tokens: Int[Tensor, "batch pos"],
    edits: Sequence[Edit],
    **how: Any,
) -> Generated:
    """Generation without a cache: the whole text is read again for every token. What a cache must agree with.

    Args:
        logits: of the last position under edits.
        tokens: prompts of one length.
        edits: with masks over the prompt.
        **how: as of `drawn`.
    """
    ran = [edit.mask.new_zeros(len(edit.mask), dtype=torch.long) for edit in edits]

    def step(whole: Tensor, now: list[Edit]) -> Tensor:
        for k, edit in enumerate(now):
            ran[k] = edit.mask.sum(1)
        return logits(whole, now)[:, -1]

    return drawn(step, tokens, edits, ran, **how)
