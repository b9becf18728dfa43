"""Feature tables from published dashboards: density, tokens and top contexts, without running a model.

Sources: a Neuronpedia export (`features` and `activations` batches), SAEDashboard batches, lists of features
with their activations inside, and the context records of sparse feature circuits. One pass over each kind of
file; per feature only the best contexts and the tokens that can still be in T_f are kept, about 8 bytes x
window x contexts.

Published activations are in unit-decoder units (dashboards fold the decoder norm into the encoder, except
for TopK without rescaling). `dec_norms` turns them into the units of the SAE's own decoder rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx
import numpy as np
import pyarrow as pa
from jaxtyping import Float

from polysem.errors import FormatError, MismatchError
from polysem.glosses.activations import Limits
from polysem.glosses.base import say_left_out
from polysem.glosses.bytelevel import text_of
from polysem.glosses.dashboard_rows import Facts, Gathered, Key, gather
from polysem.glosses.export import open_export
from polysem.glosses.origin import choose
from polysem.glosses.read import split_name
from polysem.glosses.wording import UNREADABLE
from polysem.store.tables import CONTEXTS, FEATURES
from polysem.types import Site

GLOSS_COLUMNS = ("gloss", "gloss_source", "n_glosses")
_MIN_CHECKED = 20
"""distinct readable token strings below which a tokenizer is not judged"""
_MIN_KNOWN = 0.8
"""share of them that must be single tokens: the right tokenizer knows all but oddities"""
_VISIBLE_NUL = "\u2400"


@dataclass(frozen=True)
class DashboardReport:
    """What was in a source of dashboards and what was left out."""

    source: str
    n_features: int
    n_contexts: int
    n_repeated_features: int
    n_repeated_contexts: int
    n_other_source: int
    """features of another SAE in the same source"""
    n_unmapped_tokens: int
    """distinct token strings that are not one token of the tokenizer: they have no id and are left out"""
    missing: tuple[int, ...]
    """features below d_sae that the source does not have; empty if d_sae was not given"""


class Dashboards(NamedTuple):
    """Tables of one SAE."""

    features: pa.Table
    """FEATURES but for the columns of glosses, by feature; dec_norm is nan where `dec_norms` was not given"""
    contexts: pa.Table
    """CONTEXTS"""
    report: DashboardReport


def read_neuronpedia_features(
    source: str,
    sae_label: str,
    *,
    site: Site,
    d_sae: int | None = None,
    expected_source: str | None = None,
    model_id: str | None = None,
    tokenize_string: Callable[[str], list[int]] | None = None,
    dec_norms: Float[np.ndarray, " d_sae"] | None = None,
    n_contexts: int = 12,
    window: int = 24,
    target_ratio: float = 0.8,
    n_target_tokens: int = 10,
    client: httpx.Client | None = None,
) -> Dashboards:
    """The feature table and contexts of one SAE, from an export.

    T_f is the paper's (arXiv 2505.11611, section 3): tokens whose largest activation over the source's texts
    is at least `target_ratio` times the feature's largest, best first, at most `n_target_tokens`.

    Args:
        source: folder, file, address, or MODEL/SOURCE at Neuronpedia's bucket; a leading `neuronpedia:` is
            dropped, `#NAME` at the end is the `expected_source`.
        sae_label: value of the column `sae`.
        site: hook point of the SAE; rows that name another layer or kind of site are not its features.
        d_sae: number of features; larger numbers are refused, absent ones reported.
        expected_source: the source's name of the SAE, where it holds several.
        model_id: model of the SAE.
        tokenize_string: ids of one token's text. Strings that are not exactly one token have no id and are
            left out of tokens_in and tokens_out, counted. None leaves the id columns empty and keeps all
            strings.
        dec_norms: norms of the decoder rows, where the source's activations are in unit-decoder units:
            activations are divided by them. None keeps activations as published.
        n_contexts: contexts kept per feature.
        window: tokens kept of a context, ending a few after its peak.
        target_ratio: see T_f.
        n_target_tokens: see T_f.
        client: for addresses; None makes one.

    Raises:
        UnknownReferenceError: nothing there, or no connection.
        FormatError: a damaged file, or a row that is not what it must be; names file, line and value.
        MismatchError: another SAE, a feature number not below d_sae, or a tokenizer that does not know the
            tokens.
    """
    reference, name = split_name(source.removeprefix("neuronpedia:"))
    export = open_export(reference, client=client)
    gathered = gather(export, limits=Limits(n_contexts, window, target_ratio))
    origins = choose(
        (origin for origin, _ in gathered.where),
        expected=expected_source or name,
        site=site,
        model_id=model_id,
        file=export.name,
    )
    keys = sorted((key for key in gathered.where if key[0] in origins), key=lambda key: key[1])
    _check_keys(keys, gathered, d_sae=d_sae, source=export.name)
    scale = _scale(keys, dec_norms)
    features, unmapped = _features(
        keys, gathered, scale, _TokenIds(tokenize_string, export.name), n_target_tokens
    )
    table = _labelled(features, sae=sae_label, site=site, dec_norm=None if dec_norms is None else scale)
    contexts = _contexts(keys, gathered, scale, sae=sae_label)
    report = DashboardReport(
        source=export.name,
        n_features=len(keys),
        n_contexts=contexts.num_rows,
        n_repeated_features=gathered.n_repeated,
        n_repeated_contexts=gathered.collector.n_repeated,
        n_other_source=len(gathered.where) - len(keys),
        n_unmapped_tokens=unmapped,
        missing=tuple(sorted(set(range(d_sae or 0)) - {feature for _, feature in keys})),
    )
    left_out = {
        "repeated features": report.n_repeated_features,
        "repeated contexts": report.n_repeated_contexts,
        "features of another SAE": report.n_other_source,
        "target tokens without an id": report.n_unmapped_tokens,
    }
    absent = "features are not in the export"
    say_left_out(report.source, f"{report.n_features} features", left_out, report.missing, absent)
    return Dashboards(table, contexts, report)


def _check_keys(keys: list[Key], gathered: Gathered, *, d_sae: int | None, source: str) -> None:
    if not keys:
        raise FormatError(
            f"{source}: no feature found; expected rows with maxActApprox, pos_str, or tokens and values",
            hint="see docs/glosses.md for the layouts that are read",
        )
    wrong = next((key for key in keys if d_sae is not None and key[1] >= d_sae), None)
    if wrong is not None:
        raise MismatchError(
            f"{gathered.where[wrong]}: feature {wrong[1]} does not exist in an SAE of {d_sae} "
            "features: the export is of another SAE",
            hint="give the export of this SAE, or name it by expected_source",
        )


def _scale(keys: list[Key], dec_norms: np.ndarray | None) -> np.ndarray:
    """What activations of each feature are divided by."""
    if dec_norms is None:
        return np.ones(len(keys), dtype=np.float32)
    chosen = np.asarray(dec_norms, dtype=np.float32)[[feature for _, feature in keys]]
    if not (chosen > 0).all():
        worst = keys[int(np.argmin(chosen))][1]
        raise MismatchError(
            f"decoder row {worst} has norm {chosen.min()}; activations per unit of it have no meaning"
        )
    return chosen


class _TokenIds:
    """Token strings to ids, each string asked for once."""

    def __init__(self, tokenize: Callable[[str], list[int]] | None, source: str):
        self._tokenize = tokenize
        self._source = source
        self._known: dict[str, int | None] = {}

    @property
    def has_ids(self) -> bool:
        return self._tokenize is not None

    def id_of(self, token: str) -> int | None:
        """The id of a token string, as written or with bytes decoded; None if it is not exactly one token."""
        if self._tokenize is None:
            return None
        if token not in self._known:
            ways = (self._tokenize(text) for text in dict.fromkeys((token, text_of(token))))
            self._known[token] = next((ids[0] for ids in ways if len(ids) == 1), None)
        return self._known[token]

    def check(self) -> int:
        """How many strings have no id. Raises MismatchError where so many that the tokenizer "
        "must be another."""
        readable = [t for t in self._known if UNREADABLE not in text_of(t)]
        unknown = [t for t in readable if self._known[t] is None]
        if len(readable) >= _MIN_CHECKED and len(unknown) > (1 - _MIN_KNOWN) * len(readable):
            raise MismatchError(
                f"{self._source}: {len(unknown)} of {len(readable)} token strings are not single "
                "tokens of this tokenizer "
                f"(e.g. {unknown[:5]!r}); expected at most {1 - _MIN_KNOWN:.0%}: the export is of "
                "a model with another tokenizer",
                hint="give the export of this model, or this export's model",
            )
        return sum(number is None for number in self._known.values())


def _features(
    keys: list[Key], gathered: Gathered, scale: np.ndarray, vocabulary: _TokenIds, n_tokens: int
) -> tuple[dict[str, list[object]], int]:
    """Columns of FEATURES that the source tells, and the number of target strings without an id."""
    columns: dict[str, list[object]] = {}

    def put(**values: object) -> None:
        for name, value in values.items():
            columns.setdefault(name, []).append(value)

    for key, norm in zip(keys, scale.tolist(), strict=True):
        facts = gathered.facts.get(key, Facts())
        seen = gathered.collector.largest(key)
        largest = seen if facts.max_act is None else facts.max_act
        inside = _with_ids(gathered.collector.targets(key), vocabulary)[:n_tokens]
        outside = _with_ids(list(zip(facts.pos_str, facts.pos_values, strict=True)), vocabulary)
        put(
            feature=key[1],
            density=facts.density,
            n_active=None,
            max_act=None if largest is None else largest / norm,
            tokens_in=[i for i, _, _ in inside if i is not None],
            tokens_in_str=[text for _, text, _ in inside],
            tokens_in_act=[value / norm for _, _, value in inside],
            tokens_out=[i for i, _, _ in outside if i is not None],
            tokens_out_str=[text for _, text, _ in outside],
            tokens_out_logit=[value for _, _, value in outside],
            tokens_bottom_str=[_shown(text) for text in facts.neg_str],
            neuron_alignment=list(facts.alignment),
            neuron_alignment_values=list(facts.alignment_values),
        )
    return columns, vocabulary.check()


def _with_ids(tokens: list[tuple[str, float]], vocabulary: _TokenIds) -> list[tuple[int | None, str, float]]:
    """(id, text, value) of tokens; where there is a tokenizer only of those that have an id, each id once."""
    if not vocabulary.has_ids:
        return [(None, _shown(token), value) for token, value in tokens]
    found: dict[int, tuple[int | None, str, float]] = {}
    for token, value in tokens:
        number = vocabulary.id_of(token)
        if number is not None:
            found.setdefault(number, (number, _shown(token), value))
    return list(found.values())


def _shown(token: str) -> str:
    """A token as text, without U+0000, at which C programs and databases stop reading."""
    return text_of(token).replace("\x00", _VISIBLE_NUL)


def _labelled(
    columns: dict[str, list[Any]], *, sae: str, site: Site, dec_norm: np.ndarray | None
) -> pa.Table:
    n = len(columns["feature"])
    whole: dict[str, Any] = {
        **columns,
        "sae": [sae] * n,
        "site": [str(site)] * n,
        "dec_norm": np.full(n, np.nan, dtype=np.float32) if dec_norm is None else dec_norm,
    }
    schema = pa.schema([f for f in FEATURES.arrow() if f.name not in GLOSS_COLUMNS])
    return pa.table({f.name: pa.array(whole[f.name], type=f.type) for f in schema}, schema=schema)


def _contexts(keys: list[Key], gathered: Gathered, scale: np.ndarray, *, sae: str) -> pa.Table:
    collector = gathered.collector
    kept = [
        (key[1], rank, float(norm), context)
        for key, norm in zip(keys, scale, strict=True)
        for rank, context in enumerate(collector.contexts(key))
    ]
    if not kept:
        return CONTEXTS.empty()
    words = pa.array([word.replace("\x00", _VISIBLE_NUL) for word in collector.words], type=pa.string())
    offsets = np.cumsum([0, *(len(c.tokens) for *_, c in kept)], dtype=np.int32)
    values = np.concatenate([c.values / norm for _, _, norm, c in kept]).astype(np.float32)
    return CONTEXTS.conform(
        pa.table(
            {
                "sae": [sae] * len(kept),
                "feature": pa.array([feature for feature, *_ in kept], pa.int32()),
                "rank": pa.array([rank for _, rank, *_ in kept], pa.int32()),
                "max_value": pa.array([c.max_value / norm for _, _, norm, c in kept], pa.float32()),
                "position": pa.array([c.position for *_, c in kept], pa.int32()),
                "token_ids": pa.array([[]] * len(kept), pa.list_(pa.int32())),
                "tokens": pa.ListArray.from_arrays(
                    offsets, words.take(pa.array(np.concatenate([c.tokens for *_, c in kept])))
                ),
                "values": pa.ListArray.from_arrays(offsets, pa.array(values)),
                "source": [c.source for *_, c in kept],
            }
        )
    )
