"""Several pushes at once: tables of `polysem joint`."""

from polysem.store.schema import Column
from polysem.store.tables import columns as c

_ENDS = "the 95 % interval, over prompts"
_PART = c.text(
    "part",
    "odd | even (under turning all pushes round) | whole (the pushes themselves), of the change of centred logits",
)
_PAIR = (
    c.index("pair", "number of the pair"),
    c.text("sae_i", "dictionary of i"),
    c.index("i", "row of W_dec"),
    c.text("sae_j", "dictionary of j"),
    c.index("j", "row of W_dec"),
    c.perhaps("cosine", "cosine", "of the two decoder rows; null between sites of different width"),
)  # fmt: skip

JOINT_ADDITIVITY = c.table("joint_additivity", 1, "sae", "pool", "basis", "part", "order")(
    c.SAE,
    c.index("pool", "number of the pool, its features drawn at random"),
    c.text("basis", "learnt (decoder rows) | rotated K (other coordinates of their span, with the same sum)"),
    _PART,
    c.index("order", "k"),
    Column("features", c.INTS, "", "of the pool"),
    c.perhaps("residual", "fraction", "SAR_k: energy of interactions above order k, of all but the mean"),
    *c.interval("fraction", _ENDS),
    c.flag("exact", "all sets of the pool, or sampled ones"),
    c.count("n_sets", "sets", "that were pushed on each prompt, both ways"),
    c.N_PROMPTS,
)  # fmt: skip

JOINT_SIZES = c.table("joint_sizes", 1, "sae", "size", "part")(
    c.SAE,
    c.index("size", "pushes at once, drawn at random, each of the dose alone"),
    _PART,
    c.perhaps("unexplained", "fraction", "1 - R2 of the change by the sum of single effects"),
    *c.interval("fraction", _ENDS),
    c.perhaps("worst", "fraction", "the largest over sets, each over all prompts"),
    c.number("kl", "nats", "of all pushes together, mean over both ways"),
    c.number("coherence", "ratio", "kl / sum of single KLs: 1 where pushes have nothing in common, `size` where they are one"),
    c.number("kept", "fraction", "of prompts and sets whose most likely token stays"),
    c.count("n_sets", "sets", "of this size"),
    c.N_PROMPTS,
)  # fmt: skip

JOINT_PAIRS = c.table("joint_pairs", 1, "sae_i", "pair")(
    *_PAIR,
    c.perhaps("lift", "ratio", "tokens on which both fire, over chance; null where chance gives less than one"),
    c.number("odd", "ratio", "length of the odd interaction of logits, to that of the sum of both odd changes"),
    c.number("even", "ratio", "length of the even interaction to the same"),
    c.number("y_odd", "nats", "odd interaction of the log-odds of i's tokens: y(ij) - y(i) - y(j)"),
    *c.interval("nats", _ENDS, "y_odd"),
    c.perhaps("p_odd", "probability", "that there is none; t over prompts"),
    c.number("y_odd_scaled", "nats per nat", "y_odd / root of the product of the two KLs"),
    c.number("y_even", "nats", "even interaction"),
    *c.interval("nats", _ENDS, "y_even"),
    c.perhaps("p_even", "probability", "that there is none"),
    c.number("y_even_scaled", "nats per nat", "y_even / root of the product of the two KLs"),
    c.perhaps("second_order", "nats", "y_even by the Hessian of the same prompts: a_i a_j d_i . H d_j"),
    c.perhaps("forecast", "nats", "the same of the select prompts"),
    c.N_PROMPTS,
)  # fmt: skip

JOINT_LAYERS = c.table("joint_layers", 1, "sae_i", "sae_j", "pair")(
    *_PAIR,
    c.perhaps("unexplained_live", "fraction", "1 - R2 of the odd change of logits by the sum of both"),
    c.perhaps(
        "unexplained_frozen", "fraction", "the same with j's coordinate held against what i does to it"
    ),
    c.number("y_live", "nats", "odd interaction of the log-odds of j's tokens, as the model runs"),
    *c.interval("nats", _ENDS, "y_live"),
    c.perhaps("p_live", "probability", "that there is none"),
    c.number("y_frozen", "nats", "the same with the path from i to j's coordinate cut"),
    *c.interval("nats", _ENDS, "y_frozen"),
    c.perhaps("p_frozen", "probability", "that there is none"),
    c.number("first", "nats", "what i does to j's tokens by itself"),
    c.number("first_held", "nats", "the same with j's coordinate held: what does not go through it"),
    c.perhaps("survives", "fraction", "of i's push that is found along it at j's site"),
    c.index("matched", "feature of j's dictionary whose row is nearest to i's"),
    c.number("matched_cosine", "cosine", "of the two"),
    c.number("survives_matched", "fraction", "of i's push that is found along that row"),
    c.N_PROMPTS,
)

JOINT_FINDINGS = c.table("joint_findings", 1, "sae", "name")(
    c.SAE,
    c.text("name", "what was asked: how KL grows with size, where sums fail, hypotheses J1 to J4"),
    c.perhaps("value", "as named", "what was found; null where nothing was"),
    *c.interval("as named", "the 95 % interval, over what n counts"),
    c.count("n", "prompts, pairs or pools", "that enter"),
    c.NOTE,
)

PLANS = c.table("plans", 1, "plan", "arm")(
    c.index("plan", "number of the wish"),
    c.text("arm", "planned | planned, open loop | planned, few | only SITE | best single | equal doses"),
    c.number("forecast_kl", "nats", "to first order, on the select prompts"),
    c.number("kl", "nats", "measured, on the confirm prompts"),
    *c.interval("nats", _ENDS, "kl"),
    c.number("reached", "fraction", "of the wish: measured . wanted / |wanted|^2"),
    c.number("missed", "nats", "root mean square of measured minus wanted, over targets"),
    c.number("protected", "nats", "root mean square change of the protected sets"),
    c.number("reach", "sets", "participation ratio of all features' token sets"),
    c.count("n_pushes", "pushes", "that the arm uses"),
    c.count("n_candidates", "pushes", "that it could use"),
    c.N_PROMPTS,
)

PLAN_DOSES = c.table("plan_doses", 1, "plan", "arm", "sae", "feature")(
    c.index("plan", "number of the wish"),
    c.text("arm", "as in plans"),
    *(c.SAE, c.FEATURE),
    c.text("site", "where it is pushed"),
    c.number("strength", "activation", "length of what is added, signed"),
    c.number("kl", "nats", "of this push alone, to first order"),
)

PLAN_EFFECTS = c.table("plan_effects", 1, "plan", "arm", "role", "target")(
    c.index("plan", "number of the wish"),
    c.text("arm", "as in plans"),
    c.text("role", "wanted | protected"),
    c.index("target", "number of the set"),
    c.text("name", "of the set"),
    Column("tokens", c.STRINGS, "", "its first tokens"),
    c.number("asked", "nats", "change of log-odds; 0 of protected sets"),
    c.number("forecast", "nats", "to first order, on the select prompts"),
    c.number("measured", "nats", "on the confirm prompts"),
    *c.interval("nats", _ENDS),
)
