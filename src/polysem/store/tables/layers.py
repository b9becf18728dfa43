"""Interference across layers: tables of `polysem layers`."""

from polysem.store.tables import columns as c

_SOURCE = c.text("source", "label of the dictionary that writes")
_TARGET = c.text("target", "label of the dictionary that reads")
_I = c.index("i", "feature of the source")

LAYER_BLOCKS = c.table("layer_blocks", 1, "source", "target")(
    *(_SOURCE, _TARGET),
    c.text("writes", "where the source first writes"),
    c.text("reads", "where the target reads"),
    c.text("norm", "what of a norm between is folded into weights; - where there are none"),
    c.count("n_tokens", "tokens", "of the corpus pass"),
    c.count("n_i", "features", "of the source that fire"),
    c.count("n_j", "features", "of the target that fire"),
    c.perhaps(
        "rms", "pre-activation per activation", "root mean square of weights between features that fire"
    ),
    c.perhaps("strong_cosine", "cosine", "of row and column; random directions pass it in 1 of 10,000 pairs"),
    c.count("n_strong", "pairs", "that pass it in size"),
    c.perhaps("strong_never", "fraction", "of them that never co-fire"),
    c.perhaps("never", "fraction", "of all pairs that fire that never co-fire"),
    c.perhaps("top_never", "fraction", "of the 1 % of largest weights that never co-fire"),
    c.text("why", "why two dictionaries have no weights between them", nullable=True),
)

LAYER_DENSITY = c.table("layer_density", 1, "source", "target", "weight_low", "lift_bin")(
    *(_SOURCE, _TARGET),
    c.number("weight_low", "rms", "least |weight| of the bin, in root mean squares"),
    c.number("weight_high", "rms", "end of the bin; inf for the last"),
    c.index("lift_bin", "0: never co-fire; then bins of co-firing over chance"),
    c.perhaps("lift_low", "times chance", "least lift of the bin"),
    c.perhaps("lift_high", "times chance", "end of the bin; none for the last"),
    c.count("n_pairs", "pairs", "of features that fire"),
)

LAYER_EDGES = c.table("layer_edges", 1, "source", "i", "target", "j")(
    *(_SOURCE, _I, _TARGET),
    c.index("j", "feature of the target"),
    c.text("chosen", "by what it is listed: effectiveness, moderate, weight, era, natural; several with +"),
    c.text("gloss_i", "of the source", nullable=True),
    c.text("gloss_j", "of the target", nullable=True),
    c.number("weight", "pre-activation per activation", "virtual weight, the norm between folded"),
    c.number("weight_raw", "pre-activation per activation", "with the target's column as it stands in the file"),
    c.perhaps("cosine", "cosine", "of row and column"),
    c.count("co_tokens", "tokens", "on which both fire"),
    c.perhaps("lift", "times chance", "co-firing"),
    c.number("era", "pre-activation", "expected residual attribution a token"),
    c.perhaps("twera", "pre-activation", "target-weighted expected residual attribution"),
    c.perhaps("effectiveness", "nats", "second-order KL that the edge makes, a token of the corpus, by the target's direct effect on logits"),
    c.perhaps("acts", "fraction", "of tokens on which the edge changes the target"),
    c.perhaps("pushed", "pre-activation per unit length", "change at the pushed position"),
    c.perhaps("natural", "activation", "what the target loses where the source fires and its contribution is taken away"),
    c.perhaps("saved", "nats", "helpfulness: loss to the end of the row without the edge less with it, a token on which it acts"),
    *c.interval("nats", "the 95 % interval of it, over documents"),
    c.count("n_events", "tokens", "on which the edge was taken away"),
)  # fmt: skip

LAYER_TOKENS = c.table("layer_tokens", 1, "source", "i", "token")(
    *(_SOURCE, _I),
    c.index("token", "id"),
    c.text("token_str", "as text"),
    c.number("weight", "logit per activation", "direct, through the final norm with its scale frozen; less the mean of all logits"),
    c.number("effectiveness", "nats", "second-order KL, a token of the corpus"),
    c.perhaps("saved", "nats", "helpfulness a token on which the source fires, closed form"),
    *c.interval("nats", "the 95 % interval of it, over documents"),
    c.count("n_events", "tokens", "that enter"),
)  # fmt: skip

LAYER_FINDINGS = c.table("layer_findings", 1, "source", "target", "hypothesis", "quantity", "by", "dose")(
    *(_SOURCE, _TARGET),
    c.text("hypothesis", "as in the closed choices"),
    c.text("quantity", "what is measured"),
    c.text("by", "what tells it, or what it is compared with; - where there is nothing"),
    c.number("dose", "nats", "of a push; 0 where nothing is pushed at a dose"),
    c.perhaps("value", "as the quantity", "estimate"),
    *c.interval("as value", "the 95 % interval by the jackknife over what `over` names"),
    c.perhaps("null", "as value", "mean where the hypothesis says nothing: labels of targets permuted within cells of density and norm, other sources of equal density, or signs flipped by document"),
    c.perhaps("null_lo", "as value", "its 2.5 % quantile"),
    c.perhaps("null_hi", "as value", "its 97.5 % quantile"),
    c.text("over", "what is left out for the interval: documents | prompts | sources | edges"),
    c.count("n", "as over", "how many there are"),
    c.text("note", "what must be said beside it", nullable=True),
)  # fmt: skip

LAYER_SPLICE = c.table("layer_splice", 1, "transcoders", "replaced")(
    c.text("transcoders", "name of the set"),
    c.text("replaced", "written site at which the set stands for the model; all: at every one at once"),
    c.count("n_tokens", "tokens", "that are predicted"),
    c.perhaps("clean", "nats", "cross-entropy of the model, a token"),
    c.perhaps("spliced", "nats", "with what the set writes in place of the model's own"),
    c.perhaps("zeroed", "nats", "with nothing there"),
    c.perhaps("cost", "nats", "spliced less clean"),
    *c.interval("nats", "the 95 % interval of it, over rows of text", "cost"),
    c.perhaps("recovered", "fraction", "of the loss of zeroing that the set avoids"),
    *c.interval("fraction", "the 95 % interval of it, over rows of text", "recovered"),
    c.text("why", "why nothing is replaced there", nullable=True),
)
