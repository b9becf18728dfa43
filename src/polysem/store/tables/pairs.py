"""The map of all pairs of features, of one dictionary or of two."""

from polysem.store.schema import Column
from polysem.store.tables import columns as c

PAIRS = c.table("pairs", 2, "sae", "sae_j", "i", "j")(
    *(c.SAE, c.SAE_J),
    c.index("i", "first feature: row of W_dec of `sae`; i < j within one dictionary"),
    c.index("j", "second feature: row of W_dec of `sae_j`"),
    c.number("interference", "cosine", "d_i . d_j of unit decoder rows, signed"),
    c.number(
        "interference_demeaned",
        "cosine",
        "the same after the mean unit decoder row of each dictionary is removed",
    ),
    c.number("row_mean_i", "cosine", "mean over features k of `sae_j` of d_i . d_k (k != i)"),
    c.number("row_mean_j", "cosine", "mean over features k of `sae` of d_j . d_k (k != j)"),
    c.number("enc_dec_ij", "cosine", "unit encoder i . unit decoder j: what i reads when j is written"),
    c.number("enc_dec_ji", "cosine", "unit encoder j . unit decoder i"),
    c.perhaps("similarity", "cosine", "cosine of gloss embeddings"),
    c.small("interference_bin", "index of the interference bin; -1 outside all bins"),
    c.number("z_isotropic", "sd", "interference x sqrt(d_in)"),
    c.number("p_isotropic", "probability", "exact two-sided chance of |cosine| for random unit vectors"),
    c.number("z_covariance", "sd", "interference in SDs of the covariance null of the two dictionaries"),
    c.number(
        "p_covariance",
        "probability",
        "two-sided chance of Gaussian vectors with the decoders' means and covariances",
    ),
    c.number("q_covariance", "probability", "Benjamini-Hochberg over all pairs of the two dictionaries"),
    c.perhaps("token_overlap", "Jaccard", "overlap of the two sets tokens_in"),
    c.perhaps("context_overlap", "Jaccard", "overlap of the positions of the top contexts"),
    c.flag("is_duplicate", "likely one concept twice: |interference| > 0.7 or token_overlap > 0.2"),
    c.flag("is_dense", "either feature fires on more than 10 % or less than 1e-6 of tokens"),
)

NEAR = c.table("near", 1, "sae", "vector", "feature", late=True)(
    c.SAE,
    c.text("vector", "name of a steering vector of one's own"),
    c.FEATURE,
    c.number(
        "interference",
        "cosine",
        "of the vector with the unit decoder row, at least the study's threshold in size",
    ),
    c.number("z_isotropic", "sd", "interference x sqrt(d_in)"),
    c.number("p_isotropic", "probability", "exact two-sided chance of |cosine| for a random direction"),
    c.text("gloss", "primary gloss of the feature", nullable=True),
)

DENSITY = c.table("density", 2, "sae", "sae_j", "interference_lo", "similarity_lo")(
    *(c.SAE, c.SAE_J),
    c.number("interference_lo", "cosine", "lower edge of the cell (inclusive)"),
    c.number("interference_hi", "cosine", "upper edge"),
    c.number("similarity_lo", "cosine", "lower edge (inclusive)"),
    c.number("similarity_hi", "cosine", "upper edge"),
    c.count("count", "pairs", "pairs in the cell; all pairs of glossed features are counted"),
)

SPECTRUM = c.table("spectrum", 3, "sae", "sae_j", "threshold")(
    *(c.SAE, c.SAE_J),
    c.number("threshold", "cosine", "pairs with interference above it are counted (below, if negative)"),
    c.count("n_pairs", "pairs", "observed"),
    c.number("n_isotropic", "pairs", "expected for random unit vectors in d_in dimensions"),
    c.number(
        "n_covariance",
        "pairs",
        "expected of Gaussian vectors with the means and covariances of the two dictionaries' unit rows, simulated",
    ),
    c.number("n_covariance_se", "pairs", "Monte-Carlo standard error of n_covariance"),
    Column("d_in", c.I32, "dimensions", "width of what is written"),
    c.number(
        "d_eff",
        "dimensions",
        "1 / tr C C' of the unit decoders' covariances about zero; (tr C)^2 / tr C^2 of one",
    ),
    c.number(
        "mean_norm",
        "cosine",
        "norm of the mean unit decoder row, the shared mean direction; of two the root of |m . m'|",
    ),
)

PARTNERS = c.table("partners", 2, "sae", "sae_j", "feature", "max_similarity", "interference_bin")(
    c.SAE,
    c.text("sae_j", "label of the dictionary that the partners are of"),
    c.FEATURE,
    c.number("max_similarity", "cosine", "partners have gloss similarity below this"),
    c.small("interference_bin", "index of the interference bin"),
    c.count("count", "features", "how many partners, exact, over all pairs"),
)
