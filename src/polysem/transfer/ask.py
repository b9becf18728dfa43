"""Asking one target: prompts of a part, answers, changes, rows. A part is one category and arm."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from polysem.errors import StoreError
from polysem.progress import SILENT, Reporter
from polysem.seeds import rng_for, short_hash
from polysem.store import io
from polysem.store.tables import TRANSFER_TRIALS
from polysem.targets import Answer, LocalTarget, Prompt, ServedTarget, Target
from polysem.transfer.config import Position, Template
from polysem.transfer.frames import frame, is_refusal
from polysem.transfer.outcomes import Change, Reader, Reading, change, noise_of
from polysem.transfer.pools import Pools, pick
from polysem.transfer.prepare import Prepared

log = logging.getLogger(__name__)

CHUNK = 128
"""prompts asked together: bounds memory, and is what an interrupt of a local target can cost"""


@dataclass(frozen=True)
class Planned:
    """One trial before it is asked."""

    template: Template
    position: Position
    pool: int
    sentence: int
    draw: int
    prompt: Prompt


@dataclass(frozen=True)
class Baselines:
    """Baseline answers of every category's sentences on one target."""

    answers: dict[str, list[tuple[Answer, Reading]]]
    """by category, the first repeat of each sentence"""
    noise: dict[str, float]
    """by category of the readout: SD of a repeated answer's log-odds on the category's own sentences"""
    missing: float
    n_lost: int
    seen: dict[str, int]
    """by category: distinct words seen as one token"""


def baseline_prompts(prepared: Prepared, *, chat: bool) -> dict[str, list[list[Prompt]]]:
    """By category and sentence, the repeats of the baseline."""
    repeats = 1 if not prepared.study.frames.repeats else prepared.study.frames.repeats
    return {
        category: [
            [frame(s, (), template="paren", position="prefix", chat=chat, repeat=r) for r in range(repeats)]
            for s in sentences
        ]
        for category, sentences in prepared.sentences.items()
    }


def planned(prepared: Prepared, category: str, arm: str, *, chat: bool) -> Iterator[Planned]:
    """The trials of a part, in order. The strings of a prompt depend on pool, sentence and draw alone, so that
    templates and positions are compared on the same strings."""
    study = prepared.study
    pools: Pools = prepared.pools[category, arm]
    numbered = [*enumerate(pools.treated), *((-1 - k, p) for k, p in enumerate(pools.reference))]
    for template in study.frames.templates:
        for position in study.frames.positions:
            for number, pool in numbered:
                draws = study.pools.draws if number >= 0 else study.pools.reference_draws or study.pools.draws
                for n, sentence in enumerate(prepared.sentences[category]):
                    for draw in range(draws):
                        rng = rng_for(study.seed, "draw", category, arm, number, n, draw)
                        strings = pick(pool, study.pools.n_tokens, rng=rng)
                        prompt = frame(sentence, strings, template=template, position=position, chat=chat)
                        yield Planned(template, position, number, n, draw, prompt)


def is_chat(target: Target) -> bool:
    """Whether the target is spoken to in messages."""
    return isinstance(target, ServedTarget) and target.serving.api == "chat"


def all_prompts(prepared: Prepared, *, chat: bool) -> Iterator[Prompt]:
    """Everything that a target will be asked."""
    for rows in baseline_prompts(prepared, chat=chat).values():
        for repeats in rows:
            yield from repeats
    for category, arm in prepared.pools:
        for trial in planned(prepared, category, arm, chat=chat):
            yield trial.prompt


def ask_baselines(prepared: Prepared, target: Target) -> Baselines:
    """Ask every sentence as it is, as often as the study says."""
    reader = reader_of(prepared, target)
    # A model in this process gives equal answers to equal prompts; one repeat says as much as many.
    found: dict[str, list[tuple[Answer, Reading]]] = {}
    noise: dict[str, float] = {}
    missing: list[float] = []
    n_lost, words = 0, {name: set() for name in prepared.categories.names}
    for category, rows in baseline_prompts(prepared, chat=is_chat(target)).items():
        kept = [row[:1] for row in rows] if isinstance(target, LocalTarget) else rows
        answers = target.answers([p for row in kept for p in row])
        width = len(kept[0])
        grid = [answers[n * width : (n + 1) * width] for n in range(len(kept))]
        readings = [[reader.read(a) for a in row] for row in grid]
        found[category] = [(row[0], read[0]) for row, read in zip(grid, readings, strict=True)]
        own = prepared.categories.names.index(category)
        noise[category] = 0.0 if isinstance(target, LocalTarget) else float(noise_of(readings)[own])
        missing += [a.missing for a in answers]
        n_lost += sum(a.lost > 0 for a in answers)
        for answer in answers:
            for token in answer.tokens:
                name = prepared.categories.of_token(token, word_start=target.word_start)
                if name is not None:
                    words[name].add(token.strip().casefold())
    return Baselines(found, noise, float(np.mean(missing)), n_lost, {k: len(v) for k, v in words.items()})


def reader_of(prepared: Prepared, target: Target) -> Reader:
    """What reads the target's answers."""
    return Reader(prepared.categories, word_start=target.word_start, success_k=prepared.study.test.success_k)


def ask_part(
    prepared: Prepared,
    target: Target,
    baselines: Baselines,
    category: str,
    arm: str,
    *,
    name: str,
    folder: Path,
    reporter: Reporter = SILENT,
) -> pa.Table:
    """TRANSFER_TRIALS of one part: from its file if it was finished, else asked and written.

    The file's name is a hash of everything the rows depend on, so a file that is there and whole is right.
    """
    trials = list(planned(prepared, category, arm, chat=is_chat(target)))
    path = folder / f"{_fingerprint(prepared, target, baselines, category, trials)}.parquet"
    if path.is_file():
        try:
            return io.read_table(path, TRANSFER_TRIALS, rebuild="run the same command again")
        except StoreError as error:
            log.warning("asked again: %s", error)
    reader = reader_of(prepared, target)
    rows: list[dict[str, object]] = []
    starts = range(0, len(trials), CHUNK)
    for start in reporter.track(starts, total=len(starts), label=f"{name} {category} {arm}"):
        part = trials[start : start + CHUNK]
        answers = target.answers([t.prompt for t in part])
        for trial, answer in zip(part, answers, strict=True):
            moved = change(baselines.answers[category][trial.sentence], (answer, reader.read(answer)))
            rows.append(_row(trial, answer, moved, names=prepared.categories.names) | {
                "target": name, "category": category, "arm": arm,
            })  # fmt: skip
    table = TRANSFER_TRIALS.conform(pa.Table.from_pylist(rows, schema=TRANSFER_TRIALS.arrow()))
    io.write_table(path, table, TRANSFER_TRIALS)
    return table


def _row(trial: Planned, answer: Answer, moved: Change, *, names: Sequence[str]) -> dict[str, object]:
    return {
        "template": trial.template,
        "position": trial.position,
        "pool": trial.pool,
        "sentence": trial.sentence,
        "draw": trial.draw,
        "categories": list(names),
        "logodds": moved.log_odds.tolist(),
        "logodds_lo": moved.log_odds_lo.tolist(),
        "logodds_hi": moved.log_odds_hi.tolist(),
        "mass": moved.mass.tolist(),
        "mass_lo": moved.mass_lo.tolist(),
        "mass_hi": moved.mass_hi.tolist(),
        "success": moved.success.tolist(),
        "kl_lo": moved.kl.lo,
        "kl_hi": moved.kl.hi,
        "tv_lo": moved.tv.lo,
        "tv_hi": moved.tv.hi,
        "missing": answer.missing,
        "refused": is_refusal(answer.text),
    }


def _fingerprint(
    prepared: Prepared, target: Target, baselines: Baselines, category: str, trials: list[Planned]
) -> str:
    words = {name: sorted(found) for name, found in prepared.categories.words.items()}
    base = [(a.n, float(a.logprobs.sum())) for a, _ in baselines.answers[category]]
    return short_hash(
        TRANSFER_TRIALS.version,
        target.fingerprint,
        getattr(target, "granted", None),
        json.dumps(words, sort_keys=True),
        prepared.study.test.success_k,
        base,
        trials,
        digits=32,
    )
