"""The tables of a world: features with glosses, and prompts, as a harvest of a real model would leave them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float

from polysem.features import FeatureTable
from polysem.models.base import WhiteBoxModel
from polysem.saes.base import SAE, Provenance
from polysem.seeds import short_hash
from polysem.store.schema import Schema
from polysem.store.tables import CLUSTERS, CONTEXTS, FEATURES, GLOSSES, PROMPTS
from polysem.types import Site
from polysem.worlds.linear import SITE


@dataclass(frozen=True)
class WorldTables:
    """What a study of a world runs on."""

    model: WhiteBoxModel
    saes: dict[str, SAE]
    features: FeatureTable
    prompts: pa.Table


@dataclass(frozen=True)
class FeatureRow:
    """What a world says of one feature."""

    tokens_in: Sequence[int]
    tokens_out: Sequence[int] = ()
    gloss: str | None = None
    density: float = 0.01


def feature_table(
    label: str,
    rows: Sequence[FeatureRow],
    *,
    site: Site,
    W_dec: Float[np.ndarray, "d_sae d_in"],
    embeddings: Float[np.ndarray, "d_sae d_embed"],
) -> FeatureTable:
    """The feature table of one SAE; feature k is row k."""
    features = [_feature(label, k, row, site, W_dec[k]) for k, row in enumerate(rows)]
    glosses = [
        {
            "sae": label,
            "feature": k,
            "gloss_index": 0,
            "text": row.gloss,
            "source": "world",
            "explainer": None,
        }
        for k, row in enumerate(rows)
        if row.gloss is not None
    ]
    return FeatureTable(
        features=FEATURES.of(features),
        glosses=GLOSSES.of(glosses),
        contexts=CONTEXTS.empty(),
        clusters=CLUSTERS.empty(),
        embeddings={label: embeddings.astype(np.float32)},
        embedder=("world", "memory"),
    )


def filled(schema: Schema, **columns: Any) -> pa.Table:
    """A table of the schema: columns by name, arrays and lists as they are, a single value in every row;
    null where a nullable column is not given."""
    n = max(len(values) for values in columns.values() if isinstance(values, np.ndarray | list))
    arrays = [
        pa.array(values, c.dtype)
        if isinstance(values, np.ndarray | list)
        else pa.repeat(pa.scalar(values, c.dtype), n)
        for c, values in ((c, columns.get(c.name) if c.nullable else columns[c.name]) for c in schema.columns)
    ]
    return schema.conform(pa.table(arrays, schema.arrow()))


def prompt_table(rows: Sequence[Sequence[int]]) -> pa.Table:
    """PROMPTS of token ids; every second prompt is for confirmation."""
    written = []
    for k, ids in enumerate(rows):
        text = " ".join(map(str, ids[1:]))
        split = "select" if k % 2 else "confirm"
        written.append(
            {"prompt_id": short_hash(text), "text": text, "token_ids": list(ids), "source": f"world {k}"}
            | {"split": split}
        )
    return PROMPTS.of(written)


def random_prompts(n: int, d_vocab: int, rng: np.random.Generator) -> pa.Table:
    """PROMPTS of 3 to 6 random tokens after token 0."""
    return prompt_table(
        [[0, *rng.integers(1, d_vocab, size=int(rng.integers(3, 7))).tolist()] for _ in range(n)]
    )


def plain_sae(W_dec: Float[np.ndarray, "d_sae d_in"], *, site: Site = SITE) -> SAE:
    """A ReLU SAE with these decoder rows, its encoder their transpose, no biases."""
    rows = torch.tensor(W_dec, dtype=torch.float32)
    return SAE(
        W_enc=rows.T.contiguous(),
        W_dec=rows,
        b_enc=torch.zeros(len(rows)),
        b_dec=torch.zeros(rows.shape[1]),
        activation="relu",
        reads=site,
        writes=site,
        model_id=None,
        model_revision=None,
        provenance=Provenance(ref="planted", revision="memory", dialect="memory"),
    )


def _feature(label: str, k: int, row: FeatureRow, site: Site, decoder: np.ndarray) -> dict[str, object]:
    ins, outs = list(row.tokens_in), list(row.tokens_out)
    return {
        "sae": label,
        "feature": k,
        "site": str(site),
        "density": row.density,
        "n_active": 100,
        "max_act": 1.0,
        "tokens_in": ins,
        "tokens_in_str": [f" {i}" for i in ins],
        "tokens_in_act": [1.0] * len(ins),
        "tokens_out": outs,
        "tokens_out_str": [f" {i}" for i in outs],
        "tokens_out_logit": [1.0] * len(outs),
        "tokens_bottom_str": [],
        "dec_norm": float(np.linalg.norm(decoder)),
        "neuron_alignment": [0, 1, 2],
        "neuron_alignment_values": [0.0, 0.0, 0.0],
        "gloss": row.gloss,
        "gloss_source": None if row.gloss is None else "world",
        "n_glosses": 0 if row.gloss is None else 1,
    }
