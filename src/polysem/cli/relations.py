"""What the features of a dictionary are to each other."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from polysem.cli.shell import AsJson, numbers_of, print_json, result, verb, working

if TYPE_CHECKING:
    from polysem.store.run import RunFolder


@verb
def relations(
    sae: Annotated[str, Argument(metavar="SAE", help="Reference of an autoencoder.")],
    corpus: Annotated[str, Option(help="Text: zoo:NAME, a file or a folder.")],
    narrow: Annotated[
        list[str] | None, Option(metavar="SAE", help="A dictionary of the site with fewer features; repeat.")
    ] = None,
    model: Annotated[str, Option(help="Model; default the one that the dictionary names.")] = "",
    tokens: Annotated[int, Option(min=1000, help="Of the text.")] = 60_000,
    context: Annotated[int, Option(min=2, help="Tokens of a row, BOS included.")] = 128,
    probes: Annotated[int | None, Option(min=1, help="Features asked for absorption; default all.")] = None,
    levels: Annotated[
        str, Option(help="Inner sizes of a nested (Matryoshka) dictionary, as 288,576,1152.")
    ] = "",
    without: Annotated[
        Path | None,
        Option(metavar="RUN", help="A run with effects: its slopes with and without related pairs."),
    ] = None,
    out: Annotated[Path | None, Option(metavar="DIR", help="Where the tables go.")] = None,
    as_json: AsJson = False,
) -> None:
    """Relations of features from firing and reconstruction: duplicates, parts, parents, absorption, hedges, opposites."""
    from polysem.corpus import token_rows
    from polysem.errors import ConfigError
    from polysem.hierarchy.firing import site_activations
    from polysem.hierarchy.known import mean_code
    from polysem.hierarchy.relations import by_interference, relations_of
    from polysem.models import load_model
    from polysem.positions import positions_of
    from polysem.saes import load_sae
    from polysem.stats.kinship import slopes_without
    from polysem.store import io
    from polysem.store.run import RunFolder
    from polysem.store.tables import SLOPES_WITHOUT
    from polysem.vocabulary_findings import KINSHIPS

    sizes = list(numbers_of(levels, "--levels", "288,576,1152"))
    run = None if without is None else RunFolder.open(without)
    labels = [] if run is None else labels_of(run, sae)
    with working("relations") as report:
        wide = load_sae(sae)
        named = model or wide.model_id
        if not named:
            raise ConfigError(f"{sae} does not say of which model it is", hint="add --model MODEL")
        loaded = load_model(named)
        rows = token_rows(
            corpus, loaded, n_tokens=tokens, context=context, positions=positions_of(loaded, wide)
        )
        x = site_activations(loaded, rows, wide.site, reporter=report)
        found = relations_of(
            wide, x, label=sae, narrow=[load_sae(ref) for ref in narrow or ()], probes=probes, levels=sizes
        )
    counts = by_interference(found.relations)
    rates = [r for r in found.absorption["rate"].to_pylist() if r is not None]
    told: dict[str, Any] = {
        "tokens": len(x), "features": wide.d_sae, "pairs": counts, "probes": found.absorption.num_rows,
        "trusted": len(rates), "absorption": sum(rates) / len(rates) if rates else None,
    }  # fmt: skip
    told["levels"] = found.levels.to_pylist()
    told["meta"] = mean_code(found.meta_code)
    slopes = None
    if run is not None:
        slopes = slopes_without(
            run.table("plan"),
            run.table("trials"),
            dict.fromkeys(labels, found.relations),
            config=run.study().effects,
            covariates=run.table("covariates"),
        )
        told["slopes"] = slopes.to_pylist()
    if out is not None:
        found.save(out)
        if slopes is not None:
            io.write_table(out / f"{SLOPES_WITHOUT.name}.parquet", slopes, SLOPES_WITHOUT)
    if as_json:
        print_json(told | {"path": out})
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
        if told["meta"]:
            shares = {name: f"{share:.1%}" for name, share in told["meta"].items()}
            print(
                f"  four other decoder rows explain {shares['explained']} of a feature's (mean over {found.meta_code.num_rows:,}); of rows turned "
                f"at random {shares['turned']}, of rows drawn with the same covariance {shares['drawn']}"
            )
        for line in said_of_levels(told["levels"]):
            print(f"  {line}")
        for r in [] if slopes is None else slopes.to_pylist():
            print(f"  {_told(r)}")
        if out is not None:
            result(out)


def said_of_levels(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Of each relation, in which order of levels its pairs lie, and were they dealt without regard to levels."""
    for kind in dict.fromkeys(r["relation"] for r in rows):
        mine = [r for r in rows if r["relation"] == kind]
        told = []
        for words, where in (
            ("in an inner level", lambda r: r["above"] < r["below"]),
            ("in the same", lambda r: r["above"] == r["below"]),
            ("in an outer one", lambda r: r["above"] > r["below"]),
        ):
            n, chance = (sum(r[k] for r in mine if where(r)) for k in ("n_pairs", "n_expected"))
            told.append(f"{words} {n:,} (by chance {chance:.1f})")
        yield f"{kind}, the more general one is {', '.join(told)}"


def labels_of(run: "RunFolder", sae: str) -> list[str]:
    """What a run calls an SAE; errors before anything is computed."""
    from polysem.errors import MismatchError
    from polysem.store.manifest import read_manifest

    manifest = read_manifest(run.root, "features")
    known = (
        {}
        if manifest is None
        else {label: facts["ref"] for label, facts in manifest.facts.get("saes", {}).items()}
    )
    found = [label for label, ref in known.items() if ref == sae]
    if not found:
        names = ", ".join(sorted(set(known.values()))) or "those of a finished run"
        raise MismatchError(f"{run.root} has no SAE {sae}; expected one of {names}")
    return found


def _told(r: dict[str, Any]) -> str:
    """A row of SLOPES_WITHOUT."""
    which = "all pairs" if r["pairs"] == "all" else f"without {r['n_left_out']:,} that have a relation"
    if r["left_out"]:
        which += f" ({r['left_out']})"
    said = (
        f"not known: {r['note']}"
        if r["estimate"] is None
        else f"{r['estimate']:+.3g} ({r['lo']:+.3g} to {r['hi']:+.3g}) {r['unit']}"
    )
    return f"{r['locus']}, T-{r['token_set']}, slope on interference, {which}: {said}, {r['n_pairs']:,} pairs"
