"""What report and explorer call things, and how they mark them: from the vocabulary, also for names that this
installation does not know.

A run may hold a control, an outcome or a locus of a distribution that is not installed where its report is made: it
is shown by the name that it has in the tables, with a mark that no other relation has.
"""

from collections.abc import Iterable
from typing import Any

from polysem import vocabulary
from polysem.errors import UnknownReferenceError
from polysem.vocabulary import (
    KL,
    LOCI,
    OUTCOMES,
    REASONS,
    RELATIONS,
    TOKEN_SETS,
    Contrast,
    DoseUnit,
    Mark,
    Outcome,
    Relation,
    Vocabulary,
    Word,
)
from polysem.vocabulary_findings import CLAIMS, GRADE_LINES, GRADES, KINSHIPS, Claim

KINDS: dict[str, Vocabulary[Any]] = {
    "loci": LOCI,
    "relations": RELATIONS,
    "outcomes": OUTCOMES,
    "dose_units": vocabulary.DOSE_UNITS,
    "token_sets": TOKEN_SETS,
    "contrasts": vocabulary.CONTRASTS,
    "reasons": REASONS,
    "claims": CLAIMS,
    "grades": GRADES,
    "grade_lines": GRADE_LINES,
}
"""in the order in which a glossary lists them"""
OTHER = Mark("diamond", "#6b4fa0", "#c3aef0")
"""of relations that are not known here"""
STAGES = {
    "features": "feature table",
    "pairs": "map of pairs",
    "kinship": "relations of features",
    "plan": "plan",
    "trials": "steering trials",
    "dictionaries": "what SAEs of one site have in common",
    "response": "linear response",
    "effects": "effects",
}
"""stage -> what it makes"""
ARMS = {
    "target": ("self", "the category's own (ceiling)", "strings of the category's own pairs"),
    "shared": ("pair", "shared", "pairs that both sources have"),
    "source_only": ("random_feature", "source only", "pairs of one source"),
    "neither": ("random_direction", "neither", "neither source has the pair"),
    "high": ("", "high", "high interference"),
    "low": ("", "low", "low interference"),
    "random": ("", "random", "random pairs"),
}
"""arm of a transfer study -> (relation whose colour it has, where it is drawn; a word; what it is)"""
MODELS = {
    "linear_response": "gradient alone",
    "cosine": "interference alone",
    "cosine_similarity": "interference and gloss similarity",
    "all": "all three",
    "metric:centred": "cosine, mean removed",
    "metric:residual_1": "cosine, mean and 1 PC removed",
    "metric:residual_3": "cosine, mean and 3 PCs removed",
    "metric:enc_dec": "what the SAE's encoder reads",
    "metric:whitened": "cosine in whitened activations",
    "metric:causal": "cosine of effects on all logits",
    "metric:virtual_weight": "encoder reading, scaled",
    "metric:coactivation": "reading of the same text",
    "metric:jacobian": "steering footprint on logits",
    "metric:fisher": "the same, by probability",
}
"""account of the effects, as in EXPLAINED -> words"""
SPLITS = {
    "by direction": {
        "shared": "along the target (interference proper)",
        "common": "along what all directions share",
        "own": "the source's own route",
        "interaction": "not the sum of the three",
    },
    "by path": {"direct": "through no further block", "indirect": "through further blocks"},
    "by the target's latent": {
        "mediated": "through the target's own latent",
        "remainder": "past the target's latent",
    },
}
"""one effect taken apart in three ways: columns of DECOMPOSITION that add up to the whole -> words"""
QUESTIONS = {
    "slope_b": "Does interference predict the effect? Model B: relative change of c",
    "slope_a": "Does interference predict the effect? Model A: c after, given c before",
    "difference": "Do pairs do more than random directions?",
    "mean": "How far do pairs move the target?",
}
"""of the table PRESETS"""
CHOICES = {
    "paper": ("the paper's way", "as the paper does it"),
    "cases": ("+ all cases", "all cases, not only those that improved"),
    "budget": (
        "+ equal budgets",
        "every vector by itself, not the best of all vectors of a bin against one of a control",
    ),
    "selection": ("+ dose chosen elsewhere", "strength chosen on other prompts than the reported ones"),
    "dose": ("+ one dose for all", "one dose for all, within the KL limit, and no choice of sign{steered}"),
    "sign": ("+ both signs", "odd part over both signs, not one sign"),
    "outcome": ("+ log-odds", "{strict} in place of {paper}"),
    "draws": ("+ all random vectors", "all random vectors, not one a target"),
    "control": ("+ matched control", "random vectors with the covariance of the activations"),
    "model": ("+ covariates", "inside targets, with attribution, overlap and frequency held fixed"),
    "errors": (
        "+ clustered errors",
        "pairs in place of trials, errors clustered by target, source and prompt",
    ),
}
"""from the paper's way to the strict one: (in a picture's few words, whole); {paper}, {strict}: the two outcomes of the question, {steered}:
how else the study steers"""


def word(kind: Vocabulary[Any], name: str) -> Word:
    """The record of a name, or one that calls an unknown name by itself."""
    return (
        kind[name]
        if name in kind
        else Word(name, name.replace("_", " "), f"a {kind.kind} that is not known here")
    )


def relation(name: str) -> Relation:
    """The relation of a name; an unknown one counts as a reference."""
    found = word(RELATIONS, name)
    return (
        found
        if isinstance(found, Relation)
        else Relation(found.name, found.label, found.help, role="reference", mark=OTHER)
    )


def locus(name: str) -> str:
    """A locus at the beginning of a line."""
    return word(LOCI, name).title


def effect(name: str) -> str:
    """What an effect at a locus is the effect of."""
    return LOCI[name].effect if name in LOCI else "pushing there"


def tokens(name: str) -> str:
    """What a token set holds, in the middle of a sentence."""
    return word(TOKEN_SETS, name).label


def asked(name: str) -> str:
    """What a token set holds, and the outcome that is asked of it where that is not the primary one."""
    told = TOKEN_SETS[name].outcome if name in TOKEN_SETS else next(iter(OUTCOMES))
    return tokens(name) + ("" if told == next(iter(OUTCOMES)) else f" ({outcome(told)})")


def outcome(name: str) -> str:
    """An outcome in the middle of a sentence."""
    return KL.label if name == KL.name else word(OUTCOMES, name).label


def reason(name: str) -> str:
    """Why a trial has no outcome."""
    return word(REASONS, name).label


def contrast(name: str) -> Contrast:
    """The record of a contrast; an unknown one is called by its own name."""
    try:
        return vocabulary.contrast(name)
    except UnknownReferenceError:
        other = name.removeprefix("pair_minus_")
        label = f"pairs minus {relation(other).label}" if other != name else name.replace("_", " ")
        return Contrast(name, label, "a contrast that is not known here")


def claim(name: str) -> Claim:
    """What may be said of a finding; an unknown claim claims nothing."""
    return CLAIMS[name] if name in CLAIMS else Claim(name, name.replace("_", " "), "not known here", "open")


def unit_of(found: Word) -> str:
    """The unit of an outcome or a dose; nothing else has one."""
    match found:
        case Outcome():
            return found.unit
        case DoseUnit():
            return found.axis
        case _:
            return ""


def in_order(kind: Vocabulary[Any], names: Iterable[str]) -> list[str]:
    """Names in the order in which people are shown them; unknown ones last."""
    there = set(names)
    return [name for name in kind if name in there] + sorted(there - set(kind))


def floors() -> list[str]:
    """Relations whose effects say what any steered direction does, the best first."""
    return sorted((name for name, r in RELATIONS.items() if r.floor), key=lambda name: RELATIONS[name].floor)


def as_json() -> dict[str, Any]:
    """All of it for the explorer."""
    return {
        **{name: kind.as_json() for name, kind in KINDS.items()},
        "kinships": KINSHIPS.as_json(),
        "stages": STAGES,
        "toward": {name: word.label for name, word in vocabulary.CATEGORIES.items()},
        "splits": SPLITS,
    }
