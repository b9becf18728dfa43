"""The verbs of what is made beside a study: its atlas, language models on its glosses, transfer studies and defences."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from polysem.cli.shell import (
    AsJson,
    IgnoreVersions,
    Out,
    asks,
    folder_for,
    print_json,
    print_template,
    result,
    say,
    verb,
)
from polysem.engine.options import (
    AtlasOptions,
    GenerateOptions,
    JointOptions,
    LayersOptions,
    SideEffectsOptions,
    StageOptions,
)
from polysem.errors import ConfigError
from polysem.store.stages import REGISTRY, StageName, order_of

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
    options: StageOptions,
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


@asks(AtlasOptions)
def _atlas(
    study_file: Path, out: Path | None, options: AtlasOptions, *, ignore_versions: bool, as_json: bool
) -> None:
    folder = folder_for(study_file, out)
    from polysem.engine import make_beside
    from polysem.progress import on_stderr
    from polysem.store import RunFolder

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


@asks(LayersOptions)
def _layers(study_file: Path, out: Path | None, options: LayersOptions, **how: bool) -> None:
    _make("layers", study_file, out, options, **how)
    from polysem.report.layers import splice_lines

    for line in splice_lines(folder_for(study_file, out)):
        say(line)


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
            Path | None, Argument(metavar="JUDGES.toml", help="The panel of models; --init prints one.")
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
    "side-effects": asks(SideEffectsOptions)(partial(_make, "side-effects")),
    "layers": _layers,
    "joint": asks(JointOptions)(partial(_make, "joint")),
    "generate": asks(GenerateOptions)(partial(_make, "generate")),
    "guard": _guard,
    "judge": _panel("judge"),
    "explain": _panel("explain"),
    "transfer": _transfer,
    "defend": _defend,
}
