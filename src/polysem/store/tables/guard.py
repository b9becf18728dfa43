"""Is a feature a safe handle? Tables of `polysem guard`."""

from polysem.store.schema import Schema
from polysem.store.tables.columns import FEATURE, NOTE, count, index, number, text

_LO = number("lo", "as value", "95 % interval", nullable=True)
_HI = number("hi", "as value", "upper end", nullable=True)

GUARD_MONITORS = Schema(
    "guard_monitors",
    2,
    ("shift", "monitor"),
    (
        text(
            "shift",
            "none: held-out documents; frame: the same behind words of another language; files: the concept's own",
        ),
        text("monitor", "feature | features | means | probe | neuron | residual | random"),
        text("made_of", "features or neuron that it reads"),
        number("auroc", "probability", "that a document with the concept scores above one without"),
        number("lo", "probability", "95 % interval, DeLong on the scale of the log-odds", nullable=True),
        number("hi", "probability", "upper end", nullable=True),
        number(
            "found",
            "fraction",
            "documents with the concept above the threshold that flags 1 % of one half of the others",
        ),
        number("found_lo", "fraction", "Wilson"),
        number("found_hi", "fraction", "upper end"),
        number("false_alarms", "fraction", "documents without it above the threshold, of the other half"),
        number(
            "ece",
            "probability",
            "expected calibration error, ten bins, scores made probabilities on the documents of the fit",
        ),
        number(
            "delay",
            "tokens",
            "from the concept's first token to the first one flagged, reading token by token at a threshold that flags 1 % of "
            "one half of the others at any token; mean over documents flagged there or later",
            nullable=True,
        ),
        number("delay_lo", "tokens", "95 % interval, Hall's transformed t over documents", nullable=True),
        number("delay_hi", "tokens", "upper end", nullable=True),
        count("n_late", "documents", "that the delay is of"),
        count("n_early", "documents", "with the concept, flagged before its first token"),
        number("alarms", "fraction", "documents without it flagged at any token, of the other half"),
        count("n_on", "documents", "with the concept"),
        count("n_off", "documents", "without it"),
    ),
)
GUARD_ALARMS = Schema(
    "guard_alarms",
    1,
    ("group",),
    (
        text(
            "group",
            "interfering: features with |cosine| above 0.2 to the monitor's; others: as many of those that fire there",
        ),
        number(
            "explained",
            "fraction",
            "false alarms that fall below the threshold without what the group writes into the feature",
        ),
        number(
            "share",
            "fraction",
            "of the feature's pre-activation at false alarms that the group writes, mean",
            nullable=True,
        ),
        count("n", "documents", "false alarms, at 5 % of documents without the concept"),
        NOTE,
    ),
)
GUARD_RECOVERY = Schema(
    "guard_recovery",
    2,
    ("site", "arm", "radius"),
    (
        text("site", "where the move is made: the dictionary's, or a later one"),
        text(
            "arm",
            "handle: orthogonal to the clamped features' encoders, at a later site to what arrives of their decoders, too; free; "
            "random: as handle, drawn; other: free, towards drawn tokens",
        ),
        number("radius", "norms of the site", "longest move"),
        number(
            "recovered",
            "fraction",
            "of what the clamp took from the log-odds, at most 1; of other: its rise over what the clamp took",
        ),
        number("lo", "fraction", "95 % interval, Hall's transformed t over prompts", nullable=True),
        number("hi", "fraction", "upper end", nullable=True),
        number(
            "drift",
            "fraction",
            "largest product of move and a row that it may not touch, over their lengths",
        ),
        number(
            "in_decoders",
            "fraction",
            "of the move's squared length: in the span of what the clamped features write, mean",
        ),
        number(
            "in_dictionary",
            "fraction",
            "along what the move changes of the reconstruction; the rest the dictionary does not see",
            nullable=True,
        ),
        number(
            "in_neuron",
            "fraction",
            "along what one neuron of the layer's MLP writes, the most of any",
            nullable=True,
        ),
        count("n_prompts", "prompts", "on which the clamp takes something"),
    ),
)
GUARD_NEURONS = Schema(
    "guard_neurons",
    1,
    ("layer", "neuron"),
    (
        index("layer", "of the MLP"),
        index("neuron", "of the MLP"),
        number(
            "forecast", "nats", "change of the log-odds if it is set to 0, by gradient; mean over prompts"
        ),
        number("measured", "nats", "the same, measured"),
        _LO,
        _HI,
    ),
)
GUARD_EVASION = Schema(
    "guard_evasion",
    2,
    ("effect", "kind", "feature", "detector"),
    (
        number("effect", "nats", "rise of the concept's log-odds that every push has"),
        text("kind", "target | interfering | random_feature | gradient | means | neuron | isotropic | words"),
        index(FEATURE.name, "row of W_dec, number of the neuron or of the draw; 0 for others"),
        text(
            "detector",
            "target, reader: pre-activation of the pushed feature, and of the one that tells documents best; site, later, output: linear, "
            "of the last position's activations at the site and at a later one, and of entropy and largest log-probability of the next "
            "token; text: linear, of what eight drawn tokens cost the model without a push. Linear ones are fitted to this push on one half "
            "of the prompts and judged on the other, both ways",
        ),
        number("interference", "cosine", "of the push with the target's decoder row", nullable=True),
        number("length", "activation", "of the push, mean over prompts; of words: how many", nullable=True),
        number("kl", "nats", "of the next token, mean over prompts"),
        number("seen", "probability", "AUROC of the detector, pushed against not pushed"),
        number(
            "lo", "probability", "95 % interval, over prompts, on the scale of the log-odds", nullable=True
        ),
        number("hi", "probability", "upper end", nullable=True),
        number(
            "gap",
            "probability",
            "seen of the target's own push minus this one's, on the prompts of both",
            nullable=True,
        ),
        number("gap_lo", "probability", "95 % interval, over prompts", nullable=True),
        number("gap_hi", "probability", "upper end", nullable=True),
        count("n_prompts", "prompts", "on which the effect was reached"),
    ),
)
GUARD_FINDINGS = Schema(
    "guard_findings",
    1,
    ("name",),
    (
        text("name", "which"),
        number("value", "as the note says", "measured", nullable=True),
        _LO,
        _HI,
        count("n", "as the note says", "what enters"),
        NOTE,
    ),
)
GUARD = (GUARD_MONITORS, GUARD_ALARMS, GUARD_RECOVERY, GUARD_NEURONS, GUARD_EVASION, GUARD_FINDINGS)
