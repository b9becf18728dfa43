"""What a server does, measured on its first answers: before a study is paid for, what cannot be read is said.

Measured: the form of the answers, the spelling of tokens, how many log-probabilities are granted, the name of the model
that answers, whether BOS is put in front (the server's count of the prompt's tokens against the tokenizer's), and whether
the answers begin with thoughts in place of an answer.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from polysem.errors import ConfigError
from polysem.targets.base import Answer, TargetPrompt
from polysem.targets.parse import Told
from polysem.targets.spelling import spelling_of
from polysem.targets.tokenizer import KnownTokenizer

PRELUDES = (
    "<think",
    "<|channel|>",
    "<|start|>",
    "<|message|>",
    "<reasoning>",
    "[THINK]",
    "<|START_THINKING|>",
    "◁think▷",
)
"""how answers of models that think first begin"""


@dataclass(frozen=True)
class Probed:
    """What was measured of a server."""

    granted: int
    """log-probabilities that an answer holds at most"""
    spelling: str
    """of `spelling.SPELLINGS`"""
    form: str
    """of its answers: completions or chat"""
    model: str | None
    """its name for the model; None if it names none"""
    bos: bool | None
    """whether it puts BOS in front of the prompt; None where that could not be counted"""
    asked: int
    """log-probabilities that were asked for"""

    def __str__(self) -> str:
        bos = {True: "BOS is put in front", False: "no BOS is put in front", None: "BOS: not checked"}[
            self.bos
        ]
        counted = (
            " (counted)"
            if self.bos is not None
            else " (needs target.tokenizer and a count of the prompt's tokens)"
        )
        return (
            f"answers in the {self.form} form, tokens spelled {self.spelling}, {self.granted} of {self.asked} "
            f"log-probabilities granted, {bos}{counted}, model {self.model or 'not named'}"
        )


def probe_answers(
    prompts: Sequence[TargetPrompt],
    answers: Sequence[Answer],
    told: Sequence[Told],
    *,
    who: str,
    asked: int,
    chat: bool,
    tokenizer: KnownTokenizer | None,
    declared: bool | None,
) -> Probed:
    """What the first answers say of a server.

    Args:
        prompts: what was asked.
        answers: tokens as the server spells them.
        told: of the same responses.
        who: names the target in errors.
        asked: log-probabilities that were asked for.
        chat: whether prompts are messages.
        tokenizer: of the model, where it is known.
        declared: whether BOS stands in front, as the study says; None if it does not.

    Raises:
        ConfigError: thoughts in place of answers; another number of tokens than the tokenizer's; a BOS that is there
            against what was declared, or is not there.
    """
    _check_thoughts(answers, told, who)
    tokens = [token for answer in answers for token in answer.tokens]
    return Probed(
        granted=max(answer.n for answer in answers),
        spelling=spelling_of(tokens, word_start=not chat),
        form=Counter(t.form for t in told).most_common(1)[0][0],
        model=next((t.model for t in told if t.model), None),
        bos=None if chat else _bos(prompts, told, who, tokenizer, declared),
        asked=asked,
    )


def _check_thoughts(answers: Sequence[Answer], told: Sequence[Told], who: str) -> None:
    first = [max(zip(a.probs.tolist(), a.tokens, strict=True))[1].strip() for a in answers]
    thinking = [t for t, said in zip(first, told, strict=True) if said.thought or t.startswith(PRELUDES)]
    if 2 * len(thinking) > len(answers):
        raise ConfigError(
            f"{who}: {len(thinking)} of {len(answers)} answers begin with thoughts ({thinking[0]!r}): their first token says "
            "nothing of the answer",
            hint="switch thinking off: target.extra = { chat_template_kwargs = { enable_thinking = false } } (vLLM, llama.cpp), "
            "or kind = 'completions'",
        )


def _bos(
    prompts: Sequence[TargetPrompt],
    told: Sequence[Told],
    who: str,
    tokenizer: KnownTokenizer | None,
    declared: bool | None,
) -> bool | None:
    counts = [
        (t.prompt_tokens - tokenizer.count(p.text), t.prompt_tokens, p)
        for p, t in zip(prompts, told, strict=True)
        if tokenizer is not None and t.prompt_tokens
    ]
    if tokenizer is None or not counts:
        return None
    extra, theirs, prompt = max(counts, key=lambda c: abs(c[0] - 0.5))
    if extra not in (0, 1) or len({c[0] for c in counts}) > 1:
        raise ConfigError(
            f"{who}: the server counts {theirs} tokens in {prompt.text[:40]!r}, {tokenizer.ref} {theirs - extra}; expected as "
            "many, or one more (BOS)",
            hint="name the served model's own tokenizer with target.tokenizer, or leave it out",
        )
    found = extra == 1
    expected = tokenizer.bos if declared is None else declared
    if found != bool(expected):
        why = f"{tokenizer.ref} by itself does" if declared is None else "target.bos says it does"
        raise ConfigError(
            f"{who}: the server {'puts' if found else 'does not put'} a BOS token in front of a prompt; "
            f"{why}{' not' if found else ''}",
            hint=f"set target.bos = {str(found).lower()} here and for the local target that it is compared with",
        )
    return found
