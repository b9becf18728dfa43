"""The chat template of a model as tokens: what stands before and after a user's message."""

from typing import Any

from polysem.errors import ConfigError
from polysem.models.base import WhiteBoxModel

_MESSAGE = "polysem"


def chat_frame(model: WhiteBoxModel) -> tuple[list[int], list[int]]:
    """Token ids before a user's message, and after it up to where the answer begins.

    The two are read apart from the message, special tokens as such, so that the message's own tokens are the same with
    and without a template.

    Raises:
        ConfigError: if the model's tokenizer has no chat template, or one that does not show the message once.
    """
    tokenizer: Any = getattr(model, "tokenizer", None)
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"the tokenizer of {model.spec.ref} has no chat template",
            hint="set prompts.chat_template = false, or name an instruction-tuned model",
        )
    message = [{"role": "user", "content": _MESSAGE}]
    whole = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    parts = str(whole).split(_MESSAGE)
    if len(parts) != 2:
        raise ConfigError(
            f"the chat template of {model.spec.ref} shows a message {len(parts) - 1} times; expected once",
            hint="set prompts.chat_template = false",
        )
    head, tail = (list(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in parts)
    return head, tail
