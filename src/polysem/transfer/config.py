"""A transfer study as one TOML file: frozen, every unknown key an error.

Two sources, any number of targets. `preset = "paper"` fills in the paper's choices; keys that are given win.
"""

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from polysem.categories import DEFAULT
from polysem.config import (
    CorpusConfig,
    FileRef,
    Name,
    NameOrFile,
    Section,
    parse_section,
    parse_toml,
    read_text,
)
from polysem.keys import checked_address
from polysem.places import Located
from polysem.vocabulary import attribute
from polysem.vocabulary_transfer import (
    PROMPT_POSITIONS,
    TARGET_KINDS,
    TEMPLATES,
    TRANSFER_ARMS,
    TRANSFER_DIRECTIONS,
)

OURS = (
    "model",
    "prompt",
    "messages",
    "max_tokens",
    "temperature",
    "logprobs",
    "top_logprobs",
    "stream",
    "n",
    "logit_bias",
)
"""fields of a request that the study decides"""


def _extra(fields: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted(set(fields) & set(OURS)):
        raise ValueError(f"extra may not hold {', '.join(taken)}: the study decides these")
    return fields


Arm = Annotated[str, AfterValidator(TRANSFER_ARMS.check)]
TESTED = tuple(name for name, arm in TRANSFER_ARMS.items() if arm.family)
"""arms with reference pools of their own; `target` is a ceiling and `random` has nothing to be matched to"""


class SourceConfig(Section):
    model: NameOrFile
    """Hub id, local folder, or zoo:NAME"""
    sae: FileRef
    """as saes.ref of a study"""
    revision: str | None = None
    """commit of a Hub model"""
    device: str = "auto"
    """auto (cuda, then mps, then cpu) or a torch device"""
    max_fvu: Annotated[float, Field(gt=0)] = 0.7
    """refuse the SAE above this fraction of variance unexplained"""
    allow_other_model: bool = False
    """take an SAE that names another model, e.g. one of a base model on its instruct version"""


class TargetConfig(Section):
    name: Name
    """in tables and files"""
    kind: Annotated[str, AfterValidator(TARGET_KINDS.check)] = "local"
    model: Annotated[str, Located(or_name=True, when=lambda target: target.kind == "local")]
    """a reference for local targets, else the name that the server knows"""
    sae: FileRef | None = None
    """of a local target, as saes.ref of a study: then directions of its features are tried, too"""
    max_fvu: Annotated[float, Field(gt=0)] = 0.7
    """of that SAE"""
    allow_other_model: bool = False
    """take that SAE though it names another model"""
    url: Annotated[str, AfterValidator(checked_address)] | None = None
    """of the server, e.g. http://localhost:8000/v1"""
    known_as: str | None = None
    """the name that the server gives the model in its answers, where that is not `model`"""
    k: Annotated[int, Field(ge=1)] = 20
    """log-probabilities to ask for"""
    samples: Annotated[int, Field(ge=0, le=512)] = 0
    """tokens to draw from the category behind each prompt, in a second request: its probability is then near exact at every k.
    Needs `tokenizer`, and a server that takes logit_bias and n; 128 is the most that OpenAI takes"""
    vocabulary: Annotated[int, Field(ge=2)] | None = None
    """tokens of the served model, where known: an answer with so many is complete"""
    tokenizer: NameOrFile | None = None
    """of a served model, as a Hub id, a folder, zoo:NAME or a GGUF file: then pools are matched on its tokens, whether BOS
    stands in front of prompts is checked, and which words are one token is known"""
    bos: bool | None = None
    """whether BOS stands in front of a prompt; None: as the model's own tokenizer does. Of a served target it is checked,
    not made: the server decides"""
    extra: Annotated[dict[str, Any], AfterValidator(_extra)] = Field(default_factory=dict)
    """further fields of every request to a server, e.g. { chat_template_kwargs = { enable_thinking = false } }"""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    device: str = "auto"
    """of a local target: auto (cuda, then mps, then cpu) or a torch device"""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 4
    """requests to a server at one time"""
    per_minute: Annotated[float, Field(gt=0)] | None = None
    """requests to a server in a minute; none: as fast as it answers"""
    max_requests: Annotated[int, Field(ge=1)] | None = None
    max_cost: Annotated[float, Field(gt=0)] | None = None
    """what a run may cost, in price_unit; none: no limit"""
    price_per_request: Annotated[float, Field(ge=0)] = 0.0
    """in price_unit"""
    price_per_million_input: Annotated[float, Field(ge=0)] = 0.0
    """in price_unit, a million tokens sent"""
    price_per_million_output: Annotated[float, Field(ge=0)] = 0.0
    """in price_unit, a million tokens answered"""
    price_unit: str = "units"
    """what prices are in, e.g. USD"""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """seconds that one request may take in all, before it is tried again"""

    @model_validator(mode="after")
    def _address(self):
        if (self.kind == "local") == (self.url is not None):
            raise ValueError(
                "a local target has no url, a served one needs one, e.g. http://localhost:8000/v1"
            )
        if self.kind == "local" and self.extra:
            raise ValueError("extra goes into requests to a server; a local target has none")
        if self.kind == "chat" and self.bos is not None:
            raise ValueError("the chat template decides about BOS; bos is for local targets and completions")
        if self.kind != "local" and self.sae is not None:
            raise ValueError("only a local target takes an sae: nothing inside a served model can be reached")
        if self.samples and (self.kind == "local" or self.tokenizer is None):
            raise ValueError(
                "samples are drawn by token number from a server: set kind, and tokenizer to the served model's own"
            )
        if self.kind != "local" and self.max_requests is None and self.max_cost is None:
            raise ValueError("a served target needs a budget: set max_requests or max_cost")
        return self


class SharedConfig(Section):
    min_r: Annotated[float, Field(gt=0, le=1)] = 0.5
    """least correlation of activations of matched features"""
    min_active: Annotated[int, Field(ge=2)] = 10
    """segments on which a feature must be active to take part"""
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
    """strings with activation >= ratio x max are taken"""


class CategoriesConfig(Section):
    names: Annotated[tuple[str, ...], Field(min_length=1)] = DEFAULT
    """categories of words that are tested"""
    table: NameOrFile = "builtin"
    """builtin, or a .toml file: category = words"""
    sentences: NameOrFile = "builtin"
    """builtin, or a .toml file: category = list of incomplete sentences"""
    n_sentences: Annotated[int, Field(ge=2)] = 16
    purpose: str = ""
    """why other categories than the built-in ones are studied; required then, and kept in the manifest"""


class PoolsConfig(Section):
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)] = tuple(TRANSFER_ARMS)
    """whose strings are injected; see the vocabulary"""
    unit: Literal["tokens", "snippets"] = "tokens"
    """what a string is: a token that activates a feature, or the text up to and with such a token"""
    snippet_tokens: Annotated[int, Field(ge=2)] = 6
    """tokens of a snippet, in its source's tokenizer"""
    n_tokens: Annotated[int, Field(ge=1)] = 10
    """strings in one prompt; with snippets 1 or 2 are as much text"""
    size: Annotated[int, Field(ge=1)] = 40
    """strings of one pool, from which each prompt draws"""
    n_treated: Annotated[int, Field(ge=1)] = 1
    """treated pools of each arm"""
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


class DirectionsConfig(Section):
    """Directions in targets that have an SAE; others have none."""

    kinds: Annotated[
        tuple[Annotated[str, AfterValidator(TRANSFER_DIRECTIONS.check)], ...], Field(min_length=1)
    ] = tuple(TRANSFER_DIRECTIONS)
    """what is steered along in the target: its SAE's features, or token gradients"""
    kl: Annotated[float, Field(gt=0, le=0.1)] = 0.01
    """dose of every direction, nats at the last position"""
    n_sentences: Annotated[int, Field(ge=1)] = 8
    """of each category, from the first"""


class CostConfig(Section):
    """What an injection costs on ordinary text, at the dose that is claimed; local targets only."""

    n_texts: Annotated[int, Field(ge=0)] = 8
    """held-out texts; 0 measures none"""
    n_prefixes: Annotated[int, Field(ge=1)] = 4
    """prompts of the treated pools, and as many of reference pools, in front of each text"""
    choices: FileRef | None = None
    """multiple-choice questions, a .jsonl file: {"context": text, "endings": [texts], "answer": number from 0}"""
    corpus: FileRef | None = None
    """held-out text; None takes corpus.ref after the part on which features are matched"""


class FramesConfig(Section):
    templates: Annotated[tuple[Annotated[str, AfterValidator(TEMPLATES.check)], ...], Field(min_length=1)] = (
        "paren",
    )
    positions: Annotated[
        tuple[Annotated[str, AfterValidator(PROMPT_POSITIONS.check)], ...], Field(min_length=1)
    ] = ("prefix",)
    repeats: Annotated[int, Field(ge=1)] = 5
    """of every baseline, for the noise floor"""


class TestConfig(Section):
    __test__ = False
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """of intervals"""
    success_k: Annotated[int, Field(ge=1)] = 10
    """k of top-k success"""
    looks: tuple[Annotated[int, Field(ge=19)], ...] = ()
    """numbers of reference pools, rising and below pools.n_reference, after which an arm that is decided is asked no
    further; none: every arm is asked whole. The level is spent over the looks, so p values hold wherever an arm ends"""
    futility: Annotated[float, Field(gt=0, le=1)] = 0.2
    """a category is decided where it is shown, or its adjusted p of the look by itself is above this"""


class TransferStudy(Section):
    """A whole transfer study."""

    name: Name = "transfer"
    """names the run folder: runs/NAME"""
    seed: Annotated[int, Field(ge=0)] = 0
    """root of every random draw"""
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
        every = (*self.test.looks, self.pools.n_reference)
        if any(b <= a for a, b in itertools.pairwise(every)):
            raise ValueError(
                f"test.looks must rise and end below pools.n_reference ({every[-1]}), got {every[:-1]}"
            )
        for before, n in itertools.pairwise((0, *every)) if self.test.looks else ():
            if (1 - self.test.level) * (n - before) / every[-1] * (n + 1) < 1:
                raise ValueError(
                    f"the look at {n} reference pools cannot show anything: it may spend {(n - before) / every[-1]:.2f} of the level, "
                    f"and its smallest p is 1/{n + 1}; make test.looks fewer or pools.n_reference larger"
                )
        if self.categories.table != "builtin" and not self.categories.purpose.strip():
            raise ValueError("another table of categories needs categories.purpose: a sentence on why")
        return self


def load_transfer(path: Path) -> TransferStudy:
    """The transfer study of a TOML file.

    Raises:
        ConfigError: naming the file, the key, the value and what was expected.
    """
    text = read_text(path, what="transfer study", hint="polysem transfer --init > transfer.toml")
    return parse_transfer(text, origin=str(path))


def parse_transfer(text: str, *, origin: str = "transfer study") -> TransferStudy:
    """The transfer study of TOML text; `origin` names the text in errors."""
    content = parse_toml(text, origin=origin)
    if content.get("preset") == "paper":
        for section, values in attribute("polysem.paper.transfer:PRESET").items():
            given = content.get(section, {})
            content[section] = {**values, **given} if isinstance(given, dict) else given
    return parse_section(TransferStudy, content, origin=origin)
