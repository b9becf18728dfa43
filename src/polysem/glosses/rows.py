"""From one row of any known file to the glosses it holds.

Columns are known by name, without regard to case, spaces or underscores:

    feature    feature, index, latent, neuron, unit, each also with _index, _idx, _id or _number; else node_id, else id, else
               the number after the slash of name (`resid_5/3036`). Two of the first that differ are an error
    text       gloss, description, explanation, text, annotation, label, summary; or every column that ends in
               "description" (one gloss each)
    explainer  explainer, llm_explainer, explainer_model, explanationModelName with typeName
    SAE        modelId | model_id | model, layer | layer_index | source | sourceId,
               sae_type | component | submodule_type; sae_id | sae | sae_name
    vector     embedding: an array, or the text of one
    tokens     top_10_tokens, top_logits: tokens the feature promotes; a gloss is worded from them where the
               file has no texts
    examples   texts with << >> around the tokens on which the feature is active; a gloss is worded from the
               marked words
"""

import html
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from polysem.boundary.door import brief
from polysem.boundary.text import parse_json, parse_literal
from polysem.errors import FormatError
from polysem.glosses.failures import without_thought
from polysem.glosses.origin import Origin, origin_of, origin_of_sae
from polysem.glosses.raw import DOOR, GlossRecord, float32_of
from polysem.glosses.wording import as_in, promotes

FEATURE = [
    noun + ending
    for noun in ("feature", "index", "latent", "neuron", "unit")
    for ending in (("", "index", "idx", "id", "number") if noun != "index" else ("",))
]
_ELSE = ["nodeid", "id"]
TEXT = ["gloss", "description", "explanation", "text", "annotation", "label", "summary"]
EXPLAINER = ["explainer", "llmexplainer", "explainermodel", "explainername", "explanationmodelname"]
_SAE = ["saeid", "sae", "saename", "saereleaseid"]
_MODEL = ["modelid", "model"]
_LAYER = ["layer", "layerindex", "layeridx", "source", "sourceid"]
_KIND = ["saetype", "component", "submoduletype"]
_TOKENS = ["top10tokens", "toplogits"]
_READ = {
    *FEATURE, *_ELSE, *TEXT, *EXPLAINER, *_SAE, *_MODEL, *_LAYER, *_KIND, *_TOKENS, "name", "module", "saeset",
    "saeidsuffix", "typename", "examples", "explanations", "embedding", "neuronpedialink",
}  # fmt: skip
_BYTES = re.compile(r"(?:<0x[0-9A-Fa-f]{2}>)+")
_EXPLANATION = re.compile(r"^\s*\[?explanation\]?\s*:\s*", re.IGNORECASE)
_CUT_EXAMPLE = re.compile(r"\s*[,;]?\s*\(e$")
_NAME = re.compile(r"^(?P<module>[A-Za-z]+(?:_\d+)?)/(?P<feature>\d+)$")
_NUMBER = re.compile(r"(\d+)(?:\.(\d+))?(?:[eE]\+?(\d{1,2}))?")
_MARK = re.compile(r"<<(.*?)>>", re.DOTALL)
_LINK = re.compile(r"neuronpedia\.org/(?P<model>[^/]+)/(?P<source>[^/]+)/\d+")
_BLANK = {"", "nan", "none", "null", "n/a", "feature not found."}
COLUMNS_HINT = "name the columns as docs/glosses.md lists them (feature, gloss, explainer ...)"


class Parsed(NamedTuple):
    """One gloss of a row; text is "" where the row has a feature and no text."""

    feature: int
    text: str
    explainer: str | None
    embedding: np.ndarray | None
    origin: Origin
    row_id: str | None
    where: str


class Fields:
    """A row's values under folded column names."""

    def __init__(self, row: GlossRecord):
        self.where = row.where
        self.named = row.fields
        self._folded = {fold(key): value for key, value in row.fields.items()}

    def first(self, names: Sequence[str]) -> Any:
        """The value of the first of `names` that the row has and that is not blank; None if there is none."""
        return next((v for name in names if not blank(v := self._folded.get(name))), None)

    def named_as(self, names: Sequence[str]) -> dict[str, Any]:
        """The columns, as the file calls them, that are one of `names` and not blank."""
        return {key: value for key, value in self.named.items() if fold(key) in names and not blank(value)}

    def has(self, names: Sequence[str]) -> bool:
        return any(name in self._folded for name in names)


@lru_cache(maxsize=4096)
def fold(name: str) -> str:
    """A column name without case, spaces, underscores and dashes."""
    return re.sub(r"[\s_\-]", "", name).lower()


def blank(value: object) -> bool:
    """Whether a cell says nothing. JSON that pandas wrote has NaN where a table has an empty cell."""
    if isinstance(value, float):
        return value != value
    return value is None or (isinstance(value, str) and value.strip().lower() in _BLANK)


def is_header(row: GlossRecord) -> bool:
    """Whether the row repeats the column names instead of holding values."""
    filled = {fold(key): str(value).strip().lower() for key, value in row.fields.items() if not blank(value)}
    return bool(filled) and all(key == value for key, value in filled.items())


def parse_glosses(
    row: GlossRecord, *, layer: str | None = None, explainer: str | None = None
) -> Iterator[Parsed]:
    """The glosses of one row.

    Args:
        row: any row but a header.
        layer: layer to take where the row has none (from the file's name).
        explainer: explainer to take where the row has none.

    Raises:
        FormatError: the row has no feature number, or a text or vector that is none; names file, line and
            value.
    """
    fields = Fields(row)
    feature = feature_of(fields)
    origin = origin_of_row(fields, layer=layer)
    row_id = fields.first(["id"]) if fields.named_as(FEATURE) else None
    by = _explainer_of(fields) or explainer
    nested = fields.first(["explanations"])
    if isinstance(nested, list):
        for position, item in enumerate(nested):
            told = item if isinstance(item, dict) else {"gloss": item}
            inner = GlossRecord(f"{row.where}.explanations[{position}]", {"feature": feature} | told)
            yield from (p._replace(origin=origin) for p in parse_glosses(inner))
        return
    for text, written_by in _texts_of(fields, by):
        if not isinstance(text, str):
            raise FormatError(f"{row.where}: the gloss of feature {feature} is {text!r}; expected text")
        vector = embedding_of(fields.first(["embedding"]), where=row.where)
        yield Parsed(
            feature,
            clean(text),
            written_by,
            vector,
            origin,
            None if row_id is None else str(row_id),
            row.where,
        )


def feature_of(fields: Fields) -> int:
    """The feature's number. Raises FormatError where the row has none or it is not a whole number >= 0."""
    value = _feature_value(fields)
    if isinstance(
        value, Mapping
    ):  # delphi: {"layer_index": 0, "feature_index": 12}; sparse feature circuits: feature_idx
        value = Fields(GlossRecord(fields.where, dict(value))).first(FEATURE)
    component = fields.first(["component"])
    if value is None and isinstance(component, Mapping):
        value = Fields(GlossRecord(fields.where, dict(component))).first(FEATURE)
    if value is None:
        value = fields.first(_ELSE)
    named = _NAME.match(str(fields.first(["name"]) if value is None else value))
    if named:
        value = named["feature"]
    number = _whole(value)
    if number is None or not 0 <= number < 1 << 31:
        raise FormatError(
            f"{fields.where}: no feature number: got {brief(value)}; expected a whole number >= 0 in one of the columns "
            f"{', '.join(FEATURE[:5])} ... or id; the row has {brief(', '.join(fields.named))}",
            hint=COLUMNS_HINT,
        )
    return number


def _feature_value(fields: Fields) -> Any:
    """The value of the column of feature numbers. Raises FormatError where two columns could be it and differ."""
    found = {k: v for k, v in fields.named_as(FEATURE).items() if fold(k) in FEATURE}
    scalars = {key: number for key, value in found.items() if (number := _whole(value)) is not None}
    if len(set(scalars.values())) > 1:
        first, second = list(scalars)[:2]
        raise FormatError(
            f"{fields.where}: two columns could be the feature's number and differ: {first} is {found[first]!r}, {second} is "
            f"{found[second]!r}",
            hint=f"remove or rename one of the columns {first} and {second}",
        )
    return fields.first(FEATURE)


def _whole(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    match = _NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or len(match[0]) > 32:
        return None
    whole, after, shift = match[1], (match[2] or "").rstrip("0"), int(match[3] or 0)
    if match[3] and len(match[2] or "") < shift:
        return None  # 1.2E+04 was 12000 or 12049 before a spreadsheet rounded it
    return int(whole + after.ljust(shift, "0")) if len(after) <= shift else None


def origin_of_row(fields: Fields, *, layer: str | None = None) -> Origin:
    """The SAE that the row names."""
    for key in ("feature", "component"):
        record = fields.first([key])
        if isinstance(record, Mapping):
            return _origin_of_record(record)
    named = _NAME.match(str(fields.first(["name", *FEATURE[:1]])))
    if named:
        return origin_of(model=fields.first(_MODEL), layer=named["module"])
    link = _LINK.search(str(fields.first(["neuronpedialink"])))
    if link:
        return origin_of(model=link["model"], layer=link["source"])
    module = fields.first(["module"])
    if module is not None:
        return origin_of(layer=_module_name(str(module)))
    where = fields.first(_LAYER)
    kind = fields.first(_KIND)
    dashboard = fields.first(["saeset"])
    named_sae = fields.first(_SAE)
    if named_sae is not None:
        origin = origin_of_sae(str(named_sae), model=fields.first(_MODEL))
        return (
            origin
            if origin.layer is not None or where is None
            else origin._replace(layer=origin_of(layer=where).layer)
        )
    if dashboard is not None and where is not None:  # SAEDashboard: layer, set and suffix apart
        suffix = fields.first(["saeidsuffix"])
        where = f"{where}-{dashboard}" + (f"__{suffix}" if suffix else "")
    origin = origin_of(model=fields.first(_MODEL), layer=layer if where is None else where, kind=kind)
    if kind is None and isinstance(where, str) and where.isdigit() and "modelId" in fields.named:
        return origin._replace(kind="neuron")  # Neuronpedia: a bare layer number is the MLP's neurons
    return origin


def _origin_of_record(record: Mapping[str, Any]) -> Origin:
    """Origin of a nested record, delphi's or sparse feature circuits' (whose `dense` sets are neurons)."""
    folded = {fold(key): value for key, value in record.items()}
    layer = folded.get("layerindex", folded.get("layeridx"))
    module = folded.get("submoduletype")
    origin = origin_of(layer=f"{module}_{layer}" if module and module != "embed" else module or layer)
    dense = str(folded.get("setname", "")).startswith("dense")
    return origin._replace(name=f"neuron_{origin.name}", kind="neuron") if dense else origin


def _module_name(module: str) -> str:
    """A GPT-NeoX module as sparse feature circuits name it: `gpt_neox.layers.3.attention` is `attn_3`."""
    if module.endswith("embed_in"):
        return "embed"
    match = re.search(r"layers\.(\d+)(?:\.(attention|mlp))?$", module)
    if match is None:
        return module
    return f"{ {'attention': 'attn', 'mlp': 'mlp'}.get(match[2], 'resid') }_{match[1]}"


def _explainer_of(fields: Fields) -> str | None:
    model = fields.first(EXPLAINER)
    kind = fields.first(["typename"])
    if model is not None and kind is not None:
        return f"{model} ({kind})"
    return None if model is None and kind is None else str(model or kind)


def _texts_of(fields: Fields, explainer: str | None) -> Iterator[tuple[Any, str | None]]:
    """(text, explainer) of each gloss in the row; the text is "" where its column is blank or absent."""
    suffixed = [
        key for key in fields.named if fold(key).endswith("description") and fold(key) != "description"
    ]
    if suffixed and not fields.has(TEXT):
        for key in suffixed:
            value = fields.named[key]
            yield "" if blank(value) else value, key[: -len("description")].strip(" _-")
        return
    text = fields.first(TEXT)
    if text is not None or fields.has(TEXT):
        yield "" if text is None else text, explainer
        return
    tokens = fields.first(_TOKENS)
    examples = fields.first(["examples"])
    if tokens is not None:
        yield promotes(_token_list(tokens, fields.where)), "promoted tokens"
    elif isinstance(examples, list):
        yield _marked_words(examples), "marked examples"
    else:
        yield "", explainer


def _token_list(value: object, where: str) -> list[str]:
    """A list of tokens, given as a list or as the text of a Python or JSON list."""
    if isinstance(value, str):
        value = parse_literal(value, where, door=DOOR)
    if not isinstance(value, list) or not all(isinstance(token, str) for token in value):
        raise FormatError(f"{where}: expected a list of tokens, got {str(value)[:80]!r}")
    return value


def _marked_words(examples: list[Any]) -> str:
    """A gloss from marked examples: the words between << >> of those on which the feature is truly active."""
    texts = [
        e["text"] for e in examples if isinstance(e, Mapping) and "text" in e and e.get("ground_truth", True)
    ]
    words = Counter(found.strip() for text in texts for found in _MARK.findall(text))
    best = next((text for text in texts if _MARK.search(text)), None)
    return as_in([word for word, _ in words.most_common()], _MARK.sub(r"\1", best) if best else None)


def clean(text: str) -> str:
    """A gloss without what pipelines leave in it: no "Explanation:" in front, no thoughts aloud, no "(e" where "(e.g." was
    cut; HTML entities and byte tokens (`<0x0A>`) as the characters that they stand for."""
    text = _BYTES.sub(_bytes_as_text, html.unescape(without_thought(text)))
    return _CUT_EXAMPLE.sub("", _EXPLANATION.sub("", text)).strip()


def _bytes_as_text(match: re.Match[str]) -> str:
    return bytes.fromhex(re.sub(r"<0x(..)>", r"\1", match[0])).decode("utf-8", errors="replace")


def unread_columns(row: GlossRecord) -> list[str]:
    """The columns of a row that say something and are not looked at."""
    return [
        k
        for k, v in row.fields.items()
        if not blank(v) and fold(k) not in _READ and not fold(k).endswith("description")
    ]


def embedding_of(value: object, *, where: str) -> np.ndarray | None:
    """A vector [d] float32 given as numbers or as their text ("[0.1,-0.2]"; Neuronpedia's database exports);
    None for a blank.

    Raises:
        FormatError: anything else, or a number that is not finite.
    """
    if blank(value):
        return None
    try:
        vector = float32_of(parse_json(value, where, door=DOOR) if isinstance(value, str) else value)
    except (FormatError, ValueError, TypeError, OverflowError) as error:
        raise FormatError(f"{where}: embedding is no list of numbers: {str(value)[:60]!r}") from error
    if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
        raise FormatError(
            f"{where}: embedding must be a list of finite numbers, got shape {vector.shape}: "
            f"{str(value)[:60]!r}"
        )
    return vector
