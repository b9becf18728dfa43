"""A source model seen for transfer: what its features fire on, character by character, and where they point."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from polysem.corpus import documents
from polysem.errors import FormatError, MismatchError
from polysem.progress import SILENT, Reporter

if TYPE_CHECKING:
    from polysem.models.hf import HFModel
    from polysem.saes.base import SAE
else:
    HFModel = SAE = Any

CHUNK_CHARACTERS = 320
"""text of one row, cut at a space"""
ROWS = 16


@dataclass(frozen=True)
class Source:
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

    def strings(self, *, ratio: float, first: int) -> list[tuple[str, ...]]:
        """By feature, the texts of tokens whose largest activation is at least `ratio` of the feature's, best
        first, at most `first`; () for a feature that never fires."""
        columns = self.acts.tocsc()
        found = []
        for feature in range(self.directions.shape[0]):
            part = slice(columns.indptr[feature], columns.indptr[feature + 1])
            rows, values = columns.indices[part], columns.data[part]
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
        columns = self.acts.tocsc()
        found = []
        for feature in range(self.directions.shape[0]):
            part = slice(columns.indptr[feature], columns.indptr[feature + 1])
            rows, values = columns.indices[part], np.asarray(columns.data[part], dtype=np.float64)
            taken: list[int] = []
            for n in np.lexsort((rows, -values)).tolist():
                at = int(rows[n])
                if len(taken) == first:
                    break
                if at + 1 >= width and all(abs(at - other) >= width for other in taken):
                    taken.append(at)
            windows = (self.tokens[at - width + 1 : at + 1].tolist() for at in taken)
            found.append(tuple(tuple(self.vocabulary[t] for t in window) for window in windows))
        return found

    def frequency(self) -> dict[str, int]:
        """How often each token text occurs in the text."""
        ids, counts = np.unique(self.tokens, return_counts=True)
        found: dict[str, int] = {}
        for token, count in zip(ids.tolist(), counts.tolist(), strict=True):
            found[self.vocabulary[token]] = found.get(self.vocabulary[token], 0) + count
        return found


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


def see(model: HFModel, sae: SAE, chunks: Iterable[str], *, name: str, reporter: Reporter = SILENT) -> Source:
    """Run the rows through model and SAE; BOS positions are left out.

    Raises:
        MismatchError: if the tokenizer cannot say where its tokens lie in a text, or a row does not fit.
    """
    import torch

    chunks = list(chunks)
    rows, ends = zip(*(_tokens(model, chunk, name) for chunk in chunks), strict=True)
    starts = np.cumsum([0, *(len(c) + 1 for c in chunks[:-1])])
    bos = [model.bos_id] if sae.prepend_bos and model.bos_id is not None else []
    parts: dict[int, sparse.csr_matrix] = {}
    order = sorted(range(len(rows)), key=lambda n: (len(rows[n]), n))
    batches = list(_batches(order, rows))
    sae = sae.to(model.spec.device)
    for batch in reporter.track(batches, total=len(batches), label=f"activations of {name}"):
        tokens = torch.tensor([[*bos, *rows[n]] for n in batch])
        acts = sae.encode(model.capture(tokens, [sae.site])[sae.site])[:, len(bos) :].cpu().numpy()
        for n, values in zip(batch, acts, strict=True):
            parts[n] = sparse.csr_matrix(np.where(values > 0, values, 0).astype(np.float32))
    return Source(
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


def _batches(order: list[int], rows: tuple[list[int], ...]) -> Iterable[list[int]]:
    """Rows of one length together, at most ROWS."""
    batch: list[int] = []
    for n in order:
        if batch and (len(rows[n]) != len(rows[batch[0]]) or len(batch) == ROWS):
            yield batch
            batch = []
        batch.append(n)
    if batch:
        yield batch


def _tokens(model: HFModel, text: str, name: str) -> tuple[list[int], list[int]]:
    """(ids, ends in characters) of a text."""
    if not getattr(model.tokenizer, "is_fast", False):
        raise MismatchError(
            f"the tokenizer of {name} cannot say where its tokens lie in a text, so features cannot be matched",
            hint="use a model with a tokenizer.json (a fast tokenizer)",
        )
    encoded = model.tokenizer(
        text,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    ids = list(encoded["input_ids"])
    if not ids or len(ids) + 1 > model.spec.n_ctx:
        raise MismatchError(
            f"{name}: a row of {len(text)} characters is {len(ids)} tokens; expected 1 to {model.spec.n_ctx - 1}"
        )
    return ids, np.maximum.accumulate([end for _, end in encoded["offset_mapping"]]).tolist()
