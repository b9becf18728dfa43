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
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from polysem.errors import ConfigError
from polysem.progress import SILENT, Reporter
from polysem.seeds import rng_for
from polysem.store import io
from polysem.store.lock import locked
from polysem.store.tables import DEFENCES, PROTECTED
from polysem.targets import LocalTarget, Prompt
from polysem.transfer.arms import related_features
from polysem.transfer.ask import planned
from polysem.transfer.config import load_transfer
from polysem.transfer.cost import edited_nats, held_out
from polysem.transfer.defence import detector, monitor_scores, protected_direction, text_nats, tradeoff
from polysem.transfer.prepare import CHARACTERS_PER_TOKEN, Prepared, prepare
from polysem.transfer.result import DEFENCE, FOLDER
from polysem.transfer.run import STUDY, open_target
from polysem.transfer.shared import passing_pairs
from polysem.transfer.source import chunks_of
from polysem.transfer.steering import category_gradients, steer
from polysem.transfer.white import WhiteBox, members_of, open_white_box

Row = dict[str, Any]
Say = Callable[[str], None]
MIN_CLEAN = 20


def defend(out: Path, *, n_clean: int = 200, say: Say, reporter: Reporter = SILENT) -> Path:
    """Judge the defences on a transfer study's local targets; gives the folder of the tables.

    Args:
        out: folder of a transfer study.
        n_clean: clean inputs.
        say: is told what is left out.
        reporter: is told of progress.

    Raises:
        ConfigError: no study there, no local target, too few clean inputs.
        PolysemError: of models, SAEs and files.
    """
    if n_clean < MIN_CLEAN:
        raise ConfigError(f"{n_clean} clean inputs; expected at least {MIN_CLEAN}", hint="raise --n-clean")
    study = load_transfer(out / STUDY)
    local = [c for c in study.targets if c.kind == "local"]
    for config in study.targets:
        if config.kind != "local":
            say(f"{config.name}: a served target has no inside to watch; left out")
    if not local:
        raise ConfigError(
            f"{out}: no target of the study is on this machine",
            hint='add a target with kind = "local" to transfer.toml',
        )
    folder = out / DEFENCE
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Row] = []
    steered: list[Row] = []
    with locked(folder):
        prepared = prepare(study, reporter=reporter)
        for config in local:
            target = open_target(config, out / FOLDER)
            assert isinstance(target, LocalTarget)
            box = open_white_box(prepared, config, target, reporter=reporter) if config.sae else None
            if box is None:
                say(
                    f"{config.name}: no sae, so no monitor and no protected steering; only the filter is judged"
                )
            found += _detectors(prepared, config.name, target, box, n_clean=n_clean, reporter=reporter)
            steered += _protected(prepared, box) if box else []
        for schema, rows in ((DEFENCES, found), (PROTECTED, steered)):
            table = schema.conform(pa.Table.from_pylist(rows, schema=schema.arrow()))
            io.write_table(folder / f"{schema.name}.parquet", table, schema)
    return folder


def _detectors(
    prepared: Prepared,
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


def _prompts(prepared: Prepared, category: str, arm: str) -> list[str]:
    """The prompts of the treated pools, first draw, first frame."""
    frames = prepared.study.frames
    return [
        trial.prompt.text
        for trial in planned(prepared, category, arm, chat=False)
        if trial.pool >= 0 and trial.draw == 0
        and (trial.template, trial.position) == (frames.templates[0], frames.positions[0])
    ]  # fmt: skip


def _clean(prepared: Prepared, attacked: list[str], *, n: int) -> list[str]:
    """Held-out prose cut to the lengths of attacked inputs, at spaces."""
    study = prepared.study
    used = 0 if study.cost.corpus else study.corpus.n_tokens * CHARACTERS_PER_TOKEN
    ref = study.cost.corpus or study.corpus.ref
    first = len(chunks_of(ref, n_characters=used)) if used else 0
    rng = rng_for(study.seed, "defence", "clean")
    lengths = [len(attacked[k]) for k in rng.integers(0, len(attacked), n).tolist()]
    longest = max(lengths)
    words = " ".join(chunks_of(ref, n_characters=used + 2 * (sum(lengths) + n * longest))[first:]).split(" ")
    found: list[str] = []
    for length in lengths:
        text = ""
        while words and len(text) < length:
            text = f"{text} {words.pop(0)}" if text else words.pop(0)
        if len(text) < length:
            raise ConfigError(
                f"corpus {ref!r} has held-out prose for {len(found)} inputs, expected {n}",
                hint="lower --n-clean or corpus.n_tokens, or name another cost.corpus",
            )
        found.append(text)
    return found


def _monitor(prepared: Prepared, box: WhiteBox) -> Callable[[list[str]], np.ndarray]:
    """The monitor's score of an input: its largest token's, BOS left out."""
    import torch

    strings = prepared.structure.strings
    matching = prepared.structure.matching
    texts = [
        (*strings[0][int(matching.a[m])], *strings[1][int(matching.b[m])]) for m in box.triples.place.tolist()
    ]
    rows = box.sae.W_dec.detach().float().cpu().numpy().astype(np.float64)
    pairs = passing_pairs(
        rows, box.triples.feature, min_z=prepared.study.shared.min_z, excluded=related_features(texts)
    )
    unit = rows[box.triples.feature]
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    cosines = (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(axis=1)
    skipped = int(box.target.prepend_bos)

    def score(inputs: list[str]) -> Float[np.ndarray, " n"]:
        found = []
        for text in inputs:
            ids = box.target.tokens(Prompt(text))
            seen = box.model.capture(torch.tensor([ids]), [box.sae.site])[box.sae.site][0, skipped:]
            acts = box.sae.encode(seen)[:, torch.tensor(box.triples.feature)].cpu().numpy()
            found.append(float(monitor_scores(acts, pairs, cosines, tau=0.0).max()))
        return np.array(found)

    return score


@dataclass(frozen=True)
class _Halves:
    """A category's sentences as ids: gradients are of the first, effects of the second."""

    setting: list[list[int]]
    judged: list[list[int]]


def _protected(prepared: Prepared, box: WhiteBox) -> list[Row]:
    """Rows of PROTECTED: steering towards each category with the others protected."""
    names = list(prepared.categories.names)
    if len(names) < 2:
        return []
    inside = prepared.categories.inside(box.target.vocabulary, word_start=True)
    halves = {c: _halved(prepared, box, c) for c in names}
    texts = [box.target.model.tokenize(t, prepend_bos=box.target.prepend_bos) for t in held_out(prepared)]
    rows: list[Row] = []
    for own, category in enumerate(names):
        members = members_of(prepared, box, category)["target"]
        if not len(members):
            continue
        vectors = box.sae.W_dec[box.triples.feature[members]].detach().double().cpu().numpy()
        goal = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).mean(axis=0)
        goal = goal / np.linalg.norm(goal)
        gradients = np.mean(
            [
                category_gradients(box.model, ids, site=box.sae.site, inside=inside)
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
        nats = [edited_nats(box.model, ids, box.sae.site, pushes) for ids in texts] if reached else []
        costs = np.mean(nats, axis=0) if nats else np.full(3, math.nan)
        rows.append(
            {
                "target": box.name, "category": category, "kept": float(np.linalg.norm(left)),
                "off_before": change.off_target_before, "off_after": change.off_target_after,
                "reduction": _known(change.reduction), "on_before": change.on_target_before,
                "on_after": change.on_target_after, "loss": _known(change.loss), "base_nats": _known(costs[0]),
                "cost_before": _known(costs[1] - costs[0]), "cost_after": _known(costs[2] - costs[0]),
                "kl": prepared.study.directions.kl, "n_features": len(members),
                "n_sentences": len(halves[category].judged), "n_texts": len(texts),
            }
        )  # fmt: skip
    return rows


def _halved(prepared: Prepared, box: WhiteBox, category: str) -> _Halves:
    ids = [box.target.tokens(Prompt(s)) for s in prepared.sentences[category]]
    return _Halves(ids[0::2], ids[1::2])


def _moved(
    prepared: Prepared,
    box: WhiteBox,
    sentences: list[list[int]],
    goal: np.ndarray,
    left: np.ndarray,
    inside: np.ndarray,
) -> tuple[tuple[Float[np.ndarray, " categories"], Float[np.ndarray, " categories"]], float]:
    """Mean change of every category under either direction, at the strength that the first needs."""
    before, after, strengths = [], [], []
    for ids in sentences:
        first = steer(
            box.model,
            ids,
            site=box.sae.site,
            directions=goal[None],
            inside=inside,
            kl=prepared.study.directions.kl,
        )
        if not first.reached[0]:
            continue
        second = steer(
            box.model,
            ids,
            site=box.sae.site,
            directions=left[None],
            inside=inside,
            strength=float(first.strength[0]),
        )
        before.append(first.log_odds[0])
        after.append(second.log_odds[0])
        strengths.append(float(first.strength[0]))
    if not before:
        nothing = np.full(len(inside), math.nan)
        return (nothing, nothing), math.nan
    return (np.mean(before, axis=0), np.mean(after, axis=0)), float(np.mean(strengths))


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
