"""What the features of a dictionary are to each other."""

from pathlib import Path
from typing import Annotated

import typer

from polysem.cli.shell import AsJson, print_json, result, verb


@verb
def relations(
    sae: Annotated[str, typer.Argument(metavar="SAE", help="Reference of an autoencoder.")],
    corpus: Annotated[str, typer.Option("--corpus", help="Text: zoo:NAME, a file or a folder.")],
    narrow: Annotated[
        list[str] | None,
        typer.Option("--narrow", metavar="SAE", help="A dictionary of the site with fewer features; repeat."),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help="Model; default the one that the dictionary names.")
    ] = "",
    tokens: Annotated[int, typer.Option("--tokens", min=1000, help="Of the text.")] = 60_000,
    context: Annotated[int, typer.Option("--context", min=2, help="Tokens of a row, BOS included.")] = 128,
    probes: Annotated[
        int | None, typer.Option("--probes", min=1, help="Features asked for absorption; default all.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the tables go.")] = None,
    as_json: AsJson = False,
) -> None:
    """Relations of features from firing and reconstruction: duplicates, parts, parents, absorption, hedges, opposites."""
    from polysem.corpus import token_rows
    from polysem.errors import ConfigError
    from polysem.hierarchy.firing import site_activations
    from polysem.hierarchy.relations import by_interference, relations_of
    from polysem.models import load_model
    from polysem.positions import positions_of
    from polysem.progress import on_stderr
    from polysem.saes import load_sae
    from polysem.vocabulary_findings import KINSHIPS

    wide = load_sae(sae)
    named = model or wide.model_id
    if not named:
        raise ConfigError(f"{sae} does not say of which model it is", hint="add --model MODEL")
    loaded = load_model(named)
    rows = token_rows(corpus, loaded, n_tokens=tokens, context=context, positions=positions_of(loaded, wide))
    x = site_activations(loaded, rows, wide.site, reporter=on_stderr())
    found = relations_of(wide, x, label=sae, narrow=[load_sae(ref) for ref in narrow or ()], probes=probes)
    counts = by_interference(found.relations)
    rates = [r for r in found.absorption["rate"].to_pylist() if r is not None]
    told = {
        "tokens": len(x), "features": wide.d_sae, "pairs": counts, "probes": found.absorption.num_rows,
        "trusted": len(rates), "absorption": sum(rates) / len(rates) if rates else None,
    }  # fmt: skip
    if as_json:
        print_json(told)
    else:
        print(f"{sae}: {wide.d_sae:,} features on {len(x):,} tokens")
        for row in counts:
            print(
                f"  {row['bin']:<22}"
                + ", ".join(f"{KINSHIPS[k].label} {row[k]:,}" for k in KINSHIPS if row[k])
            )
        mean = f"{told['absorption']:.1%}" if rates else "not known"
        print(
            f"  absorption: {mean}, mean over {len(rates):,} features whose probe is good enough of {told['probes']:,} asked"
        )
    if out is not None:
        found.save(out)
        result(out)
