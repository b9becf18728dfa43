"""Is a feature a safe handle? Tables of `polysem guard`."""

from polysem.store.tables import columns as c

_ENDS = c.interval("as value", "the 95 % interval")

GUARD_MONITORS = c.table("guard_monitors", 2, "shift", "monitor")(
    c.text(
        "shift",
        "none: held-out documents; frame: the same behind words of another language; files: the concept's own",
    ),
    c.text("monitor", "feature | features | means | probe | neuron | residual | random"),
    c.text("made_of", "features or neuron that it reads"),
    c.number("auroc", "probability", "that a document with the concept scores above one without"),
    *c.interval("probability", "the 95 % interval, DeLong on the scale of the log-odds"),
    c.number(
        "found",
        "fraction",
        "documents with the concept above the threshold that flags 1 % of one half of the others",
    ),
    c.number("found_lo", "fraction", "Wilson"),
    c.number("found_hi", "fraction", "upper end"),
    c.number("false_alarms", "fraction", "documents without it above the threshold, of the other half"),
    c.number(
        "ece",
        "probability",
        "expected calibration error, ten bins, scores made probabilities on the documents of the fit",
    ),
    c.perhaps(
        "delay",
        "tokens",
        "from the concept's first token to the first one flagged, reading token by token at a threshold that flags 1 % of "
        "one half of the others at any token; mean over documents flagged there or later",
    ),
    *c.interval("tokens", "the 95 % interval, Hall's transformed t over documents", "delay"),
    c.count("n_late", "documents", "that the delay is of"),
    c.count("n_early", "documents", "with the concept, flagged before its first token"),
    c.number("alarms", "fraction", "documents without it flagged at any token, of the other half"),
    c.count("n_on", "documents", "with the concept"),
    c.count("n_off", "documents", "without it"),
)
GUARD_ALARMS = c.table("guard_alarms", 1, "group")(
    c.text(
        "group",
        "interfering: features with |cosine| above 0.2 to the monitor's; others: as many of those that fire there",
    ),
    c.number(
        "explained",
        "fraction",
        "false alarms that fall below the threshold without what the group writes into the feature",
    ),
    c.perhaps(
        "share", "fraction", "of the feature's pre-activation at false alarms that the group writes, mean"
    ),
    c.count("n", "documents", "false alarms, at 5 % of documents without the concept"),
    c.NOTE,
)
GUARD_RECOVERY = c.table("guard_recovery", 2, "site", "arm", "radius")(
    c.text("site", "where the move is made: the dictionary's, or a later one"),
    c.text(
        "arm",
        "handle: orthogonal to the clamped features' encoders, at a later site to what arrives of their decoders, too; free; "
        "random: as handle, drawn; other: free, towards drawn tokens",
    ),
    c.number("radius", "norms of the site", "longest move"),
    c.number(
        "recovered",
        "fraction",
        "of what the clamp took from the log-odds, at most 1; of other: its rise over what the clamp took",
    ),
    *c.interval("fraction", "the 95 % interval, Hall's transformed t over prompts"),
    c.number(
        "drift", "fraction", "largest product of move and a row that it may not touch, over their lengths"
    ),
    c.number(
        "in_decoders",
        "fraction",
        "of the move's squared length: in the span of what the clamped features write, mean",
    ),
    c.perhaps(
        "in_dictionary",
        "fraction",
        "along what the move changes of the reconstruction; the rest the dictionary does not see",
    ),
    c.perhaps("in_neuron", "fraction", "along what one neuron of the layer's MLP writes, the most of any"),
    c.count("n_prompts", "prompts", "on which the clamp takes something"),
)
GUARD_NEURONS = c.table("guard_neurons", 1, "layer", "neuron")(
    c.index("layer", "of the MLP"),
    c.index("neuron", "of the MLP"),
    c.number("forecast", "nats", "change of the log-odds if it is set to 0, by gradient; mean over prompts"),
    c.number("measured", "nats", "the same, measured"),
    *_ENDS,
)
GUARD_EVASION = c.table("guard_evasion", 2, "effect", "kind", "feature", "detector")(
    c.number("effect", "nats", "rise of the concept's log-odds that every push has"),
    c.text("kind", "target | interfering | random_feature | gradient | means | neuron | isotropic | words"),
    c.index(c.FEATURE.name, "row of W_dec, number of the neuron or of the draw; 0 for others"),
    c.text(
        "detector",
        "target, reader: pre-activation of the pushed feature, and of the one that tells documents best; site, later, output: linear, "
        "of the last position's activations at the site and at a later one, and of entropy and largest log-probability of the next "
        "token; text: linear, of what eight drawn tokens cost the model without a push. Linear ones are fitted to this push on one half "
        "of the prompts and judged on the other, both ways",
    ),
    c.perhaps("interference", "cosine", "of the push with the target's decoder row"),
    c.perhaps("length", "activation", "of the push, mean over prompts; of words: how many"),
    c.number("kl", "nats", "of the next token, mean over prompts"),
    c.number("seen", "probability", "AUROC of the detector, pushed against not pushed"),
    *c.interval("probability", "the 95 % interval, over prompts, on the scale of the log-odds"),
    c.perhaps("gap", "probability", "seen of the target's own push minus this one's, on the prompts of both"),
    *c.interval("probability", "the 95 % interval, over prompts", "gap"),
    c.count("n_prompts", "prompts", "on which the effect was reached"),
)
GUARD_FINDINGS = c.table("guard_findings", 1, "name")(
    c.text("name", "which"),
    c.perhaps("value", "as the note says", "measured"),
    *_ENDS,
    c.count("n", "as the note says", "what enters"),
    c.NOTE,
)
