"""What a gloss is, and what reading glosses reports.

A gloss is one sentence about one feature, by one explainer. A feature may have several; none overwrites
another. The first of a feature (index 0, the primary gloss) is by the explainer that covers most features of
the source, so that primary glosses are comparable with each other whatever the order of the file's rows.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gloss:
    """One description of one feature."""

    feature: int
    """row of W_dec"""
    text: str
    source: str
    """file, export or method"""
    explainer: str | None = None
    """model or method that wrote it"""
    embedding: np.ndarray | None = None
    """vector [d] float32 that the source carries for the text; None where it carries none"""


@dataclass(frozen=True)
class GlossReport:
    """What was in a source of glosses and what was left out."""

    source: str
    n_rows: int
    n_glosses: int
    n_features: int
    n_duplicates: int
    """rows repeated (same row id, or same feature, explainer and text)"""
    n_without_text: int
    """rows of a feature whose text is empty"""
    n_failed: int
    """rows whose text is a failure of the explainer, not a gloss (`failures.py`)"""
    n_headers: int
    """rows that repeat the names of the columns"""
    n_other_source: int
    """glosses of another SAE in the same file"""
    unread: dict[str, int]
    """columns that are not looked at -> rows in which they say something"""
    ignored: tuple[str, ...]
    """files of the folder that are not read"""
    missing: tuple[int, ...]
    """features below d_sae without a gloss; empty if d_sae was not given"""


class GlossReading(NamedTuple):
    """Glosses with the report of how they were read."""

    glosses: list[Gloss]
    report: GlossReport


def say_left_out(
    source: str, what: str, left_out: Mapping[str, int], missing: Sequence[int], absent: str
) -> None:
    """Logs one WARNING for what a reader left out and for the features that a source does not have.

    Args:
        source: name of the source.
        what: what was read, with its number.
        left_out: what was not -> how many.
        missing: features.
        absent: what is said of them, after their number.
    """
    said = [f"{count} {kind}" for kind, count in left_out.items() if count]
    parts = [f"left out: {', '.join(said)}"] if said else []
    if missing:
        shown = ", ".join(map(str, missing[:8])) + (" ..." if len(missing) > 8 else "")
        parts.append(f"{len(missing)} {absent}: {shown}")
    if parts:
        log.warning("%s: %s read; %s", source, what, "; ".join(parts))


def ordered(glosses: Iterable[Gloss], *, first: Sequence[str] = ()) -> list[Gloss]:
    """`glosses` by feature; within a feature by explainer, then by text.

    Explainers come in the order of `first`, then by the number of features they cover (most first), then by
    name. The result does not depend on the order of the input.
    """
    kept = list(glosses)
    coverage = Counter(explainer for explainer, _ in {(g.explainer, g.feature) for g in kept})
    rank = {name: position for position, name in enumerate(first)}

    def key(gloss: Gloss) -> tuple[int, int, int, str, str, str]:
        name = gloss.explainer or ""
        return (
            gloss.feature,
            rank.get(name, len(rank)),
            -coverage[gloss.explainer],
            name,
            gloss.text,
            gloss.source,
        )

    return sorted(kept, key=key)
