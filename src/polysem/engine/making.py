"""How each stage is made: tables in, the stage's own function called, tables out, facts for the manifest."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from polysem.engine.context import StoredTables
from polysem.engine.options import StageOptions
from polysem.engine.task import How, Made, Tables, Task
from polysem.errors import ConfigError, MismatchError
from polysem.progress import Reporter
from polysem.store import io
from polysem.store.manifest import Output
from polysem.store.run import REPORT, Part, trial_parts
from polysem.store.stages import has

if TYPE_CHECKING:
    from polysem.transfer.panel import JudgePanel

log = logging.getLogger(__name__)
MIN_CLEAN = 20


def features(task: Task) -> Made:
    """Features, glosses, contexts, clusters and gloss embeddings."""
    from polysem.features import build_features

    context = task.context
    work = task.run.folder("features") / "work"
    context.gate()
    table = build_features(task.study, context.model, context.saes, workdir=work, reporter=task.how.reporter)
    name, digest = table.embedder
    made = task.whole(
        {**table.tables(), "embeddings": table.embeddings}, {"embedder": {"name": name, "sha256": digest}}
    )
    # the embeddings below are kept: they are found by content
    for checkpoint in sorted(work.glob("*.safetensors")):
        io.remove(checkpoint)
    return made


def pairs(task: Task) -> Made | None:
    """The map of pairs, one part per SAE."""
    from polysem.pairs import map_pairs

    context = task.context

    def compute(part: Part, _: Reporter) -> Tables:
        label = sorted(context.saes)[part.k]
        made = map_pairs(context.saes[label], context.features, config=task.study.pairs, label=label)
        return made.tables()

    return task.in_parts(compute)


def kinship(task: Task) -> Made | None:
    """What features are to each other, one part per SAE."""
    from polysem.corpus import token_rows
    from polysem.hierarchy.firing import site_activations
    from polysem.hierarchy.relations import relations_of
    from polysem.positions import positions_of
    from polysem.saes import load_sae
    from polysem.stats.kinship import related_pairs

    context, corpus, asked = task.context, task.study.corpus, task.study.relations
    assert asked is not None, "a study without [relations] has no such stage"
    narrow = [load_sae(ref) for ref in asked.narrow]
    widest = {f["site"]: f["d_sae"] for f in sorted(context.saes.facts.values(), key=lambda f: f["d_sae"])}
    for ref, other in zip(asked.narrow, narrow, strict=True):
        if other.d_sae >= widest.get(str(other.reads), 0):
            raise MismatchError(
                f"relations.narrow: {ref} has {other.d_sae} features of {other.reads}; expected fewer than one of the study's "
                f"SAEs: {', '.join(f'{n} of {site}' for site, n in widest.items())}",
                hint="leave it out of relations.narrow",
            )

    def compute(part: Part, reporter: Reporter) -> Tables:
        label = sorted(context.saes)[part.k]
        sae, own = context.saes[label], context.features.only(label)
        positions = positions_of(context.model, sae)
        rows = token_rows(
            corpus.ref, context.model, n_tokens=asked.n_tokens, context=corpus.context, positions=positions
        )
        vectors = own.embeddings[label]
        glosses = np.zeros((sae.d_sae, vectors.shape[1]), vectors.dtype)
        glosses[own.features["feature"].to_numpy()] = vectors
        found = relations_of(
            sae,
            site_activations(context.model, rows, sae.reads),
            label=label,
            narrow=[one for one in narrow if one.site == sae.site and one.d_sae < sae.d_sae],
            embeddings=glosses,
            probes=asked.probes,
        )
        counted = related_pairs(own.pairs, found.relations, label=label, exclude=asked.exclude)
        return {
            "relations": found.relations, "absorption": found.absorption, "meta_code": found.meta_code,
            "related_pairs": counted,
        }  # fmt: skip

    return task.in_parts(compute)


def plan(task: Task) -> Made:
    """Prompts and plan."""
    from polysem import plan as planning
    from polysem.plan.index import MINED
    from polysem.positions import RowsBegin, positions_of, positions_of_all
    from polysem.prompts import make_prompts

    study, context = task.study, task.context
    begun = {
        label: RowsBegin(facts["prepend_bos"], facts["bos_stand_in"])
        for label, facts in context.saes.facts.items()
    }
    positions = positions_of_all(context.model, list(begun.values()))
    if len({positions_of(context.model, one).front for one in begun.values()}) > 1:
        log.warning(
            "rows of some SAEs begin otherwise than those of others; of all prompts: %s", positions.said
        )
    prompts = make_prompts(study.prompts, study.corpus, context.model, positions=positions, seed=study.seed)
    mined = StoredTables(task.run, of_pairs=MINED)
    kin = {"relations": task.run.table("relations")} if study.relations else {}
    own = context.vectors if study.vectors else None
    made = planning.make_plan(
        *(study, context.features, mined, prompts, context.saes),
        model=context.model,
        vectors=own,
        **kin,
    )
    wants_bos = {label: one.prepend_bos for label, one in begun.items()}
    log.info("positions: %s (SAEs with BOS: %s)", positions.said, wants_bos)
    facts = {"bos": positions.said, "trained_with_bos": wants_bos, "counts": planning.describe_plan(made)}
    if kin:
        facts["left_out"] = dict(made.left_out)
    return task.whole(made.tables(), facts)


def trials(task: Task) -> Made | None:
    """The trials, in parts of whole batches."""
    from polysem.trials import Kept, run_batches

    planned, prompts = task.run.table("plan"), task.run.table("prompts")
    batches, study = trial_parts(planned), task.study
    context, kept = task.context, Kept()

    def compute(part: Part, reporter: Reporter) -> Tables:
        rows = run_batches(
            *(planned, prompts, context.features, context.model, context.dictionaries),
            batches=batches[part.k],
            word_start=not study.prompts.chat_template,
            reporter=reporter,
            kept=kept,
        )
        return {"trials": rows}

    return task.in_parts(compute, sizes=[len(some) for some in batches])


def dictionaries(task: Task) -> Made:
    """What SAEs of one site have in common."""
    from polysem.replicate import replicates_of

    saes = {label: task.context.saes[label] for label in sorted(task.context.saes)}
    return task.whole(replicates_of(saes, seed=task.study.seed).tables())


def response(task: Task) -> Made:
    """What the gradient says about the trials of the plan."""
    from polysem.response import respond

    context = task.context
    tables = respond(
        *(task.run.table("plan"), task.run.table("prompts"), task.run.table("trials")),
        *(context.features, context.model, context.saes),
        matching=task.run.table("matching") if has(task.study, "dictionaries") else None,
        seed=task.study.seed,
        reporter=task.how.reporter,
    )
    return task.whole(tables)


def effects(task: Task) -> Made:
    """Effects with intervals."""
    from polysem.paper.presets import PaperEstimates
    from polysem.stats import estimate
    from polysem.stats.kinship import slopes_without

    study, run = task.study, task.run
    wanted = ("response", "metrics", "gradient_path", "gradient_matrix", "replicated")
    found = estimate(
        run.table("plan"),
        run.table("trials"),
        config=study.effects,
        seed=study.seed,
        response={name: run.table(name) for name in wanted},
        beside=[PaperEstimates(study.preset)],
        checks=True,
        similarities=run.table("similarities"),
        covariates=run.table("covariates"),
        neurons={name: run.table(name) for name in ("neurons", "neuron_degrees")},
    )
    made = dict(found.tables())
    if study.relations:
        known = run.table("relations")
        made["slopes_without"] = slopes_without(
            run.table("plan"),
            run.table("trials"),
            {label: known.filter(pc.equal(known["sae"], label)) for label in sorted(task.context.saes)},
            config=study.effects,
            covariates=run.table("covariates"),
            exclude=study.relations.exclude,
        )
    return Made(run.write(task.stage, made), {})


def report(task: Task) -> Made:
    """The report of whatever is finished."""
    from polysem.report import write_report

    path = write_report(task.run.root)
    return Made({REPORT: Output(io.sha256(path))}, {})


def transfer(task: Task) -> Made | None:
    """What two models share, and whether it moves others."""
    from polysem.transfer.run import make_transfer

    found = make_transfer(task.transfer, task.run.folder("transfer"), **_asked(task.how))
    return None if found is None else Made(task.run.write(task.stage, found.tables), found.facts)


@dataclass(frozen=True)
class DefendOptions(StageOptions):
    """What defences are judged on."""

    n_clean: int = 200
    """clean inputs"""

    def check(self) -> None:
        """Raises ConfigError for a value that cannot be."""
        if self.n_clean < MIN_CLEAN:
            raise ConfigError(
                f"{self.n_clean} clean inputs; expected at least {MIN_CLEAN}", hint="raise --n-clean"
            )


def defend(task: Task) -> Made:
    """What would notice or prevent the interventions of a transfer study."""
    from polysem.transfer.audit import judge_defences

    options: DefendOptions = task.options
    tables = judge_defences(
        task.transfer,
        task.run.folder("transfer"),
        n_clean=options.n_clean,
        say=task.how.say,
        reporter=task.how.reporter,
    )
    return Made(task.run.write(task.stage, tables), {})


def _asked(how: How) -> dict[str, Any]:
    """What asking servers takes of how a stage is made."""
    names = ("say", "estimate_only", "retries", "reporter")
    return {name: getattr(how, name) for name in names}


def judge(task: Task) -> Made | None:
    """What language models say of pairs."""
    from polysem.transfer.interpret import judge_pairs

    panel: JudgePanel = task.options
    tables = judge_pairs(task.run, panel, **_asked(task.how))
    return None if tables is None else Made(task.run.write(task.stage, tables), {})


def explain(task: Task) -> Made | None:
    """Glosses that language models write, as a table and as files that a study reads."""
    from polysem.transfer.interpret import explain_features, gloss_files

    panel: JudgePanel = task.options
    run = task.run
    table = explain_features(run, panel, **_asked(task.how))
    if table is None:
        return None
    outputs = run.write(task.stage, {"written_glosses": table})
    for name, text in gloss_files(table).items():
        outputs[f"explain/{name}"] = Output(io.write_text(run.folder("explain") / name, text))
    return Made(outputs, {})
