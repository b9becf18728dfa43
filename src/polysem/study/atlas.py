"""`polysem atlas`: the linear response of every pair of every SAE of a study, in its run folder.

    atlas/NN-{atlas_top,atlas_density,atlas_sample,atlas_fit}.parquet, atlas/NN-gradients.safetensors
    atlas/NN.json      what they were made from, written last: without it, or with another, the SAE is done again

NN is the place of the SAE among the sorted labels. `gradients` holds [n_targets d_in] in nats per resid_norm
and the feature numbers of its rows: the predicted effect of any source is a dot product with its unit decoder
row. A run that is killed costs the SAE it was at.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.errors import ConfigError, StoreError
from polysem.progress import SILENT, Reporter
from polysem.seeds import rng_for, short_hash
from polysem.store import io
from polysem.store.manifest import version_of
from polysem.store.run import RunFolder
from polysem.store.stages import NEEDS, ORDER, Stage, command
from polysem.store.tables import ATLAS, ATLAS_FIT
from polysem.study.bench import Bench
from polysem.study.status import standing

if TYPE_CHECKING:
    from polysem.models.hf import HFModel
    from polysem.store.manifest import StageStatus

_FORMAT = 1


@dataclass(frozen=True)
class AtlasOptions:
    """What the atlas of a study is made with."""

    token_set: str = "out"
    """which target tokens are read: in | out"""
    n_prompts: int = 16
    """prompts that gradients are averaged over, by id (a hash, so they are a sample)"""
    top: int = 50
    """sources kept per target"""
    sample: int = 100
    """pairs of each stratum that are pushed for real"""
    sample_prompts: int = 4
    kl: float = 0.01
    """nats at which they are pushed"""

    def check(self) -> None:
        """Raises ConfigError for a value that cannot be."""
        if self.token_set not in ("in", "out"):
            raise ConfigError(f"token set {self.token_set!r}; expected in or out")
        for name in ("n_prompts", "top", "sample_prompts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}; expected at least 1")
        if self.sample < 0 or not 0 < self.kl < 10:
            raise ConfigError(
                f"sample {self.sample}, kl {self.kl}; expected sample >= 0 and 0 < kl < 10 nats"
            )


def make_atlas(
    out: Path,
    options: AtlasOptions | None = None,
    *,
    reporter: Reporter = SILENT,
    ignore_versions: bool = False,
) -> pa.Table:
    """The atlas of every SAE of a run folder whose features and plan are fresh; gives ATLAS_FIT of all SAEs.

    Raises:
        StoreError: if features or plan are not fresh, or a file cannot be written.
        ConfigError: if an option cannot be, or no target of an SAE can be read.
        MismatchError: if SAE, model and tables do not belong together.
    """
    options = options or AtlasOptions()
    options.check()
    run = RunFolder.open(out)
    study, known = run.study(), cast("dict[Stage, StageStatus]", {})
    for stage in ORDER[: ORDER.index("plan") + 1]:
        known[stage] = standing(study, run, stage, known, ignore_versions=ignore_versions).status
        if known[stage].state != "fresh":
            raise StoreError(
                f"the atlas needs {stage}, which is {known[stage].state} in {out}: {known[stage].reason}",
                hint=command(stage, out),
            )
    with run.writing():
        bench = Bench(study, run)
        labels = sorted(bench.saes)
        made = [
            _one(bench, label, number, options, ignore_versions=ignore_versions)
            for number, label in reporter.track(list(enumerate(labels)), total=len(labels), label="atlas")
        ]
    return ATLAS_FIT.conform(pa.concat_tables(made))


def _one(bench: Bench, label: str, number: int, options: AtlasOptions, *, ignore_versions: bool) -> pa.Table:
    folder = bench.run.root / "atlas"
    record, recipe = folder / f"{number:02d}.json", _recipe(bench, label, options)
    files = {schema.name: folder / f"{number:02d}-{schema.name}.parquet" for schema in ATLAS}
    if _is_good(record, recipe, ignore_versions=ignore_versions):
        return io.read_table(files["atlas_fit"], ATLAS_FIT, rebuild=_again(bench))
    io.remove(record)
    tables, arrays = compute(bench, label, options)
    hashes = {
        files[schema.name].name: io.write_table(files[schema.name], tables[schema.name], schema)
        for schema in ATLAS
    }
    gradients = folder / f"{number:02d}-gradients.safetensors"
    hashes[gradients.name] = io.write_arrays(gradients, arrays)
    io.write_json(record, {"recipe": recipe, "outputs": hashes, "facts": bench.facts()})
    return tables["atlas_fit"]


def _again(bench: Bench) -> str:
    return f"polysem atlas {bench.run.root}/study.toml --out {bench.run.root}"


def _recipe(bench: Bench, label: str, options: AtlasOptions) -> dict[str, Any]:
    inputs = {
        name: digest
        for stage in ("features", "plan")
        if (manifest := bench.run.manifest(stage)) is not None
        for name, digest in manifest.hashes.items()
    }
    recipe: dict[str, Any] = {
        "format": _FORMAT,
        "sae": label,
        "options": asdict(options),
        "positions": bench.study.plan.positions,
        "seed": bench.study.seed,
        "model": bench.study.model.model_dump(mode="json"),
        "inputs": inputs,
        "packages": {name: version_of(name) for name in NEEDS["trials"].packages},
    }
    return json.loads(json.dumps(recipe))


def _is_good(record: Path, recipe: Mapping[str, Any], *, ignore_versions: bool) -> bool:
    if not record.is_file():
        return False
    try:
        seen = io.read_json(record, rebuild="")
    except StoreError:
        return False
    skipped = {"packages"} if ignore_versions else set()
    same = all(
        seen.get("recipe", {}).get(key) == value for key, value in recipe.items() if key not in skipped
    )
    outputs: Mapping[str, str] = seen.get("outputs", {})
    return same and all(io.sha256_of(record.parent / name) == digest for name, digest in outputs.items())


def compute(
    bench: Bench, label: str, options: AtlasOptions
) -> tuple[dict[str, pa.Table], dict[str, np.ndarray]]:
    """The atlas tables of one SAE, and its gradients with the feature numbers of their rows."""
    from polysem import atlas
    from polysem.models.hf import HFModel

    model, sae = bench.model, bench.saes[label]
    if not isinstance(model, HFModel):
        raise ConfigError("the atlas needs a transformers model")
    sets = _sets(bench, label, model, options.token_set)
    ids, tokens = _prompts(bench, model, options.n_prompts)
    targets = np.array(list(sets), dtype=np.int64)
    positions = bench.study.plan.positions
    gradients = atlas.set_responses(model, sae.site, tokens, list(sets.values()), positions=positions)
    dictionary = atlas.Dictionary.of(
        sae.W_dec.detach().cpu().double().numpy(), bench.features.embeddings[label].astype(np.float64)
    )
    top, density, n_pairs = _sweep(label, gradients, targets, dictionary, options.top)
    sample, fit = _verified(bench, model, label, options, sets, top, dictionary, ids, tokens)
    counts = {"n_targets": len(targets), "n_pairs": n_pairs, "n_prompts": len(tokens)}
    rows = [{"sae": label, "stratum": name, **values, **counts} for name, values in fit.items()]
    tables = {
        "atlas_top": top,
        "atlas_density": density,
        "atlas_sample": sample,
        "atlas_fit": pa.Table.from_pylist(rows, schema=ATLAS_FIT.arrow()),
    }
    return tables, {"gradients": gradients.astype(np.float32), "features": targets.astype(np.int32)}


def _sets(bench: Bench, label: str, model: "HFModel", which: str) -> dict[int, list[int]]:
    """Token ids of every feature whose set can be read."""
    from polysem.readouts import set_problem

    table = bench.features.features
    own = table.filter(pc.equal(table["sae"], label)).sort_by("feature")
    pairs = zip(own["feature"].to_pylist(), own[f"tokens_{which}"].to_pylist(), strict=True)
    W_E = model.W_E
    sets = {feature: tokens for feature, tokens in pairs if set_problem(tokens, W_E) is None}
    if not sets:
        raise ConfigError(
            f"no feature of SAE {label!r} has a token set {which!r} that can be read",
            hint="polysem features, or the other token set",
        )
    return sets


def _prompts(bench: Bench, model: "HFModel", n: int) -> tuple[list[str], list[list[int]]]:
    """Prompts with an edited position that the model can read, by id."""
    from polysem.interventions.base import edited_positions

    rows = sorted(bench.run.table("prompts").to_pylist(), key=lambda row: row["prompt_id"])
    positions, spec = bench.study.plan.positions, model.spec
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
    from polysem.store.tables import ATLAS_DENSITY, ATLAS_TOP

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
    bench: Bench,
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
    from polysem.store.tables import ATLAS_SAMPLE

    n, seed, site = options.sample_prompts, bench.study.seed, bench.saes[label].site
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
            positions=bench.study.plan.positions,
        ) if pairs else []  # fmt: skip
        for one in seen:
            values = {"sae": label, "stratum": stratum, **one._asdict()}
            rows.append({**values, "prompt_id": ids[values.pop("prompt")]})
        fit = atlas.explained(seen, seed=seed)._asdict()
        numbers = {name: None if np.isnan(value) else value for name, value in fit.items()}
        fits[stratum] = {**numbers, "n_asked": len(pairs) * len(tokens[:n])}
    return ATLAS_SAMPLE.conform(pa.Table.from_pylist(rows, schema=ATLAS_SAMPLE.arrow())), fits


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
