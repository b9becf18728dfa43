"""A transfer study from its settings to its tables; stopped anywhere and made again, nothing is asked twice.

    OUT/transfer/responses/       responses of servers, by content: nothing is paid for twice
    OUT/transfer/trials/          rows of answers, each file named by a hash of all that they depend on

Sources are small, so what is decided by them is computed again each time; answers are kept.
"""

import itertools
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from polysem.http import Retries
from polysem.progress import SILENT, Reporter
from polysem.store.tables import (
    TRANSFER_SETS,
    TRANSFER_SHARED,
    TRANSFER_TARGETS,
    TRANSFER_TRIALS,
)
from polysem.targets import Budget, LocalTarget, ResponseCache, ServedTarget, Serving, Target
from polysem.targets.spend import Price
from polysem.targets.tokenizer import known_tokenizer
from polysem.transfer.ask import (
    Asked,
    Baselines,
    all_prompts,
    ask_baselines,
    ask_category,
    baseline_prompts,
    sampled_prompts,
    spans,
)
from polysem.transfer.categories import check_coverage, coverage
from polysem.transfer.config import TargetConfig, TransferStudy
from polysem.transfer.effects import effects, is_decided
from polysem.transfer.power import affordable, kept_spreads, power_line, what_is_seen
from polysem.transfer.prepare import PreparedTransfer, prepare

log = logging.getLogger(__name__)
Say = Callable[[str], None]
UNMATCHED = 0.25
"""standard deviations of the universe beyond which a difference of pools is said"""


class MadeTransfer(NamedTuple):
    """The tables of a transfer study, and what was found out while making them."""

    tables: dict[str, pa.Table]
    facts: dict[str, Any]


def make_transfer(
    study: TransferStudy,
    folder: Path,
    *,
    reporter: Reporter = SILENT,
    say: Say = log.info,
    estimate_only: bool = False,
    retries: Retries | None = None,
) -> MadeTransfer | None:
    """The tables of a transfer study; None if only its cost is said.

    Args:
        folder: where answers are kept.
        say: is told what will be sent and cost before it is sent, and what is not run.
        estimate_only: say it and end.

    Raises:
        ConfigError: a budget is too small, or nothing can be run.
        PolysemError: of models, SAEs, servers and files; what was paid for is kept.
    """
    targets = {c.name: open_target(c, folder, retries=retries) for c in study.targets}
    counter = next((t.count_tokens for t in targets.values() if t.count_tokens("a") is not None), None)
    with reporter.stage("sources"):
        prepared = prepare(study, count_tokens=counter, reporter=reporter)
    for category, sentences in prepared.sentences.items():
        if len(sentences) < study.categories.n_sentences:
            say(
                f"{category}: {len(sentences)} sentences of the {study.categories.n_sentences} asked for "
                "(categories.n_sentences): give more with categories.sentences"
            )
    for (category, arm), reason in prepared.reasons.items():
        say(f"{category}, {arm}: not run: {reason}")
    for (category, arm), pools in prepared.pools.items():
        for name, gap in pools.imbalance.items():
            if abs(gap) > UNMATCHED:
                say(f"{category}, {arm}: pools differ by {gap:+.2f} SD in {name}: matched only so far")
    _announce(prepared, targets, folder, say)
    if estimate_only:
        return None
    from polysem.transfer.inside import inside_tables, open_inside

    # What can fail on this machine fails before a server is asked.
    texts, boxes = open_inside(prepared, targets, reporter, say)
    tables = _ask(prepared, targets, folder, reporter, say)
    tables |= inside_tables(prepared, targets, texts, boxes, folder, reporter)
    tables["transfer_shared"] = shared_table(prepared)
    tables["transfer_sets"] = sets_table(prepared)
    facts = {
        "sources": {s.name: s.revision for s in prepared.sources},
        "targets": {name: target.fingerprint for name, target in targets.items()},
        "purpose": study.categories.purpose,
        "shared": {k: v for k, v in asdict(prepared.structure.counts).items() if v == v},
    }
    return MadeTransfer(tables, facts)


def open_target(config: TargetConfig, folder: Path, *, retries: Retries | None = None) -> Target:
    """The target of a study's section."""
    if config.kind == "local":
        from polysem.models import load_model

        model = load_model(config.model, dtype=config.dtype, device=config.device)
        return LocalTarget(model, prepend_bos=config.bos)
    serving = Serving(
        url=str(config.url),
        model=config.model,
        api=config.kind,
        k=config.k,
        samples=config.samples,
        vocabulary=config.vocabulary,
        concurrency=config.concurrency,
        per_minute=config.per_minute,
        timeout=config.timeout,
        extra=tuple(sorted(config.extra.items())),
        bos=config.bos,
        known_as=config.known_as,
    )
    price = Price(
        config.price_per_request,
        config.price_per_million_input,
        config.price_per_million_output,
        config.price_unit,
    )
    budget = Budget(config.max_requests, config.max_cost, price)
    cache = ResponseCache(folder / "responses")
    tokenizer = known_tokenizer(config.tokenizer) if config.tokenizer else None
    return ServedTarget(serving, cache=cache, budget=budget, retries=retries, tokenizer=tokenizer)


def _announce(prepared: PreparedTransfer, targets: Mapping[str, Target], folder: Path, say: Say) -> None:
    """Say what each server will be sent and what that can show, and refuse what a budget cannot pay for, before the first
    request."""
    n = prepared.study.pools.n_reference
    for name, target in targets.items():
        prompts = list(all_prompts(prepared, chat=target.kind.chat))
        spreads = kept_spreads(folder / "trials", name)
        say(f"{name}: {power_line(what_is_seen(prepared, spreads), spreads, n_reference=n)}")
        if isinstance(target, ServedTarget):
            estimate = target.estimate(prompts, list(sampled_prompts(prepared, target)))
            say(f"{name}: {estimate}")
            if target.question:
                say(f"{name}: {target.question}")
            most = target.budget.affords(estimate)
            if most < estimate.to_send:
                each = 2 if target.serving.samples else 1
                paid = affordable(prepared, wanted=estimate.to_send, most=most, each=each)
                seen = what_is_seen(prepared, spreads, n_reference=paid)
                say(
                    f"{name}: the budget pays for pools.n_reference = {paid}: {power_line(seen, spreads, n_reference=paid)}"
                )
            elif prepared.study.test.looks:
                asked = {key: spans(prepared.study, key[1])[0][1] for key in prepared.pools}
                least = target.estimate(
                    list(all_prompts(prepared, chat=target.kind.chat, asked=asked)),
                    list(sampled_prompts(prepared, target, asked=asked)),
                )
                say(f"{name}: if every arm is decided at the first look: {least}")
            target.budget.check(estimate)
        else:
            say(f"{name}: {len(set(prompts))} prompts on this machine, {_conventions(target)}")
            rows = coverage(prepared.categories, target.vocabulary) if isinstance(target, LocalTarget) else []
            for row in rows:
                say(f"{name}: {row.category}: {row.n_words_covered} of {row.n_words} words are one token")
            check_coverage(rows, who=name)


def _ask(
    prepared: PreparedTransfer, targets: Mapping[str, Target], folder: Path, reporter: Reporter, say: Say
) -> dict[str, pa.Table]:
    parts: list[pa.Table] = []
    about: list[dict[str, Any]] = []
    noise: dict[str, dict[str, float]] = {}
    for name, target in targets.items():
        with reporter.stage(f"target {name}"):
            if isinstance(target, ServedTarget):
                rows = baseline_prompts(prepared, chat=target.kind.chat)
                target.probe([repeats[0] for sentences in rows.values() for repeats in sentences])
                say(f"{name}: {target.probed}")
            baselines = ask_baselines(prepared, target)
            noise[name] = baselines.noise
            if target.kind.served:
                say(f"{name}: {_repeats(baselines.noise)}")
            for line in unseen(name, baselines.seen):
                say(line)
            asked: dict[tuple[str, str], int] = {}
            ask = partial(
                ask_category,
                prepared,
                target,
                baselines,
                name=name,
                folder=folder / "trials",
                reporter=reporter,
            )
            parts += _ask_in_looks(prepared, ask, asked, lambda text, name=name: say(f"{name}, {text}"))
            about.append(_target_row(prepared, name, target, baselines, asked))
    trials = TRANSFER_TRIALS.conform(pa.concat_tables(parts))
    return {
        "transfer_trials": trials,
        "transfer_effects": effects(trials, prepared.study, noise=noise),
        "transfer_targets": TRANSFER_TARGETS.of(about),
    }


def _ask_in_looks(
    prepared: PreparedTransfer,
    ask: Callable[..., Iterable[pa.Table]],
    asked: dict[tuple[str, str], int],
    say: Say,
) -> list[pa.Table]:
    """The parts of a target: every arm to the look at which it is decided. Truncated answers of a category are read
    together, so that each look reads all that there are; `asked` gets how many reference pools of each pool that took.
    """
    study = prepared.study
    going = list(study.pools.arms)
    for look in itertools.count():
        for key in prepared.pools:
            if key[1] in going:
                asked[key] = spans(study, key[1])[look][1]
        categories = dict.fromkeys(category for category, _ in prepared.pools)
        parts = [part for category in categories for part in ask(category, asked=asked)]
        going = [arm for arm in going if look + 1 < len(spans(study, arm))]
        if not going:
            return parts
        trials = pa.concat_tables(parts)
        for arm in list(going):
            if is_decided(trials.filter(pc.equal(trials["arm"], arm)), study, arm):
                going.remove(arm)
                n = spans(study, arm)[look][1]
                say(f"{arm}: decided after {n} of {study.pools.n_reference} reference pools")
        if not going:
            return parts
    return []


def _conventions(target: Target) -> str:
    """How a target was asked and answers, in words."""
    if isinstance(target, ServedTarget):
        n = target.serving.samples
        return f"{target.probed}{f', {n} samples behind each prompt (checked)' if n else ''}"
    return target.positions.said if isinstance(target, LocalTarget) else ""


def _repeats(noise: Mapping[str, float]) -> str:
    """Whether a server gives equal answers to equal prompts."""
    known = [v for v in noise.values() if v == v]
    if not known:
        return "determinism not measured (frames.repeats is 1)"
    return (
        f"repeated baselines differ by {max(known):.2g} nats (SD)"
        if max(known)
        else "repeated baselines are equal"
    )


def unseen(name: str, seen: Mapping[str, int]) -> list[str]:
    """A line for every category of which no word stood in any baseline answer of a target."""
    return [
        f"{name}: {category}: none of its words is among the tokens granted for any baseline; either the target's vocabulary "
        "has none or more log-probabilities are needed (target.k), and until then only bounds can be given"
        for category, n in seen.items()
        if n == 0
    ]


def _target_row(
    prepared: PreparedTransfer, name: str, target: Target, baselines: Baselines, asked: Asked
) -> dict[str, Any]:
    served = target if isinstance(target, ServedTarget) else None
    prompts = list(all_prompts(prepared, chat=target.kind.chat, asked=asked))
    distinct = len(set(prompts))
    cost = 0.0
    if served:
        cost = served.estimate(prompts, list(sampled_prompts(prepared, target, asked=asked)), anew=True).cost
    if isinstance(target, LocalTarget):
        seen = {r.category: r.n_words_covered for r in coverage(prepared.categories, target.vocabulary)}
    else:
        seen = baselines.seen
    sigma = [v for v in baselines.noise.values() if v == v]
    return {
        "target": name,
        "what": target.name,
        "asked": served.serving.k if served else None,
        "granted": served.granted if served else None,
        "missing": baselines.missing,
        "n_lost": baselines.n_lost,
        "conventions": _conventions(target),
        "noise": (sum(v * v for v in sigma) / len(sigma)) ** 0.5 if sigma else None,
        "n_prompts": distinct,
        "cost": cost,
        "cost_unit": served.budget.price.unit if served else "",
        "coverage": json.dumps(seen, sort_keys=True),
    }


def shared_table(prepared: PreparedTransfer) -> pa.Table:
    """TRANSFER_SHARED of the two sources."""
    s, (a, b) = prepared.structure.counts, prepared.sources
    row = {
        "source_a": a.name, "source_b": b.name, "n_segments": prepared.structure.matching.n_segments, "n_matched": s.m,
        "n_pairs_a": s.n_a, "n_pairs_b": s.n_b, "n_shared": s.n_shared, "expected": s.expected, "lift": s.lift,
        "lift_lo": s.lift_lo, "lift_hi": s.lift_hi, "fraction": s.fraction, "fraction_lo": s.lo, "fraction_hi": s.hi,
        "p": s.p, "level": s.level,
    }  # fmt: skip
    return TRANSFER_SHARED.of([{k: None if v != v else v for k, v in row.items()}])


def sets_table(prepared: PreparedTransfer) -> pa.Table:
    """TRANSFER_SETS: every arm of every category, those that were not run included."""
    rows = []
    for category, found in prepared.sets.items():
        for arm in prepared.study.pools.arms:
            pools = prepared.pools.get((category, arm))
            overlap = {b if a == arm else a: n for (a, b), n in found.overlap.items() if arm in (a, b)}
            rows.append(
                {
                    "category": category,
                    "arm": arm,
                    "n_strings": len(found.sets[arm]),
                    "n_treated": len(pools.treated) if pools else 0,
                    "n_reference": len(pools.reference) if pools else 0,
                    "overlap": json.dumps(overlap, sort_keys=True),
                    "imbalance": json.dumps(
                        {k: round(v, 6) for k, v in (pools.imbalance if pools else {}).items()}
                    ),
                    "reason": prepared.reasons.get((category, arm)),
                }
            )
    return TRANSFER_SETS.of(rows)
