"""A push at one site and another at a later one: together as they run, and with what the first does to the second's
coordinate taken back, so that the path between them is cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from polysem.edits import Clamp, Edit
from polysem.joint.bench import Changes, JointBench
from polysem.joint.pairs import tested
from polysem.side_effects.directions import Direction
from polysem.side_effects.push import Sets


@dataclass(frozen=True)
class LayersSeen:
    """Pairs of two sites on one prompt; y is the odd change of the log-odds of the later feature's tokens."""

    missed: Float[np.ndarray, "2 pairs"]
    """squared length of the odd change that the sum of single effects does not say: live, frozen"""
    moved: Float[np.ndarray, "2 pairs"]
    y: Float[np.ndarray, "2 pairs"]
    """interaction: live, frozen"""
    first: Float[np.ndarray, "2 pairs"]
    """what the earlier push does to y: live, with the later coordinate held"""
    survives: Float[np.ndarray, "2 pairs"]
    """change at the later site along the push, and along the matched feature, per length of the push"""


def layers_seen(
    bench: JointBench,
    lengths: Float[np.ndarray, " n"],
    pairs: Int[np.ndarray, "pairs 2"],
    sets: Sequence[Sequence[int]],
    matched: Float[np.ndarray, "pairs d"],
) -> LayersSeen:
    """Every pair on one prompt; all first members at one site, all second ones at one later site.

    Args:
        bench: the prompt with all directions.
        lengths: of all directions.
        pairs: places among them: earlier, later.
        sets: token ids of the later ones.
        matched: unit rows of the later dictionary, nearest to the earlier pushes.
    """
    rows = [np.diag(lengths)[pairs[:, side]] for side in (0, 1)]
    later = bench.directions[int(pairs[0, 1])].site
    units = np.stack([bench.directions[j].unit for j in pairs[:, 1].tolist()])
    held = _held(bench, later, units)
    alone = [bench.changes(row) for row in rows]
    live = bench.changes(rows[0] + rows[1])
    first_held, frozen = (
        Changes(bench.base, *(_run(bench, sign * rows[0], sign * second, held) for sign in (1.0, -1.0)))
        for second in (0 * rows[1], rows[1])
    )
    many = Sets(sets, bench.base.shape[-1])
    y = {k: _odd(many, one) for k, one in enumerate((*alone, live, first_held, frozen))}
    sums = (alone[0].odd + alone[1].odd, first_held.odd + alone[1].odd)
    seen = (live, frozen)
    return LayersSeen(
        missed=np.stack([((one.odd - told) ** 2).sum(1) for one, told in zip(seen, sums, strict=True)]),
        moved=np.stack([(one.odd**2).sum(1) for one in seen]),
        y=np.stack([y[2] - y[0] - y[1], y[4] - y[3] - y[1]]),
        first=np.stack([y[0], y[3]]),
        survives=_survives(bench, rows[0], later, matched),
    )


def _odd(many: Sets, seen: Changes) -> np.ndarray:
    own = torch.arange(many.n)
    return ((many.log_odds(seen.up)[own, own] - many.log_odds(seen.down)[own, own]) / 2).numpy()


def _held(bench: JointBench, site: Any, units: Float[np.ndarray, "pairs d"]) -> list[Edit]:
    """What keeps the coordinate along each row's direction at its value without a push, position by position."""
    clean = bench.model.capture(bench.tokens, [site])[site][0]
    reader = torch.as_tensor(units, dtype=clean.dtype, device=clean.device)
    made: list[Edit] = []
    for p in torch.nonzero(bench.edited)[:, 0].tolist():
        mask = torch.zeros_like(bench.edited)
        mask[p] = True
        zero = torch.zeros(len(units), dtype=clean.dtype, device=clean.device)
        made.append(Clamp(site, reader, reader, reader @ clean[p], zero, mask.expand(len(units), -1)))
    return made


def _run(
    bench: JointBench, first: np.ndarray, second: np.ndarray, held: Sequence[Edit]
) -> Float[torch.Tensor, "rows d_vocab"]:
    return bench.run(first, [*bench.edits(first), *held, *bench.edits(second)])


def _survives(
    bench: JointBench, rows: np.ndarray, later: Any, matched: Float[np.ndarray, "pairs d"]
) -> Float[np.ndarray, "2 pairs"]:
    tokens = bench.tokens.expand(len(rows), -1)
    clean = bench.model.capture(bench.tokens, [later])[later]
    moved = bench.model.capture(tokens, [later], bench.edits(rows))[later]
    change = (moved - clean)[:, bench.edited].double().cpu().numpy().mean(1)
    size = np.linalg.norm(rows, axis=1)
    (site,) = {bench.directions[k].site for k in np.flatnonzero(np.abs(rows).sum(0))}
    own = (rows / size[:, None])[:, bench.at[site]] @ bench.units[site]
    along = (change * own).sum(1) if own.shape == change.shape else np.full(len(rows), np.nan)
    return np.stack([along, (change * matched).sum(1)]) / size


def layer_rows(
    directions: Sequence[Direction],
    pairs: Int[np.ndarray, "pairs 2"],
    seen: Sequence[LayersSeen],
    matches: Sequence[tuple[int, float]],
    *,
    confirm: Bool[np.ndarray, " prompts"],
) -> list[dict[str, Any]]:
    """Rows of JOINT_LAYERS, of the confirm prompts."""
    some = [one for one, k in zip(seen, confirm, strict=True) if k]
    missed, moved, y, first, survives = (
        np.stack([getattr(one, name) for one in some])
        for name in ("missed", "moved", "y", "first", "survives")
    )
    rows = []
    for k, (i, j) in enumerate(pairs.tolist()):
        a, b = directions[i], directions[j]
        row: dict[str, Any] = {
            "pair": k, "sae_i": a.sae, "i": a.feature, "sae_j": b.sae, "j": b.feature,
            "cosine": float(a.unit @ b.unit) if len(a.vector) == len(b.vector) else np.nan,
            "first": float(first[:, 0, k].mean()), "first_held": float(first[:, 1, k].mean()),
            "survives": float(survives[:, 0, k].mean()), "matched": matches[k][0],
            "matched_cosine": matches[k][1], "survives_matched": float(survives[:, 1, k].mean()),
            "n_prompts": len(some),
        }  # fmt: skip
        for place, way in enumerate(("live", "frozen")):
            row[f"unexplained_{way}"] = float(missed[:, place, k].sum() / moved[:, place, k].sum())
            value, lo, hi, p = tested(y[:, place, k])
            row |= {f"y_{way}": value, f"y_{way}_lo": lo, f"y_{way}_hi": hi, f"p_{way}": p}
        rows.append(row)
    return rows
