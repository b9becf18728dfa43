"""`polysem generate`: what the pushes of a study's plan do to texts and tasks.

    generate/{text_arms,texts,text_firing,text_effects,text_horizon,text_bridge,text_tasks}.parquet

Arms are those of the plan at the locus `feature`: pairs, random features, and the targets' own directions. They are drawn target
by target, so that few arms are of many targets.
"""

from typing import Any

import numpy as np
import pyarrow.compute as pc

from polysem.boundary.files import local_path
from polysem.engine.options import GenerateOptions
from polysem.engine.task import Made, Task
from polysem.errors import ConfigError
from polysem.seeds import rng_for

STAGE = "generate"
RELATIONS = ("pair", "random_feature", "self")


def make(task: Task) -> Made:
    """The tables of a request."""
    from polysem.behaviour.generate import TextPlan, text_rows
    from polysem.transfer.capability import load_items

    options: GenerateOptions = task.options
    context, study = task.context, task.study
    label, arms = _arms(task, options)
    rows = sorted(task.run.table("prompts").to_pylist(), key=lambda row: row["prompt_id"])
    rng = rng_for(study.seed, STAGE, "prompts")
    chosen = [rows[k] for k in sorted(rng.permutation(len(rows))[: options.prompts].tolist())]
    plan = TextPlan(
        doses=options.kl, n_tokens=options.tokens, draws=options.draws, temperature=options.temperature,
        scope=int(options.scope) if options.scope.isdecimal() else options.scope,  # type: ignore[arg-type]
        positions=study.plan.positions, seed=study.seed,
    )  # fmt: skip
    found = text_rows(
        context.model, context.saes[label], arms, [(r["prompt_id"], r["token_ids"]) for r in chosen], plan,
        label=label, items=load_items(local_path(options.tasks)) if options.tasks else (), reporter=task.how.reporter,
    )  # fmt: skip
    from polysem.store.tables import STAGES

    return task.whole({schema.name: schema.of_rows(found[schema.name]) for schema in STAGES[STAGE]})


def _arms(task: Task, options: GenerateOptions) -> tuple[str, list[Any]]:
    """The dictionary, and the arms."""
    from polysem.behaviour.generate import TextArm
    from polysem.readouts import set_problem

    context = task.context
    plan = task.run.table("plan")
    plan = plan.filter(pc.equal(plan["locus"], "feature"))
    names = ("sae", "relation", "target", "source", "source_sae", "interference")
    unique = plan.select(names).group_by(list(names)).aggregate([]).to_pylist()
    known = [r for r in unique if r["source"] is not None and r["relation"] in RELATIONS]
    labels = sorted({r["sae"] for r in known})
    label = options.sae or next((name for name in context.saes if name in labels), "")
    if label not in labels:
        raise ConfigError(
            f"no pairs of dictionary {label!r} at the locus 'feature' in the plan; expected one of {', '.join(labels) or 'none'}",
            hint="plan the locus 'feature' in the study",
        )
    features = context.features.features
    own = features.filter(pc.equal(features["sae"], label))
    tokens = dict(
        zip(own["feature"].to_pylist(), own[f"tokens_{options.token_set}"].to_pylist(), strict=True)
    )
    model = context.model
    readable = {
        k for k in {r["target"] for r in known} if set_problem(tokens.get(k) or [], model.W_E) is None
    }
    rng = rng_for(task.study.seed, STAGE, "arms", label)
    arms = []
    for relation, n in (
        ("pair", options.pairs),
        ("random_feature", options.pairs // 2),
        ("self", options.pairs // 2),
    ):
        mine = sorted(
            (r for r in known if r["sae"] == label and r["relation"] == relation and r["target"] in readable),
            key=lambda r: (r["target"], r["source"]),
        )
        for r in _by_turns(mine, n, rng):
            source_sae = context.saes[r["source_sae"]]
            row = source_sae.W_dec[r["source"]].detach().cpu().double().numpy()
            target = context.saes[label].W_dec[r["target"]].detach().cpu().double().numpy()
            same = len(row) == len(target)
            cosine = float(row @ target / np.linalg.norm(row) / np.linalg.norm(target)) if same else 0.0
            arms.append(
                TextArm(
                    relation, r["target"], r["source"], r["source_sae"], source_sae.writes, row,
                    cosine if r["interference"] is None else r["interference"], tuple(sorted(set(tokens[r["target"]]))),
                )
            )  # fmt: skip
    return label, arms


def _by_turns(rows: list[dict[str, Any]], n: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """n rows, one of every target in turn, in an order that is drawn."""
    by_target: dict[int, list[dict[str, Any]]] = {}
    for k in rng.permutation(len(rows)).tolist():
        by_target.setdefault(rows[k]["target"], []).append(rows[k])
    turns = [
        one[turn]
        for turn in range(max(map(len, by_target.values()), default=0))
        for one in by_target.values()
        if turn < len(one)
    ]
    return sorted(turns[:n], key=lambda r: (r["target"], r["source"]))
