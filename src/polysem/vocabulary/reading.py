"""What is read and what is concluded from it: outcomes, token sets, covariates, categories of words, side effects of a
direction, measures of similarity and contrasts."""

from pathlib import PurePath
from typing import Annotated

from pydantic import AfterValidator

from polysem.vocabulary.steering import RELATIONS
from polysem.vocabulary.words import (
    Category,
    Contrast,
    Outcome,
    SideEffect,
    Similarity,
    TokenSet,
    Vocabulary,
    Word,
)

OUTCOMES: Vocabulary[Outcome] = Vocabulary(
    "outcome",
    Outcome(
        "logodds",
        "log-odds",
        "logit of the probability of the target's tokens",
        "nats",
        "polysem.readouts:read_sets",
    ),
    Outcome(
        "cosine",
        "weighted cosine c",
        "mean cosine of the next token's embedding with the set's, weighted by probability",
        "cosine",
        "polysem.readouts:read_sets",
        "c",
    ),
    Outcome(
        "mass",
        "mass w",
        "probability of the target's tokens",
        "probability",
        "polysem.readouts:read_sets",
        "w",
    ),
    Outcome(
        "beyond",
        "log-odds beyond the direct path",
        "log-odds less what the same push does through final norm and unembedding alone",
        "nats",
        scale="logodds",
        less="linear_direct",
    ),
    group="polysem.outcomes",
)
"""the first is the primary one"""
KL = Word("kl", "KL", "KL(before || after) of the next-token distribution")

SIDE_EFFECTS: Vocabulary[SideEffect] = Vocabulary(
    "side effect",
    SideEffect("on_target", "on target", "odd change of the log-odds of the tokens it is meant to move", "nats"),
    SideEffect(
        "cleanliness", "cleanliness", "on target / sqrt(2 KL): the same at every small dose",
        "nats per root nat", "high",
    ),
    SideEffect(
        "rho", "share on target", "signed share of the shift that goes into its tokens, in [-1, 1]", "", "high"
    ),
    SideEffect("kl", "cost", "KL of the next-token distribution, mean over both ways", "nats"),
    SideEffect("strength", "strength", "length of what is added", "mean norms of the site"),
    SideEffect(
        "text", "cost on text", "change of the cross-entropy of the prompts' own tokens", "nats per token", "low"
    ),
    SideEffect(
        "cost_absent", "cost where absent",
        "KL at the mean length of all prompts, on those where the concept is absent", "nats", "low",
    ),
    SideEffect(
        "text_absent", "cost on text where absent",
        "change of the cross-entropy there, at the same length", "nats per token", "low",
    ),
    SideEffect(
        "stability", "stability", "mean cosine of the change of logits with its mean over prompts", "", "high"
    ),
    SideEffect(
        "against", "prompts against", "share of prompts whose change points away from the mean of the others",
        "fraction of prompts", "low",
    ),
    SideEffect("reach_sets", "reach, token sets", "participation ratio of features' token sets", "sets", "low"),
    SideEffect(
        "reach_features", "reach, features", "participation ratio of the readout's features", "features", "low"
    ),
    SideEffect(
        "reach_count", "reach, count", "features of the readout that move by more than a quarter of its median firing",
        "features", "low",
    ),
    SideEffect(
        "residual", "unseen share", "share of the change at the readout that its features do not give back",
        "fraction",
    ),
)  # fmt: skip
"""what `polysem side-effects` says of a direction, in the order of its card"""

TOKEN_SETS: Vocabulary[TokenSet] = Vocabulary(
    "token set",
    TokenSet("in", "tokens that activate the target", "T-in: what the target fires on", "tokens_in"),
    TokenSet(
        "out",
        "tokens the target writes",
        "T-out: what its decoder row promotes through W_U, or steering along it raises (features.tokens_out)",
        "tokens_out",
        "beyond",
        by_row=True,
    ),
)

COVARIATES: Vocabulary[Word] = Vocabulary(
    "covariate",
    Word(
        "attribution",
        "direct attribution",
        "what the source writes into the logits of T, above all tokens, per unit length",
    ),
    Word("overlap", "token overlap", "share of T among the source's own tokens"),
    Word("frequency", "frequency", "log10 of the share of tokens on which the source fires"),
)
"""of a source and a token set; held fixed in the regressions of record"""

CATEGORIES: Vocabulary[Category] = Vocabulary(
    "category",
    Category("location", "places", "words for places"),
    Category("science", "science", "words of the sciences"),
    Category("number", "numbers", "words for numbers, and figures"),
    Category("person", "people", "words for people"),
    Category("emotion", "emotions", "words for emotions"),
    Category("animal", "animals", "words for animals"),
    Category("color", "colours", "words for colours"),
    Category("time", "times", "words for times"),
)
"""categories of words that come with the library; their words are in `categories.toml`"""

SIMILARITIES: Vocabulary[Similarity] = Vocabulary(
    "measure of similarity",
    Similarity(
        "gloss",
        "glosses",
        "cosine of the features' glosses, by an embedder",
        "gloss",
        "polysem.glosses.similarity:ByEmbedder",
        "embedder",
    ),
    Similarity(
        "tokens:glove",
        "words by GloVe",
        "cosine of the GloVe vectors of the words on which the features fire, each with its nearest of the other side",
        "tokens",
        "polysem.glosses.lexical:GloVe",
        "folder",
    ),
    Similarity(
        "tokens:wordnet",
        "words by WordNet",
        "path similarity of the words on which the features fire, each with its nearest of the other side",
        "tokens",
        "polysem.glosses.lexical:WordNet",
        "folder",
    ),
    Similarity(
        "tokens:frequency",
        "frequency of the words",
        "mean Zipf frequency of the words on which the two features fire",
        "tokens",
        "polysem.glosses.lexical:Frequency",
        covariate=True,
    ),
    Similarity(
        "contexts",
        "senses in contexts",
        "largest cosine between a concept of one and a concept of the other feature, of clusters of their contexts",
        "contexts",
        "polysem.glosses.concepts:Senses",
        "embedder",
    ),
    group="polysem.similarities",
)


def similarity(reference: str) -> tuple[Similarity, str]:
    """The record of a measure, and what stands behind its name: `gloss:minilm` is (gloss, "minilm").

    Raises:
        ValueError: no such measure, or an argument that is missing or not taken, for pydantic.
    """
    names = [n for n in SIMILARITIES if reference == n or reference.startswith(n + ":")]
    if not names:
        raise ValueError(SIMILARITIES.unknown(reference))
    word = SIMILARITIES[max(names, key=len)]
    argument = reference[len(word.name) + 1 :]
    if word.argument == "embedder" and not argument:
        raise ValueError(f"{reference!r} names no embedder; expected e.g. {word.name}:minilm")
    if word.argument == "none" and argument:
        raise ValueError(f"{word.name!r} takes nothing behind its name; got {reference!r}")
    return word, argument


def similarity_folder(reference: str) -> tuple[str, str]:
    """A measure's reference as (what stands before the folder that it names, that folder, "" if it names none)."""
    word, argument = similarity(reference)
    folder = argument if word.argument == "folder" else ""
    return reference[: len(reference) - len(folder)], folder


def similarity_name(reference: str) -> str:
    """How tables call a measure: of a folder its last part, so that they do not depend on where it lies."""
    before, folder = similarity_folder(reference)
    return before + PurePath(folder).name


def _similarity(reference: str) -> str:
    similarity(reference)
    return reference


SimilarityRef = Annotated[str, AfterValidator(_similarity)]
TokenSetName = Annotated[str, AfterValidator(TOKEN_SETS.check)]
CategoryName = Annotated[str, AfterValidator(CATEGORIES.check)]


def contrast(name: str) -> Contrast:
    """The record of a contrast; those of a relation (`pair_minus_random_feature`) are made from the relation's.

    Raises:
        UnknownReferenceError: if there is no such contrast.
    """
    if name in CONTRASTS:
        return CONTRASTS[name]
    for prefix, role in (("pair_minus_", "reference"), ("null_slope_", "null"), ("given_minus_", "given")):
        rest = name.removeprefix(prefix)
        if rest == name:
            continue
        if role == "given" and rest in RELATIONS:
            other = RELATIONS[rest].label
            return Contrast(name, f"a vector of one's own minus {other}", "inside the same targets")
        if role == "reference" and rest in RELATIONS:
            other = RELATIONS[rest].label
            return Contrast(
                name,
                f"pairs minus {other}",
                "pair by pair where the control was drawn for a pair, inside the same targets otherwise",
                f"Do interfering features move the {{}} more than {other} do?",
            )
        if role == "null":
            return Contrast(name, f"slope on {rest} that must be nothing", "a negative control")
    return CONTRASTS[name]


CONTRASTS: Vocabulary[Contrast] = Vocabulary(
    "contrast",
    Contrast(
        "slope_interference",
        "slope of the effect on interference",
        "inside targets, with similarity, attribution, overlap and frequency beside it",
        "Does interference predict how much the {} move?",
    ),
    Contrast(
        "slope_interference_alone",
        "the same without covariates",
        "slope on interference inside targets, nothing beside it",
    ),
    Contrast(
        "slope_similarity",
        "slope of the effect on gloss similarity",
        "inside targets, with interference and the other covariates beside it",
    ),
    Contrast(
        "geometry_effect",
        "geometry effect",
        "random directions at the pairs' cosines minus random features, inside the same targets",
        "Does the angle alone move the {}: directions at the pairs' cosines against random features?",
    ),
    Contrast(
        "pair_minus_cosine_matched",
        "identity effect",
        "pairs minus random directions at their cosines, pair by pair",
        "Do interfering features move the {} beyond what their angle does?",
    ),
    Contrast("paper_model_a", "the paper's Model A, interference", "c after ~ interference + ... + c before"),
    Contrast(
        "paper_model_b", "the paper's Model B, interference", "relative change of c ~ interference + ..."
    ),
    Contrast("mean_effect", "mean effect", "mean over arms"),
    Contrast(
        "sign_agreement",
        "share of pairs whose effect has the sign of the interference",
        "pairs of positive against pairs of negative interference of one target and size; one half is chance",
        "Do the {} move the way the sign of the interference predicts?",
    ),
)
