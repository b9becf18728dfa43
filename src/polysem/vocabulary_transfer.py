"""The closed choices of a transfer study, each at home here, like those of a study in `polysem.vocabulary`.

Arms, contrasts, templates and positions of prompts, kinds of targets and of directions: the settings, the tables'
documentation, the report and the code that carries them out take names, labels, marks and meanings from these records.
"""

from dataclasses import dataclass

from polysem.vocabulary import RELATIONS, Mark, Vocabulary, Word


@dataclass(frozen=True)
class TransferArm(Word):
    """Which strings, or which matched features, are tried on a target."""

    mark: Mark
    family: str = ""
    """of an arm with reference pools of its own; a string stays in the first arm of a family that claims it"""
    rises: bool = False
    """whether the category's words are expected to rise, so that no reference pool may hold its strings"""
    strings: str = ""
    """"module:attribute" of what makes the strings of all arms of its family, where polysem.transfer does not"""


TRANSFER_ARMS: Vocabulary[TransferArm] = Vocabulary(
    "arm",
    TransferArm(
        "target",
        "the category's own (ceiling)",
        "the category's own words",
        RELATIONS["self"].mark,
        rises=True,
    ),
    TransferArm(
        "shared",
        "shared",
        "their pairs with a target pass in both sources",
        RELATIONS["pair"].mark,
        "sources",
        True,
    ),
    TransferArm(
        "source_only",
        "source only",
        "... in one source only, though both have them",
        RELATIONS["random_feature"].mark,
        "sources",
    ),
    TransferArm(
        "neither",
        "neither",
        "they pass with no target in either source",
        RELATIONS["random_direction"].mark,
        "sources",
    ),
    TransferArm(
        "high",
        "high",
        "the paper's set of large cosines with a target",
        Mark("triangle", "#0b62a4", "#6db6f2"),
        "paper",
        True,
        "polysem.paper.transfer:paper_arms",
    ),
    TransferArm(
        "low",
        "low",
        "the paper's set of medium cosines with a target",
        Mark("triangle", "#b35900", "#f2a65a"),
        "paper",
        strings="polysem.paper.transfer:paper_arms",
    ),
    TransferArm("random", "random", "all other strings", RELATIONS["frozen_decoder"].mark),
)


@dataclass(frozen=True)
class TransferContrast(Word):
    """A number of a transfer study's effects."""

    unit: str
    row: str = ""
    """"module:attribute" of what makes its row, where polysem.transfer does not"""


TRANSFER_CONTRASTS: Vocabulary[TransferContrast] = Vocabulary(
    "contrast",
    TransferContrast("logodds", "log-odds", "mean change of the log-odds of the category's words", "nats"),
    TransferContrast("specific", "specific", "the same less the mean of the other categories", "nats"),
    TransferContrast(
        "success", "top-k success", "P(more of its words in the top k) - P(fewer)", "probability"
    ),
    TransferContrast(
        "welch", "the paper's test", "Welch's on trials", "probability", "polysem.paper.transfer:welch_row"
    ),
)


@dataclass(frozen=True)
class Template(Word):
    """How strings are written into a prompt."""

    pattern: str
    glue: str = ""
    """between strings, which are stripped where there is one"""
    bare: bool = True
    """whether the whole is stripped of space"""


TEMPLATES: Vocabulary[Template] = Vocabulary(
    "template",
    Template("paren", "brackets", "the paper's: strings as they are, in brackets", "({})", bare=False),
    Template("bare", "bare", "strings as they are", "{} "),
    Template("list", "list", "a line of words with commas", "Words: {}.\n", ", "),
    Template("stars", "stars", "strings between asterisks", "**{}** "),
)


@dataclass(frozen=True)
class PromptPosition(Word):
    """Where strings stand in a prompt."""

    chat: bool
    """whether only a chat target has it: a completion must end with the sentence"""


PROMPT_POSITIONS: Vocabulary[PromptPosition] = Vocabulary(
    "position",
    PromptPosition("prefix", "prefix", "before the sentence", False),
    PromptPosition("suffix", "suffix", "after the sentence", True),
    PromptPosition("system", "system", "in the system message", True),
)


@dataclass(frozen=True)
class TargetKind(Word):
    """How a target is reached."""

    path: str = ""
    """of the call, on a server; "" for a model in this process"""
    chat: bool = False
    """whether it is spoken to in messages"""

    @property
    def served(self) -> bool:
        """Whether it is behind an address: then it sees no inside, and a repeated prompt may get another answer."""
        return bool(self.path)

    @property
    def word_start(self) -> bool:
        """Whether a next token that begins a word carries a space in front; not so in answers to messages."""
        return not self.chat


TARGET_KINDS: Vocabulary[TargetKind] = Vocabulary(
    "kind of target",
    TargetKind("local", "local", "a model in this process"),
    TargetKind(
        "completions", "completions", "an OpenAI-compatible server that goes on with a text", "/completions"
    ),
    TargetKind(
        "chat", "chat", "an OpenAI-compatible server that answers messages", "/chat/completions", True
    ),
)

TRANSFER_DIRECTIONS: Vocabulary[Word] = Vocabulary(
    "direction",
    Word("feature", "decoder rows", "decoder row of the target's feature"),
    Word(
        "gradient", "token gradients", "token gradient of its pre-activation (arXiv 2505.11611, section 3.4)"
    ),
)
