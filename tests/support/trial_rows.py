"""Rows of a plan, features and prompts, written by hand."""

import pyarrow as pa

from polysem.act.base import Recipe
from polysem.plan import trial_ids
from polysem.store.tables import FEATURES, PLAN, PROMPTS
from polysem.worlds.linear import SITE
from support.planted import LABEL

CLOSED_FORM = 1e-9  # float64 throughout


def rows_of(*specs, sae=LABEL, site=SITE, positions="all_but_first", dose_unit="absolute"):
    """PLAN rows of (relation, target, recipe, prompt_id, token_set, dose, batch)."""
    names = ("relation", "target", "recipe", "prompt_id", "token_set", "dose", "batch")
    rows = []
    for spec in specs:
        row = dict(zip(names, spec, strict=True))
        row |= {"sae": sae, "site": str(site), "locus": "feature", "source": None, "draw": 0}
        row |= {"interference_bin": -1, "interference": None, "similarity": None, "split": "confirm"}
        row |= {
            "dose_unit": dose_unit,
            "positions": positions,
            "block": f"{sae}/{row['target']}",
            "trial_id": "",
        }
        rows.append(row)
    table = pa.Table.from_pylist(rows, schema=PLAN.arrow())
    return PLAN.conform(
        table.set_column(table.column_names.index("trial_id"), "trial_id", pa.array(trial_ids(table)))
    )


def decoder(feature):
    return Recipe.of("decoder", feature=feature).text


def by_id(plan, trials):
    """(plan row, trial row) pairs."""
    assert set(trials["trial_id"].to_pylist()) == set(plan["trial_id"].to_pylist())
    found = {row["trial_id"]: row for row in trials.to_pylist()}
    return [(row, found[row["trial_id"]]) for row in plan.to_pylist()]


class Features:
    """A feature table by itself."""

    def __init__(self, features):
        self.features = features
        self.embeddings = {}


def make_features(tokens, sae="s"):
    empty = {c.name: None if c.nullable else [] for c in FEATURES.columns}
    rows = [
        empty
        | {"sae": sae, "feature": f, "site": str(SITE), "tokens_in": t_in, "tokens_out": t_out}
        | {"dec_norm": 1.0, "n_glosses": 0}
        for f, (t_in, t_out) in tokens.items()
    ]
    return Features(FEATURES.conform(pa.Table.from_pylist(rows, schema=FEATURES.arrow())))


def make_prompts(rows):
    table = [
        {"prompt_id": f"p{k}", "text": f"prompt {k}", "token_ids": ids, "source": "test", "split": "confirm"}
        for k, ids in enumerate(rows)
    ]
    return PROMPTS.conform(pa.Table.from_pylist(table, schema=PROMPTS.arrow()))
