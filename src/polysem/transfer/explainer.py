"""Glosses written by a language model from top contexts, and how well a gloss tells what a feature fires on.

Two explainers that share nothing but the contexts make a study's similarity less a matter of one model's taste. A
detection score gives a judge the gloss and contexts of which half activate the feature; 0.5 is chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polysem.errors import ConfigError
from polysem.transfer.judges import Ask, Proportion, proportion, question

MAX_WORDS = 32


@dataclass(frozen=True)
class ExplainedContext:
    """One window of text with a feature's activation on each token."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]

    def marked(self, *, ratio: float = 0.5) -> str:
        """The text with « » around tokens of at least `ratio` of the largest activation."""
        least = ratio * max(self.values, default=0.0)
        shown = (
            f"«{t}»" if v >= least and v > 0 else t for t, v in zip(self.tokens, self.values, strict=True)
        )
        return "".join(shown).replace("»«", "")

    @property
    def text(self) -> str:
        return "".join(self.tokens)


def explain_question(contexts: Sequence[ExplainedContext]) -> dict[str, object]:
    """The question for a gloss."""
    return {
        "task": f"Say in at most {MAX_WORDS} words what the marked tokens have in common.",
        "contexts": [c.marked() for c in contexts],
        "answer": {"gloss": "text"},
    }


def detection_questions(gloss: str, contexts: Sequence[ExplainedContext]) -> list[dict[str, object]]:
    """The question whether a text contains what a gloss says, of each context."""
    return [
        {
            "task": "Does the text contain what the description says?",
            "description": gloss,
            "text": context.text,
            "answer": {"contains": "true or false"},
        }
        for context in contexts
    ]


def explain(contexts: Sequence[ExplainedContext], ask: Ask) -> str | None:
    """A gloss of at most 32 words from a feature's top contexts; None where no reply was of the form.

    Raises:
        ConfigError: without contexts.
    """
    if not contexts:
        raise ConfigError(
            "a gloss needs at least one context", hint="harvest features first: polysem features STUDY.toml"
        )
    gloss = question(ask, explain_question(contexts), "gloss", ())
    return None if gloss is None or len(gloss.split()) > MAX_WORDS else str(gloss).strip()


def detection(
    gloss: str,
    active: Sequence[ExplainedContext],
    silent: Sequence[ExplainedContext],
    ask: Ask,
    *,
    rng: np.random.Generator,
    level: float,
) -> Proportion:
    """Share of contexts that a judge puts right, given the gloss; as many active as silent ones are shown, one by one, in
    random order.

    Raises:
        ConfigError: without contexts of either kind.
    """
    n = min(len(active), len(silent))
    if not n:
        raise ConfigError(
            f"detection needs contexts of both kinds, got {len(active)} active and {len(silent)} silent"
        )
    cases = [*((c, True) for c in active[:n]), *((c, False) for c in silent[:n])]
    order: list[int] = rng.permutation(len(cases)).tolist()
    right = asked = 0
    for k in order:
        context, truth = cases[k]
        (data,) = detection_questions(gloss, [context])
        said = question(ask, data, "contains", (True, False))
        if said is not None:
            asked += 1
            right += said == truth
    return proportion(right, asked, level=level, n_missing=len(cases) - asked)
