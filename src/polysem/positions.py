"""Special positions: what stands in front of rows, and which positions no statistic counts. One policy for gate, harvest,
prompts, plan, steering, targets and transfer.

The first position of a row is never counted, whether a BOS stands there or not: models dump attention on it, and its
activation is of another size than all others. Massive tokens, whose norm is more than `MASSIVE` times the median (sinks
amid a text, delimiters of some models), are not counted either: by its square one of them would outweigh hundreds.
Tokens of a chat template are counted no more than the BOS. There is no padding: all rows of a call have one length.

Which BOS is the convention of the tool that trained the SAE. A tokenizer may have none (Qwen): SAELens then puts EOS in
front, as TransformerLens does; the other tools put nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

MASSIVE = 10.0
"""times the median norm: what dictionary_learning drops from training (`max_activation_norm_multiple`)"""
N_FIRST = 1
"""positions at the beginning of every row that are not counted"""

StandIn = Literal["none", "eos"]
"""what is put in front where rows begin with BOS and the tokenizer has none"""


@runtime_checkable
class Tokenized(Protocol):
    """A model with a tokenizer of `transformers`; worlds have none."""

    tokenizer: Any


@runtime_checkable
class HasBOS(Protocol):
    """What is asked of a model here."""

    @property
    def bos_id(self) -> int | None: ...


@runtime_checkable
class Trained(Protocol):
    """How rows began when a dictionary was trained: `polysem.saes.base.SAE` and `RowsBegin` say so."""

    @property
    def prepend_bos(self) -> bool: ...

    @property
    def bos_stand_in(self) -> StandIn: ...


@dataclass(frozen=True)
class RowsBegin:
    """What is known of a dictionary that is not loaded."""

    prepend_bos: bool
    bos_stand_in: StandIn = "none"


@dataclass(frozen=True)
class PositionPolicy:
    """Which positions of a row are special."""

    front: tuple[int, ...]
    """token ids in front of every row: the BOS, or none"""
    said: str
    """the convention in words"""
    n_first: int = N_FIRST
    massive: float = MASSIVE

    def row(self, ids: Sequence[int]) -> list[int]:
        """The row of a text's tokens."""
        return [*self.front, *ids]

    def counted(self, n: int, *, span: tuple[int, int] | None = None) -> Bool[np.ndarray, " n"]:
        """Which of `n` positions are counted by place: all but the first; inside a chat template the text's own."""
        start, stop = span or (0, n)
        place = np.arange(n)
        return (place >= max(start, self.n_first)) & (place < stop)

    def limit(self, norms: Float[np.ndarray, " n"]) -> float:
        """The norm above which a token is massive, from norms of counted positions; infinite where half of them are
        zero, as at sparse sites."""
        median = float(np.median(norms)) if len(norms) else 0.0
        return self.massive * median if median > 0 else float("inf")

    def ordinary(
        self, norms: Float[np.ndarray, " n"], *, limit: float | None = None
    ) -> Bool[np.ndarray, " n"]:
        """Which counted positions are not massive, by their norms; `limit` is that of `norms` if not given."""
        return ~(norms > (self.limit(norms) if limit is None else limit))


def positions_of(model: HasBOS, trained: Trained | bool = True) -> PositionPolicy:
    """The policy for a model and a dictionary of it, or for rows with BOS (where the tokenizer has one) or without."""
    begun = trained if isinstance(trained, bool) else trained.prepend_bos
    stand_in = "none" if isinstance(trained, bool) else trained.bos_stand_in
    if not begun:
        return PositionPolicy((), "rows begin with their text: no BOS is asked for")
    if model.bos_id is not None:
        return PositionPolicy((model.bos_id,), f"BOS (token {model.bos_id}) in front of every row")
    eos = model.tokenizer.eos_token_id if isinstance(model, Tokenized) else None
    if stand_in == "eos" and eos is not None:
        return PositionPolicy(
            (eos,),
            f"EOS (token {eos}) in front of every row: the tokenizer has no BOS, and TransformerLens puts EOS",
        )
    return PositionPolicy((), "rows begin with their text: the tokenizer has no BOS")


def positions_of_all(model: HasBOS, trained: Sequence[Trained]) -> PositionPolicy:
    """The policy of prompts that serve several dictionaries: the first that puts something in front, or else the first."""
    policies = [positions_of(model, one) for one in trained]
    return next((policy for policy in policies if policy.front), policies[0])


def ordinary_rows(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "m d"]:
    """Of activations at counted positions those that are not massive."""
    return rows[PLAIN.ordinary(np.linalg.norm(rows, axis=1))]


def mean_norm(norms: Float[np.ndarray, " n"], edited: Bool[np.ndarray, " n"]) -> float:
    """Mean norm at the edited positions of a row, massive ones left out where others are edited: the unit of doses."""
    ordinary = edited & PLAIN.ordinary(norms, limit=PLAIN.limit(norms[PLAIN.counted(len(norms))]))
    return float(norms[ordinary if ordinary.any() else edited].mean())


PLAIN = PositionPolicy((), "rows begin with their text")
"""for what is asked of places and norms alone"""
