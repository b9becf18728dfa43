"""A transfer study from its file to its tables; stop it anywhere and run it again.

    OUT/transfer.toml             what was asked, verbatim
    OUT/transfer/responses/       responses of servers, by content: nothing is paid for twice
    OUT/transfer/trials/          finished parts, each named by a hash of all that it depends on
    OUT/transfer/*.parquet        the tables of `store/tables` under TRANSFER
    OUT/transfer/manifest.json    what they were made from

Sources are small, so what is decided by them is computed again each time; answers and parts are kept.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from polysem.errors import ConfigError, StoreError, UnknownReferenceError
from polysem.http import Retries
from polysem.progress import SILENT, Reporter
from polysem.registry import zoo_path
from polysem.store import io
from polysem.store.lock import locked
from polysem.store.manifest import made_here, platform_facts, version_of
from polysem.store.run import now
from polysem.store.schema import Schema
from polysem.store.tables import (
    TRANSFER,
    TRANSFER_SETS,
    TRANSFER_SHARED,
    TRANSFER_TARGETS,
    TRANSFER_TRIALS,
)
from polysem.targets import Budget, LocalTarget, ResponseCache, ServedTarget, Serving, Target
from polysem.targets.spend import Price
from polysem.transfer.ask import Baselines, all_prompts, ask_baselines, ask_part, baseline_prompts, is_chat
from polysem.transfer.categories import check_coverage, coverage
from polysem.transfer.config import TargetConfig, TransferStudy, parse_transfer
from polysem.transfer.effects import effects
from polysem.transfer.prepare import Prepared, prepare
from polysem.transfer.result import FOLDER

log = logging.getLogger(__name__)
STUDY = "transfer.toml"
Say = Callable[[str], None]
UNMATCHED = 0.25
"""standard deviations of the universe beyond which a difference of pools is said"""


def run_transfer(
    study_file: Path,
    out: Path,
    *,
    reporter: Reporter = SILENT,
    say: Say = log.info,
    estimate_only: bool = False,
    retries: Retries | None = None,
) -> Path:
    """Run a transfer study; what was answered before is not asked again.

    Args:
        study_file: the study; kept verbatim in `out`.
        out: folder; made if it does not exist, and may be the folder of another study.
        reporter: is told of progress.
        say: is told what will be sent and cost before it is sent, and what is not run.
        estimate_only: say it and end.
        retries: of served targets.

    Returns:
        The folder of the tables.

    Raises:
        ConfigError: the study is not one, a budget is too small, or nothing can be run.
        PolysemError: of models, SAEs, servers and files; what was paid for is kept.
    """
    text = _text(study_file)
    study = parse_transfer(text, origin=str(study_file))
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        _claim(out / STUDY, text, study)
        started = now()
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
        _announce(prepared, targets, say)
        if estimate_only:
            return folder
        from polysem.transfer.inside import inside_tables, open_inside

        # What can fail on this machine fails before a server is asked.
        texts, boxes = open_inside(prepared, targets, reporter, say)
        tables = _ask(prepared, targets, folder, reporter, say)
        tables |= inside_tables(prepared, targets, texts, boxes, folder, reporter)
        tables["transfer_shared"] = shared_table(prepared)
        tables["transfer_sets"] = sets_table(prepared)
        _write(folder, tables, prepared, targets, started)
    return folder


def open_target(config: TargetConfig, folder: Path, *, retries: Retries | None = None) -> Target:
    """The target of a study's section."""
    if config.kind == "local":
        from polysem.models import load_model

        return LocalTarget(load_model(config.model, dtype=config.dtype, device=config.device))
    serving = Serving(
        url=str(config.url),
        model=config.model,
        api=config.kind,
        k=config.k,
        vocabulary=config.vocabulary,
        concurrency=config.concurrency,
        per_minute=config.per_minute,
        timeout=config.timeout,
    )
    price = Price(
        config.price_per_request,
        config.price_per_million_input,
        config.price_per_million_output,
        config.price_unit,
    )
    budget = Budget(config.max_requests, config.max_cost, price)
    cache = ResponseCache(folder / "responses")
    counter = token_counter(config.tokenizer) if config.tokenizer else None
    return ServedTarget(serving, cache=cache, budget=budget, retries=retries, counter=counter)


def token_counter(ref: str) -> Callable[[str], int]:
    """Tokens of a text, by the tokenizer of a Hub id, a folder or zoo:NAME; no weights are loaded.

    Raises:
        UnknownReferenceError: no such tokenizer.
    """
    from transformers import AutoTokenizer

    place = str(zoo_path("models", ref.removeprefix("zoo:"))) if ref.startswith("zoo:") else ref
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UnknownReferenceError(
            f"there is no tokenizer {ref!r}: {str(error).splitlines()[0]}",
            hint="leave targets.tokenizer out: pools are then matched on tokens of the first source",
        ) from error
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _announce(prepared: Prepared, targets: Mapping[str, Target], say: Say) -> None:
    """Say what each server will be sent, and refuse what a budget cannot pay for, before the first request."""
    for name, target in targets.items():
        prompts = list(all_prompts(prepared, chat=is_chat(target)))
        if isinstance(target, ServedTarget):
            estimate = target.estimate(prompts)
            say(f"{name}: {estimate}")
            target.budget.check(estimate)
        else:
            say(f"{name}: {len(set(prompts))} prompts on this machine")
            rows = coverage(prepared.categories, target.vocabulary) if isinstance(target, LocalTarget) else []
            for row in rows:
                say(f"{name}: {row.category}: {row.n_words_covered} of {row.n_words} words are one token")
            check_coverage(rows, who=name)


def _ask(
    prepared: Prepared, targets: Mapping[str, Target], folder: Path, reporter: Reporter, say: Say
) -> dict[str, pa.Table]:
    parts: list[pa.Table] = []
    about: list[dict[str, Any]] = []
    noise: dict[str, dict[str, float]] = {}
    for name, target in targets.items():
        with reporter.stage(f"target {name}"):
            if isinstance(target, ServedTarget):
                rows = baseline_prompts(prepared, chat=is_chat(target))
                target.probe([repeats[0] for sentences in rows.values() for repeats in sentences])
            baselines = ask_baselines(prepared, target)
            noise[name] = baselines.noise
            for line in unseen(name, baselines.seen):
                say(line)
            for category, arm in prepared.pools:
                parts.append(
                    ask_part(
                        prepared, target, baselines, category, arm,
                        name=name, folder=folder / "trials", reporter=reporter,
                    )
                )  # fmt: skip
            about.append(_target_row(prepared, name, target, baselines))
    trials = TRANSFER_TRIALS.conform(pa.concat_tables(parts))
    return {
        "transfer_trials": trials,
        "transfer_effects": effects(trials, prepared.study, noise=noise),
        "transfer_targets": _table(TRANSFER_TARGETS, about),
    }


def unseen(name: str, seen: Mapping[str, int]) -> list[str]:
    """A line for every category of which no word stood in any baseline answer of a target."""
    return [
        f"{name}: {category}: none of its words is among the tokens granted for any baseline; either the target's vocabulary "
        "has none or more log-probabilities are needed (target.k), and until then only bounds can be given"
        for category, n in seen.items()
        if n == 0
    ]


def _target_row(prepared: Prepared, name: str, target: Target, baselines: Baselines) -> dict[str, Any]:
    served = target if isinstance(target, ServedTarget) else None
    prompts = list(all_prompts(prepared, chat=is_chat(target)))
    distinct = len(set(prompts))
    cost = 0.0
    if served:
        price = served.budget.price
        tokens = float(sum(len(p.text.encode()) for p in set(prompts))) / 3
        cost = price.of(requests=distinct, input_tokens=tokens, output_tokens=float(distinct))
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
        "noise": (sum(v * v for v in sigma) / len(sigma)) ** 0.5 if sigma else None,
        "n_prompts": distinct,
        "cost": cost,
        "cost_unit": served.budget.price.unit if served else "",
        "coverage": json.dumps(seen, sort_keys=True),
    }


def shared_table(prepared: Prepared) -> pa.Table:
    """TRANSFER_SHARED of the two sources."""
    s, (a, b) = prepared.structure.counts, prepared.sources
    row = {
        "source_a": a.name, "source_b": b.name, "n_segments": prepared.structure.matching.n_segments, "n_matched": s.m,
        "n_pairs_a": s.n_a, "n_pairs_b": s.n_b, "n_shared": s.n_shared, "expected": s.expected, "lift": s.lift,
        "lift_lo": s.lift_lo, "lift_hi": s.lift_hi, "fraction": s.fraction, "fraction_lo": s.lo, "fraction_hi": s.hi,
        "p": s.p, "level": s.level,
    }  # fmt: skip
    return _table(TRANSFER_SHARED, [{k: None if v != v else v for k, v in row.items()}])


def sets_table(prepared: Prepared) -> pa.Table:
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
    return _table(TRANSFER_SETS, rows)


def _write(
    folder: Path,
    tables: Mapping[str, pa.Table],
    prepared: Prepared,
    targets: Mapping[str, Target],
    started: float,
) -> None:
    outputs = {}
    for schema in TRANSFER:
        file = f"{schema.name}.parquet"
        outputs[file] = {
            "sha256": io.write_table(folder / file, tables[schema.name], schema),
            "rows": tables[schema.name].num_rows,
        }
    study = prepared.study
    manifest = {
        "study": study.model_dump(mode="json"),
        "sources": {s.name: s.revision for s in prepared.sources},
        "targets": {name: target.fingerprint for name, target in targets.items()},
        "purpose": study.categories.purpose,
        "packages": {
            name: version_of(name) for name in ("polysem", "torch", "transformers", "numpy", "scipy")
        },
        "outputs": outputs,
        "shared": {k: v for k, v in asdict(prepared.structure.counts).items() if v == v},
        "made": made_here(started),
        "platform": platform_facts(),
    }
    io.write_json(folder / "manifest.json", manifest)


def _claim(path: Path, text: str, study: TransferStudy) -> None:
    if path.is_file():
        mine = parse_transfer(path.read_text(encoding="utf-8"), origin=str(path))
        if mine.name != study.name:
            raise StoreError(
                f"{path.parent} holds the transfer study {mine.name!r}, expected {study.name!r}",
                hint="choose another --out",
            )
    if not path.is_file() or path.read_bytes() != text.encode():
        io.write_text(path, text)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read transfer study {path}: {getattr(error, 'strerror', None) or error}",
            hint="polysem transfer --init > transfer.toml",
        ) from error


def _table(schema: Schema, rows: list[dict[str, Any]]) -> pa.Table:
    return schema.conform(pa.Table.from_pylist(rows, schema=schema.arrow()))
