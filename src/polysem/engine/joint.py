"""`polysem joint`: several features pushed at once, in the scene of a study; how much is in its section [joint].

joint/{joint_additivity,joint_sizes,joint_pairs,joint_layers,joint_findings,plans,plan_doses,plan_effects}.parquet
"""

from polysem.config import JointConfig
from polysem.engine.options import JointOptions
from polysem.engine.side_effects import tokens_of
from polysem.engine.task import Made, Task

MOST_SITES = 3
"""that are taken where the study names none"""


def make(task: Task) -> Made:
    """The tables of a study's section [joint]."""
    from polysem.corpus import token_rows
    from polysem.joint.run import joint_rows, of_rows
    from polysem.joint.wishes import Wish, drawn_wishes, wish_rows
    from polysem.positions import positions_of
    from polysem.side_effects.scene import Scene, readouts_after

    context, study = task.context, task.study
    options: JointOptions = task.options
    config: JointConfig = study.joint
    model, saes = context.model, context.saes
    labels = list(config.sites) or list(saes)
    labels.sort(key=lambda name: -len(readouts_after(model, saes[name].writes, saes)))
    labels = labels if config.sites else labels[:MOST_SITES]
    scenes = {
        label: Scene.of(
            model, saes[label], context.features.features, task.run.table("prompts"), label=label,
            positions=study.plan.positions, word_start=not study.prompts.chat_template, seed=study.seed,
        )
        for label in labels
    }  # fmt: skip
    text = None
    if config.lift_tokens:
        text = token_rows(
            study.corpus.ref, model, n_tokens=config.lift_tokens,
            context=study.corpus.context, positions=positions_of(model, saes[labels[0]]),
        ).tokens  # fmt: skip
    rows = joint_rows(scenes, config, text=text, reporter=task.how.reporter)
    main = scenes[labels[0]]
    word_start = not study.prompts.chat_template

    def named(words: str) -> tuple[str, tuple[int, ...]]:
        return words, tokens_of(model, words, word_start=word_start)

    wishes = drawn_wishes(main, 0 if options.towards else config.plans, config.effect)
    if options.towards:
        split = [one.rpartition("=") for one in options.towards]
        targets = [(*named(words), float(nats)) for words, _, nats in split]
        wishes = [Wish(targets, [named(words) for words in options.protect])]
    rows |= wish_rows(scenes, wishes, each=config.candidates, budget=config.budget) if wishes else {}
    return task.whole(of_rows(rows))
