"""`polysem atlas`: the predicted effect of every pair, with a sample of real ones."""

from typing import Annotated

import typer

from polysem.cli.shell import IgnoreVersions, Out, StudyFile, folder_for, verb


@verb
def atlas(
    study_file: StudyFile,
    out: Out = None,
    token_set: Annotated[str, typer.Option("--set", help="Target tokens: in or out.")] = "out",
    prompts: Annotated[int, typer.Option("--prompts", help="Prompts to average over.")] = 16,
    top: Annotated[int, typer.Option("--top", help="Sources kept per target.")] = 50,
    sample: Annotated[
        int, typer.Option("--sample", help="Pairs per stratum pushed for real; 0: none.")
    ] = 100,
    kl: Annotated[float, typer.Option("--kl", help="Nats at which they are pushed.")] = 0.01,
    ignore_versions: IgnoreVersions = False,
) -> None:
    """The linear response of every pair of every SAE, after `plan`. Prints how much of real effects it explains."""
    folder = folder_for(study_file, out)
    from polysem.cli.progress import reporter
    from polysem.study.atlas import AtlasOptions, make_atlas

    options = AtlasOptions(token_set=token_set, n_prompts=prompts, top=top, sample=sample, kl=kl)
    for row in make_atlas(folder, options, reporter=reporter(), ignore_versions=ignore_versions).to_pylist():
        r2 = "-" if row["r2"] is None else f"{row['r2']:.3f} [{row['lo']:.3f}, {row['hi']:.3f}]"
        print(
            f"{row['sae']}  {row['n_pairs']} pairs, {row['n_targets']} targets, {row['n_prompts']} prompts; "
            f"{row['stratum']}: R2 {r2} over {row['n']} of {row['n_asked']} pushes"
        )
