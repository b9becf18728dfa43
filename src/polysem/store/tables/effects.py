"""Effects, and what their tests and presets say."""

from polysem.store.schema import Column
from polysem.store.tables import columns as c
from polysem.vocabulary import OUTCOMES, Outcome

EFFECTS = c.table("effects", 2, "contrast", "group")(
    c.text("contrast", "what is estimated"),
    c.text("group", "for which model, site, metric or dose"),
    *c.ESTIMATE,
    c.LEVEL,
    c.text("method", "estimator and standard errors"),
    c.count("n_trials", "trials", "trials that enter, both signs"),
    *(c.N_PAIRS, c.N_TARGETS, c.N_SOURCES, c.N_PROMPTS),
    c.count("n_missing", "trials", "planned trials of the contrast without an ok row"),
    c.perhaps("p", "probability", "two-sided"),
    c.perhaps("p_adj", "probability", "Holm over declared hypotheses; null where not declared"),
    c.perhaps(
        "p_equivalent",
        "probability",
        "of the claim that the effect is within the declared margin (TOST); null where no margin is declared",
    ),
    *(c.UNIT, c.NOTE),
)

PRIMARY = next(iter(OUTCOMES.values()))


def _effect(outcome: Outcome) -> list[Column]:
    """Mean odd change of an outcome; of the primary one with its standard error."""
    mean = f"mean over confirm prompts of the odd change in the {outcome.label} of T"
    column = c.number(outcome.name, outcome.unit, mean, nullable=not outcome.read)
    if outcome is not PRIMARY:
        return [column]
    error = "its standard error over prompts"
    return [column, c.perhaps(f"{outcome.name}_se", outcome.unit, error)]


PAIR_EFFECTS = c.table(
    "pair_effects", 2, "sae", "locus", "relation", "target", "source", "draw", "token_set", "dose"
)(
    *(c.SAE, c.LOCUS, c.RELATION, c.TARGET),
    c.index("source", "-1 for a random direction"),
    *(c.DRAW, c.TOKENS),
    c.number("dose", "dose_unit", "absolute value; effects are odd parts over +dose and -dose"),
    c.small("interference_bin", "as in plan"),
    c.perhaps("interference", "cosine", "as in plan; realised alignment where the plan knows none"),
    c.perhaps("similarity", "cosine", "as in plan"),
    *(column for outcome in OUTCOMES.values() for column in _effect(outcome)),
    c.number("kl", "nats", "mean KL over both signs"),
    c.perhaps(
        "push", "resid_norm", "mean norm of the push over both signs, over that of the site's activations"
    ),
    c.N_PROMPTS,
)

VECTOR_EFFECTS = c.table("vector_effects", 1, "sae", "vector", "target", "token_set", "dose", late=True)(
    c.SAE,
    c.text("vector", "name of a steering vector of one's own"),
    *(c.TARGET, c.TOKENS),
    c.number("dose", "dose_unit", "absolute value; effects are odd parts over +dose and -dose"),
    c.perhaps("interference", "cosine", "of the vector with the target's direction"),
    *(column for outcome in OUTCOMES.values() for column in _effect(outcome)),
    c.number("kl", "nats", "mean KL over both signs"),
    c.N_PROMPTS,
)

TOWARD = c.table("toward", 1, "sae", "locus", "push", "dose", "category")(
    *(c.SAE, c.LOCUS),
    c.text("push", "hash of what is pushed: the recipe of the plan"),
    c.text("relation", "as in plan; of several the first in the vocabulary, whatever the target"),
    c.index("source", "feature (or neuron) that is pushed; -1 for a random direction"),
    c.number("dose", "dose_unit", "absolute value; effects are odd parts over +dose and -dose"),
    c.text("category", "whose words are read"),
    c.number("effect", "nats", "mean over confirm prompts of the odd change in its log-odds"),
    c.perhaps("effect_se", "nats", "its standard error over prompts"),
    c.perhaps("select", "nats", "the same over the select prompts, to choose by"),
    c.perhaps("select_se", "nats", "its standard error over prompts"),
    c.number("kl", "nats", "mean KL over both signs, confirm prompts"),
    c.N_PROMPTS,
    c.count("n_select", "prompts", "select prompts that enter"),
)

BUDGETS = c.table("budgets", 1, "locus", "token_set", "budget")(
    *(c.LOCUS, c.TOKENS),
    c.text("budget", "nats (effects at one KL) | norm (effects of one unit of norm)"),
    c.text("reference", "locus that is compared with, on the same pairs"),
    c.number("at", "nats or resid_norm", "the budget: nats of KL, or 1 mean norm of the site's activations"),
    c.perhaps("size", "nats", "root mean square effect at the budget, without the noise of prompts"),
    c.perhaps("reference_size", "nats", "that of the reference"),
    c.perhaps("ratio", "", "size over reference_size"),
    *c.interval("", "its interval, bootstrap over targets"),
    c.perhaps("mean", "nats", "mean effect at the budget, with its sign"),
    c.perhaps("reference_mean", "nats", "that of the reference"),
    c.perhaps(
        "spent", "nats or resid_norm", "median of what the trials spent, where effects are scaled from"
    ),
    c.LEVEL,
    *(c.N_PAIRS, c.N_TARGETS, c.NOTE),
)

DOSE_RESPONSE = c.table(
    "dose_response", 1, "sae", "locus", "relation", "interference_bin", "token_set", "dose"
)(
    *(c.ANY_SAE, c.LOCUS, c.RELATION),
    c.small("interference_bin", "as in plan; -1 for controls"),
    c.TOKENS,
    c.number("dose", "dose_unit", "signed"),
    c.perhaps(PRIMARY.name, PRIMARY.unit, f"mean change in the {PRIMARY.label} of T"),
    *c.interval("nats", "the 95 % interval over targets"),
    c.perhaps("kl", "nats", "mean KL"),
    c.count("n_trials", "trials", "trials that enter, both signs"),
    c.N_TARGETS,
)

MISSING = c.table("missing", 1, "locus", "relation", "status", "reason")(
    *(c.LOCUS, c.RELATION),
    c.text("status", "ok | skipped | failed | absent"),
    c.text("reason", "'' for ok"),
    c.count("n_trials", "trials", "how many planned trials ended so"),
)

NEURON_EFFECTS = c.table("neuron_effects", 1, "sae", "locus", "basis", "neuron", "operation")(
    *(c.SAE, c.LOCUS),
    c.index("basis", "0: the model's own neurons; 1: directions of a basis rotated at random"),
    c.index("neuron", "number of the neuron, or of the rotated basis's direction"),
    c.text("operation", "mask (set to 0) | ablate (set to its mean) | amplify (doubled)"),
    c.index("target", "feature that writes most along it, whose tokens are read"),
    c.count("degree", "clusters", "gloss clusters of the features that it is tied to"),
    c.small("degree_bin", "bin of the degree, as in the paper from 1; 0: tied to nothing"),
    c.flag("super", "degree above 500"),
    c.flag(
        "super_scale_free",
        "degree above the largest of any rotated basis; null where none was drawn",
        nullable=True,
    ),
    c.number("variance", "activation^2", "of its activation on the study's prompts"),
    c.number("write_norm", "activation", "length of what one unit of it adds to the site"),
    c.number("kl", "nats", "mean KL over confirm prompts"),
    c.number(
        "tied",
        "nats",
        "mean change in the log-odds of the target's tokens, the way that the operation should move them",
    ),
    c.N_PROMPTS,
)

NEURON_SLOPES = c.table("neuron_slopes", 1, "locus", "operation", "outcome", "term")(
    *(c.LOCUS, c.text("operation", "as in neuron_effects")),
    c.text("outcome", "kl: log10 of the mean KL | tied: as in neuron_effects"),
    c.text("term", "what is estimated: see stats/neurons.py"),
    *c.ESTIMATE,
    c.perhaps("p", "probability", "two-sided, not adjusted"),
    c.LEVEL,
    c.count("n_neurons", "neurons", "neurons that enter"),
    c.count("n_missing", "neurons", "neurons of the operation without such an outcome"),
    c.N_PROMPTS,
    *(c.UNIT, c.NOTE),
)

PRESETS = c.table("presets", 2, "locus", "token_set", "question", "relation", "path", "step")(
    *(c.LOCUS, c.TOKENS),
    c.text(
        "question",
        "slope_b | slope_a | mean | difference; see paper/presets.py; rise | drop; see paper/degree.py",
    ),
    c.text("relation", "as in plan: whose effects are asked about"),
    c.text(
        "path",
        "walk (changes add up) | alone (one change) | optimism | degree | degree_held_out (factor chosen on other prompts)",
    ),
    c.index(
        "step",
        "place on the path; a walk goes from 0, the paper's, to the strict one; of degree the bin, 0 the slope over bins",
    ),
    c.text("choice", "paper, or what was changed in this step; of optimism: what is averaged"),
    c.text("outcome", "after (c itself) | relative (change of c over c before) | an outcome of trials"),
    c.perhaps("estimate", "unit", "point estimate"),
    c.perhaps("se", "unit", "its standard error"),
    *c.interval("unit"),
    c.LEVEL,
    c.perhaps("p", "probability", "two-sided, not adjusted"),
    c.UNIT,
    c.text("method", "estimator, and what counts as independent"),
    c.count("n_rows", "rows", "trials, or pairs where errors are clustered"),
    c.count("n_pairs", "arms", "pairs and controls that enter"),
    c.N_TARGETS,
    c.count("n_doses", "strengths", "signed strengths among which the paper's way chooses"),
    c.NOTE,
)

RELIABILITY = c.table("reliability", 2, "locus", "token_set", "measure")(
    *(c.LOCUS, c.TOKENS),
    c.text(
        "measure", "the second measure: as in similarities, second gloss, or one factor (all others together)"
    ),
    c.perhaps("r", "", "correlation of the two measures: reliability of either"),
    *c.interval("", stem="r"),
    c.perhaps("naive", "unit", "coefficient of interference, the first measure as control"),
    c.perhaps("corrected", "unit", "... the first measure instrumented by the second"),
    *c.interval("unit"),
    c.perhaps("p", "probability", "two-sided, not adjusted"),
    c.perhaps("similarity", "unit", "corrected coefficient of similarity"),
    c.perhaps("first_stage_f", "", "F of the instrument; below 10 it is weak"),
    c.LEVEL,
    c.text("unit", "unit of the coefficients"),
    *(c.N_PAIRS, c.NOTE),
)

SIMILARITY_MODEL = c.table("similarity_model", 1, "measure")(
    c.text("measure", "as in similarities; one factor: what all have in common"),
    c.text("made_by", "model, database and package"),
    c.count("n_pairs", "pairs", "drawn at random and known to the measure"),
    c.perhaps("r_own", "", "correlation with the study's own gloss similarity"),
    c.text("split", "what its halves are: glosses | halves | ''"),
    c.perhaps("r_halves", "", "correlation of the two halves"),
    c.perhaps("reliability_halves", "", "of the whole, from its halves (Spearman and Brown)"),
    c.perhaps("loading", "", "on what the measures have in common"),
    *c.interval(""),
    c.perhaps("reliability", "", "loading squared; of the one factor, of its score"),
    c.LEVEL,
    c.count("n_planned", "pairs", "planned and known to the measure"),
    c.count("n_related", "pairs", "of these, found related"),
    c.NOTE,
)

LATENT_SIMILARITY = c.table("latent_similarity", 1, "sae", "target", "source")(
    *c.PAIR,
    c.perhaps("latent", "standard deviations of random pairs", "score on the one factor; null if not known"),
    c.count("n_known", "measures", "that know the pair"),
    c.count("n_related", "measures", "that find it related"),
    c.text("related_by", "which they are"),
    c.flag("unrelated_by_all", "counter-intuitive in strict: no measure that knows it finds it related"),
    c.flag("unrelated_by_any", "at least one measure finds it unrelated"),
)
