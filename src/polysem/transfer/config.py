"""A transfer study as one TOML file: frozen, every unknown key an error.

Two sources, any number of targets. `preset = "paper"` fills in the paper's choices (30 strings, top 30, 100
sentences x 100 draws, union of the models' sets, Welch's test beside ours); keys that are given win.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from polysem.categories import DEFAULT
from polysem.config import CorpusConfig
from polysem.errors import ConfigError
from polysem.registry import did_you_mean

Arm = Literal["target", "shared", "source_only", "neither", "high", "low", "random"]
Template = Literal["paren", "bare", "list", "stars"]
Position = Literal["prefix", "suffix", "system"]
DirectionKind = Literal["feature", "gradient"]
TESTED: tuple[Arm, ...] = ("shared", "source_only", "neither", "high", "low")
"""arms with reference pools of their own; `target` is a ceiling and `random` has nothing to be matched to"""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceConfig(_Section):
    model: str
    """Hub id, local folder, or zoo:NAME"""
    sae: str
    """as saes.ref of a study"""
    revision: str | None = None
    device: str = "auto"
    max_fvu: Annotated[float, Field(gt=0)] = 0.7


class TargetConfig(_Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    """in tables and files"""
    kind: Literal["local", "completions", "chat"] = "local"
    model: str
    """a reference for local targets, else the name that the server knows"""
    sae: str | None = None
    """of a local target, as saes.ref of a study: then directions of its features are tried, too"""
    max_fvu: Annotated[float, Field(gt=0)] = 0.7
    """of that SAE"""
    url: str | None = None
    """of the server, e.g. http://localhost:8000/v1"""
    k: Annotated[int, Field(ge=1)] = 20
    """log-probabilities to ask for"""
    vocabulary: Annotated[int, Field(ge=2)] | None = None
    """tokens of the served model, where known: an answer with so many is complete"""
    tokenizer: str | None = None
    """of a served model, as a Hub id, a folder or zoo:NAME: then pools are matched on its tokens"""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    device: str = "auto"
    concurrency: Annotated[int, Field(ge=1, le=256)] = 4
    per_minute: Annotated[float, Field(gt=0)] | None = None
    max_requests: Annotated[int, Field(ge=1)] | None = None
    max_cost: Annotated[float, Field(gt=0)] | None = None
    price_per_request: Annotated[float, Field(ge=0)] = 0.0
    price_per_million_input: Annotated[float, Field(ge=0)] = 0.0
    price_per_million_output: Annotated[float, Field(ge=0)] = 0.0
    price_unit: str = "units"
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """seconds"""

    @model_validator(mode="after")
    def _address(self):
        if (self.kind == "local") == (self.url is not None):
            raise ValueError(
                "a local target has no url, a served one needs one, e.g. http://localhost:8000/v1"
            )
        if self.kind != "local" and self.sae is not None:
            raise ValueError("only a local target takes an sae: nothing inside a served model can be reached")
        if self.kind != "local" and self.max_requests is None and self.max_cost is None:
            raise ValueError("a served target needs a budget: set max_requests or max_cost")
        return self


class SharedConfig(_Section):
    min_r: Annotated[float, Field(gt=0, le=1)] = 0.5
    """least correlation of activations of matched features"""
    min_active: Annotated[int, Field(ge=2)] = 10
    min_z: float = 2.0
    """least interference of a passing pair, in standard deviations of the covariance null"""
    high: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """least interference (cosine) of the paper's high set"""
    medium: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """... and of its low set"""
    join: Literal["union", "intersection"] = "union"
    """how the sources' high and low sets are put together"""
    n_strings: Annotated[int, Field(ge=1)] = 10
    """activating strings taken of each feature"""
    target_ratio: Annotated[float, Field(gt=0, le=1)] = 0.8


class CategoriesConfig(_Section):
    names: Annotated[tuple[str, ...], Field(min_length=1)] = DEFAULT
    table: str = "builtin"
    """builtin, or a .toml file: category = words"""
    sentences: str = "builtin"
    """builtin, or a .toml file: category = list of incomplete sentences"""
    n_sentences: Annotated[int, Field(ge=2)] = 16
    purpose: str = ""
    """why other categories than the built-in ones are studied; required then, and kept in the manifest"""


class PoolsConfig(_Section):
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)] = (
        "target", "shared", "source_only", "neither", "high", "low", "random",
    )  # fmt: skip
    unit: Literal["tokens", "snippets"] = "tokens"
    """what a string is: a token that activates a feature, or the text up to and with such a token"""
    snippet_tokens: Annotated[int, Field(ge=2)] = 6
    """tokens of a snippet, in its source's tokenizer"""
    n_tokens: Annotated[int, Field(ge=1)] = 10
    """strings in one prompt; with snippets 1 or 2 are as much text"""
    size: Annotated[int, Field(ge=1)] = 40
    """strings of one pool, from which each prompt draws"""
    n_treated: Annotated[int, Field(ge=1)] = 1
    n_reference: Annotated[int, Field(ge=19)] = 199
    n_random: Annotated[int, Field(ge=1)] = 39
    """pools of the random arm, with which the ceiling is compared: 39 bound its effect on both sides at 95 %"""
    draws: Annotated[int, Field(ge=1)] = 1
    """prompts per pool and sentence"""
    reference_draws: Annotated[int, Field(ge=1)] | None = None
    """... of reference pools; None takes `draws`. With fewer, reference means are noisier and the test is conservative."""
    nearest: Annotated[int, Field(ge=2)] = 12
    """a reference string is drawn from so many nearest to the treated one"""
    leakage: Literal["source", "minilm", "none"] = "source"
    """embedding whose cosine with the category's words is matched"""


class DirectionsConfig(_Section):
    """Directions in targets that have an SAE; others have none."""

    kinds: Annotated[tuple[DirectionKind, ...], Field(min_length=1)] = ("feature", "gradient")
    kl: Annotated[float, Field(gt=0, le=0.1)] = 0.01
    """dose of every push, nats at the last position"""
    n_sentences: Annotated[int, Field(ge=1)] = 8
    """of each category, from the first"""


class CostConfig(_Section):
    """What an injection costs on ordinary text, at the dose that is claimed; local targets only."""

    n_texts: Annotated[int, Field(ge=0)] = 8
    """held-out texts; 0 measures none"""
    n_prefixes: Annotated[int, Field(ge=1)] = 4
    """prompts of the treated pools, and as many of reference pools, in front of each text"""
    choices: str | None = None
    """multiple-choice questions, a .jsonl file: {"context": text, "endings": [texts], "answer": number from 0}"""
    corpus: str | None = None
    """held-out text; None takes corpus.ref after the part on which features are matched"""


class FramesConfig(_Section):
    templates: Annotated[tuple[Template, ...], Field(min_length=1)] = ("paren",)
    positions: Annotated[tuple[Position, ...], Field(min_length=1)] = ("prefix",)
    repeats: Annotated[int, Field(ge=1)] = 5
    """of every baseline, for the noise floor"""


class TestConfig(_Section):
    __test__ = False
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    success_k: Annotated[int, Field(ge=1)] = 10


class TransferStudy(_Section):
    """A whole transfer study."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "transfer"
    seed: Annotated[int, Field(ge=0)] = 0
    preset: Literal["default", "paper"] = "default"
    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=2, max_length=2)]
    targets: Annotated[tuple[TargetConfig, ...], Field(min_length=1)]
    corpus: CorpusConfig = CorpusConfig()
    shared: SharedConfig = SharedConfig()
    categories: CategoriesConfig = CategoriesConfig()
    pools: PoolsConfig = PoolsConfig()
    frames: FramesConfig = FramesConfig()
    directions: DirectionsConfig = DirectionsConfig()
    cost: CostConfig = CostConfig()
    test: TestConfig = TestConfig()

    @model_validator(mode="after")
    def _consistent(self):
        names = [target.name for target in self.targets]
        if len(set(names)) < len(names):
            raise ValueError(f"targets need different names, got {', '.join(names)}")
        if self.pools.size < self.pools.n_tokens:
            raise ValueError(
                f"pools.size ({self.pools.size}) is below pools.n_tokens ({self.pools.n_tokens})"
            )
        if self.categories.table != "builtin" and not self.categories.purpose.strip():
            raise ValueError("another table of categories needs categories.purpose: a sentence on why")
        return self


_PAPER: dict[str, dict[str, Any]] = {
    "pools": {
        "n_tokens": 30,
        "size": 100_000,
        "arms": ["target", "high", "low", "random"],
        "leakage": "none",
        "draws": 100,
        "reference_draws": 1,
        "n_random": 1,
    },
    "categories": {"n_sentences": 100},
    "shared": {"high": 0.5, "medium": 0.2, "join": "union"},
    "test": {"success_k": 30},
}


def load_transfer(path: Path) -> TransferStudy:
    """The transfer study of a TOML file.

    Raises:
        ConfigError: naming the file, the key, the value and what was expected.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read transfer study {path}: {getattr(error, 'strerror', None) or error}",
            hint="polysem transfer --init > transfer.toml",
        ) from error
    return parse_transfer(text, origin=str(path))


def parse_transfer(text: str, *, origin: str = "transfer study") -> TransferStudy:
    """The transfer study of TOML text; `origin` names the text in errors."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin} is not TOML: {error}") from error
    if content.get("preset") == "paper":
        for section, values in _PAPER.items():
            given = content.get(section, {})
            content[section] = {**values, **given} if isinstance(given, dict) else given
    try:
        return TransferStudy.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{origin}: " + "; ".join(_words(item) for item in error.errors())) from error


def _words(item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = [*TransferStudy.model_fields]
        for section in (
            SourceConfig, TargetConfig, SharedConfig, CategoriesConfig, PoolsConfig, FramesConfig, DirectionsConfig,
            CostConfig, TestConfig, CorpusConfig,
        ):  # fmt: skip
            known += section.model_fields
        return f"unknown key {path!r}{did_you_mean(str(item['loc'][-1]), known)}"
    return f"{path or 'study'}: {item['msg']} (got {str(item['input'])[:80]!r})"
