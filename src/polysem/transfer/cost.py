"""What each transferred intervention costs, at the dose at which it is claimed, in a target of this process.

    prompt               the treated prompts' blocks in front of held-out text, against reference pools' blocks
    feature, gradient    steering along every feature of an arm, at its own mean strength, on all positions but
                         the first

text: change of cross-entropy, nats per token. choices: change of accuracy on multiple-choice questions
(prompts only). Intervals resample texts (or questions); both sides see the same ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from polysem.errors import ConfigError
from polysem.models.base import WhiteBoxModel
from polysem.progress import SILENT, Reporter
from polysem.seeds import rng_for
from polysem.stats.units import sentence_bootstrap
from polysem.targets import LocalTarget
from polysem.transfer.ask import injected
from polysem.transfer.capability import choices_right, continuation_nats, edited_nats, load_items
from polysem.transfer.config import TESTED
from polysem.transfer.directions import COMPARED, REFERENCE, WhiteBox, members_of, strengths
from polysem.transfer.pools import pick
from polysem.transfer.prepare import PreparedTransfer
from polysem.transfer.source import CHUNK_CHARACTERS, held_out_rows

Row = dict[str, object]


def held_out(prepared: PreparedTransfer) -> list[str]:
    """Texts on which nothing was matched.

    Raises:
        ConfigError: a corpus that ends before there are as many.
    """
    study, n = prepared.study, prepared.study.cost.n_texts
    if not n:
        return []
    texts = held_out_rows(study, n_characters=2 * n * CHUNK_CHARACTERS)[:n]
    if len(texts) < n:
        raise ConfigError(
            f"corpus {study.cost.corpus or study.corpus.ref!r} has {len(texts)} texts of {CHUNK_CHARACTERS} characters "
            f"beyond the {study.corpus.n_tokens} tokens on which features are matched, expected cost.n_texts = {n}",
            hint="name another cost.corpus, or lower corpus.n_tokens or cost.n_texts (0 measures no cost)",
        )
    return texts


@dataclass(frozen=True)
class CostMeasure:
    """A number of every item, which an injection changes."""

    name: str
    unit: str
    base: Float[np.ndarray, " items"]
    """without any injection"""
    behind: Callable[[str], Float[np.ndarray, " items"]]
    """the same behind a prefix"""

    def row(
        self, key: Row, ours: np.ndarray, theirs: np.ndarray, *, level: float, rng: np.random.Generator
    ) -> Row:
        """The row of TRANSFER_COST of changes [injections items] under an arm and under its reference, if it has one."""
        known = len(theirs) > 0
        shown = ours.mean(axis=0) - (theirs.mean(axis=0) if known else 0.0)
        share = sentence_bootstrap(shown, level=level, rng=rng)
        return key | {
            "measure": self.name, "unit": self.unit, "base": float(self.base.mean()), "treated": float(ours.mean()),
            "reference": float(theirs.mean()) if known else None, "estimate": share.estimate if known else None,
            "lo": share.lo, "hi": share.hi, "level": level, "n_treated": len(ours), "n_reference": len(theirs),
            "n": len(self.base),
        }  # fmt: skip


def _measures(prepared: PreparedTransfer, model: WhiteBoxModel, texts: Sequence[str]) -> list[CostMeasure]:
    """Cross-entropy of held-out texts and accuracy on questions, where there are any."""

    def nats(prefix: str) -> np.ndarray:
        return np.array([nats / n for nats, n in (continuation_nats(model, prefix, t) for t in texts)])

    found = [CostMeasure("text", "nats per token", nats(""), nats)] if texts else []
    if prepared.study.cost.choices:
        items = load_items(Path(prepared.study.cost.choices))

        def right(prefix: str) -> np.ndarray:
            return choices_right(model, items, prefix=prefix)

        found.append(CostMeasure("choices", "fraction", right(""), right))
    return found


def prompt_cost(
    prepared: PreparedTransfer,
    target: LocalTarget,
    *,
    name: str,
    texts: Sequence[str],
    reporter: Reporter = SILENT,
) -> list[Row]:
    """Rows of TRANSFER_COST for the prompts of every arm and category."""
    study, keys = prepared.study, list(prepared.pools)
    measures = _measures(prepared, target.model, texts)
    found: list[Row] = []
    for category, arm in reporter.track(keys, total=len(keys), label=f"{name} cost") if measures else ():
        blocks = _blocks(prepared, category, arm)
        key: Row = {"target": name, "kind": "prompt", "arm": arm, "category": category}
        for measure in measures:
            ours, theirs = (
                np.array([measure.behind(prefix) - measure.base for prefix in side]).reshape(
                    -1, len(measure.base)
                )
                for side in blocks
            )
            rng = rng_for(study.seed, "cost", name, measure.name, arm, category)
            found.append(measure.row(key, ours, theirs, level=study.test.level, rng=rng))
    return found


def _blocks(prepared: PreparedTransfer, category: str, arm: str) -> tuple[list[str], list[str]]:
    """Injected blocks of the treated pools and of their reference; the first template's."""
    study, pools = prepared.study, prepared.pools[category, arm]
    other = prepared.pools.get((category, "random"))
    reference = pools.reference if arm in TESTED else (other.treated if other and arm == "target" else ())

    def blocks(side: str, numbered: Sequence[Sequence[str]]) -> list[str]:
        found = []
        for k in range(study.cost.n_prefixes if numbered else 0):
            rng = rng_for(study.seed, "cost", side, category, arm, k)
            strings = pick(numbered[k % len(numbered)], study.pools.n_tokens, rng=rng)
            found.append(injected(study.frames.templates[0], strings))
        return found

    return blocks("treated", pools.treated), blocks("reference", reference)


def direction_cost(
    prepared: PreparedTransfer,
    box: WhiteBox,
    steered: pa.Table,
    *,
    texts: Sequence[str],
    reporter: Reporter = SILENT,
) -> list[Row]:
    """Rows of TRANSFER_COST for the directions of every arm and category."""
    if not texts:
        return []
    study, model, site = prepared.study, box.target.model, box.sae.writes
    rows = [box.target.row(text) for text in texts]
    base = np.asarray([edited_nats(model, ids, site, np.zeros((1, box.sae.d_in)))[0] for ids in rows])
    measure = CostMeasure("text", "nats per token", base, lambda _: base)
    found: list[Row] = []
    for directions in box.directions:
        strength = strengths(steered, box, directions.kind)[directions.rows]
        vectors = directions.vectors * np.nan_to_num(strength)[:, None]
        change = np.full((len(box.triples.feature), len(texts)), np.nan)
        label = f"{box.name} cost {directions.kind}"
        for n in reporter.track(range(len(rows)), total=len(rows), label=label):
            change[directions.rows, n] = edited_nats(model, rows[n], site, vectors) - base[n]
        change[directions.rows[np.isnan(strength)]] = np.nan
        known = np.asarray(~np.isnan(change).any(axis=1))
        for category in prepared.categories.names:
            members = {arm: at[known[at]] for arm, at in members_of(prepared, box, category).items()}
            for arm in (*COMPARED, REFERENCE):
                ours = change[members[arm]]
                theirs = change[members[REFERENCE]][: 0 if arm == REFERENCE else None]
                key = {"target": box.name, "kind": directions.kind, "arm": arm, "category": category}
                if len(ours):
                    rng = rng_for(study.seed, "cost", *key.values())
                    found.append(measure.row({**key}, ours, theirs, level=study.test.level, rng=rng))
    return found
