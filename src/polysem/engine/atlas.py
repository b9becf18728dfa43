"""`polysem atlas`: the linear response of every pair of every SAE of a study, one part for each SAE.

    atlas/NN-{atlas_top,atlas_density,atlas_sample,atlas_fit,atlas_toward}.parquet, atlas/NN-gradients.safetensors

NN is the place of the SAE among the sorted labels. `gradients` holds [n_targets d_in] in nats per resid_norm
and the feature numbers of its rows: the predicted effect of any source is a dot product with its unit decoder
row. A run that is killed costs the SAE it was at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.categories import builtin, is_about
from polysem.engine.context import StudyContext
from polysem.engine.options import AtlasOptions
from polysem.engine.task import Made, Tables, Task
from polysem.errors import ConfigError
from polysem.progress import Reporter
from polysem.seeds import rng_for, short_hash
from polysem.store.run import Part
from polysem.store.tables import ATLAS_DENSITY, ATLAS_FIT, ATLAS_SAMPLE, ATLAS_TOP, ATLAS_TOWARD

if TYPE_CHECKING:
    from polysem.models.hf import HFModel

STEERED_TOWARD = 10
"""unrelated features of every category, the first by prediction, that are steered for real"""


def make(task: Task) -> Made | None:
    """The atlas, one part per SAE."""
    context = task.context

    def one(part: Part, _: Reporter) -> Tables:
        tables, arrays = compute(context, sorted(context.saes)[part.k], task.options)
        return {**tables, "gradients": arrays}

    return task.in_parts(one)


def compute(
    context: StudyContext, label: str, options: AtlasOptions
) -> tuple[dict[str, pa.Table], dict[str, np.ndarray]]:
    """The atlas tables of one SAE, and its gradients with the feature numbers of their rows."""
    from polysem import atlas
    from polysem.models.hf import HFModel

    model, sae = context.model, context.saes[label]
    if not isinstance(model, HFModel):
        raise ConfigError("the atlas needs a transformers model")
    sets = _sets(context, label, model, options.token_set)
    ids, tokens = _prompts(context, model, options.n_prompts)
    targets = np.array(list(sets), dtype=np.int64)
    positions = context.study.plan.positions
    gradients = atlas.set_responses(model, sae.writes, tokens, list(sets.values()), positions=positions)
    dictionary = atlas.Dictionary.of(
        sae.W_dec.detach().cpu().double().numpy(), context.features.embeddings[label].astype(np.float64)
    )
    top, density, n_pairs = _sweep(label, gradients, targets, dictionary, options.top)
    sample, fit = _verified(context, model, label, options, sets, top, dictionary, ids, tokens)
    counts = {"n_targets": len(targets), "n_pairs": n_pairs, "n_prompts": len(tokens)}
    rows = [{"sae": label, "stratum": name, **values, **counts} for name, values in fit.items()]
    tables = {
        "atlas_top": top,
        "atlas_density": density,
        "atlas_sample": sample,
        "atlas_fit": pa.Table.from_pylist(rows, schema=ATLAS_FIT.arrow()),
        "atlas_toward": _toward(context, model, label, options, dictionary, tokens),
    }
    return tables, {"gradients": gradients.astype(np.float32), "features": targets.astype(np.int32)}


def _sets(context: StudyContext, label: str, model: "HFModel", which: str) -> dict[int, list[int]]:
    """Token ids of every feature whose set can be read."""
    from polysem.readouts import set_problem

    table = context.features.features
    own = table.filter(pc.equal(table["sae"], label)).sort_by("feature")
    pairs = zip(own["feature"].to_pylist(), own[f"tokens_{which}"].to_pylist(), strict=True)
    W_E = model.W_E
    sets = {feature: tokens for feature, tokens in pairs if set_problem(tokens, W_E) is None}
    if not sets:
        raise ConfigError(
            f"no feature of SAE {label!r} has a token set {which!r} that can be read",
            hint="polysem features STUDY.toml, or the other token set",
        )
    return sets


def _prompts(context: StudyContext, model: "HFModel", n: int) -> tuple[list[str], list[list[int]]]:
    """Prompts with an edited position that the model can read, by id."""
    from polysem.act.base import edited_positions

    rows = sorted(context.run.table("prompts").to_pylist(), key=lambda row: row["prompt_id"])
    positions, spec = context.study.plan.positions, model.spec
    good = [
        row
        for row in rows
        if 0 < len(row["token_ids"]) <= spec.n_ctx
        and max(row["token_ids"]) < spec.d_vocab
        and edited_positions(positions, len(row["token_ids"])).any()
    ][:n]
    return [row["prompt_id"] for row in good], [row["token_ids"] for row in good]


def _sweep(
    label: str, gradients: np.ndarray, targets: np.ndarray, dictionary: Any, k: int
) -> tuple[pa.Table, pa.Table, int]:
    """ATLAS_TOP, ATLAS_DENSITY and how many pairs there are, in one pass over blocks of targets."""
    from polysem import atlas

    parts: list[pa.Table] = []
    counts = {name: np.zeros(0, dtype=np.int64) for name in ("interference", "similarity")}
    n_pairs = 0
    for block in atlas.effect_blocks(gradients, targets, dictionary):
        n_pairs += int(block.others.sum())
        for name, more in atlas.count_block(block)._asdict().items():
            counts[name] = more if not counts[name].size else counts[name] + more
        source, effect = atlas.largest(block, k)
        rows = np.arange(len(source))[:, None]
        columns = {
            "target": np.repeat(targets[block.rows], source.shape[1]),
            "rank": np.tile(np.arange(source.shape[1]), len(source)),
            "source": source.ravel(),
            "effect": effect.ravel().astype(np.float64),
            "interference": block.interference.numpy()[rows, source].ravel().astype(np.float64),
        }
        similarity = block.similarity.numpy()[rows, source].ravel().astype(np.float64)
        keep = block.others.numpy()[rows, source].ravel()
        table = pa.table(
            {
                "sae": pa.repeat(pa.scalar(label), len(keep)),
                **columns,
                "similarity": pa.array(similarity, mask=np.isnan(similarity)),
            }
        )
        parts.append(table.filter(pa.array(keep)))
    cells = [
        {
            "sae": label,
            "axis": name,
            "cosine_lo": atlas.COSINE_EDGES[x],
            "cosine_hi": atlas.COSINE_EDGES[x + 1],
            "effect_lo": atlas.EFFECT_EDGES[y],
            "effect_hi": atlas.EFFECT_EDGES[y + 1],
            "count": int(count[x, y]),
        }
        for name, count in counts.items()
        for x, y in zip(*np.nonzero(count), strict=True)
    ]
    density = pa.Table.from_pylist(cells, schema=ATLAS_DENSITY.arrow())
    return ATLAS_TOP.conform(pa.concat_tables(parts)), density, n_pairs


def _verified(
    context: StudyContext,
    model: "HFModel",
    label: str,
    options: AtlasOptions,
    sets: Mapping[int, list[int]],
    top: pa.Table,
    dictionary: Any,
    ids: Sequence[str],
    tokens: Sequence[Sequence[int]],
) -> tuple[pa.Table, dict[str, dict[str, Any]]]:
    """ATLAS_SAMPLE and the fit of each stratum."""
    from polysem import atlas

    n, seed, site = options.sample_prompts, context.study.seed, context.saes[label].writes
    rng = rng_for(seed, "atlas", label, "sample", short_hash(asdict(options)))
    strata = {
        "uniform": _uniform(rng, np.array(list(sets)), dictionary.directions, options.sample),
        "top": _from_top(rng, top, options.sample),
    }
    rows: list[dict[str, Any]] = []
    fits: dict[str, dict[str, Any]] = {}
    for stratum, pairs in strata.items():
        seen = atlas.verify_sample(
            *(model, site, tokens[:n], pairs),
            sets=[sets[target] for target, _ in pairs],
            dictionary=dictionary,
            target_kl=options.kl,
            positions=context.study.plan.positions,
        ) if pairs else []  # fmt: skip
        for one in seen:
            values: dict[str, Any] = {"sae": label, "stratum": stratum, **one._asdict()}
            rows.append({**values, "prompt_id": ids[values.pop("prompt")]})
        fit = atlas.explained(seen, seed=seed)._asdict()
        numbers = {name: None if np.isnan(value) else value for name, value in fit.items()}
        fits[stratum] = {**numbers, "n_asked": len(pairs) * len(tokens[:n])}
    return ATLAS_SAMPLE.of(rows), fits


def _toward(
    context: StudyContext,
    model: "HFModel",
    label: str,
    options: AtlasOptions,
    dictionary: Any,
    tokens: Sequence[Sequence[int]],
) -> pa.Table:
    """ATLAS_TOWARD: every feature and category; the first unrelated ones of each are steered for real."""
    from polysem import atlas
    from polysem.readouts import CategoryWords

    words = CategoryWords.of(
        model.token_strings(range(model.spec.d_vocab)), word_start=not context.study.prompts.chat_template
    )
    site, positions = context.saes[label].writes, context.study.plan.positions
    sets = {name: row.nonzero()[:, 0].tolist() for name, row in zip(words.names, words.inside, strict=True)}
    if not sets:
        return ATLAS_TOWARD.empty()
    gradients = atlas.set_responses(model, site, tokens, list(sets.values()), positions=positions)
    effects = gradients @ dictionary.directions.T
    about = _about(context, label, list(sets))
    alive = np.flatnonzero(np.abs(dictionary.directions).max(1) > 0)
    rows: list[dict[str, Any]] = []
    for k, name in enumerate(sets):
        order = alive[np.argsort(-effects[k, alive], kind="stable")]
        first = [int(source) for source in order if source not in about[name]][:STEERED_TOWARD]
        seen = atlas.verify_sample(
            *(model, site, tokens[: options.sample_prompts], [(k, source) for source in first]),
            sets=[sets[name]] * len(first),
            dictionary=dictionary,
            target_kl=options.kl,
            positions=positions,
        ) if first else []  # fmt: skip
        measured = {source: [one.measured for one in seen if one.source == source] for source in first}
        for rank, source in enumerate(order.tolist()):
            found = measured.get(source, [])
            rows.append(
                {"sae": label, "category": name, "rank": rank, "source": source}
                | {"effect": float(effects[k, source]), "unrelated": source not in about[name]}
                | {"measured": float(np.mean(found)) if found else None, "n_measured": len(found)}
            )
    return ATLAS_TOWARD.of(rows)


def _about(context: StudyContext, label: str, categories: Sequence[str]) -> dict[str, set[int]]:
    """Category -> features whose gloss or activating tokens name a word of it."""
    table = context.features.features
    own = (
        table.filter(pc.equal(table["sae"], label)).select(["feature", "gloss", "tokens_in_str"]).to_pylist()
    )
    words = builtin().words
    return {
        name: {r["feature"] for r in own if is_about(r["gloss"], r["tokens_in_str"] or (), words[name])}
        for name in categories
    }


def _uniform(
    rng: np.random.Generator, targets: np.ndarray, directions: np.ndarray, n: int
) -> list[tuple[int, int]]:
    """Distinct ordered pairs, each as likely as any other."""
    sources = np.flatnonzero(np.abs(directions).max(1) > 0)
    found: dict[tuple[int, int], None] = {}
    for target, source in zip(rng.choice(targets, 4 * n), rng.choice(sources, 4 * n), strict=True):
        if target != source and len(found) < n:
            found[int(target), int(source)] = None
    return list(found)


def _from_top(rng: np.random.Generator, top: pa.Table, n: int) -> list[tuple[int, int]]:
    rows = np.sort(rng.choice(top.num_rows, min(n, top.num_rows), replace=False))
    taken = top.take(pa.array(rows))
    return list(zip(taken["target"].to_pylist(), taken["source"].to_pylist(), strict=True))
