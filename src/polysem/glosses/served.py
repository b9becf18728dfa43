"""Embeddings from an OpenAI-compatible endpoint: `POST {base}/embeddings` with {"model", "input": [...]}.

The key. `api_key` is used as given. Without it the environment is read, here and nowhere else below the
command line: POLYSEM_EMBEDDINGS_API_KEY for any address; OPENAI_API_KEY only for OpenAI's own or for the
address in OPENAI_BASE_URL, because an address comes from a study file, and a study file from a stranger must
not be able to send the key elsewhere.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx
import numpy as np

from polysem.errors import FormatError, UnknownReferenceError
from polysem.glosses.embedders import VectorBatch
from polysem.glosses.raw import float32_of
from polysem.http import Retries, send

OPENAI = "https://api.openai.com/v1"
_TEXTS_PER_REQUEST = 128


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
        self._url = endpoint(url or OPENAI)
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
        client = self._client or httpx.Client(timeout=120.0)
        try:
            width: int | None = None
            for first in range(0, len(texts), _TEXTS_PER_REQUEST):
                part = list(texts[first : first + _TEXTS_PER_REQUEST])
                vectors = self._request(client, part)
                if width is not None and vectors.shape[1] != width:
                    raise FormatError(
                        f"{self._url}: vectors of {vectors.shape[1]} numbers after vectors of {width}"
                    )
                width = vectors.shape[1]
                yield VectorBatch(list(range(first, first + len(part))), vectors)
        finally:
            if self._client is None:
                client.close()

    def _request(self, client: httpx.Client, texts: list[str]) -> np.ndarray:
        key = self._api_key or key_from(os.environ, self._url)
        response = send(
            client,
            "POST",
            self._url,
            retries=self._retries,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            json={"model": self._model, "input": texts, "encoding_format": "float"},
        )
        if not response.is_success:
            raise UnknownReferenceError(
                f"{self._url}: HTTP {response.status_code} for model {self._model!r}: {response.text[:300]}",
                hint=_ADVICE.get(response.status_code, "check the model's name and the address"),
            )
        return self._vectors(response, len(texts))

    def _vectors(self, response: httpx.Response, n: int) -> np.ndarray:
        try:
            rows = sorted(response.json()["data"], key=lambda row: row["index"])
            indices = [row["index"] for row in rows]
            vectors = (
                np.stack([_vector(row["embedding"]) for row in rows])
                if rows
                else np.zeros((0, 0), np.float32)
            )
        except (ValueError, KeyError, TypeError, binascii.Error) as error:
            raise FormatError(
                f"{self._url}: the answer is no list of embeddings ({error!r}): {response.text[:200]!r}"
            ) from error
        if indices != list(range(n)):
            raise FormatError(
                f"{self._url}: {n} texts were sent, vectors came back for {indices[:5]} ... ({len(indices)})"
            )
        if vectors.ndim != 2 or not vectors.shape[1] or not np.isfinite(vectors).all():
            raise FormatError(f"{self._url}: vectors are empty or not finite (shape {vectors.shape})")
        return vectors


_ADVICE = {
    401: "set POLYSEM_EMBEDDINGS_API_KEY (OPENAI_API_KEY is sent to OpenAI's own address only)",
    403: "set POLYSEM_EMBEDDINGS_API_KEY (OPENAI_API_KEY is sent to OpenAI's own address only)",
    404: "check the model's name, and that the address ends where /embeddings follows, e.g. http://localhost:8000/v1",
}


def endpoint(url: str) -> str:
    """The address of the call: a bare host gets /v1/embeddings, another /embeddings where that is missing."""
    base = url.rstrip("/")
    if base.endswith("/embeddings"):
        return base
    return f"{base}/embeddings" if httpx.URL(base).path.strip("/") else f"{base}/v1/embeddings"


def key_from(environment: Mapping[str, str], url: str) -> str | None:
    """The key that may be sent to `url`; None if there is none."""
    own = {httpx.URL(base).host for base in (OPENAI, environment.get("OPENAI_BASE_URL", "")) if base}
    general = environment.get("POLYSEM_EMBEDDINGS_API_KEY")
    return general or (environment.get("OPENAI_API_KEY") if httpx.URL(url).host in own else None) or None


def _vector(value: Any) -> np.ndarray:
    """A vector given as numbers, or in base64 as little-endian float32 (some servers always answer so)."""
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4")
    return float32_of(value)
