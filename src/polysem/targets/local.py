"""A target that runs here: any model behind the white-box seam, seen from outside. Its answers are complete."""

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from polysem.errors import ConfigError
from polysem.targets.base import Answer, Prompt

if TYPE_CHECKING:
    from polysem.edits import Edit
    from polysem.models.base import WhiteBoxModel

ROWS = 32
"""prompts of one length in one forward pass; part of what an answer's last bits depend on"""


class LocalTarget:
    """Next-token distributions of a model in this process."""

    def __init__(self, model: "WhiteBoxModel", *, prepend_bos: bool = True):
        self.model = model
        self.prepend_bos = prepend_bos and model.bos_id is not None

    @property
    def name(self) -> str:
        return f"local:{self.model.spec.ref}"

    @property
    def fingerprint(self) -> str:
        spec = self.model.spec
        return f"local {spec.ref} {spec.revision} {spec.dtype} bos={self.prepend_bos}"

    @property
    def word_start(self) -> bool:
        return True

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """The text of every token, by id."""
        return tuple(self.model.token_strings(range(self.model.spec.d_vocab)))

    def count_tokens(self, text: str) -> int | None:
        return len(self.model.tokenize(text, prepend_bos=False))

    def answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Complete answers, in the order of the prompts.

        Raises:
            ConfigError: a system message, or a prompt that is empty or longer than the context.
        """
        return self.edited_answers(prompts, edits_for=None)

    def edited_answers(self, prompts: Sequence[Prompt], *, edits_for: "EditMaker | None") -> list[Answer]:
        """The answers under edits; `edits_for(rows, n_pos)` gives the edits of a batch of `rows` rows."""
        import torch

        rows = [self.tokens(prompt) for prompt in prompts]
        by_length: dict[int, list[int]] = defaultdict(list)
        for n, ids in enumerate(rows):
            by_length[len(ids)].append(n)
        found: dict[int, Answer] = {}
        for length, members in sorted(by_length.items()):
            for start in range(0, len(members), ROWS):
                batch = members[start : start + ROWS]
                tokens = torch.tensor([rows[n] for n in batch])
                edits = edits_for(len(batch), length) if edits_for else ()
                logits = self.model.logits(tokens, edits, last_only=True)[:, -1]
                logprobs = logits.double().log_softmax(-1).cpu().numpy()
                for n, row in zip(batch, logprobs, strict=True):
                    found[n] = Answer(self.vocabulary, row, complete=True)
        return [found[n] for n in range(len(rows))]

    def logprobs(self, prompts: Sequence[Prompt]) -> "np.ndarray":
        """Log-probabilities [n d_vocab] in nats, by token id."""
        return np.stack([answer.logprobs for answer in self.answers(prompts)])

    def tokens(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt, BOS in front where the target has one.

        Raises:
            ConfigError: a system message, or a prompt that is empty or longer than the context.
        """
        if prompt.system is not None:
            raise ConfigError(
                f"{self.name} takes no system message; got {prompt.system[:40]!r}",
                hint="use position = 'prefix' or 'suffix', or a chat target",
            )
        ids = self.model.tokenize(prompt.text, prepend_bos=self.prepend_bos)
        if not ids or len(ids) > self.model.spec.n_ctx:
            raise ConfigError(
                f"{self.name}: a prompt of {len(ids)} tokens; expected 1 to {self.model.spec.n_ctx}: {prompt.text[:60]!r}",
                hint="shorten the sentence, or lower pools.n_tokens",
            )
        return ids


if TYPE_CHECKING:
    from collections.abc import Callable

    EditMaker = Callable[[int, int], Sequence[Edit]]
else:
    EditMaker = object
