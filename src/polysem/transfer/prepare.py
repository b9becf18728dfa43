"""Everything that is decided before a target is asked: structure, arm sets, pools, sentences. Sources only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from polysem.categories import Categories, load_categories
from polysem.errors import ConfigError
from polysem.geometry.unit import unit_rows
from polysem.progress import SILENT, Reporter
from polysem.seeds import rng_for
from polysem.transfer.arms import ArmSets, Structure, arm_sets, common_structure, plain_texts, plain_tokens
from polysem.transfer.categories import load_sentences
from polysem.transfer.config import TESTED, TransferStudy
from polysem.transfer.pools import Pools, make_pools, universe
from polysem.transfer.source import SourceModel, matched_rows, see
from polysem.vocabulary_transfer import TRANSFER_ARMS


@dataclass(frozen=True)
class PreparedTransfer:
    """A transfer study before its first request."""

    study: TransferStudy
    sources: tuple[SourceModel, SourceModel]
    structure: Structure
    categories: Categories
    sentences: dict[str, list[str]]
    sets: dict[str, ArmSets]
    pools: dict[tuple[str, str], Pools]
    """by (category, arm)"""
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)
    """why an arm of a category is not run"""


def prepare(
    study: TransferStudy,
    *,
    count_tokens: Callable[[str], int | None] | None = None,
    reporter: Reporter = SILENT,
) -> PreparedTransfer:
    """Load the sources, find what they share, and draw all pools.

    Args:
        count_tokens: tokens of a string in the target's tokenizer; None counts those of the first source.

    Raises:
        PolysemError: of models, SAEs, tables and sentences; ConfigError if no arm of any category has enough strings.
    """
    from polysem.models import load_model
    from polysem.saes import load_sae

    categories = load_categories(study.categories.table, study.categories.names)
    sentences = load_sentences(study.categories.sentences, categories.names, n=study.categories.n_sentences)
    rows = matched_rows(study)
    alike = study.sources[0].model == study.sources[1].model
    seen: list[SourceModel] = []
    counters: list[Callable[[str], int | None]] = [count_tokens] if count_tokens else []
    for n, config in enumerate(study.sources):
        model = load_model(config.model, revision=config.revision, device=config.device)
        sae = load_sae(
            config.sae, model=model, max_fvu=config.max_fvu, allow_other_model=config.allow_other_model
        )
        name = f"{config.model}#{n}" if alike else config.model
        seen.append(see(model, sae, rows, name=name, reporter=reporter))
        counters.append(lambda text, m=model: len(m.tokenize(text, prepend_bos=False)))
    sources = (seen[0], seen[1])
    structure = common_structure(
        *sources,
        config=study.shared,
        level=study.test.level,
        rng=rng_for(study.seed, "matching"),
        snippet_tokens=study.pools.snippet_tokens if study.pools.unit == "snippets" else None,
    )
    sets = {c: arm_sets(c, categories, sources, structure, study.shared) for c in categories.names}
    prepared = PreparedTransfer(study, sources, structure, categories, sentences, sets, {})
    for category in categories.names:
        _draw_pools(prepared, category, counters[0])
    if not prepared.pools:
        reasons = "; ".join(f"{c} {a}: {why}" for (c, a), why in list(prepared.reasons.items())[:4])
        raise ConfigError(
            f"no arm of any category can be run: {reasons}",
            hint="lower pools.n_tokens, shared.min_z or shared.min_r, or read a longer corpus",
        )
    return prepared


def _draw_pools(prepared: PreparedTransfer, category: str, count_tokens: Callable[[str], int | None]) -> None:
    study, sets = prepared.study, prepared.sets[category].sets
    strings = plain_texts(prepared.sources, prepared.structure)
    leakage = leakage_of(prepared, category)
    among = universe(
        strings,
        frequency=_frequency(prepared, strings),
        leakage=np.array([leakage[t] for t in strings]),
        count_tokens=count_tokens,
    )
    kin = frozenset(strings).difference(*sets.values())
    barred = kin.union(*(sets[name] for name, arm in TRANSFER_ARMS.items() if arm.rises))
    for arm in study.pools.arms:
        key = (category, arm)
        if len(sets[arm]) < study.pools.n_tokens:
            prepared.reasons[key] = (
                f"{len(sets[arm])} strings, fewer than the {study.pools.n_tokens} of one prompt (pools.n_tokens)"
            )
            continue
        try:
            prepared.pools[key] = make_pools(
                arm,
                category,
                sets[arm],
                among=among,
                barred=barred,
                size=study.pools.size,
                n_treated=study.pools.n_random if arm == "random" else study.pools.n_treated,
                n_reference=study.pools.n_reference if arm in TESTED else 0,
                nearest=study.pools.nearest,
                seed=study.seed,
            )
        except ConfigError as error:
            prepared.reasons[key] = str(error).splitlines()[0]


def _frequency(prepared: PreparedTransfer, strings: Sequence[str]) -> dict[str, float]:
    """How often a string occurs in the sources' text; of a snippet the geometric mean over its tokens."""
    first, second = (source.frequency() for source in prepared.sources)
    counts, pieces = first + second, prepared.structure.pieces
    return {
        t: float(np.expm1(np.mean([np.log1p(counts[p]) for p in pieces[t]])) if t in pieces else counts[t])
        for t in strings
    }


def leakage_of(prepared: PreparedTransfer, category: str) -> dict[str, float]:
    """Cosine of every token's embedding with the category's words, as pools are matched on; of a snippet the mean over
    its tokens."""
    tokens = plain_tokens(prepared.sources)
    found = dict(zip(tokens, _leakage(prepared, tokens, category).tolist(), strict=True))
    for text, pieces in prepared.structure.pieces.items():
        known = [found[p] for p in pieces if p in found]
        found[text] = float(np.mean(known)) if known else 0.0
    return found


def _leakage(prepared: PreparedTransfer, strings: Sequence[str], category: str) -> Float[np.ndarray, " n"]:
    """Cosine of each string's embedding with the mean of the category's words."""
    match prepared.study.pools.leakage:
        case "none":
            return np.zeros(len(strings))
        case "minilm":
            from polysem.glosses.embed import embed_texts

            vectors = embed_texts([s.strip() for s in strings], "minilm", cache=None).vectors.astype(
                np.float64
            )
        case "source":
            source = prepared.sources[0]
            vectors = np.zeros((len(strings), source.embedding.shape[1]))
            place = {t: n for n, t in enumerate(source.vocabulary)}
            known = [n for n, t in enumerate(strings) if t in place]
            rows = source.embedding[[place[strings[n]] for n in known]].astype(np.float64)
            rows -= source.embedding.mean(axis=0)  # rows share a large mean, which would hide what differs
            vectors[known] = unit_rows(rows)
    words = [n for n, s in enumerate(strings) if prepared.categories.of_token(s, word_start=True) == category]
    goal = vectors[words].mean(axis=0) if words else vectors[0] * 0
    size = np.linalg.norm(goal)
    return vectors @ goal / size if size > 0 else np.zeros(len(strings))
