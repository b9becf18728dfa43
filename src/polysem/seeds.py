"""Random draws and identifiers that derive from what a thing is, never from when or where it is computed."""

import hashlib

import numpy as np
from jaxtyping import Float


def rng_for(root: int, *path: str | int) -> np.random.Generator:
    """The generator of one purpose: a function of the root seed and a path of names, and of nothing else.

    The same path gives the same stream whatever the order, batching or number of workers.
    """
    digest = hashlib.sha256("\x1f".join(map(str, path)).encode()).digest()
    words = np.frombuffer(digest, dtype=np.uint32)
    return np.random.default_rng(np.random.SeedSequence([root, *words.tolist()]))


def short_hash(*parts: object, digits: int = 16) -> str:
    """A hexadecimal name for a specification: sha256 over the parts' text, cut to `digits`."""
    return hashlib.sha256("\x1f".join(repr(p) for p in parts).encode()).hexdigest()[:digits]


def random_rotation(n: int, rng: np.random.Generator) -> Float[np.ndarray, "n n"]:
    """An orthogonal matrix, uniformly at random; its columns are the directions of a rotated basis."""
    Q, R = np.linalg.qr(rng.standard_normal((n, n)))
    return Q * np.sign(np.diag(R))
