"""`polysem side-effects`: directions by name or file, judged in the scene of a study.

    side-effects/{directions,side_effects,side_effects_moved,side_effects_linear,cleaner,forecasts,screened,repairs}.parquet
    side-effects/repaired-N.safetensors, repaired-N.gguf     the N-th direction, with least collateral

A request takes the place of the one before; what it read is in the manifest by content.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polysem.boundary.files import local_path
from polysem.categories import builtin
from polysem.engine.options import SideEffectsOptions
from polysem.engine.task import Made, Task
from polysem.errors import ConfigError
from polysem.store import io
from polysem.store.manifest import Output
from polysem.types import Site

STAGE = "side-effects"


def make(task: Task) -> Made:
    """The tables of a request, and the vectors of its repairs."""
    from polysem.side_effects.directions import write_direction
    from polysem.side_effects.run import SideEffects, forecast_side_effects, linear_rows, side_effects

    options: SideEffectsOptions = task.options
    scene, directions, said = _asked(task, options)
    rows: dict[str, list[dict[str, Any]]] = {}
    found = SideEffects.of({})
    dose, unit = (options.kl, "kl") if options.coefficient is None else (options.coefficient, "coefficient")
    if directions:
        found = side_effects(
            scene, directions, dose=dose, unit=unit, n_null=options.n_null, repair=options.repair,
            tokens_from=said, reporter=task.how.reporter,
        )  # fmt: skip
    if options.forecast:
        rows |= forecast_side_effects(
            scene, options.forecast, dose=options.kl, twins=_twins(task, scene.label),
            text=_text(task, scene.label, options.tokens), reporter=task.how.reporter,
        )  # fmt: skip
    if not found.held["side_effects_linear"].num_rows and (told := scene.of_all_features(options.kl)):
        rows["side_effects_linear"] = linear_rows(scene, told)
    tables = dict(found.held) | {n: t for n, t in SideEffects.of(rows).held.items() if t.num_rows}
    made = task.whole(tables)
    folder = task.run.folder(STAGE)
    for old in sorted(folder.glob("repaired-*")):
        io.remove(old)
    numbers = {d.name: k for k, d in enumerate(directions)}
    for repair in found.repairs:
        stem = f"repaired-{numbers[repair.name.removesuffix(', repaired')]}"
        written = write_direction(folder, stem, repair, model_type=task.context.model.spec.family)
        made.outputs.update({f"{STAGE}/{name}": Output(digest) for name, digest in written.items()})
    return made


def _asked(task: Task, options: SideEffectsOptions) -> tuple[Any, list[Any], dict[str, str]]:
    """The scene, the directions, and who said what they are meant to move."""
    from polysem.positions import positions_of
    from polysem.side_effects.directions import (
        Direction,
        difference_of_means,
        difference_of_models,
        read_direction,
        read_texts,
    )
    from polysem.side_effects.scene import Scene, readouts_after

    context = task.context
    model, saes, study = context.model, context.saes, task.study
    given = Site.parse(options.site) if options.site else None
    found: list[tuple[str, str, Site | None, np.ndarray]] = [
        (Path(file).name, "file", *read_direction(local_path(file), site=given)) for file in options.vectors
    ]
    sites = {site for _, _, site, _ in found if site is not None} | ({given} if given else set())
    if len(sites) > 1:
        raise ConfigError(
            f"vectors of several sites: {', '.join(map(str, sorted(sites)))}; expected one",
            hint="judge one file after the other",
        )
    at = next(iter(sites), None)
    label = options.sae or next((one for one in saes if at in (None, saes[one].writes)), next(iter(saes)))
    for name in filter(None, (label, options.readout)):
        if name not in saes:
            raise ConfigError(f"no dictionary {name!r} in the study; expected one of {', '.join(saes)}")
    site = at or saes[label].writes
    if (options.features or options.top) and site != saes[label].writes:
        raise ConfigError(
            f"features of {label} are steered at {saes[label].writes}, not {site}", hint="leave --site out"
        )
    if options.more:
        sides = [read_texts(local_path(file)) for file in (options.more, options.less)]
        difference = difference_of_means(model, *sides, site=site, positions=positions_of(model, saes[label]))
        names = f"{Path(options.more).stem} minus {Path(options.less).stem}"
        found.append((names, "texts", site, difference))
    if options.other:
        from polysem.models import load_model

        other = load_model(options.other, dtype=study.model.dtype, device=study.model.device)
        prompts = task.run.table("prompts")["token_ids"].to_pylist()
        moved = difference_of_models(
            model, other, prompts, site=site, positions=positions_of(model, saes[label])
        )
        found.append(
            (f"{Path(options.other).name} minus {Path(study.model.ref).name}", "models", site, moved)
        )
    readout = options.readout or next(iter(readouts_after(model, site, saes)), "")
    scene = Scene.of(
        model, saes[label], context.features.features, task.run.table("prompts"), label=label,
        readout=(readout, saes[readout]) if readout else None,
        positions=options.positions or study.plan.positions, token_set=options.token_set,
        word_start=not study.prompts.chat_template, seed=study.seed,
    )  # fmt: skip
    tokens = tokens_of(model, options.target, word_start=not study.prompts.chat_template)
    directions = [Direction(name, kind, at or site, vector, tokens) for name, kind, at, vector in found]
    wanted = list(dict.fromkeys([*options.features, *_cleanest(scene, options)]))
    said = {d.name: "asked" for d in directions if tokens}
    return scene, [*directions, *scene.features(wanted)], said


def _twins(task: Task, label: str) -> list[Any]:
    """The study's other dictionaries of the same site."""
    saes = task.context.saes
    return [saes[one] for one in saes if one != label and saes[one].writes == saes[label].writes]


def _text(task: Task, label: str, n_tokens: int) -> Any:
    """Rows of the study's corpus; None for none."""
    from polysem.corpus import token_rows
    from polysem.positions import positions_of

    corpus, context = task.study.corpus, task.context
    positions = positions_of(context.model, context.saes[label])
    rows = n_tokens and token_rows(
        corpus.ref, context.model, n_tokens=n_tokens, context=corpus.context, positions=positions
    )
    return rows.tokens if rows else None


def _cleanest(scene: Any, options: SideEffectsOptions) -> list[int]:
    told = scene.of_all_features(options.kl) if options.top else None
    if told is None:
        return []
    clean = told.cleanliness(scene.all_own)
    order = np.argsort(-np.nan_to_num(clean, nan=-np.inf), kind="stable")
    return [int(k) for k in order[: options.top] if np.isfinite(clean[k])]


def tokens_of(model: Any, target: str, *, word_start: bool) -> tuple[int, ...]:
    """Token ids of what is meant to move: a category's, or the first token of every word."""
    if not target:
        return ()
    known: Mapping[str, frozenset[str]] = builtin().words
    if target in known:
        inside = builtin().inside(model.token_strings(range(model.spec.d_vocab)), word_start=word_start)
        return tuple(np.flatnonzero(inside[builtin().names.index(target)]).tolist())
    words = [word.strip() for word in target.split(",") if word.strip()]
    space = " " if word_start else ""
    ids = {model.tokenize(space + word, prepend_bos=False)[0] for word in words}
    if not ids:
        raise ConfigError(f"--target {target!r}: expected words, or one of {', '.join(known)}")
    return tuple(sorted(ids))
