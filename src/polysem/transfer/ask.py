"""Asking one target: prompts of a part, answers, changes, rows. A part is one category and arm.

A prompt is a sentence with strings written into it by a template, at a position: factors of the study.
"""

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from polysem.errors import ConfigError, StoreError
from polysem.progress import SILENT, Reporter
from polysem.seeds import rng_for, short_hash
from polysem.store import io
from polysem.store.schema import Schema
from polysem.store.tables import TRANSFER_TRIALS
from polysem.targets import Answer, ServedTarget, Target, TargetPrompt
from polysem.targets.samples import check_samples
from polysem.transfer.config import TESTED, TransferStudy
from polysem.transfer.outcomes import AnswerChange, Reader, Reading, change, noise_of
from polysem.transfer.pools import Pools, pick
from polysem.transfer.prepare import PreparedTransfer
from polysem.transfer.tails import TailCollector, Tails
from polysem.vocabulary_transfer import PROMPT_POSITIONS, TEMPLATES

log = logging.getLogger(__name__)

CHUNK = 128
"""prompts asked together: bounds memory, and is what an interrupt of a local target can cost"""


INSTRUCTION = "Continue the sentence with the one word that comes next. Answer with that word only.\n\n"
REFUSALS = (
    "i cannot", "i can't", "i can not", "i'm sorry", "i am sorry", "i'm unable", "i am unable", "sorry,", "as an ai",
    "i won't", "i apologize", "i must decline",
)  # fmt: skip


def injected(template: str, strings: Sequence[str]) -> str:
    """The strings as they stand in a prompt."""
    form = TEMPLATES[template]
    text = form.glue.join(s.strip() for s in strings) if form.glue else "".join(strings)
    return form.pattern.format(text.strip() if form.bare else text)


def frame(
    sentence: str, strings: Sequence[str], *, template: str, position: str, chat: bool, repeat: int = 0
) -> TargetPrompt:
    """The prompt; without strings the baseline. A chat target gets an instruction in front, in baselines too, so that what
    it answers is a continuation.

    Raises:
        ConfigError: a position that the kind of target does not have.
    """
    if PROMPT_POSITIONS[position].chat and not chat:
        raise ConfigError(
            f"position {position!r} needs a chat target: a completion must end with the sentence",
            hint='set frames.positions = ["prefix"], or split the study by kind of target',
        )
    opening = INSTRUCTION if chat else ""
    block = injected(template, strings) if strings else ""
    if block and position == "system":
        return TargetPrompt(opening + sentence, system=block.strip(), repeat=repeat)
    if block and position == "suffix":
        return TargetPrompt(f"{opening}{sentence}\n\n{block.strip()}", repeat=repeat)
    return TargetPrompt(opening + block + sentence, repeat=repeat)


def is_refusal(text: str) -> bool:
    """Whether a chat answer begins by declining."""
    return text.strip().casefold().replace("’", "'").startswith(REFUSALS)


@dataclass(frozen=True)
class Planned:
    """One trial before it is asked."""

    template: str
    position: str
    pool: int
    sentence: int
    draw: int
    prompt: TargetPrompt


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


def baseline_prompts(prepared: PreparedTransfer, *, chat: bool) -> dict[str, list[list[TargetPrompt]]]:
    """By category and sentence, the repeats of the baseline."""
    return {
        category: [
            [
                frame(s, (), template="paren", position="prefix", chat=chat, repeat=r)
                for r in range(prepared.study.frames.repeats)
            ]
            for s in sentences
        ]
        for category, sentences in prepared.sentences.items()
    }


Span = tuple[int, int]
"""reference pools of a part, from the first to before the last; treated pools go with the first"""


def spans(study: TransferStudy, arm: str) -> list[Span]:
    """The parts in which the reference pools of an arm are asked: one, or one for each look."""
    looks = study.test.looks if arm in TESTED else ()
    return list(itertools.pairwise((0, *looks, study.pools.n_reference)))


def planned(
    prepared: PreparedTransfer, category: str, arm: str, *, chat: bool, span: Span | None = None
) -> Iterator[Planned]:
    """The trials of a part, in order; without a span all of them. The strings of a prompt depend on pool, sentence and draw
    alone, so that templates and positions are compared on the same strings."""
    study = prepared.study
    pools: Pools = prepared.pools[category, arm]
    first, last = span or (0, len(pools.reference))
    reference = [(-1 - k, p) for k, p in enumerate(pools.reference)][first:last]
    numbered = [*(enumerate(pools.treated) if first == 0 else ()), *reference]
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


Asked = Mapping[tuple[str, str], int]
"""(category, arm) -> reference pools that were asked"""


def all_prompts(
    prepared: PreparedTransfer, *, chat: bool, asked: Asked | None = None
) -> Iterator[TargetPrompt]:
    """Everything that a target will be asked, or was."""
    for rows in baseline_prompts(prepared, chat=chat).values():
        for repeats in rows:
            yield from repeats
    for key in prepared.pools:
        for trial in planned(prepared, *key, chat=chat, span=(0, asked[key]) if asked else None):
            yield trial.prompt


def sampled_prompts(
    prepared: PreparedTransfer, target: Target, *, asked: Asked | None = None
) -> Iterator[tuple[TargetPrompt, list[int]]]:
    """Every prompt behind which tokens of its category are drawn, and their ids; none where the study draws none."""
    if not isinstance(target, ServedTarget) or not target.serving.samples:
        return
    ids = ids_of_categories(prepared, target)
    for category, rows in baseline_prompts(prepared, chat=target.kind.chat).items():
        for row in rows if ids[category] else ():
            yield row[0], ids[category]
    for category, arm in prepared.pools:
        span = (0, asked[category, arm]) if asked else None
        if ids[category]:
            for trial in planned(prepared, category, arm, chat=target.kind.chat, span=span):
                yield trial.prompt, ids[category]


def ids_of_categories(prepared: PreparedTransfer, target: Target) -> dict[str, list[int]]:
    """Numbers of the target's tokens in every category; none where its tokenizer is not known."""
    tokens = target.vocabulary or ()
    inside = prepared.categories.inside(tokens, word_start=target.kind.word_start)
    return dict(zip(prepared.categories.names, (np.flatnonzero(row).tolist() for row in inside), strict=True))


def ask_baselines(prepared: PreparedTransfer, target: Target) -> Baselines:
    """Ask every sentence as it is, as often as the study says."""
    reader = reader_of(prepared, target)
    # A model in this process gives equal answers to equal prompts; one repeat says as much as many.
    found: dict[str, list[tuple[Answer, Reading]]] = {}
    noise: dict[str, float] = {}
    missing: list[float] = []
    n_lost, words = 0, {name: set() for name in prepared.categories.names}
    for category, rows in baseline_prompts(prepared, chat=target.kind.chat).items():
        kept = rows if target.kind.served else [row[:1] for row in rows]
        answers = target.answers([p for row in kept for p in row])
        width = len(kept[0])
        grid = [answers[n * width : (n + 1) * width] for n in range(len(kept))]
        readings = [[reader.read(a) for a in row] for row in grid]
        found[category] = [(row[0], read[0]) for row, read in zip(grid, readings, strict=True)]
        own = prepared.categories.names.index(category)
        noise[category] = float(noise_of(readings)[own]) if target.kind.served else 0.0
        missing += [a.missing for a in answers]
        n_lost += sum(a.lost > 0 for a in answers)
        for answer in answers:
            for token in answer.tokens:
                name = prepared.categories.of_token(token, word_start=target.kind.word_start)
                if name is not None:
                    words[name].add(token.strip().casefold())
    return Baselines(found, noise, float(np.mean(missing)), n_lost, {k: len(v) for k, v in words.items()})


def reader_of(prepared: PreparedTransfer, target: Target) -> Reader:
    """What reads the target's answers."""
    return Reader(
        prepared.categories, word_start=target.kind.word_start, success_k=prepared.study.test.success_k
    )


def ask_part(
    prepared: PreparedTransfer,
    target: Target,
    baselines: Baselines,
    category: str,
    arm: str,
    *,
    name: str,
    folder: Path,
    span: Span | None = None,
    tails: Tails | None = None,
    reporter: Reporter = SILENT,
) -> pa.Table:
    """TRANSFER_TRIALS of one part: from its file if it was finished, else asked and written.

    The file's name is a hash of everything the rows depend on, so a file that is there and whole is right. `tails`: of
    truncated answers, the part's own.
    """
    trials = list(planned(prepared, category, arm, chat=target.kind.chat, span=span))
    path = folder / f"{_fingerprint(prepared, target, baselines, category, trials, tails)}.parquet"
    key = {"target": name, "category": category, "arm": arm}
    ask = partial(_asked, prepared, target, baselines, trials, key, tails, reporter)
    return kept_part(path, TRANSFER_TRIALS, ask)


def ask_category(
    prepared: PreparedTransfer,
    target: Target,
    baselines: Baselines,
    category: str,
    *,
    asked: Asked,
    name: str,
    folder: Path,
    reporter: Reporter = SILENT,
) -> Iterator[pa.Table]:
    """TRANSFER_TRIALS of every arm of a category, with `asked` reference pools. Truncated answers are asked for first, all of
    them, and read together."""
    arms = [arm for of, arm in prepared.pools if of == category]
    whole = {arm: (0, asked[category, arm]) for arm in arms}
    trials = {
        arm: list(planned(prepared, category, arm, chat=target.kind.chat, span=whole[arm])) for arm in arms
    }
    first = [answer for answer, _ in baselines.answers[category]]
    tails = None
    if not all(answer.complete for answer in first):
        tails = _tails(prepared, target, category, first, trials, f"{name} {category}", reporter)
    ask = partial(
        ask_part, prepared, target, baselines, category, name=name, folder=folder, reporter=reporter
    )
    start = len(first)
    for arm in arms:
        if tails is None:  # each look has a part of its own, which stays as it is
            for span in spans(prepared.study, arm):
                if span[1] <= asked[category, arm]:
                    yield ask(arm, span=span)
            continue
        rows = slice(start, start + len(trials[arm]))
        start = rows.stop
        yield ask(arm, span=whole[arm], tails=tails.part(rows))


def _tails(
    prepared: PreparedTransfer,
    target: Target,
    category: str,
    first: list[Answer],
    trials: Mapping[str, list[Planned]],
    label: str,
    reporter: Reporter,
) -> Tails:
    """Of the baselines, then of all arms' trials."""
    kind, ids = target.kind, []
    if isinstance(target, ServedTarget) and target.serving.samples:
        ids = ids_of_categories(prepared, target)[category]
    seen = TailCollector(
        prepared.categories,
        word_start=kind.word_start,
        vocabulary=target.vocabulary,
        sampled=category if ids else None,
    )

    allowed = frozenset((target.vocabulary or ())[number] for number in ids)

    def take(prompts: Sequence[TargetPrompt], answers: Sequence[Answer]) -> None:
        drawn = target.samples(prompts, ids) if ids and isinstance(target, ServedTarget) else []
        if drawn:
            check_samples(answers, drawn, allowed, who=target.name)
        for answer, samples in zip(answers, drawn or [None] * len(answers), strict=True):
            seen.take(answer, samples)

    sentence = list(range(len(first)))
    take([row[0] for row in baseline_prompts(prepared, chat=kind.chat)[category]], first)
    every = [trial for of in trials.values() for trial in of]
    starts = range(0, len(every), CHUNK)
    for start in reporter.track(starts, total=len(starts), label=label):
        part = every[start : start + CHUNK]
        sentence += [trial.sentence for trial in part]
        prompts = [trial.prompt for trial in part]
        take(prompts, target.answers(prompts))
    return seen.tails(sentence)


def kept_part(path: Path, schema: Schema, rows: Callable[[], list[dict[str, object]]]) -> pa.Table:
    """The table of a finished part from its file; where there is none that is whole, of `rows`, and then kept there."""
    if path.is_file():
        try:
            return io.read_table(path, schema, rebuild="run the same command again")
        except StoreError as error:
            log.warning("made again: %s", error)
    table = schema.of_rows(rows())
    io.write_table(path, table, schema)
    return table


def _asked(
    prepared: PreparedTransfer,
    target: Target,
    baselines: Baselines,
    trials: list[Planned],
    key: dict[str, str],
    tails: Tails | None,
    reporter: Reporter,
) -> list[dict[str, object]]:
    """Rows of TRANSFER_TRIALS of one part."""
    reader = reader_of(prepared, target)
    rows: list[dict[str, object]] = []
    starts = range(0, len(trials), CHUNK)
    for start in reporter.track(starts, total=len(starts), label=" ".join(key.values())):
        part = trials[start : start + CHUNK]
        for trial, answer in zip(part, target.answers([t.prompt for t in part]), strict=True):
            moved = change(baselines.answers[key["category"]][trial.sentence], (answer, reader.read(answer)))
            rows.append(key | _row(trial, answer, moved, prepared.categories.names, tails, len(rows)))
    return rows


def _row(
    trial: Planned,
    answer: Answer,
    moved: AnswerChange,
    names: Sequence[str],
    tails: Tails | None,
    number: int,
) -> dict[str, object]:
    row: dict[str, object] = {name: value for name, value in vars(trial).items() if name != "prompt"}
    for name, values in (("logodds", moved.log_odds), ("mass", moved.mass)):
        row |= zip((f"{name}_lo", name, f"{name}_hi"), values.tolist(), strict=True)
    exact = [0.0] * len(names)
    row |= {"logodds_sd": exact, "share": [1.0] * len(names), "k_needed": exact}
    if tails is not None:
        row |= {
            "logodds": tails.change[number].tolist(), "mass": tails.mass[number].tolist(),
            "logodds_sd": tails.sd[number].tolist(), "share": tails.share.tolist(), "k_needed": tails.k_needed.tolist(),
        }  # fmt: skip
    return row | {
        "categories": list(names), "success": moved.success.tolist(), "kl_lo": moved.kl.lo, "kl_hi": moved.kl.hi,
        "tv_lo": moved.tv.lo, "tv_hi": moved.tv.hi, "missing": answer.missing, "refused": is_refusal(answer.text),
    }  # fmt: skip


def _fingerprint(
    prepared: PreparedTransfer,
    target: Target,
    baselines: Baselines,
    category: str,
    trials: list[Planned],
    tails: Tails | None,
) -> str:
    words = {name: sorted(found) for name, found in prepared.categories.words.items()}
    base = [(a.n, float(a.logprobs.sum())) for a, _ in baselines.answers[category]]
    return short_hash(
        TRANSFER_TRIALS.version,
        target.fingerprint,
        target.granted,
        json.dumps(words, sort_keys=True),
        prepared.study.test.success_k,
        base,
        trials,
        tails and hashlib.sha256(tails.change.tobytes() + tails.sd.tobytes()).hexdigest(),
        digits=32,
    )
