"""The map of all pairs of features, of one dictionary or of two."""

from polysem.store.schema import Column, Schema
from polysem.store.tables.columns import BOOL, F64, FEATURE, I8, I32, I64, SAE, SAE_J, STRING

PAIRS = Schema(
    "pairs",
    2,
    ("sae", "sae_j", "i", "j"),
    (
        SAE,
        SAE_J,
        Column("i", I32, "", "first feature: row of W_dec of `sae`; i < j within one dictionary"),
        Column("j", I32, "", "second feature: row of W_dec of `sae_j`"),
        Column("interference", F64, "cosine", "d_i . d_j of unit decoder rows, signed"),
        Column(
            "interference_demeaned",
            F64,
            "cosine",
            "the same after the mean unit decoder row of each dictionary is removed",
        ),
        Column("row_mean_i", F64, "cosine", "mean over features k of `sae_j` of d_i . d_k (k != i)"),
        Column("row_mean_j", F64, "cosine", "mean over features k of `sae` of d_j . d_k (k != j)"),
        Column(
            "enc_dec_ij", F64, "cosine", "unit encoder i . unit decoder j: what i reads when j is written"
        ),
        Column("enc_dec_ji", F64, "cosine", "unit encoder j . unit decoder i"),
        Column("similarity", F64, "cosine", "cosine of gloss embeddings", nullable=True),
        Column("interference_bin", I8, "", "index of the interference bin; -1 outside all bins"),
        Column("z_isotropic", F64, "sd", "interference x sqrt(d_in)"),
        Column(
            "p_isotropic", F64, "probability", "exact two-sided chance of |cosine| for random unit vectors"
        ),
        Column(
            "z_covariance", F64, "sd", "interference in SDs of the covariance null of the two dictionaries"
        ),
        Column(
            "p_covariance",
            F64,
            "probability",
            "two-sided chance of Gaussian vectors with the decoders' means and covariances",
        ),
        Column(
            "q_covariance", F64, "probability", "Benjamini-Hochberg over all pairs of the two dictionaries"
        ),
        Column("token_overlap", F64, "Jaccard", "overlap of the two sets tokens_in", nullable=True),
        Column(
            "context_overlap", F64, "Jaccard", "overlap of the positions of the top contexts", nullable=True
        ),
        Column(
            "is_duplicate", BOOL, "", "likely one concept twice: |interference| > 0.7 or token_overlap > 0.2"
        ),
        Column("is_dense", BOOL, "", "either feature fires on more than 10 % or less than 1e-6 of tokens"),
    ),
)

NEAR = Schema(
    "near",
    1,
    ("sae", "vector", "feature"),
    (
        SAE,
        Column("vector", STRING, "", "name of a steering vector of one's own"),
        FEATURE,
        Column(
            "interference",
            F64,
            "cosine",
            "of the vector with the unit decoder row, at least the study's threshold in size",
        ),
        Column("z_isotropic", F64, "sd", "interference x sqrt(d_in)"),
        Column(
            "p_isotropic", F64, "probability", "exact two-sided chance of |cosine| for a random direction"
        ),
        Column("gloss", STRING, "", "primary gloss of the feature", nullable=True),
    ),
    late=True,
)

DENSITY = Schema(
    "density",
    2,
    ("sae", "sae_j", "interference_lo", "similarity_lo"),
    (
        SAE,
        SAE_J,
        Column("interference_lo", F64, "cosine", "lower edge of the cell (inclusive)"),
        Column("interference_hi", F64, "cosine", "upper edge"),
        Column("similarity_lo", F64, "cosine", "lower edge (inclusive)"),
        Column("similarity_hi", F64, "cosine", "upper edge"),
        Column("count", I64, "pairs", "pairs in the cell; all pairs of glossed features are counted"),
    ),
)

SPECTRUM = Schema(
    "spectrum",
    3,
    ("sae", "sae_j", "threshold"),
    (
        SAE,
        SAE_J,
        Column(
            "threshold", F64, "cosine", "pairs with interference above it are counted (below, if negative)"
        ),
        Column("n_pairs", I64, "pairs", "observed"),
        Column("n_isotropic", F64, "pairs", "expected for random unit vectors in d_in dimensions"),
        Column(
            "n_covariance",
            F64,
            "pairs",
            "expected of Gaussian vectors with the means and covariances of the two dictionaries' unit rows, simulated",
        ),
        Column("n_covariance_se", F64, "pairs", "Monte-Carlo standard error of n_covariance"),
        Column("d_in", I32, "dimensions", "width of what is written"),
        Column(
            "d_eff",
            F64,
            "dimensions",
            "1 / tr C C' of the unit decoders' covariances about zero; (tr C)^2 / tr C^2 of one",
        ),
        Column(
            "mean_norm",
            F64,
            "cosine",
            "norm of the mean unit decoder row, the shared mean direction; of two the root of |m . m'|",
        ),
    ),
)

PARTNERS = Schema(
    "partners",
    2,
    ("sae", "sae_j", "feature", "max_similarity", "interference_bin"),
    (
        SAE,
        Column("sae_j", STRING, "", "label of the dictionary that the partners are of"),
        FEATURE,
        Column("max_similarity", F64, "cosine", "partners have gloss similarity below this"),
        Column("interference_bin", I8, "", "index of the interference bin"),
        Column("count", I64, "features", "how many partners, exact, over all pairs"),
    ),
)
