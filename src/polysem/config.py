"""A study as one TOML file: frozen, every unknown key an error with a suggestion.

Only `model.ref` and one `[[saes]]` entry are required; every other value has the default that a first study
should use. The defaults of thresholds and bins are the paper's (arXiv 2505.11611, section 3).
"""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from polysem.boundary import text as foreign
from polysem.boundary.door import Door
from polysem.boundary.files import LARGEST_SETTINGS, local_path
from polysem.boundary.runs import refuse_folder
from polysem.errors import ConfigError
from polysem.keys import checked_reference, hidden
from polysem.places import Located
from polysem.vocabulary import (
    CONTROLS,
    AskedUnit,
    CategoryName,
    ControlName,
    LocusName,
    Positions,
    PresetName,
    SimilarityRef,
    TokenSetName,
    similarity_folder,
)
from polysem.vocabulary_findings import KinshipName

LARGEST = 1 << 53
"""of a whole number in settings: no array has more elements"""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=200)]
"""of a study: its folder is called so, and lies where it is looked for"""


class Section(BaseModel):
    """A part of a settings file: frozen, every unknown key an error, every number finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="after")
    def _numbers_can_be_counted(self):
        for name, value in self:
            if isinstance(value, int) and name != "seed" and abs(value) > LARGEST:
                raise ValueError(f"{name} has {len(str(value))} digits; expected at most {LARGEST:,}")
        return self


S = TypeVar("S", bound=BaseModel)
_SETTINGS = Door("settings", "correct the line, then run the same command again", ConfigError, ConfigError)
Reference = Annotated[str, AfterValidator(checked_reference)]
"""an address in it is one that can be asked, and holds no secret"""
FileRef = Annotated[Reference, Located()]
NameOrFile = Annotated[Reference, Located(or_name=True)]
MeasureRef = Annotated[SimilarityRef, AfterValidator(checked_reference), Located(split=similarity_folder)]
"""references of which some are, or end in, paths: relative ones follow the settings file"""


class ModelConfig(Section):
    ref: NameOrFile
    """Hub id, local folder, or zoo:NAME"""
    revision: str | None = None
    """commit of a Hub model; a branch name is resolved once and the commit recorded"""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    device: str = "auto"
    """auto (cuda, then mps, then cpu) or a torch device"""
    prepend_bos: bool | None = None
    """whether rows begin with BOS, for all SAEs and prompts; default: as each SAE was trained. A tokenizer without
    BOS: true puts its EOS in front"""


class SAEConfig(Section):
    ref: FileRef
    """saelens:RELEASE/ID, hub:REPO/PATH, zoo:NAME/SITE, or a local folder or file"""
    label: Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] | None = None
    """name of the SAE in tables; default: the site, made unique"""
    site: str | None = None
    """hook point, where the source does not say it or says it wrongly"""
    glosses: NameOrFile | None = None
    """overrides glosses.source for this SAE"""
    max_fvu: Annotated[float, Field(gt=0)] = 0.7
    """fidelity gate: refuse above this fraction of variance unexplained"""
    prepend_bos: bool | None = None
    """whether this SAE's rows begin with BOS; default: model.prepend_bos, or else as its files say"""
    allow_other_model: bool = False
    """take an SAE that names another model, e.g. one of a base model on its instruct version"""


class VectorConfig(Section):
    ref: FileRef
    """file of a steering vector: .safetensors, .npy, .gguf, .pt; `docs/side-effects.md` says what is read of each"""
    label: Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")] | None = None
    """name of the vector in tables; default: that of the file"""
    site: str | None = None
    """hook point where it is added, where the file does not say it; default: that of the first SAE"""

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.label or Path(self.ref).stem


class TranscoderConfig(Section):
    ref: FileRef
    """zoo:NAME/SET, zoo-real:NAME/SITE, or a local folder or file of transcoders; read by `polysem layers` alone"""
    label: Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")] | None = None
    """name of the set in tables, the layer behind a dot; default: the last part of the reference"""
    reads: str | None = None
    """point of the block that is read, where the files do not say it or say it wrongly: mlp.hook_in, hook_resid_mid, ..."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """of the set that are judged; empty: all"""
    max_fvu: Annotated[float, Field(gt=0)] = 0.7
    """fidelity gate: refuse above this fraction of variance unexplained, at any written site"""
    allow_other_model: bool = False
    """take a set that names another model"""

    @property
    def name(self) -> str:
        """What tables call the set."""
        return self.label or Path(self.ref).name


class CorpusConfig(Section):
    ref: FileRef = "zoo:samples"
    """zoo:samples, or a .txt, .jsonl (key `text`) or .json (list of strings) file, or a folder of .txt/.md
    files, or datasets:OWNER/NAME?split=train&column=text (also config=, revision=), streamed from the Hub"""
    n_tokens: Annotated[int, Field(ge=1)] = 200_000
    """tokens that are read"""
    context: Annotated[int, Field(ge=2)] = 128
    """tokens of a row"""


class FeaturesConfig(Section):
    source: NameOrFile = "harvest"
    """harvest (stream the corpus through model and SAE), zoo (the table that comes with a zoo SAE), or
    neuronpedia:FOLDER_OR_URL"""
    n_contexts: Annotated[int, Field(ge=1, le=10_000)] = 12
    window: Annotated[int, Field(ge=1, le=100_000)] = 24
    """tokens kept of each context, ending a few after the peak"""
    target_ratio: Annotated[float, Field(gt=0, le=1)] = 0.8
    """T_f: tokens with activation >= ratio x max"""
    n_target_tokens: Annotated[int, Field(ge=1, le=10_000)] = 10
    tokens_out: Literal["decoder", "effect"] = "decoder"
    """T_out: the tokens that the decoder row promotes through the unembedding alone, or those that steering along it raises
    most on texts of the corpus (source = harvest only)"""

    @model_validator(mode="after")
    def _an_effect_is_measured(self):
        if self.tokens_out == "effect" and self.source != "harvest":
            raise ValueError(
                f'tokens_out = "effect" steers on texts of the corpus, and source is {self.source!r}: set source = "harvest"'
            )
        return self


class GlossesConfig(Section):
    source: NameOrFile = "tokens"
    """tokens (offline, from top activations), zoo (the lines written for a zoo SAE; tokens for features without one),
    neuronpedia:FOLDER_OR_URL, or file:PATH (.jsonl, .csv, .json)"""
    embedder: Reference = "minilm"
    """minilm (offline), export (the vectors in a Neuronpedia export), sentence-transformers:NAME, or
    openai:MODEL@URL"""
    similarity: tuple[MeasureRef, ...] = ()
    """measures of similarity beside the cosine of the glosses by `embedder`: gloss:EMBEDDER, tokens:glove, tokens:wordnet,
    contexts:EMBEDDER, tokens:frequency (to hold fixed); strict calls a pair unrelated if all of them do"""
    cluster_cuts: tuple[float, ...] = (0.40, 0.30, 0.20, 0.15)
    """gloss similarities at which features are clustered"""


class PairsConfig(Section):
    min_interference: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """pairs with |interference| at least this are written"""
    max_similarity: Annotated[float, Field(gt=-1, le=1)] = 0.3
    """... and gloss similarity below this"""
    bins: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 1.0)
    """edges of the bins of |interference| that sources are drawn from"""
    similarity_thresholds: tuple[float, ...] = (0.40, 0.30, 0.20, 0.15)
    """for the counts of partners per bin"""

    @model_validator(mode="after")
    def _edges_rise(self):
        if len(self.bins) < 2 or any(a >= b for a, b in zip(self.bins, self.bins[1:], strict=False)):
            raise ValueError(f"bins must be rising edges, got {self.bins}")
        return self


class RelationsConfig(Section):
    exclude: tuple[KinshipName, ...] = ("duplicate", "split", "parent", "absorbed")
    """relations of features: pairs that have one of them are the trace of how dictionaries divide things, not interference
    of two concepts"""
    at: Literal["plan", "effects"] = "plan"
    """plan: such pairs are not drawn; effects: they are, and effects are told with and without them"""
    narrow: tuple[FileRef, ...] = ()
    """dictionaries of the SAEs' sites with fewer features, which show what is one feature there"""
    probes: Annotated[int, Field(ge=1)] | None = None
    """features of an SAE that are asked for absorption, at most; default: all"""
    n_tokens: Annotated[int, Field(ge=1000)] = 60_000
    """of the corpus, on which firing is counted"""

    @model_validator(mode="after")
    def _relations_are_known_and_named_once(self):
        for name in ("exclude", "narrow"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must name each once, got {values}")
        return self


class PromptsConfig(Section):
    source: NameOrFile = "corpus"
    """corpus (contexts of the corpus), templates (built in), or file:PATH (one prompt a line, or JSON: lines or a list, of
    strings or of objects with key `text`)"""
    n: Annotated[int, Field(ge=2)] = 24
    """prompts, of both splits together"""
    length: Annotated[int, Field(ge=2)] = 24
    """tokens of a corpus prompt, BOS not counted"""
    confirm_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    chat_template: bool = False
    """each prompt as a user's message in the model's chat template, up to where the answer begins"""


class PlanConfig(Section):
    loci: tuple[LocusName, ...] = ("feature",)
    n_targets: Annotated[int, Field(ge=1)] = 12
    """targets per SAE"""
    about: tuple[CategoryName, ...] = ()
    """categories of words (location, person, ...): targets are drawn from each in turn, the features with the largest
    share of its words among the tokens that activate them first; empty: from all features at random"""
    sources_per_bin: Annotated[int, Field(ge=1)] = 3
    """interfering features per target and interference bin"""
    n_random: Annotated[int, Field(ge=0)] = 3
    """draws per target of each random control"""
    controls: tuple[ControlName, ...] = ("random_feature", "cosine_matched", "random_direction")
    """what else is steered: by default the three nulls (another feature, a direction at the pair's cosine, the site's
    covariance); all that there are stand in `vocabulary.CONTROLS`"""
    doses: tuple[float, ...] = (0.001, 0.01, 0.1)
    """absolute values, in `dose_unit`; every dose is run with both signs"""
    dose_unit: AskedUnit = "kl"
    """of feature directions and token gradients: nats of KL of the next-token distribution (a dose that means the
    same for every direction, site and model), the site's mean norm, or the activation's own units; neurons take
    kl, or else `factors`"""
    factors: tuple[float, ...] = (0.5, 1.0)
    """neurons: coordinates are multiplied by 1 + factor and by 1 - factor (1 ablates)"""
    neurons_per_bin: Annotated[int, Field(ge=0)] = 4
    """loci of neurons: neurons of every bin of degree that are masked, ablated and amplified one by one"""
    clamps: tuple[float, ...] = (1.0,)
    """locus clamp: values that features are clamped to, in units of their largest activation (both signs are run)"""
    probe: Literal["encoder", "ones"] = "encoder"
    """token gradients: of the feature's pre-activation, or of the sum of all coordinates (the paper's)"""
    gradient_positions: Literal["peak", "firing"] = "peak"
    """token gradients: of the token on which the feature fires most, or summed over all tokens of the text with at least
    0.8 times that activation (as in the paper)"""
    snippet_tokens: Annotated[int, Field(ge=1)] = 8
    """tokens that a prompt injection puts in"""
    snippet_form: Literal["prefix", "suffix", "wrapped", "parenthesised"] = "prefix"
    """plain in front of the prompt or behind it; in front between asterisks or in brackets (as in the paper)"""
    positions: Positions = "all_but_first"
    token_sets: tuple[TokenSetName, ...] = ("in", "out")
    """which of a target's tokens are read: in (what it fires on), out (what its decoder row promotes)"""
    batch_rows: Annotated[int, Field(ge=1)] = 64
    """rows of one forward pass; part of the plan, so that results do not depend on how they are run"""

    @model_validator(mode="after")
    def _choices_are_distinct(self):
        for name, values in (("doses", self.doses), ("factors", self.factors), ("clamps", self.clamps)):
            if not values or any(not 0 < value < float("inf") for value in values):
                raise ValueError(f"{name} must be positive numbers (both signs are run), got {values}")
        for name in ("loci", "doses", "token_sets", "factors", "clamps"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must name at least one value, each once, got {values}")
        if len(set(self.about)) < len(self.about):
            raise ValueError(f"about must name each category once, got {self.about}")
        return self


class JointConfig(Section):
    sites: tuple[str, ...] = ()
    """labels of SAEs whose features are pushed together, in the order of the forward pass; default: the first three"""
    kl: Annotated[float, Field(gt=0, le=5)] = 0.05
    """nats of every push alone"""
    sizes: tuple[Annotated[int, Field(ge=2)], ...] = (2, 4, 8)
    """pushes at once"""
    draws: Annotated[int, Field(ge=2)] = 12
    """random sets of each size"""
    pools: Annotated[int, Field(ge=2)] = 3
    """pools of features, drawn at random, whose sets are pushed"""
    pool: Annotated[int, Field(ge=3)] = 6
    """features of a pool: with up to 6 all sets are pushed, with more `subsets` random ones"""
    subsets: Annotated[int, Field(ge=8)] = 64
    """random sets of a pool of more than 6"""
    rotations: Annotated[int, Field(ge=1)] = 2
    """other coordinates of every pool's span, with the same sum"""
    pairs: Annotated[int, Field(ge=1)] = 30
    """pairs of features of a site over the whole range of |cosine|, and of every two sites that follow each other"""
    lift_tokens: Annotated[int, Field(ge=0)] = 100_000
    """tokens of the corpus on which co-firing is counted; 0: none"""
    plans: Annotated[int, Field(ge=0)] = 3
    """wishes drawn at random where none is asked for"""
    effect: Annotated[float, Field(gt=0)] = 0.5
    """nats of log-odds of a wish that is drawn"""
    candidates: Annotated[int, Field(ge=1)] = 8
    """features of every site that a plan may use for each target"""
    budget: Annotated[float, Field(gt=0)] | None = None
    """nats of all pushes of a plan together; a wish that costs more is scaled down"""

    @model_validator(mode="after")
    def _sets_can_be_drawn(self):
        if not self.sizes or len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"sizes must name at least one number, each once, got {self.sizes}")
        if max(self.sizes) > self.pools * self.pool:
            raise ValueError(
                f"sizes up to {max(self.sizes)} of {self.pools} pools of {self.pool} features: raise pools or pool"
            )
        return self


class EffectsConfig(Section):
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    max_kl: Annotated[float, Field(gt=0)] = 0.1
    """coherence: headline contrasts use the largest dose whose mean KL on the select prompts is below this
    (nats)"""
    stop_kl: Annotated[float, Field(gt=0)] | None = None
    """hard stop: doses whose mean KL on the select prompts is above this (nats) are not analysed at all. Doses in
    nats are their own budget"""
    margin: Annotated[float, Field(gt=0)] = 0.05
    """nats of log-odds: "no effect" is said only where the whole interval lies within this of zero"""


class Study(Section):
    """A whole study."""

    name: Name = "study"
    seed: Annotated[int, Field(ge=0)] = 0
    preset: PresetName = "strict"
    """paper and both add the estimates that the choices of arXiv 2505.11611 give on the same trials; both also says
    what each difference from the strict ones comes from"""
    model: ModelConfig
    saes: Annotated[tuple[SAEConfig, ...], Field(min_length=1)]
    vectors: tuple[VectorConfig, ...] = ()
    """steering vectors of one's own, each pushed for every target"""
    transcoders: tuple[TranscoderConfig, ...] = ()
    """sets whose features `polysem layers` judges beside those of the SAEs; no other stage reads them"""
    corpus: CorpusConfig = CorpusConfig()
    features: FeaturesConfig = FeaturesConfig()
    glosses: GlossesConfig = GlossesConfig()
    pairs: PairsConfig = PairsConfig()
    relations: RelationsConfig | None = None
    """without it nothing is asked of what features are to each other, and no pair is left out for it"""
    prompts: PromptsConfig = PromptsConfig()
    plan: PlanConfig = PlanConfig()
    effects: EffectsConfig = EffectsConfig()
    joint: JointConfig = JointConfig()

    @model_validator(mode="after")
    def _vectors_have_names(self):
        names = [vector.name for vector in self.vectors]
        repeated = sorted({n for n in names if names.count(n) > 1 or n in {sae.label for sae in self.saes}})
        if repeated:
            raise ValueError(
                f"two of the vectors and SAEs are called {repeated[0]!r}: give a label of its own"
            )
        if self.vectors and "feature" not in self.plan.loci:
            raise ValueError(
                f'vectors are pushed at the locus "feature", and plan.loci has {", ".join(self.plan.loci)}'
            )
        return self

    @model_validator(mode="after")
    def _sets_have_names(self):
        names = [one.name for one in self.transcoders]
        if repeated := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"two of the transcoders are called {repeated[0]!r}: give a label of its own")
        return self

    @model_validator(mode="after")
    def _one_way_to_choose_what_is_read(self):
        through = [name for name in self.plan.controls if CONTROLS[name].row_of_target]
        if self.features.tokens_out == "effect" and through:
            raise ValueError(
                f"plan.controls has {', '.join(through)}, whose T_out is chosen through the unembedding, and "
                'features.tokens_out = "effect" chooses that of targets by effect: leave out one of the two'
            )
        return self


def load_study(path: Path) -> Study:
    """The study of a TOML file. Raises ConfigError as `load_section`."""
    return load_section(Study, path, what="study file", hint="polysem init > study.toml")


def parse_study(text: str, *, origin: str = "study") -> Study:
    """The study of TOML text; `origin` names the text in errors."""
    return parse_section(Study, parse_toml(text, origin=origin), origin=origin)


def load_section(kind: type[S], path: Path, *, what: str, hint: str) -> S:
    """What a TOML file says, as `kind`.

    Raises:
        ConfigError: naming the file, the key, the value and what was expected.
    """
    return parse_section(
        kind, parse_toml(read_text(path, what=what, hint=hint), origin=str(path)), origin=str(path)
    )


def read_text(path: Path, *, what: str, hint: str) -> str:
    """The text of a file of settings. Raises ConfigError if it cannot be read."""
    door = Door(what, hint, ConfigError, ConfigError)
    if local_path(path, door=door).is_dir():
        refuse_folder(path, what, ConfigError, otherwise=hint)
    return foreign.read_text(path, door=door, ceiling=LARGEST_SETTINGS)


def parse_toml(text: str, *, origin: str) -> dict[str, Any]:
    """The content of TOML text. Raises ConfigError if it is none."""
    return foreign.parse_toml(text, origin, door=_SETTINGS)


def parse_section(kind: type[S], content: dict[str, Any], *, origin: str) -> S:
    """Settings as `kind`, of the very types it asks for: "0.5" and true are no numbers. Raises ConfigError, with the key and
    what was expected."""
    try:
        # as JSON, since only there a list may strictly be a tuple; a date of TOML is no value of any setting
        return kind.model_validate_json(
            json.dumps(content, default=lambda date: {"date": str(date)}), strict=True
        )
    except ValidationError as error:
        # `from None`: the library's own words hold the values, secrets included
        raise ConfigError(_explain(error, origin, kind)) from None
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error.args[0]}", hint=error.hint) from None


def section_of(section: type[S], values: Mapping[str, Any]) -> S:
    """A section from keywords of Python. Raises ConfigError, with the key, the value and what was expected."""
    try:
        return section(**values)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            name = ".".join(map(str, item["loc"]))
            unknown = item["type"] == "extra_forbidden"
            expected = f"expected one of {', '.join(section.model_fields)}" if unknown else item["msg"]
            problems.append(f"{name} = {item['input']!r}: {expected}")
        raise ConfigError("; ".join(problems), hint="see every setting: polysem init") from error


def _explain(error: ValidationError, origin: str, kind: type[BaseModel]) -> str:
    lines = []
    for item in error.errors():
        path = ".".join(str(p) for p in item["loc"])
        if item["type"] == "extra_forbidden":
            known = _keys_at(kind, item["loc"][:-1])
            close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(known)}"
            lines.append(f"unknown key {path!r}{meant}")
        else:
            lines.append(f"{path or 'study'}: {item['msg']} (got {hidden(repr(item['input']))[:80]})")
    return f"{origin}: " + "; ".join(lines)


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        arguments = getattr(annotation, "__args__", ())
        inner = [a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)]
        model = inner[0] if inner else annotation  # pyright: ignore[reportAssignmentType]  (sections are models)
    return list(model.model_fields)
