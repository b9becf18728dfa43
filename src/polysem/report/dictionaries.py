"""Several dictionaries of one site: how much of a claim is this dictionary. Their features matched and which interfering pairs come
back, survival of effects by stratum, their variance taken apart, and every headline with the dictionary as a cluster."""

from collections import Counter
from collections.abc import Mapping

from markupsafe import Markup

from polysem.report import words
from polysem.report.html import NOTE, Column, Row, ends, interval, table
from polysem.report.source import Run
from polysem.report.text import count, fixed, p_value, visible
from polysem.stats.rows import POOLED
from polysem.stats.survival import COMPONENTS, STRATA

_MEASURES = {"steered": "steered", "linear": "by the gradient"}
_STABLE = {"all": "any", "both": "both", "one": "one", "none": "none"}
_NAMES = {
    "target": "target",
    "source": "source",
    "pair": "pair",
    "dictionary": "dictionary",
    "target_in_dictionary": "target in this dictionary",
    "source_in_dictionary": "source in this dictionary",
    "rest": "pair in this dictionary, and noise",
}
_BETWEEN: tuple[Column, ...] = (
    ("SAEs", lambda r: f"{visible(r['sae'])}, {visible(r['other'])}"),
    ("tokens", lambda r: words.asked(r["token_set"])),
    ("effects", lambda r: _MEASURES[r["measure"]]),
)
_TWO: Column = ("SAEs", lambda r: f"{visible(r['first'])}, {visible(r['second'])}")
_MATCHED: tuple[Column, ...] = (
    _TWO,
    ("matched", lambda r: count(r["n"])),
    ("PW-MCC", lambda r: fixed(r["pw_mcc"])),
    ("turned at random", lambda r: fixed(r["turned"])),
    ("drawn with its covariance", lambda r: fixed(r["drawn"])),
    ("stable of the first", lambda r: _share(r["stable_first"])),
    ("of the second", lambda r: _share(r["stable_second"])),
)
_LASTING: tuple[Column, ...] = (
    _TWO,
    ("matched features", lambda r: r["matched"]),
    ("|interference| in the first", lambda r: f"{r['low']:g} to {r['high']:g}"),
    ("pairs", lambda r: count(r["n"])),
    ("same bin in the second", lambda r: _share(r["same"])),
    (
        "by regression to the mean",
        lambda r: f"{_share(r['chance'])} ({_share(r['lo'])} to {_share(r['hi'])})",
    ),
)
_SPANS: tuple[Column, ...] = (
    _TWO,
    (
        "features that are not stable",
        lambda r: (
            f"all {count(r['size'])}"
            if r["group"] == "all"
            else f"{count(r['n_groups'])} groups of {count(r['size'])}"
        ),
    ),
    ("dimensions", lambda r: fixed(r["rank"], places=1)),
    ("of the span in the other's", lambda r: _share(r["shared"])),
    ("random spans", lambda r: f"{_share(r['random'])} ({_share(r['lo'])} to {_share(r['hi'])})"),
    ("drawn with its covariance", lambda r: _share(r["drawn"])),
)
_SURVIVAL: tuple[Column, ...] = (
    *_BETWEEN,
    ("stable members", lambda r: _STABLE[r["stratum"]]),
    ends("correlation", "correlation"),
    ends("by cosine alone", "null"),
    ends("excess", "excess"),
    ("pairs / targets", lambda r: f"{count(r['n_pairs'])} / {count(r['n_targets'])}"),
    NOTE,
)
_POOLED: tuple[Column, ...] = (
    ("site", lambda r: visible(r["site"])),
    ("question", lambda r: words.contrast(r["contrast"]).label),
    ("locus", lambda r: words.locus(r["locus"])),
    ("tokens", lambda r: words.asked(r["token_set"])),
    ("another SAE of the site would show", lambda r: interval(r, "mean")),
    "unit",
    ("I²", lambda r: "–" if r["i2"] is None else f"{100 * r['i2']:.0f} %"),
    ("p, all alike", lambda r: p_value(r["p"])),
    ("SAEs", lambda r: count(r["n_saes"])),
    NOTE,
)


def dictionaries(run: Run, sites: Mapping[str, str]) -> Markup:
    """What the report says of sites with several SAEs; nothing where there is none.

    Args:
        run: of the study.
        sites: site of every SAE by label.
    """
    several = {site for site, n in Counter(sites.values()).items() if n > 1}
    if not several:
        return Markup("")
    parts = _by_weights(run)
    lasting = run.table("effect_survival").to_pylist()
    if lasting:
        lasting.sort(key=lambda r: (r["sae"], r["other"], r["token_set"], r["measure"] != "steered", list(STRATA).index(r["stratum"])))  # fmt: skip
        said = (
            "Do effects of pairs come back? A member is stable if its match in the other SAE has decoder and encoder cosines that only "
            "1 % of features reach in an SAE turned at random. By cosine alone: the same were every match no more than a direction at "
            "that cosine, what differs dealt out among the features drawn. The excess belongs to the pair."
        )
        parts += [_said(said), table(_SURVIVAL, lasting, caption="Survival of effects in another SAE")]
    parts += _taken_apart(run)
    alone = len(set(sites.values())) == 1
    pooled = [
        r | {"site": next(iter(several)) if r["site"] == POOLED else r["site"]}
        for r in run.table("heterogeneity").to_pylist()
        if (r["site"] == POOLED) == alone
    ]
    if pooled:
        said = (
            "Each headline estimated in every SAE of a site alone and pooled with the SAE as a cluster (random effects, "
            "DerSimonian-Laird, t interval of Hartung and Knapp): how much of the claim is this SAE. With two SAEs the interval has "
            "one degree of freedom and is wide."
        )
        parts += [_said(said), table(_POOLED, pooled, caption="Headlines with the SAE as a cluster")]
    return Markup("").join(parts)


def _by_weights(run: Run) -> list[Markup]:
    """Features matched one to one, interfering pairs that come back, and the spans of what is not stable."""
    said = (
        "Features matched one to one so that the sum of |cosine| of decoder rows is the largest; PW-MCC is its mean. Stable: decoder and "
        "encoder cosines beyond what 1 % of features reach in an SAE turned at random.",
        "Do interfering pairs come back? Of pairs of matched features, how many are in the same bin of |interference| in the second "
        "SAE, beside what matches at these cosines would give were what differs between them dealt to other features (mean, least and "
        "largest of the deals). What is above is a fact about the pair.",
        "Do the subspaces come back in which features lie that are not stable? Share of a group's span that is in the nearest span of "
        "equal rank in the other SAE, beside random spans and rows drawn with its mean and covariance.",
    )
    tables = (
        ("replicates", _MATCHED, "Features of two SAEs of a site, by weights"),
        ("survival", _LASTING, "Interfering pairs in another SAE"),
        ("shared_spans", _SPANS, "Subspaces of features that are not stable"),
    )
    parts = [Markup("")]
    for words_, (name, columns, caption) in zip(said, tables, strict=True):
        if rows := run.table(name).to_pylist():
            parts += [_said(words_), table(columns, rows, caption=caption)]
    return parts


def _taken_apart(run: Run) -> list[Markup]:
    """Components of variance as shares, and reliabilities, a row per design."""
    designs: dict[tuple[str, ...], dict[str, Row]] = {}
    keys = ("sae", "other", "token_set", "measure", "stratum")
    for r in run.table("variance_components").to_pylist():
        designs.setdefault(tuple(r[k] for k in keys), {})[r["component"]] = r
    if not designs:
        return []
    columns: tuple[Column, ...] = (
        *_BETWEEN,
        ("stable members", lambda r: _STABLE[r["stratum"]]),
        *((_NAMES[name], lambda r, name=name: _percent(r["of"][name])) for name in COMPONENTS),
        ("pair effect: reliability of one SAE", lambda r: interval(r["of"]["reliability_one"], "value")),
        ("of the mean of both", lambda r: interval(r["of"]["reliability_both"], "value")),
        ("pairs", lambda r: count(r["of"]["rest"]["n_pairs"])),
        ("note", lambda r: r["of"]["rest"]["note"] or ""),
    )
    rows = [dict(zip(keys, key, strict=True)) | {"of": found} for key, found in sorted(designs.items())]
    said = (
        "What the variance of the effects in both SAEs is made of, in per cent of its sum; below zero: there is none. What is in this "
        "dictionary alone is no fact about the model. Intervals of the components: table variance_components."
    )
    return [_said(said), table(columns, rows, caption="Components of the variance of pair effects")]


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _percent(row: Row) -> str:
    return "–" if row["share"] is None else str(round(100 * row["share"]))


def _said(words: str) -> Markup:
    return Markup("<p>{}</p>").format(words)
