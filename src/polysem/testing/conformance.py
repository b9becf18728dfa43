"""What a white-box model must do, as checks that anyone who writes one can run: `check_model(model)`.

The checks know the seam and nothing behind it. They state meanings, not implementations: what a hook name
says about the residual stream, what an edit does to the activation it names and to nothing else, that a
gradient is a gradient. A few hundred small forward passes; run it on a small model of your architecture, in
float32 or float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.edits import Add, Clamp, Edit, Scale
from polysem.errors import MismatchError, PolysemError, SiteError
from polysem.models.base import WhiteBoxModel
from polysem.models.generate import Scope, recomputed
from polysem.seeds import rng_for
from polysem.types import Site

RTOL = 2e-4
"""float32 sums taken in another order: a few units in the last place of the largest term, over a few
layers"""
GRADIENT_RTOL = 2e-2
"""central differences in float32 lose half the digits; a wrong gradient is wrong by tens of percent"""
BATCH, POS = 3, 7


def check_model(model: WhiteBoxModel, *, seed: int = 0) -> None:
    """Assert every promise of `models.base.WhiteBoxModel`.

    Args:
        model: any implementation, float32 or float64.
        seed: of the tokens and vectors used.

    Raises:
        AssertionError: naming the promise, the site and the size of the difference.
    """
    bench = _Drawn(model, seed)
    before = model.logits(bench.tokens)
    for check in (
        _check_shapes,
        _check_embedding,
        _check_tokens,
        _check_refusals,
        _check_nothing_is_nothing,
        _check_edits_say_what_they_do,
        _check_edits_compose,
        _check_rows_and_time,
        _check_residual_identities,
        _check_edit_identities,
        _check_gradients,
        _check_generation,
    ):
        check(bench)
    _require(
        torch.equal(before, model.logits(bench.tokens)),
        "the model is the same after everything that was done to it",
    )


@dataclass(frozen=True)
class _Drawn:
    """A model with fixed tokens and draws."""

    model: WhiteBoxModel
    seed: int

    def draw(self, *shape: int, name: str = "") -> Float[Tensor, "..."]:
        values = rng_for(self.seed, "check_model", name, *shape).standard_normal(shape)
        return torch.from_numpy(values.astype(np.float32))

    @property
    def tokens(self) -> Int[Tensor, "batch pos"]:
        ids = rng_for(self.seed, "check_model", "tokens").integers(
            0, self.model.spec.d_vocab, size=(BATCH, POS)
        )
        return torch.from_numpy(ids).to(self.model.spec.device)

    @property
    def mask(self) -> Bool[Tensor, "batch pos"]:
        """Every position of row 0, two of row 1, none of row 2."""
        mask = torch.zeros(BATCH, POS, dtype=torch.bool)
        mask[0] = True
        mask[1, 2] = mask[1, POS - 1] = True
        return mask

    def add(self, site: Site, *, name: str = "vector") -> Add:
        return Add(site, self.draw(BATCH, self.model.site_width(site), name=name), self.mask)

    def capture(self, site: Site, edits: Sequence[Edit] = ()) -> Float[Tensor, "batch pos d"]:
        return self.model.capture(self.tokens, [site], edits)[site].cpu()


def _require(holds: bool, promise: str) -> None:
    if not holds:
        raise AssertionError(f"not so: {promise}")


def _require_close(seen: Tensor, expected: Tensor, promise: str, *, rtol: float = RTOL) -> None:
    """Closeness relative to the largest value expected, since sums of large terms may cancel."""
    _require(
        seen.shape == expected.shape,
        f"{promise}: shape {tuple(seen.shape)}, expected {tuple(expected.shape)}",
    )
    seen, expected = seen.cpu().double(), expected.cpu().double()
    difference, size = float((seen - expected).abs().max()), float(expected.abs().max())
    _require(
        difference <= rtol * max(size, 1e-12),
        f"{promise} (largest difference {difference:.3g}, values to {size:.3g})",
    )


def _check_shapes(bench: _Drawn) -> None:
    model, spec = bench.model, bench.model.spec
    logits = model.logits(bench.tokens)
    _require(
        tuple(logits.shape) == (BATCH, POS, spec.d_vocab),
        f"logits are [batch pos d_vocab], got {tuple(logits.shape)}",
    )
    _require(
        logits.dtype in (torch.float32, torch.float64), f"logits are float32 (or float64), got {logits.dtype}"
    )
    _require(not logits.requires_grad, "logits are detached")
    _require_close(
        model.logits(bench.tokens, last_only=True), logits[:, -1:], "last_only gives the last position"
    )
    _require(torch.equal(logits, model.logits(bench.tokens)), "the same call gives the same bits")
    sites = model.sites()
    _require(len(set(sites)) == len(sites), "sites are listed once")
    layers = {site.layer for site in sites if site.layer is not None}
    _require(
        layers == set(range(spec.n_layers)),
        f"sites cover layers 0 to {spec.n_layers - 1}, got {sorted(layers)}",
    )
    together = model.capture(bench.tokens, sites)
    _require(list(together) == sites, "capture gives exactly the sites asked for")
    for site in sites:
        _require(Site.parse(str(site)) == site, f"{site} is parsed as it is printed")
        shape = tuple(together[site].shape)
        _require(shape == (BATCH, POS, model.site_width(site)), f"{site} is [batch pos width], got {shape}")
        _require(not together[site].requires_grad, f"captured {site} is detached")
        _require(
            torch.equal(together[site].cpu(), bench.capture(site)),
            f"{site} is the same captured alone or with others",
        )
    _require(model.capture(bench.tokens, []) == {}, "no sites, no captures")


def _check_embedding(bench: _Drawn) -> None:
    model, spec = bench.model, bench.model.spec
    for name, matrix in (("W_E", model.W_E), ("W_U", model.W_U)):
        shape = tuple(matrix.shape)
        _require(shape == (spec.d_vocab, spec.d_model), f"{name} is [d_vocab d_model], got {shape}")
    embedded = bench.capture(Site(None, "hook_embed"))
    _require_close(embedded, model.W_E[bench.tokens], "hook_embed of token t is W_E[t]")


def _check_tokens(bench: _Drawn) -> None:
    model = bench.model
    text = "the sea and the old man"
    ids = model.tokenize(text, prepend_bos=False)
    _require(len(ids) > 0 and max(ids) < model.spec.d_vocab, "text becomes ids of the vocabulary")
    _require(model.bos_id is None or model.bos_id not in ids, "without prepend_bos there is no BOS")
    if model.bos_id is not None:
        _require(
            model.tokenize(text, prepend_bos=True) == [model.bos_id, *ids],
            "prepend_bos puts one BOS in front",
        )
    _require(
        model.detokenize(ids).strip() == text,
        f"detokenize gives the text back, got {model.detokenize(ids)!r}",
    )
    _require(
        "".join(model.token_strings(ids)).strip() == text,
        "token strings, joined, are the text with its spaces",
    )


def _check_refusals(bench: _Drawn) -> None:
    model, tokens = bench.model, bench.tokens
    absent = Site(model.spec.n_layers, "hook_resid_post")
    unwelcome = Add(absent, torch.zeros(BATCH, model.spec.d_model), bench.mask)
    narrow = Add(Site(0, "hook_resid_post"), torch.zeros(BATCH, model.spec.d_model - 1), bench.mask)
    _require_refused(SiteError, lambda: model.site_width(absent), f"{absent} has no width")
    _require_refused(SiteError, lambda: model.capture(tokens, [absent]), f"{absent} is not captured")
    _require_refused(SiteError, lambda: model.logits(tokens, [unwelcome]), f"{absent} is not edited")
    foreign = torch.full_like(tokens, model.spec.d_vocab)
    _require_refused(MismatchError, lambda: model.logits(foreign), "ids beyond the vocabulary are refused")
    _require_refused(
        MismatchError, lambda: model.logits(tokens, [narrow]), "a vector of the wrong width is refused"
    )


def _require_refused(error: type[PolysemError], call: Callable[[], object], promise: str) -> None:
    try:
        call()
    except error:
        return
    raise AssertionError(f"not so: {promise} ({error.__name__} was not raised)")


def _check_nothing_is_nothing(bench: _Drawn) -> None:
    model, plain = bench.model, bench.model.logits(bench.tokens)
    for site in model.sites():
        zero = Add(site, torch.zeros(BATCH, model.site_width(site)), torch.ones_like(bench.mask))
        nowhere = Add(site, 1e3 * bench.add(site).vector, torch.zeros_like(bench.mask))
        _require(
            torch.equal(model.logits(bench.tokens, [zero]), plain), f"adding zero at {site} changes no bit"
        )
        _require(
            torch.equal(model.logits(bench.tokens, [nowhere]), plain),
            f"an edit at {site} masked everywhere changes no bit",
        )


def _check_edits_say_what_they_do(bench: _Drawn) -> None:
    model, mask = bench.model, bench.mask
    for site in model.sites():
        width, h = model.site_width(site), bench.capture(site)
        add = bench.add(site)
        index = torch.tensor([0, width - 1, 1])
        factor = torch.tensor([0.0, -2.0, 3.0])
        scale = Scale(site, index, factor, mask)
        reader, writer = bench.draw(BATCH, width, name="reader"), bench.draw(BATCH, width, name="writer")
        value, offset = bench.draw(BATCH, name="value"), bench.draw(BATCH, name="offset")
        clamp = Clamp(site, reader, writer, value, offset, mask)
        expected = {"Add": h.clone(), "Scale": h.clone(), "Clamp": h.clone()}
        for b in range(BATCH):
            for p in range(POS):
                if mask[b, p]:
                    expected["Add"][b, p] += add.vector[b]
                    expected["Scale"][b, p, index[b]] *= factor[b]
                    expected["Clamp"][b, p] += (value[b] - h[b, p] @ reader[b].to(h) - offset[b]) * writer[b]
        for edit in (add, scale, clamp):
            kind = type(edit).__name__
            seen = bench.capture(site, [edit])
            _require_close(seen, expected[kind], f"{kind} at {site} changes the activation by its formula")
        seen = bench.capture(site, [add])
        _require(torch.equal(seen[~mask], h[~mask]), f"Add at {site} leaves masked positions alone")


def _check_edits_compose(bench: _Drawn) -> None:
    model, mask = bench.model, bench.mask
    for site in model.sites():
        add = bench.add(site)
        scale = Scale(site, torch.zeros(BATCH, dtype=torch.int64), torch.full((BATCH,), 2.0), mask)
        h = bench.capture(site)
        first_add, first_scale = h.clone(), h.clone()
        vector = add.vector[:, None, :].expand(-1, POS, -1)
        first_add[mask] = (h + vector)[mask]
        first_add[..., 0] = torch.where(mask, 2 * first_add[..., 0], first_add[..., 0])
        first_scale[..., 0] = torch.where(mask, 2 * first_scale[..., 0], first_scale[..., 0])
        first_scale[mask] = (first_scale + vector)[mask]
        _require_close(
            bench.capture(site, [add, scale]), first_add, f"at {site} Add then Scale, in this order"
        )
        _require_close(
            bench.capture(site, [scale, add]), first_scale, f"at {site} Scale then Add, in this order"
        )


def _check_rows_and_time(bench: _Drawn) -> None:
    model, tokens = bench.model, bench.tokens
    plain = model.logits(tokens)
    for site in model.sites():
        edited = model.logits(tokens, [bench.add(site)])
        _require(torch.equal(edited[2], plain[2]), f"an edit at {site} of other rows leaves a row alone")
        _require(
            torch.equal(edited[1, :2], plain[1, :2]), f"an edit at {site} leaves earlier positions alone"
        )
        _require(not torch.equal(edited[0, -1], plain[0, -1]), f"an edit at {site} reaches the last logits")


def _check_residual_identities(bench: _Drawn) -> None:
    has = set(bench.model.sites())
    for layer in range(bench.model.spec.n_layers):
        pre, mid, post, attn, mlp = (
            Site(layer, f"hook_{point}")
            for point in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
        )
        h = bench.model.capture(bench.tokens, [site for site in (pre, mid, post, attn, mlp) if site in has])
        _require_close(
            h[post], h[pre] + h[attn] + h[mlp], f"layer {layer}: resid_post = resid_pre + attn_out + mlp_out"
        )
        if mid in has:
            _require_close(h[mid], h[pre] + h[attn], f"layer {layer}: resid_mid = resid_pre + attn_out")
        following = Site(layer + 1, "hook_resid_pre")
        if following in has:
            _require(
                torch.equal(h[post].cpu(), bench.capture(following)),
                f"resid_post of layer {layer} is the next resid_pre",
            )


def _check_edit_identities(bench: _Drawn) -> None:
    """A vector added to a contribution is a vector added to the stream that the contribution goes into."""
    model, has = bench.model, set(bench.model.sites())
    for layer in range(model.spec.n_layers):
        points = {
            name: Site(layer, f"hook_{name}") for name in ("resid_mid", "resid_post", "attn_out", "mlp_out")
        }
        logits = {
            name: model.logits(bench.tokens, [bench.add(site)])
            for name, site in points.items()
            if site in has
        }
        _require_close(
            logits["mlp_out"], logits["resid_post"], f"layer {layer}: Add at mlp_out = Add at resid_post"
        )
        streams = ["resid_mid"] if points["resid_mid"] in has else ["mlp_out", "resid_post"]
        for stream in streams:
            _require_close(
                logits["attn_out"], logits[stream], f"layer {layer}: Add at attn_out = Add at {stream}"
            )
        if points["resid_mid"] in has:
            same = torch.allclose(logits["resid_mid"], logits["resid_post"], rtol=RTOL)
            _require(not same, f"layer {layer}: what is added at resid_mid is read by the MLP")


def _check_gradients(bench: _Drawn) -> None:
    model, tokens = bench.model, bench.tokens
    cotangent = bench.draw(BATCH, model.spec.d_vocab, name="cotangent").to(tokens.device)
    everywhere = torch.ones_like(bench.mask)
    for site in model.sites():
        gradient = model.vjp(tokens, site, cotangent).cpu().double()
        h = bench.capture(site)
        _require(gradient.shape == h.shape, f"the gradient at {site} has the shape of the activation")
        # along the gradient itself, so that a wrong sign or scale cannot hide behind a small projection
        direction = gradient.sum(1)
        direction = direction / direction.norm(dim=1, keepdim=True)
        step = 3e-3 * float(h.norm(dim=-1).mean())
        moved = {
            sign: model.logits(
                tokens, [Add(site, (sign * step * direction).float(), everywhere)], last_only=True
            )[:, -1]
            for sign in (1, -1)
        }
        change = ((moved[1] - moved[-1]).double() * cotangent.double()).sum(1).cpu() / (2 * step)
        predicted = torch.einsum("bpd,bd->b", gradient, direction)
        _require_close(
            predicted, change, f"vjp at {site} predicts the change of the logits", rtol=GRADIENT_RTOL
        )


def _check_generation(bench: _Drawn) -> None:
    """Drawn with whatever a model keeps between tokens, or read again for each: the same logits and texts."""
    model, tokens, n = bench.model, bench.tokens, 3

    def last(whole: Tensor, now: list[Edit]) -> Tensor:
        return model.logits(whole, now, last_only=True)

    edits = [bench.add(site, name=str(site)) for site in model.sites()]
    scopes: tuple[tuple[Scope, int, int], ...] = (
        ("prompt", 1, 0),
        ("decode", 0, n),
        ("both", 1, n - 1),
        (2, 0, 2),
    )
    for scope, whole, more in scopes:
        seen = model.generate(tokens, edits, n=n, scope=scope, keep_logits=True)
        again = recomputed(last, tokens, edits, n=n, n_ctx=model.spec.n_ctx, scope=scope, keep_logits=True)
        assert seen.logits is not None
        assert again.logits is not None
        for k in range(n):  # step by step: behind another token another logit is right
            same = (seen.tokens[:, :k] == again.tokens[:, :k]).all(1)
            _require(bool(same.all()), f"generation under edits, scope {scope}: the same text")
            promise = f"generation under edits, scope {scope}: logits of the text read again, token {k}"
            _require_close(seen.logits[:, k], again.logits[:, k], promise)
        own = bench.mask.any(1) * more + bench.mask.sum(1) * whole
        # the last of row 1's prompt is edited and drawn from: once under both, and counted once
        expected = own.expand(len(edits), -1)
        _require(
            torch.equal(seen.edited.cpu(), expected),
            f"scope {scope}: edits ran at {seen.edited[0].tolist()} positions, not at {own.tolist()}",
        )
    zeros = [replace(e, vector=0 * e.vector, mask=torch.ones_like(bench.mask)) for e in edits]
    plain, zero = (model.generate(tokens, some, n=n).tokens for some in ((), zeros))
    _require(torch.equal(plain, zero), "adding zero changes no token of a text")
    pushed = model.generate(tokens, edits[-1:], n=n, keep_logits=True).logits
    base = model.generate(tokens, n=n, keep_logits=True).logits
    assert pushed is not None
    assert base is not None
    _require(torch.equal(pushed[2], base[2]), "an edit of other rows leaves the text of a row alone")
    _require(bool((pushed[:2] != base[:2]).any(-1).all()), "an edit reaches every token that is drawn")
