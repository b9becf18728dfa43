"""What decides the outcome of each stage: upstream tables, sections of the study, sources outside, packages.

This is the whole of it: a stage is stale when one of these has changed, and for no other reason.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from polysem.config import Study

Stage = Literal["features", "pairs", "plan", "trials", "response", "effects", "report"]
ORDER: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class Needs:
    """What one stage depends on."""

    inputs: tuple[Stage, ...]
    """stages whose tables it reads"""
    sections: tuple[str, ...]
    """parts of the study that decide it; `sae_refs` is the SAEs without what concerns features only"""
    sources: tuple[str, ...]
    """files and weights outside the run folder: model, saes, corpus, features, glosses, prompts"""
    packages: tuple[str, ...]
    """distributions whose version can change a number"""


NEEDS: dict[Stage, Needs] = {
    "features": Needs(
        inputs=(),
        sections=("seed", "model", "saes", "corpus", "features", "glosses"),
        sources=("model", "saes", "corpus", "features", "glosses"),
        packages=("polysem", "torch", "transformers", "numpy", "scipy", "scikit-learn"),
    ),
    "pairs": Needs(
        inputs=("features",),
        sections=("sae_refs", "pairs"),
        sources=("saes",),
        packages=("polysem", "torch", "numpy", "scipy"),
    ),
    "plan": Needs(
        inputs=("features", "pairs"),
        sections=("seed", "sae_refs", "corpus", "glosses", "pairs", "prompts", "plan", "preset"),
        sources=("model", "saes", "corpus", "prompts"),
        packages=("polysem", "transformers", "numpy"),
    ),
    "trials": Needs(
        inputs=("features", "plan"),
        sections=("model", "sae_refs"),
        sources=("model", "saes"),
        packages=("polysem", "torch", "transformers", "numpy"),
    ),
    "response": Needs(
        inputs=("features", "plan", "trials"),
        sections=("seed", "model", "sae_refs"),
        sources=("model", "saes"),
        packages=("polysem", "torch", "transformers", "numpy", "scipy"),
    ),
    "effects": Needs(
        inputs=("plan", "trials", "response"),
        sections=("seed", "effects", "preset"),
        sources=(),
        packages=("polysem", "numpy", "scipy", "statsmodels"),
    ),
    "report": Needs(
        inputs=("features", "pairs", "plan", "trials", "response", "effects"),
        sections=(
            *("name", "seed", "model", "saes", "corpus", "features", "glosses"),
            *("pairs", "prompts", "plan", "effects", "preset"),
        ),
        sources=(),
        packages=("polysem", "plotly", "jinja2"),
    ),
}


def parameters(study: Study, stage: Stage) -> dict[str, Any]:
    """The values of the study that decide a stage, as JSON."""
    whole = study.model_dump(mode="json")
    whole["sae_refs"] = [{name: sae[name] for name in ("ref", "label", "site")} for sae in whole["saes"]]
    return {name: whole[name] for name in NEEDS[stage].sections}


def command(stage: Stage, folder: object) -> str:
    """The command that makes a stage of a run folder."""
    return f"polysem {stage} {folder}/study.toml --out {folder}"
