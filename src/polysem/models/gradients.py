"""Gradients of last-position logits, many at a time.

`logit_gradients`: one logit per context, with respect to the activation at a site (the input embedding, for
token gradients as in arXiv 2505.11611 section 3.2). Contexts of one length share a forward and a backward
pass; only the wanted logit is formed, as one dot product with its unembedding row; parameters are frozen.
`pushed_gradients`: of functions of the logits, with respect to vectors added at several sites at once, where they stand.
`pull_back_edited`: one function of the logits of rows of one prompt under any edits, from the first edited block on, with
the logits themselves; `scale_slopes`: of factors on the coordinates of several sites, all at once.
`hessian_products`: how those gradients change along directions, at one site or from one to another.
`pull_back`: many functions of one prompt's logits, with respect to one site; the part before the site is run
once, and the unembedding is applied to cotangents, not to rows of activations; `pull_back_pushed`: where pushes have brought it.
All equal `WhiteBoxModel.vjp` row by row, to rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.edits import Edit
from polysem.errors import MismatchError
from polysem.models.anatomy import Tap, logit_cap
from polysem.models.base import WhiteBoxModel
from polysem.models.clean import CleanRun, block_path, first_block
from polysem.models.hf import HFModel
from polysem.models.hooks import Action, Stop, cut_into, hooked, working_dtype
from polysem.models.replay import last_logits, run_blocks
from polysem.onednn import FrozenLinears
from polysem.profiling import counts_as
from polysem.types import Site

EMBEDDING = Site(None, "hook_embed")
_BATCH = 32
"""contexts in one pass: more is no faster on a CPU, and takes memory"""


def logit_gradients(
    model: WhiteBoxModel,
    contexts: Sequence[Sequence[int]],
    targets: Sequence[int],
    *,
    site: Site = EMBEDDING,
    batch: int = _BATCH,
    fast: bool = False,
) -> list[Float[Tensor, "pos d"]]:
    """d logit[target] at the last position / d activation at `site`, for every context.

    Args:
        model: any model; others than `HFModel` go through their `vjp`, one batch at a time.
        contexts: token ids; of any lengths.
        targets: one token id per context.
        site: with respect to which activation.
        batch: contexts in one pass.
        fast: take the faster of torch's two libraries for products (`linear.FrozenLinears`), which adds up in
            another order. On some CPUs twice as fast; entries differ by some 2e-6 of the largest, where they
            otherwise differ by less than 1e-6 from those of one context at a time.

    Returns:
        One gradient per context, in the order given, float32 (float64 for a float64 model).

    Raises:
        MismatchError: if there is not one target per context, or a token is not in the vocabulary.
        SiteError, NumericsError: as `WhiteBoxModel.vjp`.
    """
    if len(contexts) != len(targets):
        raise MismatchError(f"{len(contexts)} contexts but {len(targets)} targets; expected one for each")
    bad = [t for t in targets if not 0 <= t < model.spec.d_vocab]
    if bad:
        raise MismatchError(
            f"target token {bad[0]} is outside the vocabulary of {model.spec.ref} (0 to {model.spec.d_vocab - 1})",
            hint="take targets from this model's own tokenizer",
        )
    by_length: dict[int, list[int]] = {}
    for k, context in enumerate(contexts):
        by_length.setdefault(len(context), []).append(k)
    found: dict[int, Tensor] = {}
    for length in sorted(by_length):
        same = by_length[length]
        for some in (same[at : at + batch] for at in range(0, len(same), batch)):
            tokens = torch.tensor([list(contexts[k]) for k in some], dtype=torch.long)
            gradient = _batch_gradients(
                model,
                tokens.to(model.spec.device),
                torch.tensor([targets[k] for k in some]),
                site,
                fast=fast,
            )
            found.update(zip(some, gradient, strict=True))
    return [found[k] for k in range(len(contexts))]


@counts_as("model")
def _batch_gradients(
    model: WhiteBoxModel,
    tokens: Int[Tensor, "batch pos"],
    targets: Int[Tensor, " batch"],
    site: Site,
    *,
    fast: bool,
) -> Float[Tensor, "batch pos d"]:
    if not isinstance(model, HFModel):
        cotangent = torch.zeros(len(tokens), model.spec.d_vocab, device=tokens.device)
        cotangent[torch.arange(len(tokens)), targets.to(tokens.device)] = 1.0
        return model.vjp(tokens, site, cotangent)
    model.check_tokens(tokens)
    leaves: list[Tensor] = []
    actions: dict[Tap, list[Action]] = {_written(model, site): [cut_into(leaves)]}
    last = model.spec.n_layers - 1
    if (
        site.layer != last
    ):  # of the last block's MLP only the last position is read; elsewhere it is broadcast
        actions[Tap(f"{block_path(model, last)}.mlp", "in")] = [lambda h: h[:, -1:]]
    products = FrozenLinears() if fast else nullcontext()
    with products, torch.enable_grad(), hooked(model.model, actions):
        # not `base_model`, which in transformers 4.x is the whole of a Gemma 3
        decoder: Any = model.model.get_submodule(model.anatomy.final_norm.rpartition(".")[0])
        hidden = decoder(input_ids=tokens, use_cache=False).last_hidden_state[:, -1]
        raw = (hidden * model.W_U[targets.to(hidden.device)]).sum(-1)
        cap = logit_cap(model.model.config)
        wanted = raw if cap is None else torch.tanh(raw / cap) * cap
        (gradient,) = torch.autograd.grad(wanted.sum(), leaves[-1])  # rows do not see each other
    gradient = gradient.to(working_dtype(gradient.dtype))
    model.check_finite(gradient, f"gradients at {site}", edited=False)
    return gradient


def probe_gradient(
    model: HFModel,
    tokens: Int[Tensor, "1 pos"],
    site: Site,
    position: int,
    probe: Float[Tensor, " d"],
) -> Float[Tensor, " d_model"]:
    """d <activation at `site` and `position`, probe> / d input embedding of the same position, for one context.

    Raises:
        MismatchError: if the position is not in the context, or the probe not as wide as the site.
        SiteError, NumericsError: as `WhiteBoxModel.capture`.
    """
    model.check_tokens(tokens)
    if not 0 <= position < tokens.shape[1] or len(probe) != model.site_width(site):
        raise MismatchError(
            f"position {position} and a probe of {len(probe)} numbers, for {tokens.shape[1]} tokens "
            f"and {model.site_width(site)} coordinates at {site}"
        )
    leaves: list[Tensor] = []
    seen: list[Tensor] = []

    def look(h: Tensor) -> Tensor:
        seen.append((h[0, position] * probe.to(h)).sum())
        raise Stop

    start, end = model.tap(EMBEDDING), model.tap(site)
    actions = {start: [cut_into(leaves)]}
    actions[end] = [*actions.get(end, []), look]
    try:
        with torch.enable_grad(), hooked(model.model, actions):
            model.model(input_ids=tokens, use_cache=False)
    except Stop:
        pass
    (gradient,) = torch.autograd.grad(seen[-1], leaves[-1])
    gradient = gradient[0, position].to(working_dtype(gradient.dtype))
    model.check_finite(gradient, f"gradients at {site}", edited=False)
    return gradient


@counts_as("model")
def pull_back(
    model: HFModel, clean: CleanRun, site: Site, cotangent: Float[Tensor, "rows d_vocab"]
) -> Float[Tensor, "rows pos d"]:
    """Gradient of sum_t cotangent[row, t] * logits[last, t] of one prompt with respect to `site`, for every row.

    Args:
        model: whose clean run it is.
        clean: of the prompt.
        site: not the embedding.
        cotangent: one function of the logits per row.

    Raises:
        SiteError, NumericsError: as `WhiteBoxModel.vjp`.
    """
    slope = head_slope(model, clean)
    weight = model.W_U
    return pull_back_head(model, clean, site, (cotangent.to(weight) * slope) @ weight)


@counts_as("model")
def pull_back_head(
    model: HFModel, clean: CleanRun, site: Site, rows: Float[Tensor, "rows d_model"]
) -> Float[Tensor, "rows pos d"]:
    """Gradient of rows . final_norm(stream at the last position) with respect to `site`: `pull_back` before the
    unembedding.

    Raises:
        SiteError, NumericsError: as `WhiteBoxModel.vjp`.
    """
    like = clean.pre[0]
    shape = (len(rows), like.shape[1], model.site_width(site))
    with FrozenLinears(), torch.enable_grad():
        leaf = torch.zeros(shape, dtype=like.dtype, device=like.device, requires_grad=True)
        norm: Any = model.model.get_submodule(model.anatomy.final_norm)
        final = norm(_behind(model, clean, site, leaf))
        (gradient,) = torch.autograd.grad(final, leaf, grad_outputs=rows.to(like))
    return _checked(model, gradient, site, edited=False)


@counts_as("model")
def pull_back_pushed(
    model: HFModel,
    clean: CleanRun,
    site: Site,
    added: Float[Tensor, "rows pos d"],
    cotangent: Callable[[Tensor], Tensor],
) -> Float[Tensor, "rows pos d"]:
    """`pull_back` where `added` has brought every row: one pass forward, one back.

    Args:
        model: whose clean run it is.
        clean: of the prompt.
        site: not the embedding.
        added: to the activation at `site`.
        cotangent: last-position logits [rows d_vocab] of the pushed rows -> what of them is wanted, same shape.

    Raises:
        SiteError, NumericsError: as `WhiteBoxModel.vjp`.
    """
    with FrozenLinears(), torch.enable_grad():
        leaf = added.detach().to(clean.pre[0]).requires_grad_()
        logits = last_logits(model, _behind(model, clean, site, leaf))
        wanted = cotangent(logits.detach()).to(logits)
        (gradient,) = torch.autograd.grad(logits, leaf, grad_outputs=wanted)
    return _checked(model, gradient, site, edited=True)


@counts_as("model")
def pull_back_edited(
    model: HFModel,
    clean: CleanRun,
    tokens: Int[Tensor, "rows pos"],
    edits: Sequence[Edit],
    site: Site,
    cotangent: Callable[[Tensor], Tensor],
) -> tuple[Float[Tensor, "rows d_vocab"], Float[Tensor, "rows pos d"]]:
    """(last-position logits, gradient with respect to `site`) under edits: one pass forward, one back.

    Args:
        model: whose clean run it is.
        clean: of the prompt.
        tokens: the prompt, a row for each.
        edits: of blocks; at `site` none but `Add`.
        site: not the embedding.
        cotangent: logits [rows d_vocab] -> what of them is wanted, same shape.

    Raises:
        SiteError, MismatchError, NumericsError: as `WhiteBoxModel.vjp`.
    """
    leaves: list[Tensor] = []
    tap = _written(model, site)
    actions = model.edit_actions(tokens, edits)
    actions[tap] = [*actions.get(tap, []), cut_into(leaves)]
    start = min(first_block(at) for at in (site, *(edit.site for edit in edits)))
    door = actions.pop(model.tap(Site(start - 1, "hook_resid_post")), []) if start else []
    with FrozenLinears(), torch.enable_grad():
        h = clean.pre[start].expand(len(tokens), -1, -1)
        for action in door:
            h = action(h)
        logits = last_logits(model, run_blocks(model, clean, h, start=start, actions=actions))
        wanted = cotangent(logits.detach()).to(logits)
        (gradient,) = torch.autograd.grad(logits, leaves[-1], grad_outputs=wanted)
    return logits.detach(), _checked(model, gradient, site, edited=bool(edits))


@counts_as("model")
def scale_slopes(
    model: HFModel,
    clean: CleanRun,
    sites: Sequence[Site],
    edited: Bool[Tensor, " pos"],
    cotangent: Float[Tensor, " d_vocab"],
) -> dict[Site, Float[Tensor, " d"]]:
    """Slope of cotangent . last-position logits in a factor on every coordinate of every site, over the edited positions.

    Raises:
        SiteError, NumericsError: as `WhiteBoxModel.vjp`.
    """
    like = clean.pre[0]
    where = edited.to(like)[None, :, None]
    more = {
        site: torch.zeros(model.site_width(site), dtype=like.dtype, device=like.device, requires_grad=True)
        for site in sites
    }
    actions: dict[Tap, list[Action]] = {
        model.tap(site): [lambda h, one=one: h * (1 + where * one)] for site, one in more.items()
    }
    with FrozenLinears(), torch.enable_grad():
        logits = last_logits(model, run_blocks(model, clean, like, start=0, actions=actions))
        found = torch.autograd.grad(logits, list(more.values()), grad_outputs=cotangent[None].to(logits))
    return {site: _checked(model, one, site, edited=False) for site, one in zip(sites, found, strict=True)}


def _behind(model: HFModel, clean: CleanRun, site: Site, leaf: Float[Tensor, "rows pos d"]) -> Tensor:
    """The stream after the last block at the last position, with `leaf` added at the site."""
    start, tap = first_block(site), _written(model, site)
    h = clean.pre[start].expand(len(leaf), -1, -1)
    actions: dict[Tap, list[Action]] = {}
    if site.point == "hook_resid_post":
        h = h + leaf
    else:
        actions = {tap: [lambda x: x + leaf]}
    return run_blocks(model, clean, h, start=start, actions=actions)


def _checked(model: HFModel, gradient: Tensor, site: Site, *, edited: bool) -> Tensor:
    gradient = gradient.to(working_dtype(gradient.dtype))
    model.check_finite(gradient, f"gradients at {site}", edited=edited)
    return gradient


@counts_as("model")
def hessian_products(
    model: HFModel,
    clean: CleanRun,
    source: Site,
    sites: Sequence[Site],
    edited: Bool[Tensor, " pos"],
    outcome: Callable[[Tensor], Tensor],
    vectors: Float[Tensor, "rows d"],
) -> dict[Site, Float[Tensor, "rows d_site"]]:
    """How the gradient of an outcome, with respect to a vector added at the edited positions of each site, changes along
    vectors added at `source`: for every row, d_j . found[site] is the mixed second derivative for any d_j.

    Args:
        model: whose clean run it is.
        clean: of the prompt.
        source: where the vectors are added; not the embedding.
        sites: where the others are.
        edited: which positions.
        outcome: last-position logits [rows d_vocab] -> one number a row.
        vectors: one for each row.

    Raises:
        SiteError, NumericsError: as `WhiteBoxModel.vjp`.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    rows, like = len(vectors), clean.pre[0]
    every = list(dict.fromkeys([source, *sites]))
    leaves = {
        site: torch.zeros(
            rows, model.site_width(site), dtype=like.dtype, device=like.device, requires_grad=True
        )
        for site in every
    }
    # the fused attention kernels and `FrozenLinears` have no second derivative
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        logits = _with_added(model, clean, leaves, edited)
        (slope,) = torch.autograd.grad(outcome(logits).sum(), leaves[source], create_graph=True)
        along = (slope * vectors.to(slope)).sum()
        found = torch.autograd.grad(along, [leaves[site] for site in sites])
    made = {site: one.to(working_dtype(one.dtype)) for site, one in zip(sites, found, strict=True)}
    for site, one in made.items():
        model.check_finite(one, f"second derivatives at {site}", edited=False)
    return made


def pushed_gradients(
    model: HFModel,
    clean: CleanRun,
    added: Mapping[Site, Float[Tensor, "rows d"]],
    edited: Bool[Tensor, " pos"],
    outcome: Callable[[Tensor], Tensor],
) -> dict[Site, Float[Tensor, "rows d"]]:
    """The gradient of every row's outcome with respect to the vectors that it adds at the edited positions of each site:
    at a later site that is the gradient with all edits of earlier ones in place.

    Args:
        model: whose clean run it is.
        clean: of the prompt.
        added: by site what every row adds; not at the embedding.
        edited: which positions.
        outcome: last-position logits [rows d_vocab] -> one number a row.

    Raises:
        SiteError, NumericsError: as `WhiteBoxModel.vjp`.
    """
    leaves = {site: x.to(clean.pre[0]).clone().requires_grad_() for site, x in added.items()}
    with torch.enable_grad():
        told = outcome(_with_added(model, clean, leaves, edited)).sum()
        found = torch.autograd.grad(told, list(leaves.values()))
    made = {site: one.to(working_dtype(one.dtype)) for site, one in zip(leaves, found, strict=True)}
    for site, one in made.items():
        model.check_finite(one, f"gradients at {site}", edited=True)
    return made


def _with_added(
    model: HFModel,
    clean: CleanRun,
    leaves: Mapping[Site, Float[Tensor, "rows d"]],
    edited: Bool[Tensor, " pos"],
) -> Float[Tensor, "rows d_vocab"]:
    """Last-position logits of rows that add vectors at the edited positions of sites."""
    start = min(first_block(site) for site in leaves)
    where = edited.to(clean.pre[0])[None, :, None]
    h = clean.pre[start].expand(len(next(iter(leaves.values()))), -1, -1)
    actions: dict[Tap, list[Action]] = {}
    for site, leaf in leaves.items():
        if site.point == "hook_resid_post" and site.layer == start - 1:
            h = h + leaf[:, None] * where
        else:
            tap = _written(model, site)
            actions.setdefault(tap, []).append(lambda x, leaf=leaf: x + leaf[:, None] * where)
    return last_logits(model, run_blocks(model, clean, h, start=start, actions=actions))


@torch.no_grad()
def head_slope(model: HFModel, clean: CleanRun) -> Float[Tensor, " n_slopes"]:
    """d logit / d (unembedding row . normed stream) at the last position: 1, or for Gemma 2 that of its soft-cap,
    one per token."""
    cap = logit_cap(model.model.config)
    if cap is None:
        return torch.ones(1, dtype=model.W_U.dtype, device=model.W_U.device)
    return (1 - (last_logits(model, clean.pre[-1][:, -1])[0] / cap) ** 2).to(model.W_U)


def _written(model: HFModel, site: Site) -> Any:
    """The tap through which a site is written: the stream between attention and MLP through what attention
    adds."""
    model.tap(site)
    return model.tap(Site(site.layer, "hook_attn_out") if site.point == "hook_resid_mid" else site)
