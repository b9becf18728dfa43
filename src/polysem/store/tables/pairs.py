"""The map of all pairs of features of an SAE."""

import pyarrow as pa

from polysem.store.schema import Column, Schema
from polysem.store.tables.columns import FEATURE, SAE

PAIRS = Schema(
    "pairs",
    1,
    ("sae", "i", "j"),
    (
        SAE,
        Column("i", pa.int32(), "", "first feature, i < j"),
        Column("j", pa.int32(), "", "second feature"),
        Column("interference", pa.float64(), "cosine", "d_i . d_j of unit decoder rows, signed"),
        Column(
            "interference_demeaned",
            pa.float64(),
            "cosine",
            "the same after the mean unit decoder row is removed",
        ),
        Column("row_mean_i", pa.float64(), "cosine", "mean over k of d_i . d_k (k != i)"),
        Column("row_mean_j", pa.float64(), "cosine", "mean over k of d_j . d_k (k != j)"),
        Column(
            "enc_dec_ij",
            pa.float64(),
            "cosine",
            "unit encoder i . unit decoder j: what i reads when j is written",
        ),
        Column("enc_dec_ji", pa.float64(), "cosine", "unit encoder j . unit decoder i"),
        Column("similarity", pa.float64(), "cosine", "cosine of gloss embeddings", nullable=True),
        Column("interference_bin", pa.int8(), "", "index of the interference bin; -1 outside all bins"),
        Column("z_isotropic", pa.float64(), "sd", "interference x sqrt(d_in)"),
        Column(
            "p_isotropic",
            pa.float64(),
            "probability",
            "exact two-sided chance of |cosine| for random unit vectors",
        ),
        Column("z_covariance", pa.float64(), "sd", "interference in SDs of the SAE's own covariance null"),
        Column(
            "p_covariance",
            pa.float64(),
            "probability",
            "two-sided chance under the covariance null (Beta, d_eff)",
        ),
        Column("q_covariance", pa.float64(), "probability", "Benjamini-Hochberg over all pairs of the SAE"),
        Column("token_overlap", pa.float64(), "Jaccard", "overlap of the two sets tokens_in", nullable=True),
        Column(
            "context_overlap",
            pa.float64(),
            "Jaccard",
            "overlap of the positions of the top contexts",
            nullable=True,
        ),
        Column(
            "is_duplicate",
            pa.bool_(),
            "",
            "likely one concept twice: |interference| > 0.7 or token_overlap > 0.2",
        ),
        Column(
            "is_dense", pa.bool_(), "", "either feature fires on more than 10 % or less than 1e-6 of tokens"
        ),
    ),
)

DENSITY = Schema(
    "density",
    1,
    ("sae", "interference_lo", "similarity_lo"),
    (
        SAE,
        Column("interference_lo", pa.float64(), "cosine", "lower edge of the cell (inclusive)"),
        Column("interference_hi", pa.float64(), "cosine", "upper edge"),
        Column("similarity_lo", pa.float64(), "cosine", "lower edge (inclusive)"),
        Column("similarity_hi", pa.float64(), "cosine", "upper edge"),
        Column(
            "count", pa.int64(), "pairs", "pairs i < j in the cell; all pairs of glossed features are counted"
        ),
    ),
)

SPECTRUM = Schema(
    "spectrum",
    1,
    ("sae", "threshold"),
    (
        SAE,
        Column(
            "threshold",
            pa.float64(),
            "cosine",
            "pairs with interference above it are counted (below, if negative)",
        ),
        Column("n_pairs", pa.int64(), "pairs", "observed"),
        Column("n_isotropic", pa.float64(), "pairs", "expected for random unit vectors in d_in dimensions"),
        Column("n_covariance", pa.float64(), "pairs", "expected under the SAE's own covariance null"),
        Column("d_in", pa.int32(), "dimensions", "width of the site"),
        Column(
            "d_eff",
            pa.float64(),
            "dimensions",
            "(tr C)^2 / tr C^2 of the unit decoder's covariance about zero",
        ),
        Column("mean_norm", pa.float64(), "cosine", "norm of the mean unit decoder row: the common mode"),
    ),
)

PARTNERS = Schema(
    "partners",
    1,
    ("sae", "feature", "max_similarity", "interference_bin"),
    (
        SAE,
        FEATURE,
        Column("max_similarity", pa.float64(), "cosine", "partners have gloss similarity below this"),
        Column("interference_bin", pa.int8(), "", "index of the interference bin"),
        Column("count", pa.int64(), "features", "how many partners, exact, over all pairs"),
    ),
)
