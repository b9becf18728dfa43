"""Many edits of few prompts: the logits of the plain forward pass, without what all rows share.

The work of a sweep is the set of distinct (prompt, direction, dose). The part of the model before the edit
is run once per prompt (`clean.py`); the rest runs in one of three ways that give the same numbers:

    fused    GPT-2, GPT-NeoX and the Llama kind in float32, for edits of the stream (`fused.py`)
    replay   every family and every edit of a block, through the model's own modules (`replay.py`)
    hooks    the plain forward pass, for any other model or edit

Which of them serve a model is settled once, by comparing each with the plain forward pass on drawn tokens:
a way that disagrees is not used, and a warning says so. What is computed for a batch depends on that batch
alone.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.edits import Add, Clamp, Edit, Scale
from polysem.models.base import WhiteBoxModel
from polysem.models.clean import CleanRun, clean_run
from polysem.models.fused import Fused, StreamEdit
from polysem.models.hf import HFModel
from polysem.models.replay import Unsupported, replay_logits
from polysem.profiling import counts_as
from polysem.seeds import rng_for
from polysem.types import Site

log = logging.getLogger(__name__)

Way = Literal["fused", "replay", "hooks"]

_CACHE_BYTES = 256 << 20
"""clean runs kept: some thousand prompts of a small model, a few of a large one"""
_CHECK_RTOL = {"float32": 1e-4, "float64": 1e-9, "float16": 3e-2, "bfloat16": 1e-1}
"""agreement with the plain pass that a way must show, relative to the spread of the logits: rounding is a
tenth of it, anything left out or done twice is more"""
_WRITES_STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")


class Sweep:
    """Last-position logits of edited prompts, by the shortest way that is exact for the model."""

    def __init__(self, model: WhiteBoxModel, *, ways: Sequence[Way] = ("fused", "replay")):
        self.model = model
        self._clean: OrderedDict[tuple[int, ...], CleanRun] = OrderedDict()
        self._bytes = 0
        self._fused = Fused.of(model) if isinstance(model, HFModel) and "fused" in ways else None
        self._replays = isinstance(model, HFModel) and "replay" in ways
        if isinstance(model, HFModel) and not self._agrees(model):
            log.debug("%s runs by %s", model.spec.ref, self.ways)

    @property
    def ways(self) -> tuple[Way, ...]:
        """The ways that serve this model, the shortest first."""
        found: list[Way] = []
        if self._fused is not None:
            found.append("fused")
        if self._replays:
            found.append("replay")
        return (*found, "hooks")

    @counts_as("model")
    def logits(
        self, tokens: Int[Tensor, "batch pos"], edits: Sequence[Edit]
    ) -> Float[Tensor, "batch d_vocab"]:
        """What `model.logits(tokens, edits, last_only=True)[:, -1]` gives, to rounding.

        Raises:
            SiteError, MismatchError, NumericsError: as `WhiteBoxModel.logits`.
        """
        model = self.model
        if isinstance(model, HFModel) and edits and self.ways != ("hooks",):
            model.edit_actions(tokens, edits)  # refuses what does not fit, with the same words
            groups = _same_prompt(tokens)
            parts = (
                [self._rows(model, tokens[rows], [_take(edit, rows) for edit in edits]) for rows in groups]
                if len(groups) > 1
                else [self._rows(model, tokens, edits)]
            )
            found = parts[0] if len(parts) == 1 else torch.cat(parts)[torch.cat(groups).argsort()]
            model.check_finite(found, "logits", edited=True)
            return found
        return model.logits(tokens, edits, last_only=True)[:, -1]

    def way(self, tokens: Int[Tensor, "1 pos"], edits: Sequence[Edit]) -> Way:
        """Which way serves these edits of one prompt."""
        model = self.model
        if not isinstance(model, HFModel) or not edits:
            return "hooks"
        clean = self.clean(model, tokens)
        if self._fused is not None and self._fused.can_run(clean) and entry_of(model, clean, edits):
            return "fused"
        return "replay" if self._replays and all(e.site.layer is not None for e in edits) else "hooks"

    def _rows(self, model: HFModel, tokens: Tensor, edits: Sequence[Edit]) -> Tensor:
        """Logits of rows that are one prompt."""
        clean = self.clean(model, tokens[:1])
        if self._fused is not None and self._fused.can_run(clean):
            entry = entry_of(model, clean, edits)
            if entry is not None:
                return self._fused.logits(clean, entry)
        if self._replays:
            try:
                return replay_logits(model, clean, tokens, edits)
            except Unsupported as reason:
                log.debug("plain forward pass: %s", reason)
        return model.logits(tokens, edits, last_only=True)[:, -1]

    def clean(self, model: HFModel, tokens: Int[Tensor, "1 pos"]) -> CleanRun:
        """The unedited prompt, run once for all who ask while it is kept."""
        key = tuple(tokens[0].tolist())
        if key in self._clean:
            self._clean.move_to_end(key)
            return self._clean[key]
        made = clean_run(model, tokens)
        self._clean[key] = made
        self._bytes += made.n_bytes
        while self._bytes > _CACHE_BYTES and len(self._clean) > 1:
            _, dropped = self._clean.popitem(last=False)
            self._bytes -= dropped.n_bytes
        return made

    def _agrees(self, model: HFModel) -> bool:
        """Compare each way with the plain forward pass, and give up those that differ."""
        tokens, edits = _sample(model)
        expected = model.logits(tokens, edits, last_only=True)[:, -1]
        allowed = _CHECK_RTOL.get(model.spec.dtype, 1e-4) * float(expected.std(-1).mean() + 1e-12)
        clean = clean_run(model, tokens[:1])
        agreed = True
        if self._fused is not None:
            entry = entry_of(model, clean, edits) if self._fused.can_run(clean) else None
            seen = None if entry is None else self._fused.logits(clean, entry)
            if seen is None or not _close(seen, expected, allowed, model, "fused"):
                self._fused, agreed = None, False
        if self._replays:
            seen = replay_logits(model, clean, tokens, edits)
            if not _close(seen, expected, allowed, model, "replay"):
                self._replays, agreed = False, False
        return agreed


def sweep_of(model: WhiteBoxModel) -> Sweep:
    """The sweep of a model, made once for as long as the model lives and its weights stay the same."""
    if not isinstance(model, HFModel):
        return Sweep(model)
    version = sum(parameter._version for parameter in model.model.parameters())
    known = _SWEEPS.get(model)
    if known is None or known[0] != version:
        _SWEEPS[model] = known = (version, Sweep(model))
    return known[1]


_SWEEPS: "WeakKeyDictionary[HFModel, tuple[int, Sweep]]" = WeakKeyDictionary()


def entry_of(model: HFModel, clean: CleanRun, edits: Sequence[Edit]) -> StreamEdit | None:
    """One edit of the stream as coefficient times vector; None for edits that are not of that form."""
    if len(edits) != 1 or isinstance(edits[0], Scale):
        return None
    edit, site = edits[0], edits[0].site
    place = _place(model, site)
    if place is None:
        return None
    layer, mid = place
    like = clean.pre[0]
    mask = edit.mask.to(like)
    if isinstance(edit, Add):
        return StreamEdit(layer, mid, mask, edit.vector.to(like))
    if site.point in ("hook_attn_out", "hook_mlp_out"):
        return None  # what is read there is not kept by the clean run
    if isinstance(edit, Clamp):
        seen = (clean.mid if mid else clean.pre)[layer][0]
        along = edit.reader.to(like) @ seen.T
        missing = (edit.value - edit.offset).to(like)[:, None] - along
        return StreamEdit(layer, mid, mask * missing, edit.writer.to(like))
    return None


def _place(model: HFModel, site: Site) -> tuple[int, bool] | None:
    """(layer, between attention and MLP) at which an Add to `site` changes the stream."""
    if site.layer is None or site.point not in _WRITES_STREAM:
        return None
    sequential = "hook_resid_mid" in model.anatomy.points
    match site.point:
        case "hook_resid_pre":
            return site.layer, False
        case "hook_resid_mid":
            return site.layer, True
        case "hook_attn_out":
            return (site.layer, True) if sequential else (site.layer + 1, False)
        case _:
            return site.layer + 1, False


def _same_prompt(tokens: Tensor) -> list[Tensor]:
    """Row numbers by prompt, in order of first appearance."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, ids in enumerate(tokens.tolist()):
        groups.setdefault(tuple(ids), []).append(row)
    return [torch.tensor(rows) for rows in groups.values()]


def _take(edit: Edit, rows: Tensor) -> Edit:
    """The edit of some rows."""
    arrays = {name: value[rows] for name, value in vars(edit).items() if isinstance(value, Tensor)}
    return type(edit)(site=edit.site, **arrays)


def _sample(model: HFModel) -> tuple[Tensor, list[Edit]]:
    """Drawn tokens and a push at the first block, half as long as the stream."""
    rows, pos = 3, min(9, model.spec.n_ctx)
    rng = rng_for(0, "sweep", "check")
    ids = torch.from_numpy(rng.integers(0, model.spec.d_vocab, size=(1, pos)))
    tokens = ids.repeat(rows, 1).to(model.spec.device)
    site = Site(0, "hook_resid_post")
    norms = model.capture(tokens[:1], [site])[site].norm(dim=-1).median()
    draws = torch.from_numpy(rng.standard_normal((rows, model.spec.d_model))).to(norms)
    vector = 0.5 * norms * draws / draws.norm(dim=1, keepdim=True)
    mask = torch.ones(rows, pos, dtype=torch.bool, device=tokens.device)
    mask[:, 0] = False
    mask[1, 1:4] = False
    return tokens, [Add(site, vector, mask)]


def _close(seen: Tensor, expected: Tensor, allowed: float, model: HFModel, way: Way) -> bool:
    difference = float((seen - expected).abs().max())
    if difference <= allowed:
        return True
    log.warning(
        "%s: the %s way of a sweep differs from the plain forward pass by %.3g in a logit (allowed %.3g); "
        "it is not used, and sweeps take longer",
        *(model.spec.ref, way, difference, allowed),
    )
    return False
