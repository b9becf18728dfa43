"""What the commands of stages beside a study ask for. Each option is declared once, with its default and its help: the command
line makes its own of them (`cli.shell.asks`), so nothing heavy is imported here."""

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from polysem.boundary.files import local_path
from polysem.errors import ConfigError


@runtime_checkable
class StageOptions(Protocol):
    """What a command asks of a stage: `AtlasOptions`, `JudgePanel`, ..."""

    def check(self) -> None:
        """Raises ConfigError for what cannot be asked."""

    def recorded(self) -> dict[str, Any]:
        """As they stand in the manifest: files by content."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}  # type: ignore[call-overload]


def asked(default: Any, help: str, *, flag: str = "", metavar: str | None = None) -> Any:
    """A field that is an option of the command line, too.

    Args:
        default: of both; of a tuple of numbers that is empty, the command line takes "".
        help: one line.
        flag: how the command line calls it; "": by its name.
        metavar: what stands for its value in help.
    """
    return field(default=default, metadata={"help": help, "flag": flag, "metavar": metavar})


@dataclass(frozen=True)
class AtlasOptions(StageOptions):
    """What the atlas of a study is made with."""

    token_set: str = asked("out", "Target tokens: in or out.", flag="set")
    n_prompts: int = asked(16, "Prompts to average over.", flag="prompts")
    """by id (a hash, so they are a sample)"""
    top: int = asked(50, "Sources kept per target.")
    sample: int = asked(100, "Pairs per stratum steered for real; 0: none.")
    sample_prompts: int = 4
    kl: float = asked(0.01, "Nats at which they are steered.")

    def check(self) -> None:
        """Raises ConfigError for a value that cannot be."""
        _check_token_set(self.token_set)
        _check_least(self, n_prompts=1, top=1, sample_prompts=1)
        if self.sample < 0 or not 0 < self.kl < 10:
            raise ConfigError(
                f"sample {self.sample}, kl {self.kl}; expected sample >= 0 and 0 < kl < 10 nats"
            )


@dataclass(frozen=True)
class LayersOptions(StageOptions):
    """How much is measured of every two dictionaries."""

    sources: int = asked(100, "Features pushed and taken away, each dictionary.")
    prompts: int = asked(24, "Rows of text they are pushed on.")
    events: int = asked(12, "Positions of each where they are taken away.")
    edges: int = asked(60, "Edges whose help is measured.")
    steered: int = asked(40, "Features steered at doses; 0: none.")
    tokens: int = asked(0, "Tokens of the corpus; 0: as the study says.")

    def check(self) -> None:
        """Raises ConfigError for a value that cannot be."""
        _check_least(self, sources=2, prompts=3, events=1, edges=3, steered=0, tokens=0)


@dataclass(frozen=True)
class JointOptions(StageOptions):
    """What a plan should reach; nothing wanted: as many wishes as the study's joint.plans, at random."""

    towards: tuple[str, ...] = asked(
        (), "Wanted change of log-odds of words or of a category; may be given again.", metavar="WORDS=NATS"
    )
    protect: tuple[str, ...] = asked((), "Words or a category that should stay; again.", metavar="WORDS")

    def check(self) -> None:
        """Raises ConfigError for what cannot be asked."""
        for one in self.towards:
            words, sign, nats = one.rpartition("=")
            try:
                good = bool(words and sign) and 0 < abs(float(nats)) < float("inf")
            except ValueError:
                good = False
            if not good:
                raise ConfigError(
                    f"--towards {one!r}: expected words and nats, other than 0",
                    hint="--towards happy,joy=0.5",
                )
        if self.protect and not self.towards:
            raise ConfigError("nothing is wanted besides what is protected", hint="--towards happy,joy=0.5")

    def recorded(self) -> dict[str, Any]:
        """As it goes into the manifest."""
        return {name: value for name, value in super().recorded().items() if value}


@dataclass(frozen=True)
class GenerateOptions(StageOptions):
    """How much is drawn, and of what."""

    pairs: int = asked(40, "Pairs of the plan; half as many random features and targets beside.")
    prompts: int = asked(8, "Prompts of the study.")
    tokens: int = asked(64, "Drawn behind each.")
    draws: int = asked(1, "Texts of each prompt and push.")
    kl: tuple[float, ...] = asked((0.05, 0.5), "Doses, nats of the next token, with commas.")
    scope: str = asked("both", "Where texts are pushed: prompt, decode, both, or the first N tokens.")
    temperature: float = asked(1.0, "0 takes the most likely token.")
    sae: str = asked("", "Label of the dictionary.")
    """default: the first one that the plan has targets of"""
    token_set: str = asked("out", "Target tokens: in or out.", flag="set")
    tasks: str = asked("", "Questions (.jsonl) asked under every push.", metavar="FILE")

    def check(self) -> None:
        """Raises ConfigError for what cannot be asked."""
        _check_least(self, pairs=2, prompts=3, tokens=2, draws=1)
        if not self.kl or not all(0 < k <= 5 for k in self.kl) or len(set(self.kl)) < len(self.kl):
            raise ConfigError(
                f"doses {self.kl}; expected different nats above 0, and at most 5", hint="--kl 0.05,0.5"
            )
        if self.scope not in ("prompt", "decode", "both") and not (
            self.scope.isdecimal() and int(self.scope)
        ):
            raise ConfigError(f"scope {self.scope!r}; expected prompt, decode, both, or a number of tokens")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature {self.temperature:g}; expected 0 or more")
        _check_token_set(self.token_set)

    def recorded(self) -> dict[str, Any]:
        """As it goes into the manifest: the file by content."""
        from polysem.store import io

        return super().recorded() | ({"tasks": io.sha256_of(local_path(self.tasks))} if self.tasks else {})


@dataclass(frozen=True)
class SideEffectsOptions(StageOptions):
    """Which directions are judged, and how."""

    features: tuple[int, ...] = asked((), "Features, as 12,40.")
    top: int = asked(0, "The cleanest N features by gradient.")
    all_by_gradient: bool = asked(False, "Every feature, without a push.")
    vectors: tuple[str, ...] = asked(
        (), "A steering vector; may be given again.", flag="vector", metavar="FILE"
    )
    more: str = asked("", "Texts to steer towards, one a line.", metavar="FILE")
    less: str = asked("", "Texts to steer away from.", metavar="FILE")
    other: str = asked("", "A finetune or base of the model: what it has more at the site.", metavar="MODEL")
    """its mean activation on the study's prompts is steered towards, from the study's own"""
    target: str = asked("", "What it should move: a category, or words with commas.")
    sae: str = asked("", "Label of the dictionary.")
    """default: the one at the site, or the study's first"""
    site: str = asked("", "Where a file's vector is added.")
    """default: as the file says, or the dictionary's"""
    readout: str = asked("", "Dictionary that is looked at.")
    """default: the last one that can see the push"""
    positions: str = asked("", "last, all or all_but_first; default: the plan's.")
    token_set: str = asked("out", "Features' tokens: in or out.", flag="set")
    kl: float = asked(0.05, "Dose, nats.")
    coefficient: float | None = asked(None, "Dose in place of nats: times the vector as given.")
    n_null: int = asked(40, "Isotropic directions to compare with.", flag="null")
    forecast: int = asked(0, "Push N features and judge forecasts on them.", metavar="N")
    tokens: int = asked(20_000, "Tokens of the corpus on which --forecast counts firing; 0: none.")
    repair: bool = asked(False, "Look for the direction with least beside.")

    def check(self) -> None:
        """Raises ConfigError for what cannot be asked."""
        if bool(self.more) != bool(self.less):
            raise ConfigError(
                "a difference of means takes two files of texts", hint="give --more FILE and --less FILE"
            )
        by_gradient = self.features or self.top or self.all_by_gradient
        if not (by_gradient or self.vectors or self.more or self.other or self.forecast):
            raise ConfigError(
                "nothing is asked for",
                hint="give --features 12,40, --top 20, --vector FILE, --more and --less, --other MODEL, or --all-by-gradient",
            )
        _check_token_set(self.token_set)
        if min(self.top, self.forecast, self.tokens) < 0 or self.n_null < 1:
            raise ConfigError(
                f"top {self.top}, forecast {self.forecast}, tokens {self.tokens}, null {self.n_null}; "
                "expected at least 0, 0, 0 and 1"
            )
        dose = self.kl if self.coefficient is None else self.coefficient
        if not 0 < dose < float("inf"):
            raise ConfigError(f"dose {dose:g}; expected a number above 0")

    def recorded(self) -> dict[str, Any]:
        """As it goes into the manifest: files by content."""
        from polysem.store import io

        files = [*self.vectors, *filter(None, (self.more, self.less))]
        content = [io.sha256_of(local_path(file)) for file in files]
        if self.other and (folder := local_path(self.other)).is_dir():
            content.append(io.sha256_tree(folder))
        return super().recorded() | {"content": content}


def _check_least(options: StageOptions, **least: int) -> None:
    for name, n in least.items():
        if getattr(options, name) < n:
            raise ConfigError(f"{name} {getattr(options, name)}; expected at least {n}")


def _check_token_set(name: str) -> None:
    from polysem.vocabulary import TOKEN_SETS

    if name not in TOKEN_SETS:
        raise ConfigError(f"token set {name!r}; expected one of {', '.join(TOKEN_SETS)}")
