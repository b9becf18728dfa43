"""`polysem defend`: what would notice or prevent the interventions of a transfer study, and at what cost.

    monitor    in targets with an SAE: largest score of a token of the input (`defence.monitor_scores`), over
               passing pairs of the target's matched features that do not fire on the same strings
    filter     cross-entropy of the input (nats per token): strings without a sentence are not prose
    steering   the mean decoder direction of a category's own features, without its part in the span of the
               other categories' gradients, which are of one half of the sentences; effects are of the other

Attacked inputs are the study's own prompts (first draw of the treated pools); clean ones are held-out prose
of the same lengths. Everything is local; a served target has no inside to watch and is left out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from polysem.errors import ConfigError
from polysem.geometry.unit import unit_rows
from polysem.progress import SILENT, Reporter
from polysem.saes.base import decoder_rows
from polysem.seeds import rng_for
from polysem.store.tables import DEFENCES, PROTECTED
from polysem.targets import LocalTarget, TargetPrompt
from polysem.transfer.arms import related_features
from polysem.transfer.ask import planned
from polysem.transfer.capability import edited_nats
from polysem.transfer.config import TransferStudy
from polysem.transfer.cost import held_out
from polysem.transfer.defence import detector, monitor_scores, protected_direction, text_nats, tradeoff
from polysem.transfer.directions import WhiteBox, members_of, open_white_box
from polysem.transfer.prepare import PreparedTransfer, prepare
from polysem.transfer.run import open_target
from polysem.transfer.shared import passing_pairs
from polysem.transfer.source import held_out_rows
from polysem.transfer.steering import category_gradients, steer

Row = dict[str, Any]
Say = Callable[[str], None]


def judge_defences(
    study: TransferStudy, kept: Path, *, n_clean: int = 200, say: Say, reporter: Reporter = SILENT
) -> dict[str, pa.Table]:
    """The defences on a transfer study's local targets: tables by name.

    Args:
        kept: where answers are kept.
        say: is told what is left out.

    Raises:
        ConfigError: no local target.
        PolysemError: of models, SAEs and files.
    """
    local = [c for c in study.targets if c.kind == "local"]
    for config in study.targets:
        if config.kind != "local":
            say(f"{config.name}: a served target has no inside to watch; left out")
    if not local:
        raise ConfigError(
            f"transfer study {study.name!r}: no target is on this machine",
            hint='add a target with kind = "local" to transfer.toml',
        )
    found: list[Row] = []
    steered: list[Row] = []
    prepared = prepare(study, reporter=reporter)
    for config in local:
        target = open_target(config, kept)
        assert isinstance(target, LocalTarget)
        box = open_white_box(prepared, config, target, reporter=reporter) if config.sae else None
        if box is None:
            say(f"{config.name}: no sae, so no monitor and no protected steering; only the filter is judged")
        found += _detectors(prepared, config.name, target, box, n_clean=n_clean, reporter=reporter)
        steered += _protected(prepared, box) if box else []
    return {schema.name: schema.of_rows(rows) for schema, rows in ((DEFENCES, found), (PROTECTED, steered))}


def _detectors(
    prepared: PreparedTransfer,
    name: str,
    target: LocalTarget,
    box: WhiteBox | None,
    *,
    n_clean: int,
    reporter: Reporter,
) -> list[Row]:
    attacked = {key: _prompts(prepared, *key) for key in prepared.pools if key[1] != "random"}
    every = [text for texts in attacked.values() for text in texts]
    clean = _clean(prepared, every, n=n_clean)
    scorers: dict[str, Callable[[list[str]], np.ndarray]] = {
        "filter": lambda texts: text_nats(target.model, texts)
    }
    if box is not None:
        scorers["monitor"] = _monitor(prepared, box)
    rows: list[Row] = []
    for defence, score in scorers.items():
        usual = score(clean)
        items = list(attacked.items())
        for (category, arm), texts in reporter.track(items, total=len(items), label=f"{name} {defence}"):
            rng = rng_for(prepared.study.seed, "defence", name, defence, category, arm)
            d = detector(usual, score(texts), level=prepared.study.test.level, rng=rng)
            rows.append(
                {
                    "target": name, "defence": defence, "arm": arm, "category": category, "auroc": d.auroc, "lo": d.lo,
                    "hi": d.hi, "found": d.found.share, "found_lo": d.found.lo, "found_hi": d.found.hi,
                    "false_positives": d.flagged.share, "false_lo": d.flagged.lo, "false_hi": d.flagged.hi,
                    "n_clean": len(clean), "n_attacked": len(texts), "level": prepared.study.test.level,
                }
            )  # fmt: skip
    return rows


def _prompts(prepared: PreparedTransfer, category: str, arm: str) -> list[str]:
    """The prompts of the treated pools, first draw, first frame."""
    frames = prepared.study.frames
    return [
        trial.prompt.text
        for trial in planned(prepared, category, arm, chat=False)
        if trial.pool >= 0 and trial.draw == 0
        and (trial.template, trial.position) == (frames.templates[0], frames.positions[0])
    ]  # fmt: skip


def _clean(prepared: PreparedTransfer, attacked: list[str], *, n: int) -> list[str]:
    """Held-out prose cut to the lengths of attacked inputs, at spaces."""
    study = prepared.study
    rng = rng_for(study.seed, "defence", "clean")
    lengths = [len(attacked[k]) for k in rng.integers(0, len(attacked), n).tolist()]
    longest = max(lengths)
    words = " ".join(held_out_rows(study, n_characters=2 * (sum(lengths) + n * longest))).split(" ")
    found: list[str] = []
    for length in lengths:
        text = ""
        while words and len(text) < length:
            text = f"{text} {words.pop(0)}" if text else words.pop(0)
        if len(text) < length:
            raise ConfigError(
                f"corpus {study.cost.corpus or study.corpus.ref!r} has held-out prose for {len(found)} inputs, expected {n}",
                hint="lower --n-clean or corpus.n_tokens, or name another cost.corpus",
            )
        found.append(text)
    return found


def _monitor(prepared: PreparedTransfer, box: WhiteBox) -> Callable[[list[str]], np.ndarray]:
    """The monitor's score of an input: its largest token's, the first position left out."""
    import torch

    texts = prepared.structure.strings_of(box.triples.place)
    rows = box.sae.W_dec.detach().float().cpu().numpy().astype(np.float64)
    pairs = passing_pairs(
        rows, box.triples.feature, min_z=prepared.study.shared.min_z, excluded=related_features(texts)
    )
    unit = unit_rows(rows[box.triples.feature])
    cosines = (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(axis=1)
    skipped = box.target.positions.n_first

    def score(inputs: list[str]) -> Float[np.ndarray, " n"]:
        found = []
        for text in inputs:
            ids = box.target.tokens(TargetPrompt(text))
            seen = box.model.capture(torch.tensor([ids]), [box.sae.reads])[box.sae.reads][0, skipped:]
            acts = box.sae.encode(seen)[:, torch.tensor(box.triples.feature)].cpu().numpy()
            found.append(float(monitor_scores(acts, pairs, cosines, tau=0.0).max()))
        return np.array(found)

    return score


@dataclass(frozen=True)
class _Halves:
    """A category's sentences as ids: gradients are of the first, effects of the second."""

    setting: list[list[int]]
    judged: list[list[int]]


def _protected(prepared: PreparedTransfer, box: WhiteBox) -> list[Row]:
    """Rows of PROTECTED: steering towards each category with the others protected."""
    names = list(prepared.categories.names)
    if len(names) < 2:
        return []
    inside = prepared.categories.inside(box.target.vocabulary, word_start=True)
    halves = {c: _halved(prepared, box, c) for c in names}
    texts = [box.target.row(t) for t in held_out(prepared)]
    rows: list[Row] = []
    for own, category in enumerate(names):
        members = members_of(prepared, box, category)["target"]
        if not len(members):
            continue
        vectors = decoder_rows(box.sae)[box.triples.feature[members]]
        goal = unit_rows(vectors).mean(axis=0)
        goal = goal / np.linalg.norm(goal)
        gradients = np.mean(
            [
                category_gradients(box.model, ids, site=box.sae.writes, inside=inside)
                for ids in halves[category].setting
            ],
            axis=0,
        )
        others = np.delete(np.arange(len(names)), own)
        left = protected_direction(goal, gradients[others])
        moved, strength = _moved(prepared, box, halves[category].judged, goal, left, inside)
        change = tradeoff(
            moved[0][others], moved[1][others], on_before=float(moved[0][own]), on_after=float(moved[1][own])
        )
        pushes = strength * np.stack([0 * goal, goal, left])
        reached = math.isfinite(strength)
        nats = [edited_nats(box.model, ids, box.sae.writes, pushes) for ids in texts] if reached else []
        costs = np.mean(nats, axis=0) if nats else np.full(3, math.nan)
        rows.append(
            {
                "target": box.name, "category": category, "kept": float(np.linalg.norm(left)),
                "off_before": change.off_target_before, "off_after": change.off_target_after,
                "reduction": change.reduction, "on_before": change.on_target_before,
                "on_after": change.on_target_after, "loss": change.loss, "base_nats": costs[0],
                "cost_before": costs[1] - costs[0], "cost_after": costs[2] - costs[0],
                "kl": prepared.study.directions.kl, "n_features": len(members),
                "n_sentences": len(halves[category].judged), "n_texts": len(texts),
            }
        )  # fmt: skip
    return rows


def _halved(prepared: PreparedTransfer, box: WhiteBox, category: str) -> _Halves:
    ids = [box.target.tokens(TargetPrompt(s)) for s in prepared.sentences[category]]
    return _Halves(ids[0::2], ids[1::2])


def _moved(
    prepared: PreparedTransfer,
    box: WhiteBox,
    sentences: list[list[int]],
    goal: np.ndarray,
    left: np.ndarray,
    inside: np.ndarray,
) -> tuple[tuple[Float[np.ndarray, " categories"], Float[np.ndarray, " categories"]], float]:
    """Mean change of every category under either direction, at the strength that the first needs."""
    before, after, strengths = [], [], []
    for ids in sentences:
        push = partial(steer, box.model, ids, site=box.sae.writes, inside=inside)
        first = push(directions=goal[None], kl=prepared.study.directions.kl)
        if not first.reached[0]:
            continue
        second = push(directions=left[None], strength=float(first.strength[0]))
        before.append(first.log_odds[0])
        after.append(second.log_odds[0])
        strengths.append(float(first.strength[0]))
    if not before:
        nothing = np.full(len(inside), math.nan)
        return (nothing, nothing), math.nan
    return (np.mean(before, axis=0), np.mean(after, axis=0)), float(np.mean(strengths))
