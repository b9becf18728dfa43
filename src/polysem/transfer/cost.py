"""What each transferred intervention costs, at the dose at which it is claimed, in a target of this process.

    prompt               the treated prompts' blocks in front of held-out text, against reference pools' blocks
    feature, gradient    the push of every feature of an arm, at its own mean strength, on all positions but
                         the first

text: change of cross-entropy, nats per token. choices: change of accuracy on multiple-choice questions
(prompts only). Intervals resample texts (or questions); both sides see the same ones.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from polysem.edits import Add
from polysem.errors import ConfigError
from polysem.models.base import WhiteBoxModel
from polysem.progress import SILENT, Reporter
from polysem.seeds import rng_for
from polysem.targets import LocalTarget
from polysem.transfer.capability import Item, choices_right, continuation_nats, load_items
from polysem.transfer.config import TESTED
from polysem.transfer.frames import injected
from polysem.transfer.pools import pick
from polysem.transfer.prepare import CHARACTERS_PER_TOKEN, Prepared
from polysem.transfer.randomisation import sentence_bootstrap
from polysem.transfer.source import CHUNK_CHARACTERS, chunks_of
from polysem.transfer.white import COMPARED, REFERENCE, WhiteBox, members_of
from polysem.types import Site

Row = dict[str, object]
ROWS = 32


def held_out(prepared: Prepared) -> list[str]:
    """Texts on which nothing was matched.

    Raises:
        ConfigError: a corpus that ends before there are as many.
    """
    study, n = prepared.study, prepared.study.cost.n_texts
    if not n:
        return []
    used = 0 if study.cost.corpus else study.corpus.n_tokens * CHARACTERS_PER_TOKEN
    ref = study.cost.corpus or study.corpus.ref
    first = len(chunks_of(ref, n_characters=used)) if used else 0
    texts = chunks_of(ref, n_characters=used + 2 * n * CHUNK_CHARACTERS)[first : first + n]
    if len(texts) < n:
        raise ConfigError(
            f"corpus {ref!r} has {len(texts)} texts of {CHUNK_CHARACTERS} characters beyond the {study.corpus.n_tokens} "
            f"tokens on which features are matched, expected cost.n_texts = {n}",
            hint="name another cost.corpus, or lower corpus.n_tokens or cost.n_texts (0 measures no cost)",
        )
    return texts


def prompt_cost(
    prepared: Prepared, target: LocalTarget, *, name: str, texts: Sequence[str], reporter: Reporter = SILENT
) -> list[Row]:
    """Rows of TRANSFER_COST for the prompts of every arm and category."""
    study = prepared.study
    items = load_items(Path(study.cost.choices)) if study.cost.choices else []
    measures = [_Texts(target.model, texts)] if texts else []
    measures += [_Choices(target.model, items)] if items else []
    found: list[Row] = []
    keys = list(prepared.pools)
    for category, arm in reporter.track(keys, total=len(keys), label=f"{name} cost") if measures else ():
        treated, reference = _blocks(prepared, category, arm)
        for measure in measures:
            ours = np.array([measure.of(prefix) for prefix in treated])
            theirs = np.array([measure.of(prefix) for prefix in reference]).reshape(len(reference), measure.n)
            rng = rng_for(study.seed, "cost", name, measure.name, arm, category)
            key = {"target": name, "kind": "prompt", "arm": arm, "category": category}
            found.append(key | _summary(measure, ours, theirs, level=study.test.level, rng=rng))
    return found


def _blocks(prepared: Prepared, category: str, arm: str) -> tuple[list[str], list[str]]:
    """Injected blocks of the treated pools and of their reference; the first template's."""
    study, pools = prepared.study, prepared.pools[category, arm]
    other = prepared.pools.get((category, "random"))
    reference = pools.reference if arm in TESTED else (other.treated if other and arm == "target" else ())

    def blocks(side: str, numbered: Sequence[Sequence[str]]) -> list[str]:
        n = study.cost.n_prefixes if numbered else 0
        return [
            injected(
                study.frames.templates[0],
                pick(numbered[k % len(numbered)], study.pools.n_tokens, rng=rng_for(study.seed, "cost", side, category, arm, k)),
            )
            for k in range(n)
        ]  # fmt: skip

    return blocks("treated", pools.treated), blocks("reference", reference)


class _Texts:
    """Cross-entropy of held-out texts."""

    name, unit = "text", "nats per token"

    def __init__(self, model: WhiteBoxModel, texts: Sequence[str]):
        self._model, self._texts, self.n = model, texts, len(texts)
        self.base = self._nats("")

    def _nats(self, prefix: str) -> Float[np.ndarray, " texts"]:
        return np.array(
            [nats / n for nats, n in (continuation_nats(self._model, prefix, t) for t in self._texts)]
        )

    def of(self, prefix: str) -> Float[np.ndarray, " texts"]:
        """Change under a prefix."""
        return self._nats(prefix) - self.base


class _Choices:
    """Accuracy on questions."""

    name, unit = "choices", "fraction"

    def __init__(self, model: WhiteBoxModel, items: Sequence[Item]):
        self._model, self._items, self.n = model, items, len(items)
        self.base = choices_right(model, items)

    def of(self, prefix: str) -> Float[np.ndarray, " items"]:
        """Change under a prefix."""
        return choices_right(self._model, self._items, prefix=prefix) - self.base


def _summary(
    measure: _Texts | _Choices,
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    level: float,
    rng: np.random.Generator,
) -> Row:
    shown = ours.mean(axis=0) - (theirs.mean(axis=0) if len(theirs) else 0.0)
    share = sentence_bootstrap(shown, level=level, rng=rng)
    return {
        "measure": measure.name, "unit": measure.unit, "base": float(measure.base.mean()),
        "treated": float(ours.mean()), "reference": float(theirs.mean()) if len(theirs) else None,
        "estimate": share.estimate if len(theirs) else None, "lo": _finite(share.lo), "hi": _finite(share.hi),
        "level": level, "n_treated": len(ours), "n_reference": len(theirs), "n": measure.n,
    }  # fmt: skip


def direction_cost(
    prepared: Prepared, box: WhiteBox, steered: pa.Table, *, texts: Sequence[str], reporter: Reporter = SILENT
) -> list[Row]:
    """Rows of TRANSFER_COST for the directions of every arm and category."""
    if not texts:
        return []
    rows = [box.target.model.tokenize(text, prepend_bos=box.target.prepend_bos) for text in texts]
    base = np.asarray(
        [edited_nats(box.target.model, ids, box.sae.site, np.zeros((1, box.sae.d_in)))[0] for ids in rows]
    )
    found: list[Row] = []
    for directions in box.directions:
        strength = _strengths(steered, box, directions.kind)[directions.rows]
        vectors = directions.vectors * np.nan_to_num(strength)[:, None]
        change = np.full((len(box.triples.feature), len(texts)), np.nan)
        for n in reporter.track(
            range(len(rows)), total=len(rows), label=f"{box.name} cost {directions.kind}"
        ):
            change[directions.rows, n] = (
                edited_nats(box.target.model, rows[n], box.sae.site, vectors) - base[n]
            )
        change[directions.rows[np.isnan(strength)]] = np.nan
        known = np.asarray(np.logical_not(np.isnan(change)).all(axis=1))
        for category in prepared.categories.names:
            members = {arm: at[known[at]] for arm, at in members_of(prepared, box, category).items()}
            for arm in (*COMPARED, REFERENCE):
                ours = change[members[arm]]
                theirs = change[members[REFERENCE]][: 0 if arm == REFERENCE else None]
                if len(ours):
                    key: Row = {"target": box.name, "kind": directions.kind, "arm": arm, "category": category}
                    found.append(key | _of_directions(prepared, base, ours, theirs, key))
    return found


def _of_directions(
    prepared: Prepared, base: np.ndarray, ours: np.ndarray, theirs: np.ndarray, key: Row
) -> Row:
    rng = rng_for(prepared.study.seed, "cost", *(str(v) for v in key.values()))
    level = prepared.study.test.level
    share = sentence_bootstrap(
        ours.mean(axis=0) - (theirs.mean(axis=0) if len(theirs) else 0.0), level=level, rng=rng
    )
    return {
        "measure": "text", "unit": "nats per token", "base": float(base.mean()), "treated": float(ours.mean()),
        "reference": float(theirs.mean()) if len(theirs) else None, "estimate": share.estimate if len(theirs) else None,
        "lo": _finite(share.lo), "hi": _finite(share.hi), "level": level, "n_treated": len(ours),
        "n_reference": len(theirs), "n": len(base),
    }  # fmt: skip


def _strengths(steered: pa.Table, box: WhiteBox, kind: str) -> Float[np.ndarray, " triples"]:
    """Mean strength of each triple's push over the sentences that took the dose; NaN without any."""
    import pyarrow.compute as pc

    part = steered.filter(pc.and_(pc.equal(steered["kind"], kind), steered["reached"]))
    index = {int(f): n for n, f in enumerate(box.triples.feature.tolist())}
    total, count = np.zeros(len(index)), np.zeros(len(index))
    at = np.array([index[f] for f in part["feature"].to_pylist()], dtype=np.int64)
    np.add.at(total, at, part["strength"].to_numpy())
    np.add.at(count, at, 1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def edited_nats(
    model: WhiteBoxModel, ids: Sequence[int], site: Site, vectors: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, " n"]:
    """Cross-entropy of a text in nats per token, BOS or first token given, under each vector added at all
    positions but the first.

    Raises:
        ConfigError: a text of fewer than two tokens, or longer than the context.
    """
    import torch

    if not 2 <= len(ids) <= model.spec.n_ctx:
        raise ConfigError(f"a text of {len(ids)} tokens; expected 2 to {model.spec.n_ctx}")
    tokens = torch.tensor([list(ids)], device=model.spec.device)
    mask = torch.ones(len(ids), dtype=torch.bool, device=model.spec.device)
    mask[0] = False
    found = []
    for start in range(0, len(vectors), ROWS):
        part = torch.tensor(vectors[start : start + ROWS], dtype=torch.float32, device=model.spec.device)
        n = len(part)
        edit = Add(site, part, mask.expand(n, -1))
        logprobs = model.logits(tokens.expand(n, -1), [edit])[:, :-1].double().log_softmax(-1)
        own = tokens[:, 1:, None].expand(n, -1, 1)
        found.append(-logprobs.gather(2, own)[..., 0].mean(dim=1).cpu().numpy())
    return np.concatenate(found) if found else np.zeros(0)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
