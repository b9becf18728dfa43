"""White-box access to a causal LM of `transformers`: edits in, logits, activations and gradients out.

The model is run exactly as it is: no folding, no centring, parameters frozen, evaluation mode, no cache, no
padding. Without edits the logits are the bits of the plain forward pass; activations of many tokens go through the faster
of torch's two libraries (`polysem.onednn`), in float32 as well. Results are float32 (float64 for a
float64 model) on the model's device.
Cost: one forward pass per call; `last_only` leaves out the unembedding of all positions but the last,
`capture` stops after the last site it needs, `vjp` keeps a graph only from its site on.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from polysem.edits import Edit
from polysem.errors import MismatchError, NumericsError
from polysem.models.anatomy import Anatomy, Tap, anatomy_of
from polysem.models.base import ModelSpec
from polysem.models.generate import Generated, Scope, Told, drawn
from polysem.models.hooks import Action, Stop, apply_edit, check_edit, cut_into, hooked, working_dtype
from polysem.models.text import Encoded, control_ids, encode_text
from polysem.onednn import FrozenLinears
from polysem.profiling import counts_as
from polysem.store.result import Shown
from polysem.types import BlockPoint, Site

_RESID_MID = "hook_resid_mid"
_MANY = 64
"""tokens of a batch from which the faster products win what choosing them costs"""


class HFModel(Shown):
    """A `transformers` causal LM behind the seam `models.base.WhiteBoxModel`. Make one with `load_model` or
    `from_parts`."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, *, spec: ModelSpec, anatomy: Anatomy):
        self.model = model
        self.tokenizer = tokenizer
        self.spec = spec
        self.anatomy = anatomy
        self._pieces = _piece_style(tokenizer)
        self._special_ids = frozenset(tokenizer.all_special_ids)
        self._control_ids = control_ids(tokenizer)
        self._strings: dict[int, str] = {}

    @classmethod
    def from_parts(
        cls, model: PreTrainedModel, tokenizer: Any, *, ref: str = "memory", revision: str = "memory"
    ) -> "HFModel":
        """Wrap a model that is already in memory. The model is taken over: its parameters are frozen, its
        mode set to evaluation.

        Raises:
            UnknownReferenceError: if the model's family is not known.
            MismatchError: if the tokenizer has ids that the model has no embedding for.
        """
        config: Any = model.config
        anatomy = anatomy_of(config, ref=ref)
        _check_tokenizer(tokenizer, model, ref=ref)
        model.eval().requires_grad_(False)
        if anatomy.eager_attention and config._attn_implementation != "eager":
            model.set_attn_implementation("eager")
        weight = _weight(model.get_input_embeddings())
        spec = ModelSpec(
            ref=ref,
            revision=revision,
            family=config.model_type,
            n_layers=config.num_hidden_layers,
            d_model=config.hidden_size,
            d_vocab=_weight(model.get_output_embeddings()).shape[0],
            n_ctx=config.max_position_embeddings,
            dtype=str(weight.dtype).removeprefix("torch."),
            device=str(weight.device),
            norm=anatomy.norm,
        )
        return cls(model, tokenizer, spec=spec, anatomy=anatomy)

    def facts(self) -> Mapping[str, object]:
        spec = self.spec
        known = {
            "ref": spec.named or spec.ref,
            "family": spec.family,
            "layers": spec.n_layers,
            "width": spec.d_model,
        }
        return {**known, "vocabulary": spec.d_vocab, "dtype": spec.dtype, "device": spec.device}

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Input embedding, in the model's dtype, scaled as the model scales it: `hook_embed` of token t is
        W_E[t]."""
        weight = _weight(self.model.get_input_embeddings()).detach()
        if self.anatomy.scaled_embedding:
            # the model rounds sqrt(d_model) to its dtype first, and so must we
            return weight * torch.tensor(self.spec.d_model**0.5, dtype=weight.dtype, device=weight.device)
        return weight

    @property
    def W_U(self) -> Float[Tensor, "d_vocab d_model"]:
        """Unembedding rows, in the model's dtype: logits = final_norm(h) @ W_U.T, then the soft-cap of Gemma
        2."""
        return _weight(self.model.get_output_embeddings()).detach()

    @property
    def bos_id(self) -> int | None:
        return self.tokenizer.bos_token_id

    def tokenize(self, text: str, *, prepend_bos: bool) -> list[int]:
        """Token ids of `text` without any special token but, if asked for, one BOS in front.

        Special tokens written out in the text ("<|endoftext|>") are read as ordinary characters.

        Raises:
            MismatchError: if a BOS is asked for and the tokenizer has none.
        """
        if prepend_bos and self.bos_id is None:
            raise MismatchError(
                f"the tokenizer of {self.spec.ref} has no BOS token to put in front",
                hint="tokenize with prepend_bos=False",
            )
        ids = encode_text(self.tokenizer, text, control=self._control_ids).ids
        return [self.bos_id, *ids] if prepend_bos and self.bos_id is not None else ids

    def located(self, text: str) -> Encoded:
        """The tokens of `tokenize` without BOS, and where each lies in the text.

        Raises:
            MismatchError: if the tokenizer cannot say so.
        """
        return encode_text(self.tokenizer, text, control=self._control_ids, spans=True)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of a row of ids, special tokens spelt out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Each token alone, as text: leading space kept, undecodable bytes as U+FFFD, ids without a token as
        ''."""
        known = self._strings
        return [known[i] if i in known else known.setdefault(i, self._token_string(i)) for i in map(int, ids)]

    def _token_string(self, token_id: int) -> str:
        piece = self.tokenizer.convert_ids_to_tokens(token_id)
        if piece is None:  # embedding rows that pad the vocabulary to a round number
            return ""
        if self._pieces == "sentencepiece" and token_id not in self._special_ids:
            # decode() would drop the leading space of a first piece, so read the piece itself
            if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
                return bytes([int(piece[3:5], 16)]).decode("utf-8", errors="replace")
            return piece.replace("▁", " ")
        return self.tokenizer.decode(
            [token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def sites(self) -> list[Site]:
        """Every site that this model has: the embedding, then layer by layer."""
        points = [point for point in get_args(BlockPoint) if point in self.anatomy.points]
        layers = range(self.spec.n_layers)
        return [Site(None, "hook_embed"), *(Site(layer, point) for layer in layers for point in points)]

    def site_width(self, site: Site) -> int:
        """Width of the activation at `site`.

        Raises:
            SiteError: if the model does not have the site.
        """
        tap = self.tap(site)
        if tap.width == "d_model":
            return self.spec.d_model
        module = self.model.get_submodule(tap.path)
        shape = _weight(module).shape
        n_out, n_in = (
            shape if isinstance(module, nn.Linear) else (shape[1], shape[0])
        )  # GPT-2's Conv1D is [in, out]
        return n_in if tap.width == "rows_in" else n_out

    @counts_as("model")
    def logits(
        self, tokens: Int[Tensor, "batch pos"], edits: Sequence[Edit] = (), *, last_only: bool = False
    ) -> Float[Tensor, "batch pos_out d_vocab"]:
        """Logits with the edits applied, in the order given at each site; only of the last position if
        `last_only`.

        Raises:
            SiteError: if an edit is at a site that the model does not have.
            MismatchError: if tokens or edits do not fit the model or each other.
            NumericsError: if a logit is not finite.
        """
        actions = self.edit_actions(tokens, edits)
        with torch.no_grad(), hooked(self.model, actions):
            logits = self._forward(tokens, last_only=last_only)
        self.check_finite(logits, "logits", edited=bool(edits))
        return logits

    @counts_as("model")
    def capture(
        self, tokens: Int[Tensor, "batch pos"], sites: Sequence[Site], edits: Sequence[Edit] = ()
    ) -> dict[Site, Float[Tensor, "batch pos d"]]:
        """Activations at `sites`, detached, after the edits at the same site; the forward pass stops after
        the last of them.

        Raises:
            SiteError, MismatchError, NumericsError: as `logits`.
        """
        missing = set(sites)
        found: dict[Site, Tensor] = {}

        def keep(site: Site) -> Action:
            def action(h: Tensor) -> Tensor:
                # a copy even where the dtype is right: nothing may change under the caller's hands
                found[site] = h.detach().to(working_dtype(h.dtype), copy=True)
                missing.discard(site)
                if not missing:
                    raise Stop
                return h

            return action

        looks = {site: keep(site) for site in dict.fromkeys(sites)}
        actions = self.edit_actions(tokens, edits, looks=looks)
        if not looks:
            return {}
        products = FrozenLinears() if tokens.numel() >= _MANY else nullcontext()
        try:
            with torch.no_grad(), products, hooked(self.model, actions):
                self._forward(tokens, last_only=True)
        except Stop:
            pass
        for site, h in found.items():
            self.check_finite(h, f"activations at {site}", edited=bool(edits))
        return {site: found[site] for site in looks}

    @counts_as("model")
    def vjp(
        self,
        tokens: Int[Tensor, "batch pos"],
        site: Site,
        cotangent: Float[Tensor, "batch d_vocab"],
        edits: Sequence[Edit] = (),
    ) -> Float[Tensor, "batch pos d"]:
        """Gradient of sum_t cotangent[b, t] * logits[b, last, t] with respect to the activation at `site`,
        taken where the edits have brought the model.

        Raises:
            SiteError, MismatchError, NumericsError: as `logits`.
        """
        self.check_tokens(tokens)
        expected = (len(tokens), self.spec.d_vocab)
        if tuple(cotangent.shape) != expected:
            raise MismatchError(
                f"cotangent has shape {tuple(cotangent.shape)}, expected {expected} (batch, d_vocab)",
                hint="give one weight per row and token of the vocabulary",
            )
        leaves: list[Tensor] = []
        # The stream between attention and MLP is what attention adds to a constant: the two gradients are
        # one.
        at = Site(site.layer, "hook_attn_out") if site.point == _RESID_MID else site
        self.tap(site)
        actions = self.edit_actions(tokens, edits)
        actions[self.tap(at)] = [cut_into(leaves), *actions.get(self.tap(at), [])]
        with torch.enable_grad(), hooked(self.model, actions):
            last = self._forward(tokens, last_only=True)[:, -1]
            (gradient,) = torch.autograd.grad(last, leaves[-1], grad_outputs=cotangent.to(last))
        gradient = gradient.to(working_dtype(gradient.dtype))
        self.check_finite(gradient, f"gradients at {site}", edited=bool(edits))
        return gradient

    def generate(
        self,
        tokens: Int[Tensor, "batch pos"],
        edits: Sequence[Edit] = (),
        *,
        n: int,
        scope: Scope = "both",
        temperature: float = 1.0,
        seed: int = 0,
        draws: Sequence[int] | None = None,
        keep_logits: bool = False,
        told: Told | None = None,
    ) -> Generated:
        """n tokens behind every prompt, with keys and values of what was read kept: every position is read once, under
        the edits that reach it.

        Raises:
            SiteError, MismatchError, NumericsError: as `logits` and `models.generate.drawn`.
        """
        self.check_tokens(tokens)
        ran = [torch.zeros(len(tokens), dtype=torch.long) for _ in edits]
        # transformers 4.56 to 5.23 say past_key_values, later ones cache
        name = "cache" if "cache" in signature(self.model.forward).parameters else "past_key_values"
        cache: Any = None
        read = 0

        def step(whole: Tensor, now: list[Edit]) -> Tensor:
            nonlocal cache, read
            new = whole[:, read:]
            here = [(k, replace(edit, mask=edit.mask[:, read:])) for k, edit in enumerate(now)]
            here = [(k, edit) for k, edit in here if bool(edit.mask.any())]
            actions = self.edit_actions(new, [edit for _, edit in here], ran=[ran[k] for k, _ in here])
            with torch.no_grad(), hooked(self.model, actions):
                output = self.model(
                    input_ids=new.to(self.model.device), use_cache=True, logits_to_keep=1, return_dict=True,
                    **{name: cache},
                )  # fmt: skip
            cache, read = output[name], whole.shape[1]
            logits = output.logits[:, -1].to(working_dtype(output.logits.dtype))
            self.check_finite(logits, "logits", edited=bool(edits))
            return logits

        return drawn(
            step, tokens.to(self.model.device), edits, ran, n=n, n_ctx=self.spec.n_ctx, scope=scope,
            temperature=temperature, seed=seed, draws=draws, keep_logits=keep_logits, told=told,
        )  # fmt: skip

    def tap(self, site: Site) -> Tap:
        return self.anatomy.tap(site, family=self.spec.family, n_layers=self.spec.n_layers)

    def _forward(
        self, tokens: Int[Tensor, "batch pos"], *, last_only: bool
    ) -> Float[Tensor, "batch pos_out d_vocab"]:
        output = self.model(
            input_ids=tokens.to(self.model.device),
            use_cache=False,
            logits_to_keep=1 if last_only else 0,
            return_dict=True,
        )
        return output.logits.to(working_dtype(output.logits.dtype))

    def edit_actions(
        self,
        tokens: Tensor,
        edits: Sequence[Edit],
        *,
        looks: dict[Site, Action] | None = None,
        ran: Sequence[Tensor] | None = None,
    ) -> dict[Tap, list[Action]]:
        """What to do at each tap: edits in the order given, then looks, then what a later site writes through
        this one. To `ran`, one counter of rows for each edit, is added where the edit has run."""
        self.check_tokens(tokens)
        actions: dict[Tap, list[Action]] = defaultdict(list)
        mids: dict[int, list[_Counted]] = defaultdict(list)
        for edit, count in zip(edits, ran or [None] * len(edits), strict=True):
            check_edit(edit, batch=tokens.shape[0], pos=tokens.shape[1], width=self.site_width(edit.site))
            if edit.site.point == _RESID_MID and edit.site.layer is not None:
                mids[edit.site.layer].append(_Counted(edit, count))
            else:
                actions[self.tap(edit.site)].append(_Counted(edit, count))
        for site, look in (looks or {}).items():
            actions[self.tap(site)].append(look)
        for layer, chain in mids.items():
            remember, write = _mid_writer(chain)
            actions[self.tap(Site(layer, "hook_resid_pre"))].append(remember)
            actions[self.tap(Site(layer, "hook_attn_out"))].append(write)
        return dict(actions)

    def check_tokens(self, tokens: Tensor) -> None:
        if tokens.ndim != 2 or tokens.numel() == 0:
            raise MismatchError(
                f"tokens have shape {tuple(tokens.shape)}, expected (batch, pos) with at least one token",
                hint="drop empty prompts",
            )
        if tokens.shape[1] > self.spec.n_ctx:
            raise MismatchError(
                f"rows of {tokens.shape[1]} tokens, but {self.spec.ref} has a context of {self.spec.n_ctx}",
                hint="cut the rows to the model's context",
            )
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.spec.d_vocab:
            raise MismatchError(
                f"token id {low if low < 0 else high} is outside the vocabulary of {self.spec.ref} "
                f"(0 to {self.spec.d_vocab - 1})",
                hint="tokenize with this model's own tokenizer: model.tokenize(text, prepend_bos=...)",
            )

    def check_finite(self, values: Tensor, what: str, *, edited: bool) -> None:
        if all(bool(end.isfinite()) for end in values.aminmax()):  # one pass; NaN comes through
            return
        rows = (~values.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        narrow = self.spec.dtype in ("float16", "bfloat16")
        causes = [f"load the model in float32 ({self.spec.dtype} overflows or rounds)"] if narrow else []
        causes += ["lower the dose of the edits"] if edited else []
        raise NumericsError(
            f"{what} of {self.spec.ref} are not finite in {len(rows)} of {len(values)} rows "
            f"(first: row {rows[0]}); the model runs in {self.spec.dtype}{' with edits' if edited else ''}",
            hint=" or ".join(causes) or "check the weights and the tokens of that row",
        )


@dataclass(frozen=True)
class _Counted:
    """An edit as an action, which counts by row the positions that it has run at."""

    edit: Edit
    ran: Tensor | None

    def __call__(self, h: Tensor) -> Tensor:
        if self.ran is not None:
            self.ran.add_(self.edit.mask.expand(h.shape[:2]).sum(1).cpu())
        return apply_edit(h, self.edit)


def _mid_writer(edits: Sequence[_Counted]) -> tuple[Action, Action]:
    """Edit the residual stream between attention and MLP: (look at the stream before, change what attention
    adds to it)."""
    before: list[Tensor] = []

    def remember(h: Tensor) -> Tensor:
        before[:] = [h]
        return h

    def write(contribution: Tensor) -> Tensor:
        stream = before[0] + contribution
        edited = stream
        for edit in edits:
            edited = edit(edited)
        wide = working_dtype(contribution.dtype)
        change = edited.to(wide) - stream.to(wide)
        return (contribution.to(wide) + change).to(contribution.dtype)

    return remember, write


def _weight(module: Any) -> Tensor:
    """The weight of an embedding or linear module (typed loosely by transformers)."""
    return module.weight


def _check_tokenizer(tokenizer: Any, model: PreTrainedModel, *, ref: str) -> None:
    highest = max(tokenizer.get_vocab().values(), default=-1)
    n_rows = _weight(model.get_input_embeddings()).shape[0]
    if highest >= n_rows:
        raise MismatchError(
            f"{ref}: the tokenizer has token ids up to {highest}, the model has embeddings for "
            f"0 to {n_rows - 1}; this tokenizer does not belong to this model",
            hint="put the tokenizer files of the same model into the folder",
        )


def _piece_style(tokenizer: Any) -> str:
    """`sentencepiece` where pieces write a space as U+2581 and decoding drops a leading one, else `plain`."""
    if not tokenizer.is_fast:
        return "plain"
    decoder = json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder")
    return "sentencepiece" if decoder and "▁" in json.dumps(decoder, ensure_ascii=False) else "plain"
