"""A source model seen for transfer: what its features fire on, character by character, and where they point."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from polysem.corpus import documents
from polysem.errors import FormatError, MismatchError
from polysem.positions import positions_of
from polysem.progress import SILENT, Reporter
from polysem.transfer.config import TransferStudy

if TYPE_CHECKING:
    from polysem.models.hf import HFModel
    from polysem.saes.base import SAE
else:
    HFModel = SAE = Any

CHARACTERS_PER_TOKEN = 4
"""how much text is read for corpus.n_tokens"""
CHUNK_CHARACTERS = 320
"""text of one row, cut at a space"""
ROWS = 16


@dataclass(frozen=True)
class SourceModel:
    """One source model on a text."""

    name: str
    directions: Float[np.ndarray, "d_sae d_in"]
    acts: sparse.csr_matrix
    """[tokens d_sae]"""
    tokens: Int[np.ndarray, " tokens"]
    ends: Int[np.ndarray, " tokens"]
    """where each token ends in the text, in characters"""
    vocabulary: tuple[str, ...]
    special: frozenset[int]
    embedding: Float[np.ndarray, "d_vocab d_model"]
    revision: str
    """of model and SAE"""

    def _active(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of every feature, where it fires (tokens) and how much."""
        columns = self.acts.tocsc()
        for start, end in pairwise(columns.indptr):
            yield columns.indices[start:end], columns.data[start:end]

    def strings(self, *, ratio: float, first: int) -> list[tuple[str, ...]]:
        """By feature, the texts of tokens whose largest activation is at least `ratio` of the feature's, best
        first, at most `first`; () for a feature that never fires."""
        found = []
        for rows, values in self._active():
            kept = values >= ratio * values.max() if len(values) else np.zeros(0, dtype=bool)
            best: dict[str, float] = {}
            for token, value in zip(self.tokens[rows[kept]].tolist(), values[kept].tolist(), strict=True):
                text = self.vocabulary[token]
                best[text] = max(best.get(text, 0.0), value)
            found.append(tuple(sorted(best, key=lambda t: (-best[t], t))[:first]))
        return found

    def snippets(self, *, width: int, first: int) -> list[tuple[tuple[str, ...], ...]]:
        """By feature, the `width` tokens up to and with its largest activations, as token texts, best first, at most
        `first`; of windows that overlap the better one."""
        found = []
        for rows, values in self._active():
            taken: list[int] = []
            for n in np.lexsort((rows, -values.astype(np.float64))).tolist():
                at = int(rows[n])
                if len(taken) == first:
                    break
                if at + 1 >= width and all(abs(at - other) >= width for other in taken):
                    taken.append(at)
            windows = (self.tokens[at - width + 1 : at + 1].tolist() for at in taken)
            found.append(tuple(tuple(self.vocabulary[t] for t in window) for window in windows))
        return found

    def frequency(self) -> Counter[str]:
        """How often each token text occurs in the text."""
        return Counter(self.vocabulary[token] for token in self.tokens.tolist())


def chunks_of(ref: str, *, n_characters: int) -> list[str]:
    """The beginning of a corpus as rows of text, each cut at a space; together about `n_characters`.

    Raises:
        FormatError: if there is no text.
    """
    found: list[str] = []
    total = 0
    for document in documents(ref):
        words = document.text.replace("\n", " ").split()
        row = ""
        for word in words:
            row = f"{row} {word}" if row else word
            if len(row) >= CHUNK_CHARACTERS:
                found.append(row)
                total, row = total + len(row), ""
                if total >= n_characters:
                    return found
    if not found:
        raise FormatError(
            f"corpus {ref!r} has no row of {CHUNK_CHARACTERS} characters", hint="name a longer corpus"
        )
    return found


def matched_rows(study: TransferStudy) -> list[str]:
    """The rows of text on which a study matches features. Raises FormatError if there is none."""
    return chunks_of(study.corpus.ref, n_characters=study.corpus.n_tokens * CHARACTERS_PER_TOKEN)


def held_out_rows(study: TransferStudy, *, n_characters: int) -> list[str]:
    """Rows on which nothing was matched: of cost.corpus, or of the corpus after `matched_rows`. Raises FormatError."""
    if study.cost.corpus:
        return chunks_of(study.cost.corpus, n_characters=n_characters)
    used = study.corpus.n_tokens * CHARACTERS_PER_TOKEN
    first = len(matched_rows(study))
    return chunks_of(study.corpus.ref, n_characters=used + n_characters)[first:]


def see(
    model: HFModel, sae: SAE, chunks: Iterable[str], *, name: str, reporter: Reporter = SILENT
) -> SourceModel:
    """Run the rows through model and SAE. What is in front of a row is left out; the first position of a row and massive
    tokens activate nothing.

    Raises:
        MismatchError: if the tokenizer cannot say where its tokens lie in a text, or a row does not fit.
    """
    import torch

    chunks = list(chunks)
    rows, ends = zip(*(_tokens(model, chunk, name) for chunk in chunks), strict=True)
    starts = np.cumsum([0, *(len(c) + 1 for c in chunks[:-1])])
    positions, limit = positions_of(model, sae), None
    n_front = len(positions.front)
    parts: dict[int, sparse.csr_matrix] = {}
    order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
    alike = [list(group) for _, group in groupby(order, key=lambda n: len(rows[n]))]
    batches = [group[start : start + ROWS] for group in alike for start in range(0, len(group), ROWS)]
    sae = sae.to(model.spec.device)
    for batch in reporter.track(batches, total=len(batches), label=f"activations of {name}"):
        tokens = torch.tensor([positions.row(rows[n]) for n in batch])
        seen = model.capture(tokens, [sae.reads])[sae.reads]
        norms = seen.double().norm(dim=-1).cpu().numpy()
        by_place = positions.counted(tokens.shape[1])
        limit = positions.limit(norms[:, by_place].ravel()) if limit is None else limit
        counted = (by_place & ~(norms > limit))[:, n_front:, None]
        acts = sae.encode(seen)[:, n_front:].cpu().numpy()
        for n, values, kept in zip(batch, acts, counted, strict=True):
            parts[n] = sparse.csr_matrix(np.where(kept & (values > 0), values, 0).astype(np.float32))
    return SourceModel(
        name=name,
        directions=sae.W_dec.float().cpu().numpy().astype(np.float64),
        acts=sparse.csr_matrix(sparse.vstack([parts[n] for n in range(len(rows))])),
        tokens=np.concatenate([np.array(row, dtype=np.int64) for row in rows]),
        ends=np.concatenate([np.array(e, dtype=np.int64) + s for e, s in zip(ends, starts, strict=True)]),
        vocabulary=tuple(model.token_strings(range(model.spec.d_vocab))),
        special=frozenset(int(i) for i in model.tokenizer.all_special_ids),
        embedding=model.W_E.float().cpu().numpy(),
        revision=hashlib.sha256(
            f"{model.spec.ref} {model.spec.revision} {sae.provenance.ref} {sae.provenance.revision}".encode()
        ).hexdigest(),
    )


def _tokens(model: HFModel, text: str, name: str) -> tuple[list[int], list[int]]:
    """(ids, ends in characters) of a text."""
    ids, spans = model.located(text)
    if not ids or len(ids) + 1 > model.spec.n_ctx:
        raise MismatchError(
            f"{name}: a row of {len(text)} characters is {len(ids)} tokens; expected 1 to {model.spec.n_ctx - 1}"
        )
    return ids, np.maximum.accumulate([end for _, end in spans]).tolist()
