"""A panel of language models that judge or explain, as one TOML file: chat servers with budgets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from polysem.config import Section, parse_section, parse_toml, read_text
from polysem.errors import ConfigError
from polysem.http import Retries
from polysem.progress import SILENT, Reporter
from polysem.targets import ServedTarget
from polysem.targets.served import Messages
from polysem.transfer.config import TargetConfig
from polysem.transfer.judges import ATTEMPTS, Ask, ask_with

SIDE_BY_SIDE = 32
"""questions between two signs of progress"""


class MemberConfig(TargetConfig):
    """One model of the panel: the keys of a target of a transfer study, kind = "chat"."""

    kind: Literal["chat"] = "chat"  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen: never assigned)


class PairsOfPanel(Section):
    """Which pairs are judged."""

    n: Annotated[int, Field(ge=0)] = 100
    """pairs that are annotated as related or not"""
    n_choices: Annotated[int, Field(ge=0)] = 100
    """pairs that are set against a matched one in a forced choice"""
    min_interference: Annotated[float, Field(gt=0, lt=1)] = 0.4
    max_similarity: Annotated[float, Field(gt=-1, le=1)] = 0.2
    tolerance: Annotated[float, Field(gt=0)] = 0.05
    """largest difference in gloss similarity of a matched pair"""


class FeaturesOfPanel(Section):
    """Which features are explained, and on what glosses are scored."""

    n: Annotated[int, Field(ge=1)] = 50
    n_shown: Annotated[int, Field(ge=1)] = 5
    """contexts of which a gloss is written: those of even rank, the best first"""
    n_scored: Annotated[int, Field(ge=1)] = 5
    """contexts of odd rank, and as many of other features, on which it is scored"""


class JudgePanel(Section):
    """A whole panel file."""

    seed: Annotated[int, Field(ge=0)] = 0
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    judges: Annotated[tuple[MemberConfig, ...], Field(min_length=1)]
    pairs: PairsOfPanel = PairsOfPanel()
    features: FeaturesOfPanel = FeaturesOfPanel()

    @model_validator(mode="after")
    def _names(self):
        names = [judge.name for judge in self.judges]
        if len(set(names)) < len(names):
            raise ValueError(f"judges need different names, got {', '.join(names)}")
        return self

    def check(self) -> None:
        """It was checked when it was read."""

    def recorded(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return self.model_dump(mode="json")


def load_panel(path: Path) -> JudgePanel:
    """The panel of a TOML file.

    Raises:
        ConfigError: naming the file, the key, the value and what was expected.
    """
    text = read_text(path, what="panel", hint="polysem judge --init > judges.toml")
    return parse_section(JudgePanel, parse_toml(text, origin=str(path)), origin=str(path))


class Member:
    """One model of the panel, at work."""

    def __init__(self, config: MemberConfig, folder: Path, *, retries: Retries | None = None):
        from polysem.transfer.run import open_target

        target = open_target(config, folder, retries=retries)
        if not isinstance(target, ServedTarget):
            raise ConfigError(f"judge {config.name!r} is no server; expected kind = 'chat' and a url")
        self.name, self._target = config.name, target

    def announce(self, questions: Sequence[Messages], *, max_tokens: int) -> str:
        """What asking them would send and cost at most: a reply that is not of the form is asked for again.

        Raises:
            ConfigError: the budget is too small.
        """
        estimate = self._target.estimate_chats(questions, max_tokens=max_tokens, attempts=ATTEMPTS)
        self._target.budget.check(estimate)
        asked = self._target.question
        once = self._target.estimate_chats(questions, max_tokens=max_tokens).to_send
        least = f" at most ({once} to send if every reply is the JSON that is asked for)" if once else ""
        return f"{self.name}: {estimate}{least}" + (f"; {asked}" if asked else "")

    def ask(self, ahead: Sequence[Messages], *, max_tokens: int, reporter: Reporter = SILENT) -> Ask:
        """Ask `ahead` side by side, then give what answers from what was kept."""
        parts = [ahead[k : k + SIDE_BY_SIDE] for k in range(0, len(ahead), SIDE_BY_SIDE)]
        label = f"questions to {self.name}, by {SIDE_BY_SIDE}"
        for part in reporter.track(parts, total=len(parts), label=label):
            self._target.chat_ahead(part, max_tokens=max_tokens)
        return ask_with(self._target, max_tokens=max_tokens)
