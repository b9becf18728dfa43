"""From result tables to charts: picks the rows, names the axes, leaves the drawing to `charts` and
`heatmap`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.config import PairsConfig, Study
from polysem.report import charts, words
from polysem.report.charts import Bar, Curve, Point
from polysem.report.heatmap import COVERED, Chance, HeatCell, chance_bound, pair_map
from polysem.report.html import Figure
from polysem.report.pairs import Effect
from polysem.report.source import Tables, where
from polysem.report.text import count, interval, number, p_value, plural, visible
from polysem.stats import POOLED, parse_group
from polysem.stats.arms import PRIMARY, outcome_of
from polysem.stats.rows import reach
from polysem.vocabulary import DOSE_UNITS, LOCI, RELATIONS, TOKEN_SETS, DoseUnit
from polysem.vocabulary_findings import GRADE_LINES

_LINE_POINTS = 17
_FILLED = "Filled: {}. Hollow: {}.".format(*(words.asked(t) for t in TOKEN_SETS))
_LOGODDS = "change in log-odds (nats)"


@dataclass(frozen=True)
class LocusSection:
    """Everything that the report says of one locus."""

    name: str
    dose: float
    unit: DoseUnit
    effects: list[dict[str, Any]]
    """rows of EFFECTS with their group as `parts`"""
    findings: list[dict[str, Any]]
    """rows of FINDINGS, each with its rows of GRADED as `lines`"""
    pair_effects: pa.Table
    """at the headline dose"""
    curves: pa.Table
    """DOSE_RESPONSE of the locus"""
    kl: pa.Table
    """PAIR_EFFECTS of the locus at all doses"""
    heterogeneity: list[dict[str, Any]]
    """rows of HETEROGENEITY of the locus"""

    def row(self, contrast: str, **parts: str) -> dict[str, Any] | None:
        """The row of a contrast with exactly these parts besides locus, model and dose."""
        for row in self.effects:
            rest = {k: v for k, v in row["parts"].items() if k not in ("locus", "model", "dose")}
            if row["contrast"] == contrast and rest == parts:
                return row
        return None

    def told(self, contrast: str, **parts: str) -> dict[str, Any] | None:
        """The finding of a contrast in all SAEs together."""
        row = self.row(contrast, sae=POOLED, **parts)
        same = (f for f in self.findings if row and (f["contrast"], f["group"]) == (contrast, row["group"]))
        return next(same, None)

    @property
    def token_sets(self) -> list[str]:
        return words.in_order(TOKEN_SETS, pc.unique(self.kl["token_set"]).to_pylist())

    def there(self, *roles: str) -> list[str]:
        """Relations of these roles that have effects, in the order in which people are shown them."""
        found = words.in_order(RELATIONS, pc.unique(self.kl["relation"]).to_pylist())
        return [name for name in found if words.relation(name).role in roles]

    @property
    def axis(self) -> str:
        """What a dose counts, in words."""
        return self.unit.axis or self.unit.label


def loci(run: Tables) -> list[LocusSection]:
    """The loci of a run with effects."""
    effects = run.table("effects")
    if not effects.num_rows:
        return []
    rows = [row | {"parts": parse_group(row["group"])} for row in effects.to_pylist()]
    pair_effects, dose_response = run.table("pair_effects"), run.table("dose_response")
    lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in run.table("graded").to_pylist():
        lines.setdefault((line["contrast"], line["group"]), []).append(line)
    findings = [
        row | {"lines": in_grade_order(lines.get((row["contrast"], row["group"]), []))}
        for row in run.table("findings").to_pylist()
    ]
    apart = run.table("heterogeneity")
    # The strengths that the paper's preset adds are not the doses of a locus.
    units = {
        r["locus"]: DOSE_UNITS[r["dose_unit"]]
        for r in _distinct(run.table("plan", columns=("locus", "dose_unit")))
        if not (DOSE_UNITS[r["dose_unit"]].paper or DOSE_UNITS[r["dose_unit"]].single)
    }
    result = []
    for name in words.in_order(LOCI, (row["parts"]["locus"] for row in rows)):
        mine = [row for row in rows if row["parts"]["locus"] == name]
        dose = float(mine[0]["parts"]["dose"])
        own = where(pair_effects, locus=name)
        near = pc.less(pc.abs(pc.subtract(own["dose"], dose)), 1e-5 * dose)
        unit = units.get(name, DOSE_UNITS[run.study.plan.dose_unit])
        curves = where(dose_response, locus=name)
        told = [f for f in findings if f["locus"] == name]
        alike = where(apart, locus=name, site=POOLED).to_pylist()
        result.append(LocusSection(name, dose, unit, mine, told, own.filter(near), curves, own, alike))
    return result


def in_grade_order(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of GRADED in the order of the vocabulary."""
    place = {name: k for k, name in enumerate(GRADE_LINES)}
    return sorted(lines, key=lambda line: place.get(line["line"], len(place)))


def _distinct(table: pa.Table) -> list[dict[str, Any]]:
    return table.group_by(table.column_names).aggregate([]).to_pylist()


def measured(locus: LocusSection) -> dict[tuple[str, int, int], list[Effect]]:
    """Effects of pairs at the headline dose, by (sae, i, j) with i < j."""
    found: dict[tuple[str, int, int], list[Effect]] = {}
    pairs = where(locus.pair_effects, relation="pair")
    for r in pairs.sort_by([("token_set", "ascending"), ("source", "ascending")]).to_pylist():
        key = (r["sae"], min(r["source"], r["target"]), max(r["source"], r["target"]))
        found.setdefault(key, []).append(
            Effect(r["source"], r["target"], r["token_set"], r["logodds"], r["logodds_se"])
        )
    return found


def maps(density: pa.Table, spectrum: pa.Table, pairs: pa.Table, config: PairsConfig) -> Iterator[Figure]:
    """One heat map per SAE, all on one scale."""
    low, high = config.min_interference, config.max_similarity
    by_sae: dict[str, list[HeatCell]] = {}
    for sae in sorted(set(density["sae"].to_pylist())):
        rows = where(density, sae=sae).to_pylist()
        cells = [HeatCell(*(r[k] for k in _CELL)) for r in rows if r["count"]]
        if cells:
            by_sae[sae] = cells
    everywhere = [cell for cells in by_sae.values() for cell in cells]
    for sae, cells in by_sae.items():
        listed = where(pairs, sae=sae)["interference"].to_numpy()
        n_listed = int((listed > 0).sum()), int((listed <= 0).sum())
        bounds = zip(("chance", "chance, covariance"), chance(spectrum, sae), strict=False)
        total = sum(c.n_pairs for c in cells)
        drawing = pair_map(
            cells,
            label=visible(sae),
            min_interference=low,
            max_similarity=high,
            n_listed=n_listed,
            chance=[Chance(*bound) for bound in bounds],
            among=everywhere,
        )
        caption = (
            f"{count(total)} pairs of glossed features. Outlined: |interference| ≥ {low:g} and gloss similarity < "
            f"{high:g}, {number(100 * sum(n_listed) / total, digits=2)} % of all. "
            f"Dashed: {100 * COVERED:g} % of pairs of random directions lie inside; "
            "dotted: of random directions of this SAE's effective width."
        )
        title = f"{visible(sae)}: {plural(n_listed[0], 'pair')} overlap with unrelated glosses"
        yield Figure(title, drawing, caption, of=sae)


_CELL = ("interference_lo", "interference_hi", "similarity_lo", "similarity_hi", "count")


def chance(spectrum: pa.Table, sae: str) -> list[float]:
    """|interference| that `COVERED` of the pairs of random directions stay below: in all dimensions, in the effective."""
    rows = where(spectrum, sae=sae).slice(0, 1).to_pylist()
    return [chance_bound(d) for row in rows for d in (row["d_in"], max(2.0, row["d_eff"]))]


def scatters(locus: LocusSection, study: Study) -> Iterator[Figure]:
    """Effect against interference, one panel per token set, on one scale."""
    points = {tokens: _points(locus, tokens) for tokens in locus.token_sets}
    y_range = charts.scatter_range([p for own in points.values() for p in own])
    for tokens, own in points.items():
        if not own:
            continue
        outcome = _asked(locus, tokens)
        slope = locus.row("slope_interference", sae=POOLED, outcome=outcome, tokens=tokens)
        line = _fit(locus, tokens, slope) if slope else []
        told = locus.told("slope_interference", outcome=outcome, tokens=tokens)
        title = _slope_title(slope, told, tokens)
        label = f"change in {words.outcome(outcome)} (nats)"
        drawing = charts.scatter(own, line=line, title=title, y_label=label, y_range=y_range)
        yield Figure(title, drawing, f"{_slope_words(slope)} {_bin_words(locus, tokens, study)}".strip())


def _asked(locus: LocusSection, tokens: str) -> str:
    """The outcome that is asked of the tokens, or log-odds where the locus has no number of it."""
    own = where(locus.pair_effects, token_set=tokens)[outcome_of(tokens)]
    return outcome_of(tokens) if own.null_count < len(own) else PRIMARY


def _bin_words(locus: LocusSection, tokens: str, study: Study) -> str:
    """Means of the pairs by bin of interference, with intervals: what a straight line would hide."""
    said = []
    for r in locus.effects:
        parts = {"sae": POOLED, "outcome": _asked(locus, tokens), "tokens": tokens, "relation": "pair"}
        index = r["parts"].get("bin", "")
        if (
            r["contrast"] == "mean_effect"
            and index
            and parts.items() <= r["parts"].items()
            and r["lo"] is not None
        ):
            said.append(
                f"{bin_label(study, int(index))}: {number(r['estimate'], sign=True)} ({interval(r['lo'], r['hi'])})"
            )
    return f"Means by interference: {'; '.join(said)}." if said else ""


def scatter_legend(locus: LocusSection) -> list[tuple[str, str]]:
    """(relation, words) of the marks in the scatters."""
    known = locus.pair_effects.filter(pc.is_valid(locus.pair_effects["interference"]))
    names = words.in_order(RELATIONS, pc.unique(known["relation"]).to_pylist())
    return [(name, words.relation(name).label) for name in names if name != "self"]


def by_relation(locus: LocusSection, study: Study) -> Figure | None:
    """Mean effect per interference bin beside the controls, and the target's own."""
    means = [r["parts"] for r in locus.effects if r["contrast"] == "mean_effect"]
    bins = sorted({parts["bin"] for parts in means if "bin" in parts}, key=int)
    wanted = [(f"pairs at {bin_label(study, int(b))}", "pair", {"relation": "pair", "bin": b}) for b in bins]
    names = words.in_order(RELATIONS, (parts["relation"] for parts in means))
    for role in ("reference", "self"):
        mine = [name for name in names if words.relation(name).role == role]
        wanted += [(words.relation(name).label, name, {"relation": name}) for name in mine]
    title = "Mean effect by interference, beside the controls"
    caption = f"{_FILLED} Bars: intervals clustered by target and source."
    return _dots(
        locus, "mean_effect", ((label, kind, {"sae": POOLED, **p}) for label, kind, p in wanted),
        title=title, x_label=_LOGODDS, caption=caption,
    )  # fmt: skip


def by_sae(locus: LocusSection) -> Figure | None:
    """The slope in every SAE, where there are several."""
    labels = sorted({r["parts"]["sae"] for r in locus.effects} - {POOLED})
    wanted = [(visible(sae, limit=60).removeprefix("blocks."), "pair", {"sae": sae}) for sae in labels]
    if not wanted:
        return None
    return _dots(
        locus, "slope_interference", [*wanted, ("all SAEs", "pair", {"sae": POOLED})],
        title="Slope of the effect on interference, SAE by SAE", x_label="nats per unit of cosine",
        caption=" ".join([_FILLED, *(_alike(r) for r in locus.heterogeneity if r["contrast"] == "slope_interference")]),
    )  # fmt: skip


def _alike(row: Mapping[str, Any]) -> str:
    """What the SAEs' spread says."""
    name = f"{words.tokens(row['token_set'])}: "
    if row["i2"] is None:
        return f"{name}no heterogeneity ({row['note']})."
    known = "" if row["i2_lo"] is None else f" ({100 * row['i2_lo']:.0f} to {100 * row['i2_hi']:.0f} %)"
    return (
        f"{name}I² {100 * row['i2']:.0f} %{known} of the SAEs' spread is no sampling error, {p_value(row['p'], name='p')}; another "
        f"SAE of this kind: {number(row['mean'], sign=True)} ({interval(row['lo'], row['hi'])})."
    )


def _dots(
    locus: LocusSection,
    contrast: str,
    wanted: Iterable[tuple[str, str, Mapping[str, str]]],
    *,
    title: str,
    x_label: str,
    caption: str,
) -> Figure | None:
    """Rows of a contrast as intervals, (label, kind, parts) of each; one bar per token set, of what is asked of it."""
    shown = []
    for label, kind, parts in wanted:
        bars = []
        for tokens in locus.token_sets:
            row = locus.row(contrast, outcome=_asked(locus, tokens), tokens=tokens, **parts)
            if row:
                style = kind if tokens == next(iter(TOKEN_SETS)) else f"{kind} hollow"
                told = f"{row['n_pairs']} pairs, {words.tokens(tokens)}"
                bars.append(Bar(style, row["estimate"], row["lo"], row["hi"], told))
        if bars:
            shown.append((label, bars))
    return Figure(title, charts.dot_plot(shown, title=title, x_label=x_label), caption) if shown else None


def doses(locus: LocusSection, study: Study) -> Iterator[Figure]:
    """Change over signed dose, and what it costs in KL."""
    pooled = where(locus.curves, sae=POOLED)
    limit = study.effects.max_kl
    for tokens in locus.token_sets:
        mine = where(pooled, token_set=tokens).to_pylist()
        kinds = _curve_kinds(locus, mine, study)
        curves = [
            Curve(label, kind, [(r["dose"], r["logodds"], r["lo"], r["hi"]) for r in mine if _key(r) == key])
            for key, label, kind in kinds
        ]
        if not curves:
            continue
        direct = TOKEN_SETS[tokens].outcome != PRIMARY
        whole = " All of the change, what the direct path does by linear algebra included." if direct else ""
        title = f"Dose-response: {words.tokens(tokens)}"
        drawing = charts.dose_chart(
            curves, title=title, x_label=f"dose ({locus.axis})", headline=locus.dose, y_label=_LOGODDS
        )
        caption = (
            "Mean over confirm prompts; bands are intervals over targets. Vertical lines: the headline dose."
            + whole
        )
        yield Figure(title, drawing, caption)
        # Odd effect against what it costs in KL: nearer to the left is a gentler way to the same effect.
        curves = [Curve(label, kind, _costs(mine, key)) for key, label, kind in kinds]
        curves = [curve for curve in curves if curve.points]
        if curves:
            title = f"Effect against cost: {words.tokens(tokens)}"
            caption = (
                f"Odd part of the mean effect at every dose. Right of the line: over the KL limit.{whole}"
            )
            yield Figure(title, charts.frontier_chart(curves, title=title, limit=limit), caption)
    curves = _kl_curves(locus)
    if curves:
        title = "What a dose does to the model as a whole"
        drawing = charts.kl_chart(
            curves, title=title, x_label=f"|dose| ({locus.axis})", limit=limit, headline=locus.dose
        )
        caption = (
            "KL divergence of the next-token distribution, both signs averaged, confirm prompts. "
            "The headline dose is chosen on the select prompts."
        )
        yield Figure(title, drawing, caption)


def _costs(
    rows: Sequence[Mapping[str, Any]], key: tuple[str, int]
) -> list[tuple[float, float, float | None, float | None]]:
    """(mean KL, odd effect) of a curve at every dose that was run with both signs."""
    at = {r["dose"]: r for r in rows if _key(r) == key}
    both = [(at[d], at[-d]) for d in sorted(at) if d > 0 and -d in at]
    return [
        ((up["kl"] + down["kl"]) / 2, (up["logodds"] - down["logodds"]) / 2, None, None) for up, down in both
    ]


def bin_label(study: Study, index: int) -> str:
    """`0.2 to 0.3` for a bin of the study."""
    edges = study.pairs.bins
    return f"{edges[index]:g} to {edges[index + 1]:g}" if 0 <= index < len(edges) - 1 else f"bin {index}"


def _points(locus: LocusSection, tokens: str) -> list[Point]:
    own, outcome = where(locus.pair_effects, token_set=tokens), _asked(locus, tokens)
    source = LOCI[locus.name].source if locus.name in LOCI else "feature"
    points = []
    for r in own.to_pylist():
        if r["relation"] == "self" or r["interference"] is None or r[outcome] is None:
            continue
        steered = f"a {source}" if source != "feature" else f"feature {r['source']}"
        steered = "a direction" if r["source"] < 0 else steered
        se = r["logodds_se"] if outcome == PRIMARY else None
        spread = "" if se is None else f" ± {number(se, digits=2)}"
        effect = f"{number(r[outcome], sign=True)}{spread} nats"
        text = (
            f"{visible(r['sae'])}: {words.relation(r['relation']).label}, {steered} steered, target {r['target']}; "
            f"interference {number(r['interference'])}, effect {effect}"
        )
        ends = sorted((r["source"], r["target"]))
        of = f"{r['sae']}/{ends[0]}/{ends[1]}" if r["relation"] == "pair" and source == "feature" else None
        points.append(Point(r["interference"], r[outcome], se, r["relation"], text, of))
    return points


def _fit(
    locus: LocusSection, tokens: str, slope: Mapping[str, Any]
) -> list[tuple[float, float, float, float]]:
    """The slope of record through the mean of the pairs, and how far it may be turned: the ends of its interval. As far
    as 95 % of the pairs reach."""
    table, outcome = where(locus.pair_effects, relation="pair", token_set=tokens), _asked(locus, tokens)
    table = table.select(["interference", outcome]).drop_null()
    if slope["estimate"] is None or slope["lo"] is None or not table.num_rows:
        return []
    x, y = (table[n].to_numpy() for n in ("interference", outcome))
    line = []
    far = reach(x)
    for x0 in np.linspace(max(x.min(), -far), min(x.max(), far), _LINE_POINTS):
        there = sorted(float(y.mean() + slope[k] * (x0 - x.mean())) for k in ("lo", "hi"))
        line.append((float(x0), float(y.mean() + slope["estimate"] * (x0 - x.mean())), *there))
    return line


def _slope_title(row: Mapping[str, Any] | None, told: Mapping[str, Any] | None, tokens: str) -> str:
    """What the chart shows, in the words that the claim allows."""
    read = words.tokens(tokens)
    match told and told["claim"]:
        case "predicts":
            return f"Closer directions move the {read} {'more' if row and row['estimate'] > 0 else 'less'}"
        case "associated":
            return f"Associated with how the {read} move, short of “predicts”"
        case "no_effect" | "too_small":
            return f"Interference makes no difference to the {read}"
        case "not_resolved":
            return f"No resolved trend in the {read}"
        case _:
            return f"Effect against interference, {read}"


def _slope_words(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["estimate"] is None or row["lo"] is None:
        return f"No line: {row['note']}."
    return (
        f"Slope inside targets, other regressors held fixed: {number(row['estimate'], sign=True)} nats per unit of cosine, "
        f"{100 * row['level']:g} % interval {interval(row['lo'], row['hi'])}; "
        f"{row['n_pairs']} pairs, {row['n_targets']} targets, {row['n_sources']} sources, "
        f"{row['n_prompts']} prompts, {row['n_missing']} trials missing."
    )


def _key(row: Mapping[str, Any]) -> tuple[str, int]:
    return row["relation"], row["interference_bin"]


def _curve_kinds(
    locus: LocusSection, rows: Sequence[Mapping[str, Any]], study: Study
) -> list[tuple[tuple[str, int], str, str]]:
    """(key, label, kind) of the lines over dose: pairs by bin, the target itself, and what any direction does."""
    bins = sorted({r["interference_bin"] for r in rows if r["relation"] == "pair"})
    kinds = [(("pair", b), f"pairs {bin_label(study, b)}", f"b{min(b, 5)}") for b in bins]
    kinds += [((name, -1), words.relation(name).label, name) for name in _beside(locus)]
    there = {_key(r) for r in rows}
    return [kind for kind in kinds if kind[0] in there]


def _beside(locus: LocusSection) -> list[str]:
    """The relations that lines of pairs are drawn beside."""
    return [
        n
        for n in locus.there("self", "reference")
        if n == "self" or n in words.floors() or n not in RELATIONS
    ]


def _kl_curves(locus: LocusSection) -> list[Curve]:
    curves = []
    for relation in ("pair", *_beside(locus)):
        own = where(locus.kl, relation=relation).group_by("dose", use_threads=False)
        points = own.aggregate([("kl", "mean")]).sort_by("dose").to_pylist()
        if points:
            label = words.relation(relation).label
            curves.append(Curve(label, relation, [(r["dose"], r["kl_mean"], None, None) for r in points]))
    return curves
