"""How each stage is made: tables in, the stage's own function called, tables out, facts for the manifest."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from polysem.errors import StoreError
from polysem.progress import Reporter
from polysem.store import io
from polysem.store.manifest import Output, Recipe
from polysem.store.run import REPORT, Part, now, trial_parts
from polysem.store.stages import command
from polysem.study.bench import Bench
from polysem.study.status import parts_of

log = logging.getLogger(__name__)
T = TypeVar("T")


class Made(NamedTuple):
    """The files of a stage and what was found out while making them."""

    outputs: dict[str, Output]
    facts: dict[str, Any]


def make_features(bench: Bench, reporter: Reporter) -> Made:
    """Features, glosses, contexts, clusters and gloss embeddings."""
    from polysem.features import build_features

    run = bench.run
    work = run.folder("features") / "work"
    bench.gate()
    table = build_features(bench.study, bench.model, bench.saes, workdir=work, reporter=reporter)
    outputs = {**run.write_tables("features", table.tables()), **run.write_embeddings(table.embeddings)}
    for checkpoint in sorted(
        work.glob("*.safetensors")
    ):  # the embeddings below are kept: they are found by content
        io.remove(checkpoint)
    name, digest = table.embedder
    return Made(outputs, {**bench.facts(), "embedder": {"name": name, "sha256": digest}})


def make_pairs(bench: Bench, recipe: Recipe, *, ignore_versions: bool, reporter: Reporter) -> Made:
    """The map of pairs, one part per SAE."""
    from polysem.pairs import map_pairs

    def compute(part: Part) -> Mapping[str, pa.Table]:
        label = sorted(bench.saes)[part.k]
        made = map_pairs(bench.saes[label], bench.features, config=bench.study.pairs, label=label)
        return {name: getattr(made, name) for name in ("pairs", "density", "spectrum", "partners")}

    parts = parts_of(bench.study, bench.run, "pairs")
    todo = _missing(bench, parts, recipe, ignore_versions=ignore_versions)
    for part in reporter.track(todo, total=len(parts), label="pairs", done=len(parts) - len(todo)):
        _write(bench, part, recipe, compute)
    return collect(bench, parts, recipe, ignore_versions=ignore_versions)


def make_plan(bench: Bench) -> Made:
    """Prompts and plan."""
    from polysem import plan as planning
    from polysem.prompts import make_prompts

    study, run = bench.study, bench.run
    wants_bos = {label: bool(facts["prepend_bos"]) for label, facts in bench.saes.facts.items()}
    if len(set(wants_bos.values())) > 1:
        log.warning("some SAEs were trained with BOS and some without; all prompts begin with BOS")
    prompts = make_prompts(
        study.prompts, study.corpus, bench.model, prepend_bos=any(wants_bos.values()), seed=study.seed
    )
    pairs = {name: run.table(name) for name in ("pairs", "partners")}
    plan = planning.make_plan(study, bench.features, pairs, prompts, bench.saes, model=bench.model)
    outputs = run.write_tables("plan", plan.tables())
    bos = "in front of every prompt" if any(wants_bos.values()) else "none"
    log.info("BOS: %s (SAEs trained with it: %s)", bos, wants_bos)
    facts = {"bos": bos, "trained_with_bos": wants_bos, "counts": planning.describe_plan(plan)}
    return Made(outputs, {**bench.facts(), **facts})


def make_trials(
    bench: Bench, recipe: Recipe, *, shard: tuple[int, int], ignore_versions: bool, reporter: Reporter
) -> list[Part]:
    """Run the trials of one shard, (1, 1) being all; gives the stage's parts, those of other shards included."""
    from polysem.trials import run_batches

    plan, prompts = bench.run.table("plan"), bench.run.table("prompts")
    batches = trial_parts(plan)
    parts = [Part("trials", k, len(batches)) for k in range(len(batches))]
    mine = parts[shard[0] - 1 :: shard[1]]
    todo = _missing(bench, mine, recipe, ignore_versions=ignore_versions)
    if not todo:
        return parts
    total, left = (sum(len(batches[part.k]) for part in some) for some in (mine, todo))
    steps = _Steps(reporter, total=total, done=total - left, label="trials")

    def compute(part: Part) -> Mapping[str, pa.Table]:
        rows = run_batches(
            plan, prompts, bench.features, bench.model, bench.saes, batches=batches[part.k], reporter=steps
        )
        return {"trials": rows}

    for part in todo:
        _write(bench, part, recipe, compute)
    steps.close()
    return parts


def make_response(bench: Bench, reporter: Reporter) -> Made:
    """What the gradient says about the pushes of the plan."""
    from polysem.response import respond

    study, run = bench.study, bench.run
    plan, prompts, trials = (run.table(name) for name in ("plan", "prompts", "trials"))
    tables = respond(
        plan,
        prompts,
        trials,
        bench.features,
        bench.model,
        bench.saes,
        seed=study.seed,
        reporter=reporter,
    )
    return Made(run.write_tables("response", tables), bench.facts())


def make_effects(bench: Bench) -> Made:
    """Effects with intervals."""
    from polysem.stats import estimate

    study, run = bench.study, bench.run
    wanted = ("response", "metrics", "gradient_path", "gradient_matrix", "replicated")
    tables = {name: run.table(name) for name in wanted}
    made = estimate(
        run.table("plan"),
        run.table("trials"),
        config=study.effects,
        seed=study.seed,
        response=tables,
        preset=study.preset,
        checks=True,
        signals=run.table("signals"),
    )
    return Made(run.write_tables("effects", made.tables()), {})


def make_report(bench: Bench) -> Made:
    """The report of whatever is finished."""
    from polysem.report import write_report

    path = write_report(bench.run.root)
    return Made({REPORT: Output(io.sha256(path))}, {})


def collect(bench: Bench, parts: list[Part], recipe: Recipe, *, ignore_versions: bool) -> Made:
    """The files of all parts of a stage, from their records.

    Raises:
        StoreError: if a part is missing or damaged.
    """
    outputs: dict[str, Output] = {}
    facts: dict[str, Any] = {}
    machines: set[str] = set()
    for part in parts:
        record = bench.run.good_part(part, recipe, ignore_versions=ignore_versions)
        if record is None:
            raise StoreError(
                f"{bench.run.root / part.record} is missing or does not fit its files",
                hint=command(part.stage, bench.run.root),
            )
        outputs |= record.outputs
        facts = record.facts
        machines.add(f"{record.facts.get('model', {}).get('device', 'cpu')}, {record.facts.get('platform')}")
    if len(machines) > 1:
        log.warning(
            "parts of %s were made on different machines: %s", parts[0].stage, "; ".join(sorted(machines))
        )
    return Made(outputs, facts)


def _missing(bench: Bench, parts: list[Part], recipe: Recipe, *, ignore_versions: bool) -> list[Part]:
    run = bench.run
    return [part for part in parts if run.good_part(part, recipe, ignore_versions=ignore_versions) is None]


def _write(
    bench: Bench, part: Part, recipe: Recipe, compute: Callable[[Part], Mapping[str, pa.Table]]
) -> None:
    started = now()
    tables = compute(part)
    bench.run.write_part(part, tables, recipe=recipe, facts=bench.facts(), started=started)


class _Steps:
    """One bar over the batches of all parts, where each part reports its own."""

    def __init__(self, reporter: Reporter, *, total: int, done: int, label: str):
        left = range(done, total)
        self._ticks = iter(reporter.track(left, total=total, label=label, done=done))
        next(self._ticks, None)

    def track(self, items: Iterable[T], *, total: int, label: str, done: int = 0) -> Iterator[T]:
        for item in items:
            yield item
            next(self._ticks, None)

    def stage(self, label: str) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        """Let the bar end."""
        for _ in self._ticks:
            pass
