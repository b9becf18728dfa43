"""Several pushes at once: tables of `polysem joint`."""

import pyarrow as pa

from polysem.store.schema import Column, Schema
from polysem.store.tables.columns import (
    FEATURE,
    INTS,
    N_PROMPTS,
    NOTE,
    SAE,
    STRING,
    count,
    index,
    number,
    text,
)


def _perhaps(name: str, unit: str, meaning: str) -> Column:
    return number(name, unit, meaning, nullable=True)


def _interval(unit: str, of: str = "", over: str = "prompts") -> tuple[Column, Column]:
    stem = f"{of}_" if of else ""
    return (
        _perhaps(f"{stem}lo", unit, f"95 % interval, over {over}"),
        _perhaps(f"{stem}hi", unit, "upper end"),
    )


_PART = text(
    "part",
    "odd | even (under turning all pushes round) | whole (the pushes themselves), of the change of centred logits",
)
_PAIR = (
    index("pair", "number of the pair"),
    text("sae_i", "dictionary of i"),
    index("i", "row of W_dec"),
    text("sae_j", "dictionary of j"),
    index("j", "row of W_dec"),
    _perhaps("cosine", "cosine", "of the two decoder rows; null between sites of different width"),
)  # fmt: skip

JOINT_ADDITIVITY = Schema(
    "joint_additivity",
    1,
    ("sae", "pool", "basis", "part", "order"),
    (
        SAE,
        index("pool", "number of the pool, its features drawn at random"),
        text("basis", "learnt (decoder rows) | rotated K (other coordinates of their span, with the same sum)"),
        _PART,
        index("order", "k"),
        Column("features", INTS, "", "of the pool"),
        _perhaps("residual", "fraction", "SAR_k: energy of interactions above order k, of all but the mean"),
        *_interval("fraction"),
        Column("exact", pa.bool_(), "", "all sets of the pool, or sampled ones"),
        count("n_sets", "sets", "that were pushed on each prompt, both ways"),
        N_PROMPTS,
    ),
)  # fmt: skip

JOINT_SIZES = Schema(
    "joint_sizes",
    1,
    ("sae", "size", "part"),
    (
        SAE,
        index("size", "pushes at once, drawn at random, each of the dose alone"),
        _PART,
        _perhaps("unexplained", "fraction", "1 - R2 of the change by the sum of single effects"),
        *_interval("fraction"),
        _perhaps("worst", "fraction", "the largest over sets, each over all prompts"),
        number("kl", "nats", "of all pushes together, mean over both ways"),
        number("coherence", "ratio", "kl / sum of single KLs: 1 where pushes have nothing in common, `size` where they are one"),
        number("kept", "fraction", "of prompts and sets whose most likely token stays"),
        count("n_sets", "sets", "of this size"),
        N_PROMPTS,
    ),
)  # fmt: skip

JOINT_PAIRS = Schema(
    "joint_pairs",
    1,
    ("sae_i", "pair"),
    (
        *_PAIR,
        _perhaps("lift", "ratio", "tokens on which both fire, over chance; null where chance gives less than one"),
        number("odd", "ratio", "length of the odd interaction of logits, to that of the sum of both odd changes"),
        number("even", "ratio", "length of the even interaction to the same"),
        number("y_odd", "nats", "odd interaction of the log-odds of i's tokens: y(ij) - y(i) - y(j)"),
        *_interval("nats", "y_odd"),
        _perhaps("p_odd", "probability", "that there is none; t over prompts"),
        number("y_odd_scaled", "nats per nat", "y_odd / root of the product of the two KLs"),
        number("y_even", "nats", "even interaction"),
        *_interval("nats", "y_even"),
        _perhaps("p_even", "probability", "that there is none"),
        number("y_even_scaled", "nats per nat", "y_even / root of the product of the two KLs"),
        _perhaps("second_order", "nats", "y_even by the Hessian of the same prompts: a_i a_j d_i . H d_j"),
        _perhaps("forecast", "nats", "the same of the select prompts"),
        N_PROMPTS,
    ),
)  # fmt: skip

JOINT_LAYERS = Schema(
    "joint_layers",
    1,
    ("sae_i", "sae_j", "pair"),
    (
        *_PAIR,
        _perhaps("unexplained_live", "fraction", "1 - R2 of the odd change of logits by the sum of both"),
        _perhaps(
            "unexplained_frozen", "fraction", "the same with j's coordinate held against what i does to it"
        ),
        number("y_live", "nats", "odd interaction of the log-odds of j's tokens, as the model runs"),
        *_interval("nats", "y_live"),
        _perhaps("p_live", "probability", "that there is none"),
        number("y_frozen", "nats", "the same with the path from i to j's coordinate cut"),
        *_interval("nats", "y_frozen"),
        _perhaps("p_frozen", "probability", "that there is none"),
        number("first", "nats", "what i does to j's tokens by itself"),
        number("first_held", "nats", "the same with j's coordinate held: what does not go through it"),
        _perhaps("survives", "fraction", "of i's push that is found along it at j's site"),
        index("matched", "feature of j's dictionary whose row is nearest to i's"),
        number("matched_cosine", "cosine", "of the two"),
        number("survives_matched", "fraction", "of i's push that is found along that row"),
        N_PROMPTS,
    ),
)

JOINT_FINDINGS = Schema(
    "joint_findings",
    1,
    ("sae", "name"),
    (
        SAE,
        text("name", "what was asked: how KL grows with size, where sums fail, hypotheses J1 to J4"),
        _perhaps("value", "as named", "what was found; null where nothing was"),
        *_interval("as named", over="what n counts"),
        count("n", "prompts, pairs or pools", "that enter"),
        NOTE,
    ),
)

PLANS = Schema(
    "plans",
    1,
    ("plan", "arm"),
    (
        index("plan", "number of the wish"),
        text("arm", "planned | planned, open loop | planned, few | only SITE | best single | equal doses"),
        number("forecast_kl", "nats", "to first order, on the select prompts"),
        number("kl", "nats", "measured, on the confirm prompts"),
        *_interval("nats", "kl"),
        number("reached", "fraction", "of the wish: measured . wanted / |wanted|^2"),
        number("missed", "nats", "root mean square of measured minus wanted, over targets"),
        number("protected", "nats", "root mean square change of the protected sets"),
        number("reach", "sets", "participation ratio of all features' token sets"),
        count("n_pushes", "pushes", "that the arm uses"),
        count("n_candidates", "pushes", "that it could use"),
        N_PROMPTS,
    ),
)

PLAN_DOSES = Schema(
    "plan_doses",
    1,
    ("plan", "arm", "sae", "feature"),
    (
        index("plan", "number of the wish"),
        text("arm", "as in plans"),
        SAE,
        FEATURE,
        text("site", "where it is pushed"),
        number("strength", "activation", "length of what is added, signed"),
        number("kl", "nats", "of this push alone, to first order"),
    ),
)

PLAN_EFFECTS = Schema(
    "plan_effects",
    1,
    ("plan", "arm", "role", "target"),
    (
        index("plan", "number of the wish"),
        text("arm", "as in plans"),
        text("role", "wanted | protected"),
        index("target", "number of the set"),
        text("name", "of the set"),
        Column("tokens", pa.list_(STRING), "", "its first tokens"),
        number("asked", "nats", "change of log-odds; 0 of protected sets"),
        number("forecast", "nats", "to first order, on the select prompts"),
        number("measured", "nats", "on the confirm prompts"),
        *_interval("nats"),
    ),
)
