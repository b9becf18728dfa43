"""What the design could see, in words: the smallest effect, and the smallest margin of "no effect"."""

import pyarrow as pa
import pyarrow.compute as pc

from polysem.report.findings import STEP
from polysem.report.text import number

_NAMES = {
    "slope_interference": f"effect of interference {STEP:g} against 0",
    "pair_minus_random_feature": "pairs minus random features",
    "pair_minus_random_direction": "pairs minus random directions",
    "sign_agreement": "agreement of signs beyond one half",
}


def power_rows(table: pa.Table, locus: str) -> list[dict[str, str]]:
    """One row per declared contrast, in the unit in which findings are told."""
    found = []
    for r in table.filter(pc.equal(table["locus"], locus)).to_pylist():
        scale = STEP if r["contrast"] == "slope_interference" else 1.0
        share = r["contrast"] == "sign_agreement"
        seen, absent, margin = (scale * r[k] for k in ("smallest", "smallest_absent", "margin"))
        shown = [f"{100 * v:.0f} points" if share else f"{number(v)} nats" for v in (seen, absent, margin)]
        found.append(
            {
                "what": f"{_NAMES[r['contrast']]}, T-{r['token_set']}",
                "smallest": shown[0],
                "absent": shown[1],
                "margin": shown[2],
                "words": _words(absent <= margin),
            }
        )
    return found


def _words(could_show_absence: bool) -> str:
    if could_show_absence:
        return "could show an effect of this size, and could show that there is none beyond the margin"
    return "could show an effect of this size; too small a study to show that there is none"
