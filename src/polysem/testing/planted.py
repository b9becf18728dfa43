"""The planted study, under the name by which tests know it; it lives in `polysem.worlds.planted`."""

from polysem.worlds.planted import (
    LABEL,
    SIMILARITY,
    TOKENS,
    Planted,
    plain_sae,
    planted_study,
)

__all__ = ["LABEL", "SIMILARITY", "TOKENS", "Planted", "plain_sae", "planted_study"]
