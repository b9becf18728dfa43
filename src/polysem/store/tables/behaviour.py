"""What becomes of a push in text: tables of `polysem generate`."""

from polysem.store.schema import Column, Schema
from polysem.store.tables.columns import (
    FLOATS,
    I64,
    INTS,
    NOTE,
    RELATION,
    SAE,
    STRINGS,
    TARGET,
    count,
    index,
    number,
    text,
)


def _perhaps(name: str, unit: str, meaning: str) -> Column:
    return number(name, unit, meaning, nullable=True)


def _told(name: str, unit: str, meaning: str) -> tuple[Column, ...]:
    """A number with its interval over prompts."""
    ends = (
        _perhaps(f"{name}_lo", unit, "95 % interval, jackknife over prompts"),
        _perhaps(f"{name}_hi", unit, "upper end"),
    )
    return (_perhaps(name, unit, meaning), *ends)


_ARM = index("arm", "number of the arm; -1: texts without a push")
_KL = number(
    "dose", "nats", "KL of the next-token distribution that each push was brought to, on every prompt"
)

TEXT_ARMS = Schema(
    "text_arms",
    1,
    ("arm",),
    (
        _ARM,
        SAE,
        RELATION,
        TARGET,
        index("source", "feature whose decoder row is added"),
        text("source_sae", "dictionary of the source"),
        number("interference", "cosine", "of the decoder rows of source and target"),
        Column("tokens", INTS, "token ids", "of the target, that are counted"),
    ),
)
TEXTS = Schema(
    "texts",
    2,
    ("arm", "prompt_id", "dose", "sign", "draw"),
    (
        _ARM,
        text("prompt_id", "key of prompts"),
        _KL,
        index("sign", "1 along the source, -1 against it, 0 no push"),
        index("draw", "which continuation of the prompt; texts of one prompt and draw share their chance"),
        Column("tokens", INTS, "token ids", "drawn behind the prompt"),
        text("text", "the same as text"),
        Column("pieces", STRINGS, "", "each of `tokens` alone as text"),
        count("edited", "positions", "at which the push ran: counted, not assumed"),
        Column("same", I64, "tokens", "before the first that differs from the text without a push", True),
        Column("on_target", I64, "tokens", "that are the target's; null without a push", True),
        _perhaps(
            "hits",
            "fraction",
            "positions at which the target fires when the model without a push reads the text",
        ),
        Column(
            "acts",
            FLOATS,
            "activation",
            "of the target at each of `tokens`, read so; null without a push: those texts are in text_firing",
            True,
        ),
        number("nats", "nats per token", "cross-entropy of the text under the model without a push"),
        number("distinct_2", "fraction", "of its pairs of neighbouring tokens, distinct ones"),
        number("repeated_4", "fraction", "of its runs of four tokens, those that came before"),
    ),
)
TEXT_FIRING = Schema(
    "text_firing",
    1,
    ("prompt_id", "draw", "target"),
    (
        text("prompt_id", "key of prompts"),
        index("draw", "which continuation of the prompt"),
        TARGET,
        Column("acts", FLOATS, "activation", "of the target at each token of the text without a push"),
    ),
    late=True,
)
TEXT_EFFECTS = Schema(
    "text_effects",
    1,
    ("arm", "dose"),
    (
        _ARM,
        _KL,
        number("strength", "activation", "length of what was added, mean over prompts"),
        *_told("next", "nats", "odd change of the log-odds of the target's tokens, next token"),
        *_told(
            "horizon", "nats", "the same at every token of the text without a push, mean; the push kept on"
        ),
        _perhaps(
            "decay",
            "per token",
            "factor by which it falls from token to token when only the prompt is pushed",
        ),
        *_told(
            "log_rate",
            "nats",
            "half the log ratio of the rates of the target's tokens in texts along and against the source",
        ),
        _perhaps("rate", "per 100 tokens", "target's tokens in texts without a push"),
        _perhaps("rate_up", "per 100 tokens", "along the source"),
        _perhaps("rate_down", "per 100 tokens", "against it"),
        *_told("hits", "fraction", "half the difference of hits along and against the source"),
        _perhaps("hits_base", "fraction", "hits of texts without a push"),
        *_told(
            "nats",
            "nats per token",
            "change of the texts' cross-entropy under the model without a push, mean of both ways",
        ),
        *_told(
            "spent",
            "nats per token",
            "sequence KL: what the push takes from the log-probability of texts without it, mean of both ways",
        ),
        _perhaps("distinct_2", "fraction", "change, mean of both ways"),
        _perhaps("repeated_4", "fraction", "change, mean of both ways"),
        _perhaps(
            "same",
            "tokens",
            "before the first that differs, mean of both ways; the whole text where none does",
        ),
        count("n_prompts", "prompts", "on which the dose was reached both ways"),
        count("n_texts", "texts", "with a push"),
    ),
)
TEXT_HORIZON = Schema(
    "text_horizon",
    1,
    ("arm", "dose", "scope", "step"),
    (
        _ARM,
        _KL,
        text("scope", "prompt: the push ends with the prompt; both: it is kept on"),
        index("step", "which token behind the prompt, from 0"),
        number(
            "effect",
            "nats",
            "odd change of the target's log-odds there, on texts without a push; mean over prompts",
        ),
    ),
)
TEXT_BRIDGE = Schema(
    "text_bridge",
    1,
    ("dose", "outcome", "term"),
    (
        _KL,
        text("outcome", "of texts: log_rate | hits | horizon | nats"),
        text("term", "next | interference (beside next) | spent | next beside spent"),
        _perhaps("estimate", "as outcome / term", "slope over arms, the target's own direction left out"),
        _perhaps("se", "as outcome / term", "clustered by target and source, jackknife"),
        _perhaps("lo", "as outcome / term", "95 % interval"),
        _perhaps("hi", "as outcome / term", "upper end"),
        _perhaps("p", "probability", "of a slope of 0"),
        _perhaps("mde", "as outcome / term", "slope that would be found with 80 % power"),
        _perhaps("reach", "unit of term", "95th percentile of its size over arms"),
        _perhaps("margin", "as outcome", "slope x reach within it makes no difference"),
        _perhaps("p_equivalent", "probability", "that it lies outside the margin: two one-sided tests"),
        _perhaps("r2", "fraction", "held out by target, of the model up to and with this term"),
        count("n", "arms", "that enter"),
        count("n_targets", "features", "targets that enter"),
        NOTE,
    ),
)
TEXT_TASKS = Schema(
    "text_tasks",
    1,
    ("arm", "dose", "sign"),
    (
        _ARM,
        _KL,
        index("sign", "1 along the source, -1 against it, 0 no push"),
        number("right", "fraction", "items whose answer has the highest mean log-probability per token"),
        _perhaps("change", "fraction", "against no push, the same items"),
        _perhaps("change_lo", "fraction", "95 % interval, jackknife over items"),
        _perhaps("change_hi", "fraction", "upper end"),
        _perhaps("gap", "nats per token", "change of answer minus best other ending"),
        count("n", "items", "that were asked"),
    ),
)
BEHAVIOUR = (TEXT_ARMS, TEXTS, TEXT_FIRING, TEXT_EFFECTS, TEXT_HORIZON, TEXT_BRIDGE, TEXT_TASKS)
