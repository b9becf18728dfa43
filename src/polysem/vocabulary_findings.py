"""What may be said of a finding, each word at home here: the grades it is given, the lines that decide a grade, and the
claims that the grades allow.

`stats.grades` decides; report, explorer, Python session and documentation take the words from these records.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator

from polysem.vocabulary import Vocabulary, Word

Verdict = Literal["agrees", "disagrees", "untested"]
"""of a line or of a grade"""


@dataclass(frozen=True)
class GradeLine(Word):
    """One test that a grade rests on; all lines of a grade have to agree."""

    grade: str


@dataclass(frozen=True)
class Claim(Word):
    """What may be said of a contrast."""

    mark: Literal["found", "hint", "null", "open", "none"]
    """how it is drawn"""


GRADES: Vocabulary[Word] = Vocabulary(
    "grade",
    Word(
        "significant",
        "significant",
        "after the adjustment over all declared questions, and not too small to matter",
    ),
    Word(
        "robust",
        "robust",
        "the same under other choices, as a straight line, in each SAE, and without any one bin",
    ),
    Word(
        "predictive",
        "predictive",
        "better than the mean for targets, and for sources, that the fit has not seen",
    ),
)

GRADE_LINES: Vocabulary[GradeLine] = Vocabulary(
    "line of a grade",
    GradeLine("adjusted_p", "adjusted p", "p after Holm is below one minus the level", "significant"),
    GradeLine(
        "specification",
        "specification curve",
        "the joint p of all choices of thresholds and fixed effects is below one minus the level, the median slope of the "
        "finding's sign",
        "robust",
    ),
    GradeLine(
        "linearity",
        "straight line",
        "no bend at the lower end of any bin of interference, after Holm over the bins",
        "robust",
    ),
    GradeLine(
        "each_sae",
        "each SAE",
        "every SAE alone gives the same sign with p below one minus the level",
        "robust",
    ),
    GradeLine(
        "without_a_bin",
        "without any one bin",
        "without the pairs of any one bin of interference the sign is the same and p below one minus the level",
        "robust",
    ),
    GradeLine(
        "unseen_targets",
        "unseen targets",
        "the interval of R2 for targets left out of the fit lies above zero",
        "predictive",
    ),
    GradeLine(
        "unseen_sources",
        "unseen sources",
        "the interval of R2 for sources left out of the fit lies above zero",
        "predictive",
    ),
)

CLAIMS: Vocabulary[Claim] = Vocabulary(
    "claim",
    Claim("predicts", "predicts", "all three grades agree", "found"),
    Claim("associated", "associated", "significant, and another grade does not agree", "hint"),
    Claim(
        "too_small",
        "too small to matter",
        "significant, and shown to lie within the margin by the equivalence test",
        "null",
    ),
    Claim("no_effect", "no effect", "not significant, and shown to lie within the margin", "null"),
    Claim("not_resolved", "not resolved", "no evidence, and no evidence of absence", "open"),
    Claim("undeclared", "not a declared question", "described, never claimed", "open"),
    Claim("no_interval", "no interval", "a number with nothing to judge it by", "none"),
    Claim("not_estimated", "not estimated", "there is no number", "none"),
)

LAYER_HYPOTHESES: Vocabulary[Word] = Vocabulary(
    "hypothesis across layers",
    Word(
        "X1",
        "weights tell influence",
        "a virtual weight tells what a push of its source does to its target (true), and what the source does to it by itself (false)",
    ),
    Word(
        "X2",
        "steering switches interference weights on",
        "of what a push changes, more lies in features that fire with its source below chance than lies there of other pushes",
    ),
    Word(
        "X3",
        "unlike features carry more",
        "targets whose gloss is unlike the source's change more than like ones of equal weight",
    ),
    Word(
        "X4",
        "harmful weights exist",
        "some edges raise the loss on text, more of them than chance says, and most at moderate effectiveness",
    ),
)

KINSHIPS: Vocabulary[Word] = Vocabulary(
    "relation of two features",
    Word("duplicate", "duplicate", "one feature twice: the decoder cosine is above 0.7"),
    Word("antipodal", "antipodal", "opposite directions: the decoder cosine is below -0.7"),
    Word(
        "parent",
        "parent and child",
        "the one fires on nine tenths of the other's tokens, the other on at most half of its, and what it writes there is "
        "needed there, more than that of features of like density",
    ),
    Word(
        "absorbed",
        "absorbed",
        "the other fires and is needed where a probe says that the one should fire, and the one is off",
    ),
    Word(
        "split",
        "split",
        "parts of one: close directions, fire together less than by chance, and have one gloss, one feature above them, or one "
        "in a narrower dictionary",
    ),
    Word(
        "hedge",
        "hedge",
        "a feature of a narrower dictionary is a mix of the two, which fire together more than by chance",
    ),
    Word(
        "same_tokens",
        "same tokens",
        "fire, both of them needed, on mostly the same tokens (Jaccard above 0.3), in directions of their own",
    ),
    Word("unrelated", "unrelated", "none of these"),
)
"""in order: a pair has the first that holds"""


def _kinship(name: str) -> str:
    if KINSHIPS.check(name) == "unrelated":
        raise ValueError("unrelated pairs are those that stay")
    return name


KinshipName = Annotated[str, AfterValidator(_kinship)]
"""in settings"""
