"""Interference across layers: tables of `polysem layers`."""

from polysem.store.schema import Column, Schema
from polysem.store.tables.columns import count, index, number, text


def _perhaps(name: str, unit: str, meaning: str) -> Column:
    return number(name, unit, meaning, nullable=True)


_SOURCE = text("source", "label of the dictionary that writes")
_TARGET = text("target", "label of the dictionary that reads")
_I = index("i", "feature of the source")

LAYER_BLOCKS = Schema(
    "layer_blocks",
    1,
    ("source", "target"),
    (
        _SOURCE,
        _TARGET,
        text("writes", "where the source first writes"),
        text("reads", "where the target reads"),
        text("norm", "what of a norm between is folded into weights; - where there are none"),
        count("n_tokens", "tokens", "of the corpus pass"),
        count("n_i", "features", "of the source that fire"),
        count("n_j", "features", "of the target that fire"),
        _perhaps(
            "rms", "pre-activation per activation", "root mean square of weights between features that fire"
        ),
        _perhaps(
            "strong_cosine", "cosine", "of row and column; random directions pass it in 1 of 10,000 pairs"
        ),
        count("n_strong", "pairs", "that pass it in size"),
        _perhaps("strong_never", "fraction", "of them that never co-fire"),
        _perhaps("never", "fraction", "of all pairs that fire that never co-fire"),
        _perhaps("top_never", "fraction", "of the 1 % of largest weights that never co-fire"),
        text("why", "why two dictionaries have no weights between them", nullable=True),
    ),
)

LAYER_DENSITY = Schema(
    "layer_density",
    1,
    ("source", "target", "weight_low", "lift_bin"),
    (
        _SOURCE,
        _TARGET,
        number("weight_low", "rms", "least |weight| of the bin, in root mean squares"),
        number("weight_high", "rms", "end of the bin; inf for the last"),
        index("lift_bin", "0: never co-fire; then bins of co-firing over chance"),
        _perhaps("lift_low", "times chance", "least lift of the bin"),
        _perhaps("lift_high", "times chance", "end of the bin; none for the last"),
        count("n_pairs", "pairs", "of features that fire"),
    ),
)

LAYER_EDGES = Schema(
    "layer_edges",
    1,
    ("source", "i", "target", "j"),
    (
        _SOURCE,
        _I,
        _TARGET,
        index("j", "feature of the target"),
        text("chosen", "by what it is listed: effectiveness, moderate, weight, era, natural; several with +"),
        text("gloss_i", "of the source", nullable=True),
        text("gloss_j", "of the target", nullable=True),
        number("weight", "pre-activation per activation", "virtual weight, the norm between folded"),
        number("weight_raw", "pre-activation per activation", "with the target's column as it stands in the file"),
        _perhaps("cosine", "cosine", "of row and column"),
        count("co_tokens", "tokens", "on which both fire"),
        _perhaps("lift", "times chance", "co-firing"),
        number("era", "pre-activation", "expected residual attribution a token"),
        _perhaps("twera", "pre-activation", "target-weighted expected residual attribution"),
        _perhaps("effectiveness", "nats", "second-order KL that the edge makes, a token of the corpus, by the target's direct effect on logits"),
        _perhaps("acts", "fraction", "of tokens on which the edge changes the target"),
        _perhaps("pushed", "pre-activation per unit length", "change at the pushed position"),
        _perhaps("natural", "activation", "what the target loses where the source fires and its contribution is taken away"),
        _perhaps("saved", "nats", "helpfulness: loss to the end of the row without the edge less with it, a token on which it acts"),
        _perhaps("lo", "nats", "95 % interval of it, over documents"),
        _perhaps("hi", "nats", "upper end"),
        count("n_events", "tokens", "on which the edge was taken away"),
    ),
)  # fmt: skip

LAYER_TOKENS = Schema(
    "layer_tokens",
    1,
    ("source", "i", "token"),
    (
        _SOURCE,
        _I,
        index("token", "id"),
        text("token_str", "as text"),
        number("weight", "logit per activation", "direct, through the final norm with its scale frozen; less the mean of all logits"),
        number("effectiveness", "nats", "second-order KL, a token of the corpus"),
        _perhaps("saved", "nats", "helpfulness a token on which the source fires, closed form"),
        _perhaps("lo", "nats", "95 % interval of it, over documents"),
        _perhaps("hi", "nats", "upper end"),
        count("n_events", "tokens", "that enter"),
    ),
)  # fmt: skip

LAYER_FINDINGS = Schema(
    "layer_findings",
    1,
    ("source", "target", "hypothesis", "quantity", "by", "dose"),
    (
        _SOURCE,
        _TARGET,
        text("hypothesis", "as in the closed choices"),
        text("quantity", "what is measured"),
        text("by", "what tells it, or what it is compared with; - where there is nothing"),
        number("dose", "nats", "of a push; 0 where nothing is pushed at a dose"),
        _perhaps("value", "as the quantity", "estimate"),
        _perhaps("lo", "as value", "95 % interval by the jackknife over what `over` names"),
        _perhaps("hi", "as value", "upper end"),
        _perhaps("null", "as value", "mean where the hypothesis says nothing: labels of targets permuted within cells of density and norm, other sources of equal density, or signs flipped by document"),
        _perhaps("null_lo", "as value", "its 2.5 % quantile"),
        _perhaps("null_hi", "as value", "its 97.5 % quantile"),
        text("over", "what is left out for the interval: documents | prompts | sources | edges"),
        count("n", "as over", "how many there are"),
        text("note", "what must be said beside it", nullable=True),
    ),
)  # fmt: skip

LAYER_SPLICE = Schema(
    "layer_splice",
    1,
    ("transcoders", "replaced"),
    (
        text("transcoders", "name of the set"),
        text("replaced", "written site at which the set stands for the model; all: at every one at once"),
        count("n_tokens", "tokens", "that are predicted"),
        _perhaps("clean", "nats", "cross-entropy of the model, a token"),
        _perhaps("spliced", "nats", "with what the set writes in place of the model's own"),
        _perhaps("zeroed", "nats", "with nothing there"),
        _perhaps("cost", "nats", "spliced less clean"),
        _perhaps("cost_lo", "nats", "95 % interval of it, over rows of text"),
        _perhaps("cost_hi", "nats", "upper end"),
        _perhaps("recovered", "fraction", "of the loss of zeroing that the set avoids"),
        _perhaps("recovered_lo", "fraction", "95 % interval of it, over rows of text"),
        _perhaps("recovered_hi", "fraction", "upper end"),
        text("why", "why nothing is replaced there", nullable=True),
    ),
)

LAYERS = (LAYER_BLOCKS, LAYER_DENSITY, LAYER_EDGES, LAYER_TOKENS, LAYER_FINDINGS, LAYER_SPLICE)
