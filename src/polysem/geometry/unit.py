"""Length, without torch: the statistics import this."""

import numpy as np
from jaxtyping import Float


def unit_rows(rows: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
    """Rows at norm 1; rows of zeros stay."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)
