"""What else a source may do to a target's tokens than its angle: the covariates of the regressions of record.

Of every planned (target, source) of features and every token set: direct attribution (what one unit of the source's
direction adds to the logits of the set, above what it adds to all tokens), the share of the set that is among the
source's own tokens, and the source's frequency. Cost: one product of each target's mean unembedding with the sources.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from polysem.act.arms import Arm
from polysem.geometry.rows import as_numpy
from polysem.models.base import WhiteBoxModel
from polysem.plan.index import FeatureIndex
from polysem.store.tables import COVARIATES


def covariates(
    index: FeatureIndex, arms: Sequence[Arm], token_sets: Sequence[str], model: WhiteBoxModel | None
) -> pa.Table:
    """COVARIATES of the arms of one SAE whose source is another feature of it.

    Args:
        index: tokens, directions and densities.
        arms: of the features, controls included.
        token_sets: that the plan reads.
        model: for attribution; unknown without it, and where the SAE does not write into the stream.
    """
    d_sae = index.sae.d_sae
    wanted = {
        (arm.target, arm.source)
        for arm in arms
        if arm.source is not None and arm.source < d_sae and arm.relation != "self" and not arm.dictionary
    }
    reads = model is not None and model.W_U.shape[1] == index.sae.d_out
    W_U = as_numpy(model.W_U) if model is not None and reads else None
    mean = None if W_U is None else W_U.mean(axis=0, dtype=np.float64)
    rows: list[dict[str, object]] = []
    for target, source in sorted(wanted):
        direction = index.sae.W_dec[source].detach().cpu().double().numpy()
        density = float(index.density[source])
        own = index.tokens_in[source] | index.tokens_out[source]
        for name in token_sets:
            read = sorted(index.tokens_of(name)[target])
            row: dict[str, object] = {
                "sae": index.label,
                "target": target,
                "source": source,
                "token_set": name,
            }
            row["attribution"] = row["overlap"] = None
            if read:
                row["overlap"] = len(own & set(read)) / len(read)
            if (
                read
                and W_U is not None
                and mean is not None
                and max(read) < len(W_U)
                and index.norms[source] > 0
            ):
                row["attribution"] = _attribution(W_U, mean, read, direction)
            row["frequency"] = float(np.log10(density)) if density > 0 else None
            rows.append(row)
    return COVARIATES.of(rows)


def _attribution(
    W_U: Float[np.ndarray, "d_vocab d_in"],
    mean: Float[np.ndarray, " d_in"],
    tokens: Sequence[int],
    direction: Float[np.ndarray, " d_in"],
) -> float:
    """Mean logit that the unit direction adds to the tokens, minus that of all."""
    return float(
        (W_U[list(tokens)].mean(axis=0, dtype=np.float64) - mean) @ direction / np.linalg.norm(direction)
    )
