"""Dictionaries of one site beside one another."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from polysem.cli.shell import AsJson, print_json, result, verb, working


@verb
def replicate(
    saes: Annotated[list[str], Argument(metavar="SAE...", help="References of two or more.")],
    out: Annotated[
        Path | None, Option(metavar="FILE", help="Where the whole matching goes, as JSON.")
    ] = None,
    seed: Annotated[int, Option(help="Of rotations and draws.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Match the features of dictionaries of one site: PW-MCC, stable features, interfering pairs that come back."""
    from polysem.replicate import replicate as compare
    from polysem.saes import load_sae
    from polysem.store.io import write_json

    with working("matching"):
        found = compare([load_sae(ref) for ref in saes], seed=seed)
    if as_json:
        print_json(found.as_json())
    for pair in () if as_json else found.pairs:
        print("\n".join(_told(found.refs, pair)))
    if out is not None:
        write_json(out, found.as_json())
        result(out)


def beside_one_another(a: str, b: str, *, as_json: bool) -> None:
    """Print two dictionaries side by side, and their matching."""
    from polysem.cli.said import columns
    from polysem.replicate import replicate as compare
    from polysem.saes import load_sae

    with working("matching"):
        saes = [load_sae(ref) for ref in (a, b)]
        found = compare(saes)
    facts = [sae.facts() for sae in saes]
    if as_json:
        print_json({"saes": facts, **found.as_json()})
        return
    for name in dict.fromkeys(key for one in facts for key in one):
        print("\n".join(columns(f"  {name}", *(one.get(name) for one in facts))))
    print("\n".join(_told(found.refs, found.pairs[0])))


def _told(refs: tuple[tuple[str, str], ...], pair: Mapping[str, Any]) -> list[str]:
    null, matched = pair["null"], pair["matched"]
    turned, drawn = (sum(null[name]) / len(null[name]) for name in ("turned", "covariance"))
    lines = [
        f"{refs[pair['first']][0]}  {refs[pair['second']][0]}",
        f"  PW-MCC {pair['pw_mcc']:.3f}; the second turned at random {turned:.3f}, drawn with its covariance {drawn:.3f}",
        f"  stable: {100 * matched[0]:.1f} % and {100 * matched[1]:.1f} % of the features, where 1 % would be by chance",
        "  pairs of matched features that are in the same bin of |interference| in the other:",
    ]
    for row in pair["survival"]:
        lines.append(
            f"    {row['matched']:<20} {row['low']:.1f} to {row['high']:.1f}  {100 * row['same']:5.1f} % of {row['n']:,}"
            f"   by regression to the mean {100 * row['chance']:.1f} % ({100 * row['lo']:.1f} to {100 * row['hi']:.1f})"
        )
    for row in pair["spans"]:
        of = (
            f"{row['n_groups']} groups of {row['size']}"
            if row["group"] == "neighbours"
            else f"all {row['size']:,}"
        )
        lines.append(
            f"  not stable, {of}: of their span ({row['rank']:.1f} dimensions) {100 * row['shared']:.1f} % is in the other's; "
            f"of a random span {100 * row['random']:.1f} % ({100 * row['lo']:.1f} to {100 * row['hi']:.1f}), "
            f"with rows drawn with the other's covariance {100 * row['drawn']:.1f} %"
        )
    return lines
