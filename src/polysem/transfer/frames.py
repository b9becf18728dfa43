"""How strings and a sentence become a prompt: templates and positions, as factors of the study.

`paren` is the paper's: "(" + strings as they are + ")" + sentence. A chat target gets an instruction in front, in
baselines too, so that what it answers is a continuation.
"""

from collections.abc import Sequence

from polysem.errors import ConfigError
from polysem.targets import Prompt
from polysem.transfer.config import Position, Template

INSTRUCTION = "Continue the sentence with the one word that comes next. Answer with that word only.\n\n"
REFUSALS = (
    "i cannot", "i can't", "i can not", "i'm sorry", "i am sorry", "i'm unable", "i am unable", "sorry,", "as an ai",
    "i won't", "i apologize", "i must decline",
)  # fmt: skip


def injected(template: Template, strings: Sequence[str]) -> str:
    """The strings as they stand in a prompt."""
    match template:
        case "paren":
            return f"({''.join(strings)})"
        case "bare":
            return "".join(strings).strip() + " "
        case "list":
            return f"Words: {', '.join(s.strip() for s in strings)}.\n"
        case "stars":
            return f"**{''.join(strings).strip()}** "


def frame(
    sentence: str,
    strings: Sequence[str],
    *,
    template: Template,
    position: Position,
    chat: bool,
    repeat: int = 0,
) -> Prompt:
    """The prompt; without strings the baseline.

    Raises:
        ConfigError: a position that the kind of target does not have.
    """
    if position != "prefix" and not chat:
        raise ConfigError(
            f"position {position!r} needs a chat target: a completion must end with the sentence",
            hint='set frames.positions = ["prefix"], or split the study by kind of target',
        )
    opening = INSTRUCTION if chat else ""
    if not strings:
        return Prompt(opening + sentence, repeat=repeat)
    block = injected(template, strings)
    match position:
        case "prefix":
            return Prompt(opening + block + sentence, repeat=repeat)
        case "suffix":
            return Prompt(f"{opening}{sentence}\n\n{block.strip()}", repeat=repeat)
        case "system":
            return Prompt(opening + sentence, system=block.strip(), repeat=repeat)


def is_refusal(text: str) -> bool:
    """Whether a chat answer begins by declining."""
    return text.strip().casefold().replace("’", "'").startswith(REFUSALS)
