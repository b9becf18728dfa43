"""From what a harvest kept to rows of FEATURES and CONTEXTS."""

from typing import Any

import numpy as np
import pyarrow as pa

from polysem.config import FeaturesConfig
from polysem.corpus import TokenRows
from polysem.features.harvest import Harvest
from polysem.glosses.base import Gloss
from polysem.models.base import WhiteBoxModel
from polysem.saes.base import SAE
from polysem.store.tables import CONTEXTS, FEATURES

ALIGNED_COORDINATES = 3
"""as in Neuronpedia's dashboards, whose three rows the paper reads (arXiv 2505.11611, section 3.4)"""
BLOCK = 1024
"""features whose direct logit effects are in memory together"""


def harvest_table(
    label: str, sae: SAE, state: Harvest, model: WhiteBoxModel, config: FeaturesConfig
) -> pa.Table:
    """FEATURES without glosses: what was harvested, and what the decoder row says by itself."""
    decoder = sae.W_dec.numpy()
    rows = []
    for feature in range(sae.d_sae):
        ids, acts = target_tokens(state, feature, config)
        aligned = _alignment(decoder[feature])
        rows.append(
            {
                "sae": label,
                "feature": feature,
                "site": str(sae.site),
                "density": float(state.n_active[feature] / state.n_positions),
                "n_active": int(state.n_active[feature]),
                "max_act": float(state.max_act[feature]),
                "tokens_in": ids,
                "tokens_in_str": model.token_strings(ids),
                "tokens_in_act": acts,
                "dec_norm": float(np.linalg.norm(decoder[feature].astype(np.float64))),
                "neuron_alignment": aligned.tolist(),
                "neuron_alignment_values": decoder[feature][aligned].tolist(),
            }
        )
    for row, written in zip(rows, _direct_effects(sae, model, config.n_target_tokens), strict=True):
        row |= written
    blank = {"gloss": None, "gloss_source": None, "n_glosses": 0}
    return pa.Table.from_pylist([row | blank for row in rows], schema=FEATURES.arrow())


def target_tokens(state: Harvest, feature: int, config: FeaturesConfig) -> tuple[list[int], list[float]]:
    """T_f of the paper (arXiv 2505.11611, section 3.3): distinct tokens with activation >= ratio x max,
    best first."""
    ids, acts = state.token_id[feature], state.token_act[feature]
    kept = (ids >= 0) & (acts >= config.target_ratio * state.max_act[feature])
    return ids[kept].tolist(), acts[kept].tolist()


def context_table(label: str, state: Harvest, rows: TokenRows, model: WhiteBoxModel) -> pa.Table:
    """CONTEXTS: the best windows of every feature that ever fired."""
    text = _TokenText(model)
    records = []
    for feature, rank in zip(*np.nonzero(state.context_row >= 0), strict=True):
        row = int(state.context_row[feature, rank])
        start = int(state.context_start[feature, rank])
        values = state.context_acts[feature, rank]
        ids = rows.tokens[row, start : start + len(values)].tolist()
        records.append(
            {
                "sae": label,
                "feature": int(feature),
                "rank": int(rank),
                "max_value": float(state.context_value[feature, rank]),
                "position": int(state.context_peak[feature, rank]) - start,
                "token_ids": ids,
                "tokens": [text[i] for i in ids],
                "values": values.tolist(),
                "source": f"{rows.sources[row]}+{start}",
            }
        )
    return pa.Table.from_pylist(records, schema=CONTEXTS.arrow())


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


class _TokenText(dict[int, str]):
    """Token id -> its text, asked for once."""

    def __init__(self, model: WhiteBoxModel):
        super().__init__()
        self._model = model

    def __missing__(self, token: int) -> str:
        self[token] = self._model.token_strings([token])[0]
        return self[token]


def _alignment(row: np.ndarray) -> np.ndarray:
    """Coordinates of the largest positive entries, largest first; smaller coordinate first among equals."""
    order = np.argsort(-row, kind="stable")[:ALIGNED_COORDINATES]
    return order[row[order] > 0]


def _direct_effects(sae: SAE, model: WhiteBoxModel, n: int) -> list[dict[str, Any]]:
    """The tokens that each raw decoder row raises and lowers most through the unembedding: W_U d, final
    norm left out.

    Sites that do not write to the residual stream in its own basis have none.
    """
    if sae.d_in != model.W_U.shape[1] or sae.site.point not in _RESIDUAL_POINTS:
        return [
            {"tokens_out": [], "tokens_out_str": [], "tokens_out_logit": [], "tokens_bottom_str": []}
        ] * sae.d_sae
    unembedding = model.W_U.float().cpu().numpy()
    text = _TokenText(model)
    written = []
    for k in range(0, sae.d_sae, BLOCK):
        effects = sae.W_dec[k : k + BLOCK].numpy() @ unembedding.T
        for effect in effects:
            top, bottom = _largest(effect, n), _largest(-effect, n)
            written.append(
                {
                    "tokens_out": top.tolist(),
                    "tokens_out_str": [text[int(i)] for i in top],
                    "tokens_out_logit": effect[top].tolist(),
                    "tokens_bottom_str": [text[int(i)] for i in bottom],
                }
            )
    return written


_RESIDUAL_POINTS = {
    "hook_embed", "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out",
}  # fmt: skip


def _largest(values: np.ndarray, n: int) -> np.ndarray:
    """Indices of the n largest values, largest first; the smaller index first among equals."""
    n = min(n, len(values))
    candidates = np.argpartition(-values, n - 1)[:n]
    edge = values[candidates].min()
    candidates = np.flatnonzero(values >= edge)
    return candidates[np.lexsort((candidates, -values[candidates]))][:n]
