"""A target that runs here: any model behind the white-box seam, seen from outside. Its answers are complete."""

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from polysem.errors import ConfigError
from polysem.positions import Tokenized, positions_of
from polysem.targets.base import Answer, TargetPrompt
from polysem.targets.tokenizer import puts_bos
from polysem.vocabulary_transfer import TARGET_KINDS

if TYPE_CHECKING:
    from polysem.models.base import WhiteBoxModel

ROWS = 32
"""prompts of one length in one forward pass; part of what an answer's last bits depend on"""


def own_bos(model: "WhiteBoxModel") -> bool:
    """Whether the model's own tokenizer puts BOS in front of a text; worlds have none, and begin with it if they can."""
    return bool(puts_bos(model.tokenizer)) if isinstance(model, Tokenized) else model.bos_id is not None


class LocalTarget:
    """Next-token distributions of a model in this process."""

    def __init__(self, model: "WhiteBoxModel", *, prepend_bos: bool | None = None):
        """`prepend_bos` None: as the model's own tokenizer does."""
        self.model = model
        begun = own_bos(model) if prepend_bos is None else prepend_bos
        self.positions = positions_of(model, begun)

    @property
    def name(self) -> str:
        return f"local:{self.model.spec.ref}"

    @property
    def fingerprint(self) -> str:
        spec = self.model.spec
        return f"local {spec.ref} {spec.revision} {spec.dtype} bos={bool(self.positions.front)}"

    @property
    def prepend_bos(self) -> bool:
        """Whether something stands in front of every row."""
        return bool(self.positions.front)

    kind = TARGET_KINDS["local"]
    granted = None

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The text of every token, by id."""
        return self._vocabulary

    @cached_property
    def _vocabulary(self) -> tuple[str, ...]:
        return tuple(self.model.token_strings(range(self.model.spec.d_vocab)))

    def count_tokens(self, text: str) -> int | None:
        return len(self.model.tokenize(text, prepend_bos=False))

    def row(self, text: str) -> list[int]:
        """Token ids of a text, with what stands in front of every row."""
        return self.positions.row(self.model.tokenize(text, prepend_bos=False))

    def answers(self, prompts: Sequence[TargetPrompt]) -> list[Answer]:
        """Complete answers, in the order of the prompts.

        Raises:
            ConfigError: a system message, or a prompt that is empty or longer than the context.
        """
        import torch

        rows = [self.tokens(prompt) for prompt in prompts]
        by_length: dict[int, list[int]] = defaultdict(list)
        for n, ids in enumerate(rows):
            by_length[len(ids)].append(n)
        found: dict[int, Answer] = {}
        for _, members in sorted(by_length.items()):
            for start in range(0, len(members), ROWS):
                batch = members[start : start + ROWS]
                tokens = torch.tensor([rows[n] for n in batch])
                logits = self.model.logits(tokens, last_only=True)[:, -1]
                logprobs = logits.double().log_softmax(-1).cpu().numpy()
                for n, row in zip(batch, logprobs, strict=True):
                    found[n] = Answer(self.vocabulary, row, complete=True)
        return [found[n] for n in range(len(rows))]

    def tokens(self, prompt: TargetPrompt) -> list[int]:
        """Ids of a prompt, BOS in front where the target has one.

        Raises:
            ConfigError: a system message, or a prompt that is empty or longer than the context.
        """
        if prompt.system is not None:
            raise ConfigError(
                f"{self.name} takes no system message; got {prompt.system[:40]!r}",
                hint="use position = 'prefix' or 'suffix', or a chat target",
            )
        ids = self.row(prompt.text)
        if not ids or len(ids) > self.model.spec.n_ctx:
            raise ConfigError(
                f"{self.name}: a prompt of {len(ids)} tokens; expected 1 to {self.model.spec.n_ctx}: {prompt.text[:60]!r}",
                hint="shorten the sentence, or lower pools.n_tokens",
            )
        return ids
