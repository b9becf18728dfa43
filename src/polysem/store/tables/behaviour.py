"""What becomes of a push in text: tables of `polysem generate`."""

from polysem.store.schema import Column
from polysem.store.tables import columns as c


def _told(name: str, unit: str, meaning: str) -> tuple[Column, ...]:
    """A number with its interval over prompts."""
    return (
        c.perhaps(name, unit, meaning),
        *c.interval(unit, "the 95 % interval, jackknife over prompts", name),
    )


_ARM = c.index("arm", "number of the arm; -1: texts without a push")
_KL = c.number(
    "dose", "nats", "KL of the next-token distribution that each push was brought to, on every prompt"
)

TEXT_ARMS = c.table("text_arms", 1, "arm")(
    *(_ARM, c.SAE, c.RELATION, c.TARGET),
    c.index("source", "feature whose decoder row is added"),
    c.text("source_sae", "dictionary of the source"),
    c.number("interference", "cosine", "of the decoder rows of source and target"),
    Column("tokens", c.INTS, "token ids", "of the target, that are counted"),
)
TEXTS = c.table("texts", 2, "arm", "prompt_id", "dose", "sign", "draw")(
    _ARM,
    c.text("prompt_id", "key of prompts"),
    _KL,
    c.index("sign", "1 along the source, -1 against it, 0 no push"),
    c.index("draw", "which continuation of the prompt; texts of one prompt and draw share their chance"),
    Column("tokens", c.INTS, "token ids", "drawn behind the prompt"),
    c.text("text", "the same as text"),
    Column("pieces", c.STRINGS, "", "each of `tokens` alone as text"),
    c.count("edited", "positions", "at which the push ran: counted, not assumed"),
    c.count("same", "tokens", "before the first that differs from the text without a push", nullable=True),
    c.count("on_target", "tokens", "that are the target's; null without a push", nullable=True),
    c.perhaps(
        "hits", "fraction", "positions at which the target fires when the model without a push reads the text"
    ),
    Column(
        "acts",
        c.FLOATS,
        "activation",
        "of the target at each of `tokens`, read so; null without a push: those texts are in text_firing",
        nullable=True,
    ),
    c.number("nats", "nats per token", "cross-entropy of the text under the model without a push"),
    c.number("distinct_2", "fraction", "of its pairs of neighbouring tokens, distinct ones"),
    c.number("repeated_4", "fraction", "of its runs of four tokens, those that came before"),
)
TEXT_FIRING = c.table("text_firing", 1, "prompt_id", "draw", "target", late=True)(
    c.text("prompt_id", "key of prompts"),
    c.index("draw", "which continuation of the prompt"),
    c.TARGET,
    Column("acts", c.FLOATS, "activation", "of the target at each token of the text without a push"),
)
TEXT_EFFECTS = c.table("text_effects", 1, "arm", "dose")(
    *(_ARM, _KL),
    c.number("strength", "activation", "length of what was added, mean over prompts"),
    *_told("next", "nats", "odd change of the log-odds of the target's tokens, next token"),
    *_told("horizon", "nats", "the same at every token of the text without a push, mean; the push kept on"),
    c.perhaps(
        "decay", "per token", "factor by which it falls from token to token when only the prompt is pushed"
    ),
    *_told(
        "log_rate",
        "nats",
        "half the log ratio of the rates of the target's tokens in texts along and against the source",
    ),
    c.perhaps("rate", "per 100 tokens", "target's tokens in texts without a push"),
    c.perhaps("rate_up", "per 100 tokens", "along the source"),
    c.perhaps("rate_down", "per 100 tokens", "against it"),
    *_told("hits", "fraction", "half the difference of hits along and against the source"),
    c.perhaps("hits_base", "fraction", "hits of texts without a push"),
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
    c.perhaps("distinct_2", "fraction", "change, mean of both ways"),
    c.perhaps("repeated_4", "fraction", "change, mean of both ways"),
    c.perhaps(
        "same", "tokens", "before the first that differs, mean of both ways; the whole text where none does"
    ),
    c.count("n_prompts", "prompts", "on which the dose was reached both ways"),
    c.count("n_texts", "texts", "with a push"),
)
TEXT_HORIZON = c.table("text_horizon", 1, "arm", "dose", "scope", "step")(
    *(_ARM, _KL),
    c.text("scope", "prompt: the push ends with the prompt; both: it is kept on"),
    c.index("step", "which token behind the prompt, from 0"),
    c.number(
        "effect",
        "nats",
        "odd change of the target's log-odds there, on texts without a push; mean over prompts",
    ),
)
TEXT_BRIDGE = c.table("text_bridge", 1, "dose", "outcome", "term")(
    _KL,
    c.text("outcome", "of texts: log_rate | hits | horizon | nats"),
    c.text("term", "next | interference (beside next) | spent | next beside spent"),
    c.perhaps("estimate", "as outcome / term", "slope over arms, the target's own direction left out"),
    c.perhaps("se", "as outcome / term", "clustered by target and source, jackknife"),
    *c.interval("as outcome / term", "the 95 % interval"),
    c.perhaps("p", "probability", "of a slope of 0"),
    c.perhaps("mde", "as outcome / term", "slope that would be found with 80 % power"),
    c.perhaps("reach", "unit of term", "95th percentile of its size over arms"),
    c.perhaps("margin", "as outcome", "slope x reach within it makes no difference"),
    c.perhaps("p_equivalent", "probability", "that it lies outside the margin: two one-sided tests"),
    c.perhaps("r2", "fraction", "held out by target, of the model up to and with this term"),
    c.count("n", "arms", "that enter"),
    c.count("n_targets", "features", "targets that enter"),
    c.NOTE,
)
TEXT_TASKS = c.table("text_tasks", 1, "arm", "dose", "sign")(
    *(_ARM, _KL),
    c.index("sign", "1 along the source, -1 against it, 0 no push"),
    c.number("right", "fraction", "items whose answer has the highest mean log-probability per token"),
    c.perhaps("change", "fraction", "against no push, the same items"),
    *c.interval("fraction", "the 95 % interval, jackknife over items", "change"),
    c.perhaps("gap", "nats per token", "change of answer minus best other ending"),
    c.count("n", "items", "that were asked"),
)
