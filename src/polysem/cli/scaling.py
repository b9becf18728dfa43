"""Curves over the widths of dictionaries of one site."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from polysem.cli.shell import AsJson, finite, print_json, result, verb, working


@verb
def scaling(
    saes: Annotated[list[str], Argument(metavar="SAE...", help="Of three widths or more, one site.")],
    corpus: Annotated[str, Option(help="Text: zoo:NAME, a file or a folder.")],
    model: Annotated[str, Option(help="Model; default the one that they name.")] = "",
    tokens: Annotated[int, Option(min=1000, help="Of the text.")] = 30_000,
    context: Annotated[int, Option(min=2, help="Tokens of a row, BOS included.")] = 128,
    out: Annotated[Path | None, Option(metavar="FILE", help="Where rows and fits go, as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """How close pairs, capacity and reconstruction change with the width of dictionaries: y = a + b width^-c."""
    import numpy as np

    from polysem.corpus import token_rows
    from polysem.errors import ConfigError
    from polysem.hierarchy.firing import fired, site_activations
    from polysem.models import load_model
    from polysem.positions import positions_of
    from polysem.saes import load_sae
    from polysem.scaling import MEASURES, apart, at_matched, geometry, power_fit, rows_of
    from polysem.store.io import write_json

    loaded: Any = None
    x = np.empty((0, 0))
    measured: list[dict[str, Any]] = []
    site, widest = None, {}
    with working("dictionaries") as report:
        for ref in report.track(saes, total=len(saes), label="dictionaries"):
            sae = load_sae(ref)
            if site is None:
                named = model or sae.model_id
                if not named:
                    raise ConfigError(f"{ref} does not say of which model it is", hint="add --model MODEL")
                loaded, site = load_model(named), sae.site
                rows = token_rows(
                    corpus, loaded, n_tokens=tokens, context=context, positions=positions_of(loaded, sae)
                )
                x = site_activations(loaded, rows, site, reporter=report)
            if sae.site != site:
                raise ConfigError(
                    f"{ref} is of {sae.site}; expected {site}, as the first",
                    hint=f"give dictionaries of {site} only",
                )
            seen = fired(sae, x)
            units = seen.units[np.linalg.norm(seen.units, axis=1) > 0].astype(np.float64)
            declared = sae.provenance.declared.get("metadata")
            seed = declared.get("training_seed", 0) if isinstance(declared, dict) else 0
            total = ((x - x.mean(axis=0)) ** 2).sum()
            measured.append(
                {
                    "ref": ref, "kind": "learnt", "seed": int(seed), "k": sae.k,
                    **asdict(geometry(units)), "l0": len(seen.acts.data) / len(x),
                    "fvu": float((seen.error.astype(np.float64) ** 2).sum() / total),
                    "dead": float((seen.count == 0).mean()), "apart": apart(seen),
                }
            )  # fmt: skip
            if len(units) > len(widest.get(int(seed), ())):
                widest[int(seed)] = units
    ks = [r["k"] for r in measured]
    usual = max(set(ks), key=ks.count)
    one_k = [r for r in measured if r["k"] == usual]
    beside = rows_of(one_k, widest)
    fits = {
        f"{kind}, {name}": asdict(
            power_fit(
                *(np.array([r[key] for r in some], dtype=np.float64) for key in ("width", name, "seed"))
            )
        )
        for kind, some in (("learnt", one_k), ("random", [r for r in beside if r["kind"] == "random"]))
        for name in (*MEASURES, *(("fvu", "apart") if kind == "learnt" else ()))
    }
    told = {
        "k": usual, "tokens": len(x), "dictionaries": measured, "beside": beside, "fits": fits,
        "at_one_fvu": _matched(measured, at_matched),
    }  # fmt: skip
    if out is not None:
        write_json(out, {name: finite(value) for name, value in told.items()})
    if as_json:
        print_json({"fits": fits, "at_one_fvu": told["at_one_fvu"], "path": out})
        return
    for name, fit in fits.items():
        print(f"{name:<24} " + ", ".join(f"{key} {_short(value)}" for key, value in fit.items()))
    for row in told["at_one_fvu"]:
        print(", ".join(f"{key} {_short(value)}" for key, value in row.items()))
    if out is not None:
        result(out)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _matched(measured: list[dict[str, Any]], at_matched: Any) -> list[dict[str, Any]]:
    """Measures of every width at the reconstruction that most widths reach by some sparsity, in each seed that has several; none
    with one sparsity."""
    import numpy as np

    from polysem.scaling import MEASURES

    # Seeds differ, so sparsities are compared within one.
    names = sorted({(r["width"], r["seed"]) for r in measured})
    families = {key: [r for r in measured if (r["width"], r["seed"]) == key] for key in names}
    families = {key: some for key, some in families.items() if len({r["k"] for r in some}) > 1}
    if not families:
        return []
    low, high = (
        np.array([pick(r["fvu"] for r in some) for some in families.values()]) for pick in (min, max)
    )
    middle = float((low.max() + high.min()) / 2)
    found = []
    for (width, seed), some in families.items():
        fvu = np.array([r["fvu"] for r in some])
        found.append(
            {"width": width, "seed": seed, "fvu": middle}
            | {name: at_matched(fvu, np.array([r[name] for r in some]), middle) for name in MEASURES}
        )
    return found
