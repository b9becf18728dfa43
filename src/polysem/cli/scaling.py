"""Curves over the widths, and the training, of dictionaries of one site."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from polysem.cli.shell import AsJson, finite, print_json, result, verb, working

if TYPE_CHECKING:
    from polysem.engine.context import StudyContext
    from polysem.saes import SAE


@verb
def scaling(
    saes: Annotated[
        list[str],
        Argument(
            metavar="SAE...", help="Of three widths or more, one site; or run folders of their studies."
        ),
    ],
    corpus: Annotated[str, Option(help="Text: zoo:NAME, a file or a folder.")],
    model: Annotated[str, Option(help="Model; default the study's, or the one that they name.")] = "",
    tokens: Annotated[int, Option(min=1000, help="Of the text.")] = 30_000,
    context: Annotated[int, Option(min=2, help="Tokens of a row, BOS included.")] = 128,
    out: Annotated[Path | None, Option(metavar="FILE", help="Where rows and fits go, as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """How interference changes with the width of dictionaries, and with their training: y = a + b width^-c.

    Of a run folder the dictionaries of its study are measured, and what the study found is told with them: counter-intuitive pairs,
    compensation, linear response and reach. It needs the stages up to `effects`.
    """
    import numpy as np

    from polysem.corpus import token_rows
    from polysem.errors import ConfigError
    from polysem.hierarchy.firing import site_activations
    from polysem.positions import positions_of
    from polysem.scaling import at_one_fvu, curves, rows_of, usual_of
    from polysem.store.io import write_json

    loaded: Any = None
    x = np.empty((0, 0))
    measured: list[dict[str, Any]] = []
    site, widest = None, {}
    with working("dictionaries") as report:
        given = list(_given(saes))
        for one in report.track(given, total=len(given), label="dictionaries"):
            sae = one.load()
            if site is None:
                loaded, site = one.model(model), sae.site
                rows = token_rows(
                    corpus, loaded, n_tokens=tokens, context=context, positions=positions_of(loaded, sae)
                )
                x = site_activations(loaded, rows, site, reporter=report)
            if sae.site != site:
                raise ConfigError(
                    f"{one.ref} is of {sae.site}; expected {site}, as the first",
                    hint=f"give dictionaries of {site} only",
                )
            row, units = _measured(one.ref, sae, x)
            measured.append(row | one.studied(loaded))
            if len(units) > len(widest.get(row["seed"], ())):
                widest[row["seed"]] = units
    usual = usual_of(measured)
    beside = rows_of(usual, widest)
    fits = {name: asdict(fit) for name, fit in curves(measured, beside).items()}
    told = {
        "k": usual[0]["k"], "tokens": len(x), "dictionaries": measured, "beside": beside, "fits": fits,
        "at_one_fvu": at_one_fvu(measured),
    }  # fmt: skip
    if out is not None:
        write_json(out, {name: finite(value) for name, value in told.items()})
    if as_json:
        print_json({"fits": fits, "at_one_fvu": told["at_one_fvu"], "path": out})
        return
    _say(told)
    if out is not None:
        result(out)


@dataclass(frozen=True)
class _Given:
    """A dictionary that is asked for, and where one is given the study of it."""

    ref: str
    study: "StudyContext | None" = None
    label: str = ""

    def load(self) -> "SAE":
        from polysem.saes import load_sae

        return load_sae(self.ref) if self.study is None else self.study.saes[self.label]

    def model(self, asked: str) -> Any:
        """The one that is asked for, or else the study's, or the one that the dictionary names."""
        from polysem.errors import ConfigError
        from polysem.models import load_model

        if self.study is not None and not asked:
            return self.study.model
        named = asked or self.load().model_id
        if not named:
            raise ConfigError(f"{self.ref} does not say of which model it is", hint="add --model MODEL")
        return load_model(named)

    def studied(self, model: Any) -> dict[str, Any]:
        """What the study found; nothing without one."""
        from polysem.scaling import of_study, reach
        from polysem.side_effects.scene import Scene

        if self.study is None:
            return {}
        run, asked = self.study.run, self.study.study
        scene = Scene.of(
            model, self.study.saes[self.label], run.table("features"), run.table("prompts"), label=self.label,
            positions=asked.plan.positions, word_start=not asked.prompts.chat_template, seed=asked.seed,
        )  # fmt: skip
        moved, by_chance = reach(scene)
        return of_study(run.table, self.label) | {"reach": moved, "reach_random": by_chance}


def _given(refs: Sequence[str]) -> Iterator[_Given]:
    """The dictionaries, those of a run folder one after the other."""
    from polysem.boundary.files import local_path
    from polysem.engine.context import StudyContext
    from polysem.store.run import RunFolder

    for ref in refs:
        if not (local_path(ref) / "study.toml").is_file():
            yield _Given(ref)
            continue
        run = RunFolder.open(local_path(ref))
        study = StudyContext(run.study(), run)
        yield from (_Given(facts["ref"], study, label) for label, facts in study.saes.facts.items())


def _measured(ref: str, sae: "SAE", x: Any) -> tuple[dict[str, Any], Any]:
    """The row of a dictionary on activations, and its unit decoder rows."""
    import numpy as np

    from polysem.hierarchy.firing import fired
    from polysem.scaling import apart, geometry

    seen = fired(sae, x)
    units = seen.units[np.linalg.norm(seen.units, axis=1) > 0].astype(np.float64)
    metadata = sae.provenance.declared.get("metadata")
    declared = metadata if isinstance(metadata, dict) else {}
    trained = declared.get("training_tokens")
    trained = trained if isinstance(trained, int) else None
    total = ((x - x.mean(axis=0)) ** 2).sum()
    row = {
        "ref": ref, "kind": "learnt", "seed": int(declared.get("training_seed", 0)), "k": sae.k, "training_tokens": trained,
        "compute": None if trained is None else trained * sae.d_sae * sae.d_in,
        **asdict(geometry(units)), "l0": len(seen.acts.data) / len(x),
        "fvu": float((seen.error.astype(np.float64) ** 2).sum() / total),
        "dead": float((seen.count == 0).mean()), "apart": apart(seen),
    }  # fmt: skip
    return row, units


def _say(told: dict[str, Any]) -> None:
    for name, fit in told["fits"].items():
        print(f"{name:<36} " + ", ".join(f"{key} {_short(value)}" for key, value in fit.items()))
    for row in told["at_one_fvu"]:
        print(", ".join(f"{key} {_short(value)}" for key, value in row.items()))


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
