"""The page of `polysem defend`: what each defence finds, and what it costs."""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from polysem.report.parts import interval, page, shown, table
from polysem.store import io
from polysem.store.tables import DEFENCES, PROTECTED
from polysem.transfer.result import DEFENCE

Rows = list[dict[str, Any]]
REBUILD = "polysem defend OUT"


def write_defence_page(out: Path) -> Path:
    """Write `defend.html` into the folder of a transfer study; gives its path. Equal tables give equal bytes.

    Raises:
        StoreError: if nothing was judged, or a table is damaged.
    """
    rows: Rows = io.read_table(out / DEFENCE / "defences.parquet", DEFENCES, rebuild=REBUILD).to_pylist()
    steered: Rows = io.read_table(out / DEFENCE / "protected.parquet", PROTECTED, rebuild=REBUILD).to_pylist()
    path = out / "defend.html"
    body = Markup("").join([_detectors(rows), _protected(steered)])
    io.write_text(path, page("Defences", "What would notice or prevent it, and at what cost?", body))
    return path


def _detectors(rows: Rows) -> Markup:
    head = ("target", "defence", "arm", "category", "AUROC", "found", "false positives", "attacked", "clean")
    body = [
        (
            r["target"], r["defence"], r["arm"], r["category"], interval({**r, "estimate": r["auroc"]}),
            interval(r, "found", "found_lo", "found_hi"), interval(r, "false_positives", "false_lo", "false_hi"),
            r["n_attacked"], r["n_clean"],
        )
        for r in rows
    ]  # fmt: skip
    return Markup(
        "<h2>Noticing</h2><p><em>Filter</em>: cross-entropy of the input. <em>Monitor</em>: what active features write into "
        "others that are not meant, on the largest token. Found: share of attacked inputs above the threshold that flags 1&nbsp;% "
        "of one half of the clean inputs; false positives are counted on the other half. Where a prompt filter finds all, it "
        "removes the effect; prompts of every arm are prefixes of strings, so it is no defence against directions.</p>{}"
    ).format(table(head, body, caption="detectors"))


def _protected(rows: Rows) -> Markup:
    if not rows:
        return Markup("<h2>Protected steering</h2><p>Not measured: no local target has an SAE.</p>")
    head = (
        "target", "towards", "off-target, before", "after", "reduction", "on-target, before", "after", "loss",
        "cost before (nats per token)", "after", "features", "sentences",
    )  # fmt: skip
    body = [
        (
            r["target"], r["category"], shown(r["off_before"]), shown(r["off_after"]), shown(r["reduction"]),
            shown(r["on_before"]), shown(r["on_after"]), shown(r["loss"]), shown(r["cost_before"]), shown(r["cost_after"]),
            r["n_features"], r["n_sentences"],
        )
        for r in rows
    ]  # fmt: skip
    return Markup(
        "<h2>Protected steering</h2><p>Steering towards a category with the gradients of all others projected out of the "
        "direction. Gradients are of one half of the sentences, changes of log-odds (nats) of the other; both directions are "
        "pushed equally hard.</p>{}"
    ).format(table(head, body, caption="protected steering"))
