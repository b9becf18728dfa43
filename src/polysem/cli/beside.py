"""The verbs of what is made beside a study: its atlas, language models on its glosses, transfer studies and defences."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from polysem.cli.shell import (
    AsJson,
    IgnoreVersions,
    Out,
    StudyFile,
    folder_for,
    numbers_of,
    print_json,
    print_template,
    result,
    say,
    verb,
)
from polysem.errors import ConfigError
from polysem.store.stages import REGISTRY, StageName, order_of

if TYPE_CHECKING:
    from polysem.engine.task import StageOptions

Estimate = Annotated[bool, Option("--estimate", help="Say what would be sent and cost, and send nothing.")]


def _finish(stage: StageName, made: Path, *, as_json: bool, estimate: bool = False) -> None:
    """Print the page of a stage, or its folder where nothing was made."""
    if not estimate:
        from polysem.report.html import write_page

        made = write_page(made.parent, stage)
    result(made, as_json=as_json, stage=stage, estimate=estimate)


def _make(
    stage: StageName,
    study_file: Path,
    out: Path | None,
    options: "StageOptions",
    *,
    ignore_versions: bool,
    as_json: bool,
) -> None:
    """Make what a stage beside a study reads, then the stage, and print its page."""
    from polysem.config import load_study

    options.check()
    folder = folder_for(study_file, out)
    from polysem.engine import make_beside, run_study
    from polysem.progress import on_stderr

    order = order_of(load_study(study_file))
    needed = order[: order.index(REGISTRY[stage].inputs[-1]) + 1]
    reporter = on_stderr()
    run_study(study_file, folder, reporter=reporter, stages=needed, ignore_versions=ignore_versions)
    made = make_beside(stage, folder, options, reporter=reporter, ignore_versions=ignore_versions)
    _finish(stage, made, as_json=as_json)


@verb
def _atlas(
    study_file: StudyFile,
    out: Out = None,
    token_set: Annotated[str, Option("--set", help="Target tokens: in or out.")] = "out",
    prompts: Annotated[int, Option(help="Prompts to average over.")] = 16,
    top: Annotated[int, Option(help="Sources kept per target.")] = 50,
    sample: Annotated[int, Option(help="Pairs per stratum steered for real; 0: none.")] = 100,
    kl: Annotated[float, Option(help="Nats at which they are steered.")] = 0.01,
    ignore_versions: IgnoreVersions = False,
    as_json: AsJson = False,
) -> None:
    folder = folder_for(study_file, out)
    from polysem.engine import make_beside
    from polysem.engine.atlas import AtlasOptions
    from polysem.progress import on_stderr
    from polysem.store import RunFolder

    options = AtlasOptions(token_set=token_set, n_prompts=prompts, top=top, sample=sample, kl=kl)
    make_beside("atlas", folder, options, reporter=on_stderr(), ignore_versions=ignore_versions)
    rows = RunFolder.open(folder).table("atlas_fit").to_pylist()
    if as_json:
        print_json(rows)
        return
    for row in rows:
        r2 = "-" if row["r2"] is None else f"{row['r2']:.3f} [{row['lo']:.3f}, {row['hi']:.3f}]"
        print(
            f"{row['sae']}  {row['n_pairs']} pairs, {row['n_targets']} targets, {row['n_prompts']} prompts; "
            f"{row['stratum']}: R2 {r2} over {row['n']} of {row['n_asked']} trials"
        )


@verb
def _side_effects(
    study_file: StudyFile,
    out: Out = None,
    features: Annotated[str, Option(help="Features, as 12,40.")] = "",
    top: Annotated[int, Option(help="The cleanest N features by gradient.")] = 0,
    all_by_gradient: Annotated[
        bool, Option("--all-by-gradient", help="Every feature, without a push.")
    ] = False,
    vector: Annotated[
        list[str] | None,
        Option(metavar="FILE", help="A steering vector; may be given again."),
    ] = None,
    more: Annotated[str, Option(metavar="FILE", help="Texts to steer towards, one a line.")] = "",
    less: Annotated[str, Option(metavar="FILE", help="Texts to steer away from.")] = "",
    other: Annotated[
        str,
        Option(metavar="MODEL", help="A finetune or base of the model: what it has more at the site."),
    ] = "",
    target: Annotated[str, Option(help="What it should move: a category, or words with commas.")] = "",
    sae: Annotated[str, Option(help="Label of the dictionary.")] = "",
    site: Annotated[str, Option(help="Where a file's vector is added.")] = "",
    readout: Annotated[str, Option(help="Dictionary that is looked at.")] = "",
    positions: Annotated[str, Option(help="last, all or all_but_first; default: the plan's.")] = "",
    token_set: Annotated[str, Option("--set", help="Features' tokens: in or out.")] = "out",
    kl: Annotated[float, Option(help="Dose, nats.")] = 0.05,
    coefficient: Annotated[
        float | None, Option(help="Dose in place of nats: times the vector as given.")
    ] = None,
    null: Annotated[int, Option(help="Isotropic directions to compare with.")] = 40,
    forecast: Annotated[int, Option(metavar="N", help="Push N features and judge forecasts on them.")] = 0,
    tokens: Annotated[
        int, Option(help="Tokens of the corpus on which --forecast counts firing; 0: none.")
    ] = 20_000,
    repair: Annotated[bool, Option("--repair", help="Look for the direction with least beside.")] = False,
    ignore_versions: IgnoreVersions = False,
    as_json: AsJson = False,
) -> None:
    from polysem.engine.side_effects import SideEffectsOptions

    wanted = numbers_of(features, "--features", "12,40")
    options = SideEffectsOptions(
        features=wanted, top=top, all_by_gradient=all_by_gradient, vectors=tuple(vector or ()), more=more,
        less=less, other=other, target=target, sae=sae, site=site, readout=readout, positions=positions,
        token_set=token_set, kl=kl, coefficient=coefficient, n_null=null, forecast=forecast, tokens=tokens,
        repair=repair,
    )  # fmt: skip
    _make("side-effects", study_file, out, options, ignore_versions=ignore_versions, as_json=as_json)


@verb
def _layers(
    study_file: StudyFile,
    out: Out = None,
    sources: Annotated[int, Option(help="Features pushed and taken away, each dictionary.")] = 100,
    prompts: Annotated[int, Option(help="Rows of text they are pushed on.")] = 24,
    events: Annotated[int, Option(help="Positions of each where they are taken away.")] = 12,
    edges: Annotated[int, Option(help="Edges whose help is measured.")] = 60,
    steered: Annotated[int, Option(help="Features steered at doses; 0: none.")] = 40,
    tokens: Annotated[int, Option(help="Tokens of the corpus; 0: as the study says.")] = 0,
    ignore_versions: IgnoreVersions = False,
    as_json: AsJson = False,
) -> None:
    from polysem.engine.layers import LayersOptions

    options = LayersOptions(
        sources=sources, prompts=prompts, events=events, edges=edges, steered=steered, tokens=tokens
    )
    _make("layers", study_file, out, options, ignore_versions=ignore_versions, as_json=as_json)
    from polysem.report.layers import splice_lines

    for line in splice_lines(folder_for(study_file, out)):
        say(line)


@verb
def _joint(
    study_file: StudyFile,
    out: Out = None,
    towards: Annotated[
        list[str] | None,
        Option(
            metavar="WORDS=NATS",
            help="Wanted change of log-odds of words or of a category; may be given again.",
        ),
    ] = None,
    protect: Annotated[
        list[str] | None,
        Option(metavar="WORDS", help="Words or a category that should stay; again."),
    ] = None,
    ignore_versions: IgnoreVersions = False,
    as_json: AsJson = False,
) -> None:
    from polysem.engine.joint import JointOptions

    options = JointOptions(tuple(towards or ()), tuple(protect or ()))
    _make("joint", study_file, out, options, ignore_versions=ignore_versions, as_json=as_json)


@verb
def _generate(
    study_file: StudyFile,
    out: Out = None,
    pairs: Annotated[
        int,
        Option(help="Pairs of the plan; half as many random features and targets beside."),
    ] = 40,
    prompts: Annotated[int, Option(help="Prompts of the study.")] = 8,
    tokens: Annotated[int, Option(help="Drawn behind each.")] = 64,
    draws: Annotated[int, Option(help="Texts of each prompt and push.")] = 1,
    kl: Annotated[str, Option(help="Doses, nats of the next token, with commas.")] = "0.05,0.5",
    scope: Annotated[
        str,
        Option(help="Where texts are pushed: prompt, decode, both, or the first N tokens."),
    ] = "both",
    temperature: Annotated[float, Option(help="0 takes the most likely token.")] = 1.0,
    sae: Annotated[str, Option(help="Label of the dictionary.")] = "",
    token_set: Annotated[str, Option("--set", help="Target tokens: in or out.")] = "out",
    tasks: Annotated[str, Option(metavar="FILE", help="Questions (.jsonl) asked under every push.")] = "",
    ignore_versions: IgnoreVersions = False,
    as_json: AsJson = False,
) -> None:
    from polysem.engine.generate import GenerateOptions

    try:
        doses = tuple(float(part) for part in kl.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"--kl {kl!r}: expected numbers with commas, as 0.05,0.5") from error
    options = GenerateOptions(
        pairs=pairs, prompts=prompts, tokens=tokens, draws=draws, kl=doses, scope=scope, temperature=temperature,
        sae=sae, token_set=token_set, tasks=tasks,
    )  # fmt: skip
    _make("generate", study_file, out, options, ignore_versions=ignore_versions, as_json=as_json)


@verb
def _guard(
    study_file: Annotated[
        Path | None, Argument(metavar="STUDY.toml", help="The study file; `polysem init` prints one.")
    ] = None,
    concept_file: Annotated[
        Path | None, Argument(metavar="CONCEPT.toml", help="The concept; --init prints one.")
    ] = None,
    out: Out = None,
    ignore_versions: IgnoreVersions = False,
    init: Annotated[bool, Option("--init", help="Print a concept with its keys, and end.")] = False,
    as_json: AsJson = False,
) -> None:
    if init:
        print_template("concept.toml", as_json=as_json)
        return
    if study_file is None or concept_file is None:
        raise ConfigError(
            "polysem guard needs a study and a concept", hint="polysem guard --init > concept.toml"
        )
    from polysem.engine.guard import load_concept

    concept = load_concept(concept_file)
    _make("guard", study_file, out, concept, ignore_versions=ignore_versions, as_json=as_json)


def _panel(stage: StageName) -> Callable[..., None]:
    """A verb that asks a panel of language models."""

    @verb
    def ask(
        run: Annotated[
            Path | None, Argument(metavar="RUN", help="A run folder with features and pairs.")
        ] = None,
        panel_file: Annotated[
            Path | None,
            Argument(metavar="JUDGES.toml", help="The panel of models; --init prints one."),
        ] = None,
        estimate: Estimate = False,
        init: Annotated[bool, Option("--init", help="Print a panel with its keys, and end.")] = False,
        as_json: AsJson = False,
    ) -> None:
        if init:
            print_template("judges.toml", as_json=as_json)
            return
        if run is None or panel_file is None:
            raise ConfigError(
                f"polysem {stage} needs a run folder and a panel file",
                hint=f"polysem {stage} --init > judges.toml",
            )
        from polysem.engine import make_beside
        from polysem.progress import on_stderr
        from polysem.transfer.panel import load_panel

        panel = load_panel(panel_file)
        made = make_beside(stage, run, panel, say=say, estimate_only=estimate, reporter=on_stderr())
        _finish(stage, made, as_json=as_json, estimate=estimate)

    return ask


@verb
def _transfer(
    study_file: Annotated[
        Path | None, Argument(metavar="TRANSFER.toml", help="The transfer study; --init prints one.")
    ] = None,
    out: Annotated[Path | None, Option(metavar="DIR", help="Folder; default runs/NAME of the study.")] = None,
    estimate: Estimate = False,
    init: Annotated[bool, Option("--init", help="Print a transfer study with its keys, and end.")] = False,
    as_json: AsJson = False,
) -> None:
    if init:
        print_template("transfer.toml", as_json=as_json)
        return
    if study_file is None:
        raise ConfigError("no transfer study given", hint="polysem transfer --init > transfer.toml")
    from polysem.engine import run_transfer
    from polysem.progress import on_stderr
    from polysem.transfer.config import load_transfer

    folder = out if out is not None else Path("runs") / load_transfer(study_file).name
    made = run_transfer(study_file, folder, reporter=on_stderr(), say=say, estimate_only=estimate)
    _finish("transfer", made, as_json=as_json, estimate=estimate)


@verb
def _defend(
    out: Annotated[Path, Argument(metavar="OUT", help="The folder of a transfer study.")],
    n_clean: Annotated[int, Option(metavar="N", help="Clean inputs.")] = 200,
    as_json: AsJson = False,
) -> None:
    from polysem.engine import make_beside
    from polysem.engine.making import DefendOptions
    from polysem.progress import on_stderr

    made = make_beside("defend", out, DefendOptions(n_clean), say=say, reporter=on_stderr())
    _finish("defend", made, as_json=as_json)


STAGES: dict[StageName, Callable[..., None]] = {
    "atlas": _atlas,
    "side-effects": _side_effects,
    "layers": _layers,
    "joint": _joint,
    "generate": _generate,
    "guard": _guard,
    "judge": _panel("judge"),
    "explain": _panel("explain"),
    "transfer": _transfer,
    "defend": _defend,
}
