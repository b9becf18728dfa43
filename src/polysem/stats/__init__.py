"""Effects with intervals: from plan and trials to the tables of the report. Imports neither torch nor
transformers."""

from polysem.stats.effects import HYPOTHESES, Effects, estimate
from polysem.stats.rows import POOLED, parse_group

__all__ = ["HYPOTHESES", "POOLED", "Effects", "estimate", "parse_group"]
