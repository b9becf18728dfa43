"""The seam for targets: a model of which only the next-token distribution is seen, whole or in part.

A prompt is text with an optional system message. An answer is what was granted of the distribution over the
next token: token strings with log-probabilities, what is missing, and how many tokens a server lost because
two of them have the same text. Nothing here knows about features, categories or tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from polysem.errors import FormatError
from polysem.vocabulary_transfer import TargetKind

MASS_TOLERANCE = 2e-3
"""how far granted probabilities may sum above 1: servers round log-probabilities and compute in 16 bits"""


@dataclass(frozen=True)
class TargetPrompt:
    """What is given to a target."""

    text: str
    system: str | None = None
    """a system message; only chat targets take one"""
    repeat: int = 0
    """number of the repetition: equal prompts with different numbers are asked anew"""


@dataclass(frozen=True)
class Answer:
    """What a target grants of one next-token distribution."""

    tokens: tuple[str, ...]
    """texts of the granted tokens; equal texts may occur when they are different tokens"""
    logprobs: Float[np.ndarray, " n"]
    """nats, as granted"""
    complete: bool
    """whether these are all tokens of the vocabulary"""
    lost: int = 0
    """granted tokens that the server's format dropped because another has the same text"""
    text: str = ""
    """what was generated, where a server says it"""
    probs: Float[np.ndarray, " n"] = field(init=False, repr=False)
    """probabilities; of a complete answer they sum to 1"""

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.logprobs) or not len(self.tokens):
            raise FormatError(
                f"an answer with {len(self.tokens)} tokens and {len(self.logprobs)} log-probabilities; expected "
                "as many of one as of the other, and at least one"
            )
        if not np.isfinite(self.logprobs).all() or (self.logprobs > MASS_TOLERANCE).any():
            raise FormatError(
                f"log-probabilities from {self.logprobs.min()} to {self.logprobs.max()}; expected finite numbers "
                "of at most 0",
                hint="a server that clips to -inf or -9999 must be asked for fewer log-probabilities",
            )
        probs = np.exp(self.logprobs.astype(np.float64))
        total = float(probs.sum())
        if total > 1 + MASS_TOLERANCE:
            raise FormatError(
                f"granted probabilities sum to {total:.6f}; expected at most 1",
                hint="the server may report processed or repeated log-probabilities: serve raw_logprobs",
            )
        if total > 1 or self.complete:
            probs = probs / total
        object.__setattr__(self, "probs", probs)

    @property
    def n(self) -> int:
        """Tokens granted."""
        return len(self.tokens)

    @property
    def missing(self) -> float:
        """Probability of everything that was not granted."""
        return 0.0 if self.complete else max(0.0, 1.0 - float(self.probs.sum()))


@runtime_checkable
class Target(Protocol):
    """A model whose next-token distributions can be had."""

    @property
    def name(self) -> str:
        """Kind, model and address, as it goes into tables."""
        ...

    @property
    def fingerprint(self) -> str:
        """What answers depend on, as text: model, revision or address, parameters."""
        ...

    @property
    def kind(self) -> TargetKind:
        """How it is reached, and whether in messages."""
        ...

    @property
    def vocabulary(self) -> tuple[str, ...] | None:
        """The text of every token, by id; None where only those that are granted are seen."""
        ...

    @property
    def granted(self) -> int | None:
        """Log-probabilities that an answer holds; None where it holds all, or nothing was asked yet."""
        ...

    def answers(self, prompts: Sequence[TargetPrompt]) -> list[Answer]:
        """The answers, in the order of the prompts; equal prompts get equal answers.

        Raises:
            ConfigError: a prompt that the target cannot take.
            PolysemError: no answer; answers already paid for are kept.
        """
        ...

    def count_tokens(self, text: str) -> int | None:
        """Tokens of a text; None where the tokenizer is not known."""
        ...
