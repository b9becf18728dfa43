"""Directions pushed on prompts, and everything that moves.

Every direction is pushed both ways on every prompt, each way brought to its KL (or to its coefficient). What is read of a
set of tokens is the odd part of the change of its log-odds, at the last position. What a dictionary reads is what the push
along the direction, not the opposite one, changes: that is what who steers sees. Cost: some eight rows of a forward pass a
direction and prompt, two more for the activations and for the text, and one at the direction's mean length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polysem.act.base import some_edited
from polysem.act.steering import steered_at_kl
from polysem.edits import Add
from polysem.errors import MismatchError, SiteError
from polysem.models.base import WhiteBoxModel
from polysem.models.sweep import sweep_of
from polysem.positions import PLAIN, mean_norm
from polysem.progress import SILENT, Reporter
from polysem.readouts import distinct_ids, kl, share_of_shift
from polysem.saes.base import SAE, decoder_norms
from polysem.side_effects.directions import Direction
from polysem.types import Site

ROWS = 32
"""directions of one forward pass"""
_AT_LENGTH = ("cost", "cost_text")
FIRST = 0.05
"""first strength, in norms of the site, for 0.01 nats"""


class Sets:
    """Token sets of any sizes, read from many rows at once."""

    def __init__(self, sets: Sequence[Sequence[int]], d_vocab: int):
        """Raises as `readouts.distinct_ids`."""
        ids = [distinct_ids(one, d_vocab) for one in sets]
        self.n = len(ids)
        self._ids = torch.tensor([t for one in ids for t in one], dtype=torch.long)
        self._of = torch.tensor([k for k, one in enumerate(ids) for _ in one], dtype=torch.long)

    def log_odds(self, logits: Float[Tensor, "rows d_vocab"]) -> Float[Tensor, "rows n_sets"]:
        """Nats, float64; NaN where a set holds all of the probability that can be told from 1."""
        p = logits.double().softmax(-1)
        inside = torch.zeros(len(p), self.n, dtype=torch.float64)
        inside.index_add_(1, self._of, p[:, self._ids])
        odds = inside.log() - torch.log1p(-inside)
        return torch.where((inside < 1) & (inside > 0), odds, torch.nan)


@dataclass(frozen=True)
class Readout:
    """A dictionary whose activations are looked at, and what counts as having moved."""

    label: str
    sae: SAE
    threshold: float
    """of |change| x decoder norm, in units of the activation it reads"""


@dataclass(frozen=True)
class Pushed:
    """Directions on prompts; NaN where a direction does not reach its dose on a prompt."""

    strength: Float[np.ndarray, "n prompts"]
    """length of what is added, in mean norms of the site"""
    length: Float[np.ndarray, "n prompts"]
    """the same in units of the activation"""
    kl: Float[np.ndarray, "n prompts"]
    """nats, mean over both ways"""
    products: Float[np.ndarray, "n prompts prompts"]
    """inner products between prompts of the odd change of centred logits"""
    sets: Float[np.ndarray, "n prompts n_sets"]
    """odd change of log-odds, nats"""
    rho: Float[np.ndarray, "n prompts n_sets"]
    """odd part of `readouts.share_of_shift`: the share of the shift that goes into the set, in [-1, 1]"""
    latents: Float[np.ndarray, "n prompts d_readout"]
    """change x decoder norm of every feature of the readout; no columns without one"""
    missed: Float[np.ndarray, "n prompts"]
    """squared length of the change at the readout that its features do not give back"""
    moved: Float[np.ndarray, "n prompts"]
    """squared length of the change at the readout"""
    text: Float[np.ndarray, "n prompts"]
    """change of the prompt's own cross-entropy, nats per token"""
    cost: Float[np.ndarray, "n prompts"]
    """nats at one length for all prompts, the mean one of the direction"""
    cost_text: Float[np.ndarray, "n prompts"]
    """change of the prompt's own cross-entropy at that length, nats per token"""

    @cached_property
    def reached(self) -> Bool[np.ndarray, "n prompts"]:
        """Where the dose was reached."""
        return np.isfinite(self.kl)

    def take(self, rows: Sequence[int]) -> "Pushed":
        """Some of the directions."""
        return Pushed(**{f.name: getattr(self, f.name)[list(rows)] for f in fields(self)})


def push(
    model: WhiteBoxModel,
    prompts: Sequence[Sequence[int]],
    directions: Sequence[Direction],
    *,
    sets: Sequence[Sequence[int]],
    dose: float | Float[np.ndarray, "n prompts"],
    unit: str = "kl",
    positions: str = "all_but_first",
    readout: Readout | None = None,
    reporter: Reporter = SILENT,
) -> Pushed:
    """Push every direction on every prompt.

    Args:
        prompts: token ids.
        directions: all at one site, or all at the same ones.
        sets: token ids whose log-odds are read.
        dose: nats, or how many times the vector as given is added; one, or one for each direction and prompt.
        unit: kl | coefficient.
        positions: which are edited.
        readout: a dictionary at the same site or a later one.

    Raises:
        MismatchError: directions of several sites or another width, a prompt without an edited position.
        SiteError: a readout that comes before the site.
    """
    places = sorted({(d.site, *d.also) for d in directions})
    if len(places) != 1:
        raise MismatchError(
            f"directions at {', '.join(map(str, (p[0] for p in places))) or 'no site'}; expected one site",
            hint="judge directions of one site after those of another",
        )
    (sites,) = places
    vectors = np.stack([d.vector for d in directions])
    if vectors.shape[1] != sum(model.site_width(site) for site in sites):
        raise MismatchError(
            f"vectors of {vectors.shape[1]} numbers for {model.site_width(sites[0])} coordinates at {sites[0]}",
            hint="give the site that the vector is of: --site",
        )
    if readout is not None and not follows(model, sites[0], readout.sae.reads):
        raise SiteError(
            f"{readout.label} reads {readout.sae.reads}, which comes before {sites[0]}",
            hint="choose a dictionary at the same site or later",
        )
    doses = np.broadcast_to(np.asarray(dose, dtype=np.float64), (len(vectors), len(prompts)))
    many = Sets(sets, model.spec.d_vocab)
    benches = [_Bench(model, sites, ids, positions, unit, many, readout) for ids in prompts]
    blocks = [slice(start, start + ROWS) for start in range(0, len(vectors), ROWS)]
    steps = iter(
        reporter.track(range(len(blocks) * len(benches)), total=len(blocks) * len(benches), label="pushes")
    )
    found = []
    for rows in blocks:
        parts = [
            bench.push(vectors[rows], doses[rows, k])
            for k, bench in enumerate(benches)
            if next(steps, k) >= 0
        ]
        arrays = {name: np.stack([one[name] for one, _ in parts], axis=1) for name in parts[0][0]}
        change = torch.from_numpy(np.stack([one for _, one in parts], axis=1))
        lengths = arrays["length"]
        same = np.nan_to_num(lengths).sum(1) / np.maximum(np.isfinite(lengths).sum(1), 1)
        costs = [bench.at_length(vectors[rows], same) for bench in benches]
        arrays |= {name: np.stack([one[k] for one in costs], axis=1) for k, name in enumerate(_AT_LENGTH)}
        found.append({"products": (change @ change.mT).double().numpy(), **arrays})
    for _ in steps:
        pass
    return Pushed(**{name: np.concatenate([one[name] for one in found]) for name in found[0]})


def follows(model: WhiteBoxModel, site: Site, later: Site) -> bool:
    """Whether a push at `site` can be seen at `later`: the same site, or one that comes after it."""
    order = {one: k for k, one in enumerate(_in_order(model))}
    return site == later or (site in order and later in order and order[site] < order[later])


def _in_order(model: WhiteBoxModel) -> list[Site]:
    """The sites of the stream, and where parts read it behind a norm, in the order of a forward pass. Where attention and MLP
    read the stream side by side there is no middle, and neither sees what the other adds."""
    points = (
        "hook_resid_pre",
        "attn.hook_in",
        "hook_attn_out",
        "hook_resid_mid",
        "mlp.hook_in",
        "hook_mlp_out",
        "hook_resid_post",
    )
    rank = {point: k for k, point in enumerate(points)}
    known = [s for s in model.sites() if s.layer is not None and s.point in rank]
    middles = {s.layer for s in known if s.point == "hook_resid_mid"}

    def place(site: Site) -> tuple[int | None, float]:
        aside = site.point == "mlp.hook_in" and site.layer not in middles
        return site.layer, rank["attn.hook_in"] + 0.5 if aside else float(rank[site.point])

    return sorted(known, key=place)


class _Bench:
    """One prompt."""

    def __init__(
        self,
        model: WhiteBoxModel,
        sites: Sequence[Site],
        ids: Sequence[int],
        positions: str,
        unit: str,
        sets: Sets,
        readout: Readout | None,
    ):
        self.model, self.sites, self.sets, self.readout, self.unit = model, sites, sets, readout, unit
        self.tokens = torch.tensor([list(ids)], dtype=torch.long, device=model.spec.device)
        mask = some_edited(positions, len(ids))
        self.mask = torch.as_tensor(mask, device=model.spec.device)
        seen = model.capture(self.tokens, sites[:1])[sites[0]][0].double().cpu().numpy()
        self.norm = mean_norm(np.linalg.norm(seen, axis=1), mask)
        whole = model.logits(self.tokens)[0].double().cpu()
        self.base = whole[-1:]
        self.base_text = self._text(whole[None])
        self.base_sets = sets.log_odds(self.base)
        self.base_read = None if readout is None else self._read(1, [])
        self.sweep = sweep_of(model)

    def push(
        self, vectors: Float[np.ndarray, "rows d"], doses: Float[np.ndarray, " rows"]
    ) -> tuple[dict[str, np.ndarray], Float[np.ndarray, "rows d_vocab"]]:
        """Every direction at its dose: what of `Pushed` belongs to one prompt, and the odd change of centred logits."""
        n, norms = len(vectors), np.linalg.norm(vectors, axis=1)
        ends, strengths, costs = [], [], []
        bad = np.zeros(n, dtype=bool)
        for sign in (1.0, -1.0):
            if self.unit == "kl":
                length, logits, lost = steered_at_kl(
                    lambda rows, size: self._logits(vectors[rows] / norms[rows, None] * size[:, None]),
                    sign * doses,
                    self.base,
                    first=FIRST * self.norm,
                )
            else:
                length = sign * doses * norms
                logits = self._logits(vectors * (sign * doses)[:, None])
                lost = ~torch.isfinite(logits).all(-1).numpy()
            bad |= lost
            ends.append(torch.where(torch.isfinite(logits), logits, 0.0))
            strengths.append(np.abs(length))
            costs.append(np.asarray(kl(self.base, ends[-1]), dtype=np.float64).reshape(n))
        up, down = ends
        change = ((up - down) / 2).float()
        change -= change.mean(-1, keepdim=True)
        odds = [self.sets.log_odds(z) for z in ends]
        shares = [
            share_of_shift(self.base_sets[0], odd, torch.from_numpy(cost))
            for odd, cost in zip(odds, costs, strict=True)
        ]
        edits = self._edits(vectors / norms[:, None] * strengths[0][:, None])
        made = {
            "length": np.mean(strengths, axis=0),
            "strength": np.mean(strengths, axis=0) / self.norm,
            "kl": np.mean(costs, axis=0),
            "sets": ((odds[0] - odds[1]) / 2).numpy(),
            "rho": ((shares[0] - shares[1]) / 2).numpy(),
            "text": self._text(self.model.logits(self._rows(n), edits).double().cpu()) - self.base_text,
            **self._readout(n, edits),
        }
        for values in made.values():
            values[bad] = np.nan
        return made, change.numpy()

    def at_length(
        self, vectors: Float[np.ndarray, "rows d"], lengths: Float[np.ndarray, " rows"]
    ) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
        """KL at the last position, and change of cross-entropy, of pushes of known lengths; NaN where that is 0."""
        pushes = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) * lengths[:, None]
        whole = self.model.logits(self._rows(len(vectors)), self._edits(pushes)).double().cpu()
        seen = np.asarray(kl(self.base, whole[:, -1]), dtype=np.float64).reshape(len(vectors))
        none = lengths == 0
        return np.where(none, np.nan, seen), np.where(none, np.nan, self._text(whole) - self.base_text)

    def _rows(self, n: int) -> Tensor:
        return self.tokens.expand(n, -1)

    def _edits(self, pushes: Float[np.ndarray, "rows d"]) -> list[Add]:
        """One at every site."""
        dtype = torch.float64 if self.model.spec.dtype == "float64" else torch.float32
        vector = torch.as_tensor(pushes, dtype=dtype, device=self.model.spec.device)
        mask = self.mask.expand(len(vector), -1)
        parts = vector.split([self.model.site_width(site) for site in self.sites], dim=1)
        return [Add(site, part, mask) for site, part in zip(self.sites, parts, strict=True)]

    def _logits(self, pushes: Float[np.ndarray, "rows d"]) -> Float[Tensor, "rows d_vocab"]:
        rows, edits = self._rows(len(pushes)), self._edits(pushes)
        return self.sweep.logits(rows, edits).double().cpu()

    def _text(self, logits: Float[Tensor, "rows pos d_vocab"]) -> Float[np.ndarray, " rows"]:
        """Cross-entropy of the prompt's own tokens, nats per token."""
        said = logits[:, :-1].log_softmax(-1)
        own = self.tokens[0, 1:].cpu()
        return -said[:, torch.arange(len(own)), own].mean(1).numpy()

    def _read(self, n: int, edits: list[Add]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d_readout"]]:
        """What stands at the readout's site at the last position, and what its features say of it."""
        assert self.readout is not None
        sae = self.readout.sae
        seen = self.model.capture(self._rows(n), [sae.reads], edits)[sae.reads][:, -1].cpu()
        return seen, sae.encode(seen).detach()

    def _readout(self, n: int, edits: list[Add]) -> dict[str, Float[np.ndarray, "n ..."]]:
        if self.readout is None or self.base_read is None:
            return {
                "latents": np.empty((n, 0)),
                "missed": np.full(n, np.nan),
                "moved": np.full(n, np.nan),
            }
        sae, (before, codes) = self.readout.sae, self.base_read
        after, moved_codes = self._read(n, edits)
        change = (after - before).double()
        missed = np.full(n, np.nan)
        if sae.reads == sae.writes:
            back = sae.decode(moved_codes, like=after) - sae.decode(codes, like=before)
            missed = (change - back.detach().double()).square().sum(-1).numpy()
        latents = (moved_codes - codes) * decoder_norms(sae)
        return {
            "latents": latents.double().numpy(),
            "missed": missed,
            "moved": change.square().sum(-1).numpy(),
        }


def median_firing(model: WhiteBoxModel, sae: SAE, prompts: Sequence[Sequence[int]]) -> float:
    """Median of activation x decoder norm over active features at counted positions of some prompts; NaN if none fires."""
    found = []
    for ids in prompts:
        tokens = torch.tensor([list(ids)], device=model.spec.device)
        seen = model.capture(tokens, [sae.reads])[sae.reads][0].cpu()
        fires = (sae.encode(seen[torch.from_numpy(PLAIN.counted(len(ids)))]) * decoder_norms(sae)).detach()
        found.append(fires[fires > 0].double().numpy())
    whole = np.concatenate(found) if found else np.empty(0)
    return float(np.median(whole)) if len(whole) else float("nan")
