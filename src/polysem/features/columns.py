"""From what a harvest kept, and from the decoder rows, to columns of FEATURES and CONTEXTS.

Columns are made whole, not row by row: an SAE of 32,768 features has 9 million activations in its contexts.
"""

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from polysem.config import FeaturesConfig
from polysem.corpus import TokenRows
from polysem.features.best import Harvest
from polysem.features.tokens_out import caused_effects, direct_effects
from polysem.glosses.base import Gloss
from polysem.models.base import WhiteBoxModel
from polysem.saes.base import SAE
from polysem.store.tables import CONTEXTS, FEATURES

ALIGNED_COORDINATES = 3
"""as in Neuronpedia's dashboards, whose three rows the paper reads (arXiv 2505.11611, section 3.4)"""


def harvest_table(
    label: str, sae: SAE, state: Harvest, model: WhiteBoxModel, config: FeaturesConfig, rows: TokenRows
) -> pa.Table:
    """FEATURES of one SAE with blank glosses: what was harvested, and what the decoder rows say by themselves or, if the
    study asks for it, do on texts among the `rows`."""
    text = _TokenText(model)
    decoder = sae.W_dec.detach().float().cpu().numpy()
    kept = target_tokens(state, config)
    aligned = np.argsort(-decoder, axis=1, kind="stable")[:, :ALIGNED_COORDINATES]
    entries = np.take_along_axis(decoder, aligned, axis=1)
    effects = direct_effects(sae, model, config.n_target_tokens)
    if config.tokens_out == "effect":
        effects = effects.instead(*caused_effects(sae, model, rows, config.n_target_tokens))
    n, everywhere = sae.d_sae, np.ones(effects.top.shape, dtype=bool)
    columns = {
        "sae": pa.array([label] * n),
        "feature": pa.array(np.arange(n, dtype=np.int32)),
        "site": pa.array([str(sae.reads)] * n),
        "density": pa.array(state.n_active / state.n_positions[0]),
        "n_active": pa.array(state.n_active),
        "max_act": pa.array(state.max_act),
        "tokens_in": _lists(state.token_id, kept),
        "tokens_in_str": _lists(state.token_id, kept, text=text),
        "tokens_in_act": _lists(state.token_act, kept),
        "tokens_out": _lists(effects.top, everywhere),
        "tokens_out_str": _lists(effects.top, everywhere, text=text),
        "tokens_out_logit": _lists(effects.top_logit, everywhere),
        "tokens_bottom_str": _lists(effects.bottom, np.ones(effects.bottom.shape, dtype=bool), text=text),
        "dec_norm": pa.array(np.linalg.norm(decoder.astype(np.float64), axis=1).astype(np.float32)),
        "neuron_alignment": _lists(aligned.astype(np.int32), entries > 0),
        "neuron_alignment_values": _lists(entries, entries > 0),
        "gloss": pa.nulls(n, pa.string()),
        "gloss_source": pa.nulls(n, pa.string()),
        "n_glosses": pa.array(np.zeros(n, dtype=np.int32)),
    }
    return pa.table(columns, schema=FEATURES.arrow())


def target_tokens(state: Harvest, config: FeaturesConfig) -> Bool[np.ndarray, "d_sae n_tokens"]:
    """T_f of the paper (arXiv 2505.11611, section 3.3) as a mask over the kept tokens, which are best first:
    those whose largest activation is at least `target_ratio` times the feature's largest."""
    floor = np.float32(config.target_ratio) * state.max_act[:, None]
    return (state.token_id >= 0) & (state.token_act >= floor)


def context_table(label: str, state: Harvest, rows: TokenRows, model: WhiteBoxModel) -> pa.Table:
    """CONTEXTS: the best windows of every feature that ever fired."""
    feature, rank = np.nonzero(state.context_row >= 0)
    row, start = state.context_row[feature, rank], state.context_start[feature, rank]
    shown = start[:, None] + np.arange(state.context_acts.shape[2])
    ids = rows.tokens[row[:, None], shown]
    everywhere = np.ones(ids.shape, dtype=bool)
    columns = {
        "sae": pa.array([label] * len(feature), pa.string()),
        "feature": pa.array(feature.astype(np.int32)),
        "rank": pa.array(rank.astype(np.int32)),
        "max_value": pa.array(state.context_value[feature, rank]),
        "position": pa.array(state.context_peak[feature, rank] - start),
        "token_ids": _lists(ids, everywhere),
        "tokens": _lists(ids, everywhere, text=_TokenText(model)),
        "values": _lists(state.context_acts[feature, rank], everywhere),
        "source": pa.array(rows.sources(row, start), pa.string()),
    }
    return pa.table(columns, schema=CONTEXTS.arrow())


def with_glosses(features: pa.Table, glosses: list[Gloss]) -> pa.Table:
    """FEATURES with the columns of the primary gloss filled in; the first gloss of a feature is its primary
    one."""
    first: dict[int, Gloss] = {}
    count: dict[int, int] = {}
    for gloss in glosses:
        first.setdefault(gloss.feature, gloss)
        count[gloss.feature] = count.get(gloss.feature, 0) + 1
    ids = features["feature"].to_pylist()
    columns = {
        "gloss": pa.array([first[i].text if i in first else None for i in ids], pa.string()),
        "gloss_source": pa.array([first[i].source if i in first else None for i in ids], pa.string()),
        "n_glosses": pa.array([count.get(i, 0) for i in ids], pa.int32()),
    }
    for name, column in columns.items():
        at = features.schema.get_field_index(name)
        field = FEATURES.arrow().field(name)
        features = (
            features.set_column(at, field, column) if at >= 0 else features.append_column(field, column)
        )
    return features.select(FEATURES.arrow().names).cast(FEATURES.arrow())


class _TokenText:
    """Token ids as text, each asked for once."""

    def __init__(self, model: WhiteBoxModel):
        self._model = model

    def __call__(self, ids: np.ndarray) -> pa.Array:
        distinct, index = np.unique(ids, return_inverse=True)
        strings = pa.array(self._model.token_strings(distinct.tolist()), pa.string())
        return strings.take(pa.array(index.reshape(-1)))


def _lists(values: np.ndarray, kept: np.ndarray, *, text: _TokenText | None = None) -> pa.ListArray:
    """A column of lists: of each row of `values` what is `kept`, as text if asked for."""
    offsets = np.concatenate([[0], np.cumsum(kept.sum(1))]).astype(np.int32)
    flat = values[kept]
    return pa.ListArray.from_arrays(pa.array(offsets), text(flat) if text else pa.array(flat))
