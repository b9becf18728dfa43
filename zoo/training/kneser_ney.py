"""Interpolated modified Kneser-Ney 5-gram over token ids: the baseline that the zoo's models must beat.

Chen and Goodman (1999), section 3: three discounts per order estimated from counts of counts, continuation
counts below the highest order, interpolation down to the uniform distribution. An n-gram is one integer of
12 bits a token, so an order is two sorted arrays and a look-up is a binary search; 25 million training
tokens take about a minute.
"""

from dataclasses import dataclass

import numpy as np

BITS = 12


@dataclass(frozen=True)
class Order:
    """Counts of one order: n-gram keys with discounted counts, context keys with totals and left-over
    mass."""

    grams: np.ndarray
    discounted: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    leftover: np.ndarray


def fit(stream: np.ndarray, order: int = 5) -> list[Order]:
    """Orders 1 to `order`, lowest first."""
    if int(stream.max()) >= 1 << BITS:
        raise ValueError(f"token id {int(stream.max())} does not fit in {BITS} bits")
    grams, counts = np.unique(_keys(stream, order), return_counts=True)
    orders = [_order(grams, counts, n=order)]
    for n in range(order - 1, 0, -1):
        # Continuation: an n-gram counts once for each distinct token that precedes it, i.e. once per
        # distinct (n+1)-gram.
        grams, counts = np.unique(grams & np.uint64((1 << (BITS * n)) - 1), return_counts=True)
        orders.append(_order(grams, counts, n=n))
    return orders[::-1]


def nats(orders: list[Order], stream: np.ndarray, vocab_size: int) -> float:
    """Total negative log-likelihood of the stream in nats, from the first position with a full history."""
    n_max = len(orders)
    n = len(stream) - n_max + 1
    p = np.full(n, 1.0 / vocab_size)
    for n_gram, level in enumerate(orders, start=1):
        keys = _keys(stream[n_max - n_gram :], n_gram)[:n]
        mass = _lookup(level.grams, level.discounted, keys)
        context = keys >> np.uint64(BITS)
        total = _lookup(level.contexts, level.totals, context)
        left = _lookup(level.contexts, level.leftover, context)
        seen = total > 0
        p = np.where(seen, (mass + left * p) / np.where(seen, total, 1.0), p)
    return float(-np.log(p).sum())


def _keys(stream: np.ndarray, n: int) -> np.ndarray:
    length = len(stream) - n + 1
    keys = np.zeros(length, dtype=np.uint64)
    for k in range(n):
        keys = (keys << np.uint64(BITS)) | np.asarray(stream[k : k + length], dtype=np.uint64)
    return keys


def _order(grams: np.ndarray, counts: np.ndarray, *, n: int) -> Order:
    n1, n2, n3, n4 = (float((counts == c).sum()) for c in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2) if n1 else 0.0
    discount = np.array(
        [0.0, 1 - 2 * y * n2 / max(n1, 1), 2 - 3 * y * n3 / max(n2, 1), 3 - 4 * y * n4 / max(n3, 1)]
    )
    taken = np.clip(discount[np.minimum(counts, 3)], 0.0, counts)
    context = grams >> np.uint64(BITS)
    contexts, start = np.unique(context, return_index=True)
    return Order(
        grams,
        counts - taken,
        contexts,
        np.add.reduceat(counts.astype(float), start),
        np.add.reduceat(taken, start),
    )


def _lookup(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0.0)
