"""From result tables to charts: picks the rows, names the axes, leaves the drawing to `charts` and
`heatmap`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from polysem.config import Study
from polysem.report import charts
from polysem.report.charts import Bar, Curve, Point
from polysem.report.findings import verdict
from polysem.report.heatmap import COVERED, Cell, Chance, cell_data, chance_bound, heat_map
from polysem.report.pairs import Effect
from polysem.report.text import count, interval, number, plural, visible
from polysem.stats import POOLED, parse_group
from polysem.stats.rows import links, nodes

TOKENS = {"in": "tokens that activate the target", "out": "tokens the target writes"}
RELATIONS = {
    "pair": "interfering features",
    "split_pair": "one concept twice",
    "random_feature": "random features",
    "random_direction": "random directions",
    "self": "the target itself",
    "isotropic": "isotropic random directions",
    "cosine_matched": "random directions at the pairs' cosines",
    "high_attribution": "features of high direct attribution",
    "swapped_target": "pairs, read on another target",
    "rotated": "rotated neurons",
    "frozen_decoder": "decoder rows that were never trained",
    "shuffled_gloss": "pairs with shuffled glosses",
}
LOCI = {
    "feature": "Feature directions",
    "clamp": "Clamped features",
    "gradient": "Token gradients",
    "prompt": "Prompt injections",
    "neuron": "Coordinates of the site",
    "mlp_neuron": "Neurons of the MLP",
}
_LINE_POINTS = 17
_FILLED = "Filled: tokens that activate the target. Hollow: tokens the target writes."


@dataclass(frozen=True)
class Panel:
    """A figure: a title that says what is seen, the drawing, and what to know when looking at it."""

    title: str
    drawing: Markup
    caption: str
    data: Any = None


@dataclass(frozen=True)
class Locus:
    """Everything that the report says of one locus."""

    name: str
    dose: float
    effects: list[dict[str, Any]]
    """rows of EFFECTS with their group as `parts`"""
    pair_effects: pa.Table
    """at the headline dose"""
    curves: pa.Table
    """DOSE_RESPONSE of the locus"""
    kl: pa.Table
    """PAIR_EFFECTS of the locus at all doses"""
    layer_types: Mapping[str, str]
    """SAE -> layer type of its site"""

    def row(self, contrast: str, **parts: str) -> dict[str, Any] | None:
        """The row of a contrast with exactly these parts besides locus, model and dose."""
        for row in self.effects:
            rest = {k: v for k, v in row["parts"].items() if k not in ("locus", "model", "dose")}
            if row["contrast"] == contrast and rest == parts:
                return row
        return None

    @property
    def token_sets(self) -> list[str]:
        return [t for t in TOKENS if t in set(self.kl["token_set"].to_pylist())]


def loci(
    effects: pa.Table, pair_effects: pa.Table, dose_response: pa.Table, *, layer_types: Mapping[str, str]
) -> list[Locus]:
    """The loci of a run in the order of the effects table."""
    rows = [row | {"parts": parse_group(row["group"])} for row in effects.to_pylist()]
    names = sorted(
        {row["parts"]["locus"] for row in rows},
        key=("feature", "clamp", "gradient", "prompt", "neuron", "mlp_neuron").index,
    )
    result = []
    for name in names:
        mine = [row for row in rows if row["parts"]["locus"] == name]
        dose = float(mine[0]["parts"]["dose"])
        own = pair_effects.filter(pc.equal(pair_effects["locus"], name))
        near = pc.less(pc.abs(pc.subtract(own["dose"], dose)), 1e-5 * dose)
        curves = dose_response.filter(pc.equal(dose_response["locus"], name))
        result.append(Locus(name, dose, mine, own.filter(near), curves, own, layer_types))
    return result


def measured(locus: Locus) -> dict[tuple[str, int, int], list[Effect]]:
    """Effects of pairs at the headline dose, by (sae, i, j) with i < j."""
    found: dict[tuple[str, int, int], list[Effect]] = {}
    pairs = locus.pair_effects.filter(pc.equal(locus.pair_effects["relation"], "pair"))
    for r in pairs.sort_by([("token_set", "ascending"), ("source", "ascending")]).to_pylist():
        key = (r["sae"], min(r["source"], r["target"]), max(r["source"], r["target"]))
        found.setdefault(key, []).append(
            Effect(r["source"], r["target"], r["token_set"], r["logodds"], r["logodds_se"])
        )
    return found


def maps(density: pa.Table, spectrum: pa.Table, pairs: pa.Table, study: Study) -> Iterator[Panel]:
    """One heat map per SAE."""
    for sae in sorted(set(density["sae"].to_pylist())):
        rows = density.filter(pc.equal(density["sae"], sae)).to_pylist()
        cells = [Cell(*(r[k] for k in (*Cell._fields[:-1], "count"))) for r in rows]
        if not any(c.n_pairs for c in cells):
            continue
        listed = pairs.filter(pc.equal(pairs["sae"], sae))["interference"].to_numpy()
        n_listed = int((listed > 0).sum()), int((listed <= 0).sum())
        widths = spectrum.filter(pc.equal(spectrum["sae"], sae)).to_pylist()[:1]
        chance = []
        for row in widths:
            chance.append(Chance("chance", chance_bound(row["d_in"])))
            chance.append(Chance("chance, covariance", chance_bound(max(2.0, row["d_eff"]))))
        total = sum(c.n_pairs for c in cells)
        share = 100 * sum(n_listed) / total
        drawing = heat_map(
            cells,
            label=visible(sae),
            min_interference=study.pairs.min_interference,
            max_similarity=study.pairs.max_similarity,
            n_listed=n_listed,
            chance=chance,
        )
        caption = (
            f"{count(total)} pairs of glossed features. Outlined: "
            f"|interference| ≥ {study.pairs.min_interference:g} and gloss similarity < "
            f"{study.pairs.max_similarity:g}, {number(share, digits=2)} % of all. "
            f"Dashed: {100 * COVERED:g} % of pairs of random directions lie inside; "
            "dotted: of directions as uneven as this SAE's."
        )
        title = f"{visible(sae)}: {plural(n_listed[0], 'pair')} overlap with unrelated glosses"
        yield Panel(title, drawing, caption, cell_data(cells))


def scatters(locus: Locus, study: Study) -> Iterator[Panel]:
    """Effect against interference, one panel per token set, on one scale."""
    points = {tokens: _points(locus, tokens) for tokens in locus.token_sets}
    everything = [p for own in points.values() for p in own]
    for tokens, own in points.items():
        if not own:
            continue
        slope = locus.row("slope_interference", sae=POOLED, outcome="logodds", tokens=tokens)
        line = _fit(locus, tokens) if slope and slope["estimate"] is not None else []
        title = _slope_title(slope, tokens)
        drawing = charts.scatter(
            own,
            line=line,
            title=title,
            y_label="change in log-odds (nats)",
            y_range=charts.scatter_range(everything),
        )
        yield Panel(title, drawing, _slope_words(slope))


def by_relation(locus: Locus, study: Study) -> Panel | None:
    """Mean effect per interference bin beside the controls."""
    shown = []
    bins = sorted(
        {r["parts"]["bin"] for r in locus.effects if r["contrast"] == "mean_effect" and "bin" in r["parts"]},
        key=int,
    )
    wanted = [(f"pairs at {bin_label(study, int(b))}", {"relation": "pair", "bin": b}, "pair") for b in bins]
    wanted += [(RELATIONS[r], {"relation": r}, r) for r in ("random_feature", "random_direction", "self")]
    for label, parts, kind in wanted:
        bars = []
        for tokens in locus.token_sets:
            row = locus.row("mean_effect", sae=POOLED, outcome="logodds", tokens=tokens, **parts)
            if row:
                style = kind if tokens == "in" else f"{kind} hollow"
                bars.append(
                    Bar(
                        style,
                        row["estimate"],
                        row["lo"],
                        row["hi"],
                        f"{row['n_pairs']} pairs, {TOKENS[tokens]}",
                    )
                )
        if bars:
            shown.append((label, bars))
    if not shown:
        return None
    title = "Mean effect by interference, beside the controls"
    caption = f"{_FILLED} Bars: intervals clustered by target and source."
    drawing = charts.dot_plot(shown, title=title, x_label="change in log-odds (nats)")
    return Panel(title, drawing, caption)


def by_sae(locus: Locus) -> Panel | None:
    """The slope in every SAE, where there are several."""
    labels = sorted({r["parts"]["sae"] for r in locus.effects} - {POOLED})
    if not labels:
        return None
    shown = []
    for sae in [*labels, POOLED]:
        bars = []
        for tokens in locus.token_sets:
            row = locus.row("slope_interference", sae=sae, outcome="logodds", tokens=tokens)
            if row:
                style = "pair" if tokens == "in" else "pair hollow"
                bars.append(
                    Bar(
                        style,
                        row["estimate"],
                        row["lo"],
                        row["hi"],
                        f"{row['n_pairs']} pairs, {TOKENS[tokens]}",
                    )
                )
        shown.append(("all SAEs" if sae == POOLED else visible(sae, limit=60).removeprefix("blocks."), bars))
    title = "Slope of the effect on interference, SAE by SAE"
    drawing = charts.dot_plot(shown, title=title, x_label="nats per unit of cosine", left=190)
    return Panel(title, drawing, _FILLED)


def doses(locus: Locus, study: Study, dose_unit: str) -> Iterator[Panel]:
    """Change over signed dose, and what it costs in KL."""
    pooled = locus.curves.filter(pc.equal(locus.curves["sae"], POOLED))
    for tokens in locus.token_sets:
        mine = pooled.filter(pc.equal(pooled["token_set"], tokens)).to_pylist()
        curves = []
        for relation, index, label, kind in _curve_kinds(mine, study):
            own = [r for r in mine if r["relation"] == relation and r["interference_bin"] == index]
            curves.append(Curve(label, kind, [(r["dose"], r["logodds"], r["lo"], r["hi"]) for r in own]))
        if not curves:
            continue
        title = f"Dose-response: {TOKENS[tokens]}"
        drawing = charts.dose_chart(
            curves,
            title=title,
            x_label=f"dose ({dose_unit})",
            headline=locus.dose,
            y_label="change in log-odds (nats)",
        )
        yield Panel(
            title,
            drawing,
            "Mean over confirm prompts; bands are intervals over targets. Vertical lines: the headline dose.",
        )
        yield from _frontier(mine, study, tokens)
    curves = _kl_curves(locus)
    if curves:
        title = "What a dose does to the model as a whole"
        limit = study.effects.max_kl
        drawing = charts.kl_chart(
            curves, title=title, x_label=f"|dose| ({dose_unit})", limit=limit, headline=locus.dose
        )
        yield Panel(
            title,
            drawing,
            "KL divergence of the next-token distribution, both signs averaged, confirm prompts. "
            "The headline dose is chosen on the select prompts.",
        )


def _frontier(rows: Sequence[Mapping[str, Any]], study: Study, tokens: str) -> Iterator[Panel]:
    """Odd effect against what it costs in KL, at every dose: nearer to the left is a gentler way to the same effect."""
    at = {(r["relation"], r["interference_bin"], r["dose"]): r for r in rows}
    curves = []
    for relation, index, label, kind in _curve_kinds(rows, study):
        points = []
        for dose in sorted({d for rel, b, d in at if (rel, b) == (relation, index) and d > 0}):
            up, down = at[relation, index, dose], at.get((relation, index, -dose))
            if down is not None:
                points.append(
                    ((up["kl"] + down["kl"]) / 2, (up["logodds"] - down["logodds"]) / 2, None, None)
                )
        curves += [Curve(label, kind, points)] if points else []
    if curves:
        title = f"Effect against cost: {TOKENS[tokens]}"
        limit = study.effects.max_kl
        drawing = charts.frontier_chart(curves, title=title, limit=limit)
        yield Panel(
            title, drawing, "Odd part of the mean effect at every dose. Right of the line: over the KL limit."
        )


def bin_label(study: Study, index: int) -> str:
    """`0.2 to 0.3` for a bin of the study."""
    edges = study.pairs.bins
    return f"{edges[index]:g} to {edges[index + 1]:g}" if 0 <= index < len(edges) - 1 else f"bin {index}"


def _points(locus: Locus, tokens: str) -> list[Point]:
    own = locus.pair_effects.filter(pc.equal(locus.pair_effects["token_set"], tokens))
    points = []
    for r in own.to_pylist():
        if r["relation"] != "self" and r["interference"] is not None:
            kind = "a neuron" if locus.name in ("neuron", "mlp_neuron") else f"feature {r['source']}"
            who = "a random direction" if r["source"] < 0 else kind
            effect = f"{number(r['logodds'], sign=True)} ± {number(r['logodds_se'], digits=2)} nats"
            text = (
                f"{visible(r['sae'])}: {who} pushed, target {r['target']}; "
                f"interference {number(r['interference'])}, effect {effect}"
            )
            points.append(Point(r["interference"], r["logodds"], r["logodds_se"], r["relation"], text))
    return points


def _fit(locus: Locus, tokens: str) -> list[tuple[float, float, float, float]]:
    """The regression line of pairs at mean similarity, averaged over layer types, with its clustered band.

    The fit at x0 is the constant of the same regression with interference counted from x0; so its interval is
    exact.
    """
    from polysem.stats.regress import clustered_ols

    table = locus.pair_effects.filter(
        pc.and_(
            pc.equal(locus.pair_effects["relation"], "pair"),
            pc.equal(locus.pair_effects["token_set"], tokens),
        )
    )
    table = table.select(
        ["sae", "target", "source", "draw", "interference", "similarity", "logodds"]
    ).drop_null()
    level = float(locus.effects[0]["level"])
    x, s, y = (table[n].to_numpy() for n in ("interference", "similarity", "logodds"))
    names = table["sae"].to_pylist()
    kinds = np.array([locus.layer_types.get(n, "") for n in names])
    columns = [s - s.mean()] if len(s) and np.ptp(s) > 0 else []
    columns += [(kinds == k) - float((kinds == k).mean()) for k in sorted(set(kinds.tolist()))[1:]]
    clusters = nodes(table)
    line = []
    for x0 in np.linspace(x.min(), x.max(), _LINE_POINTS) if len(x) else []:
        design = np.column_stack([np.ones(len(x)), x - x0, *columns])
        fit = clustered_ols(y, design, clusters, level=level, errors=links(clusters))
        if fit.reason or np.isnan(fit.lo[0]):
            return []
        line.append((float(x0), float(fit.estimate[0]), float(fit.lo[0]), float(fit.hi[0])))
    return line


def _slope_title(row: Mapping[str, Any] | None, tokens: str) -> str:
    """What the chart shows, in the words that the interval allows."""
    if row is None or row["estimate"] is None:
        return f"Effect against interference, {TOKENS[tokens]}"
    kind, _ = verdict(row)
    match kind:
        case "found":
            way = "more" if row["estimate"] > 0 else "less"
            return f"Closer directions move the {TOKENS[tokens]} {way}"
        case "null":
            return f"Interference makes no difference to the {TOKENS[tokens]}"
        case _:
            return f"No resolved trend in the {TOKENS[tokens]}"


def _slope_words(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["estimate"] is None or row["lo"] is None:
        return f"No line: {row['note']}."
    return (
        f"Slope {number(row['estimate'], sign=True)} nats per unit of cosine, "
        f"{100 * row['level']:g} % interval {interval(row['lo'], row['hi'])}; "
        f"{row['n_pairs']} pairs, {row['n_targets']} targets, {row['n_sources']} sources, "
        f"{row['n_prompts']} prompts, {row['n_missing']} trials missing."
    )


def _curve_kinds(rows: Sequence[Mapping[str, Any]], study: Study) -> list[tuple[str, int, str, str]]:
    bins = sorted({r["interference_bin"] for r in rows if r["relation"] == "pair"})
    kinds = [("pair", b, f"pairs {bin_label(study, b)}", f"b{min(b, 5)}") for b in bins]
    kinds += [(r, -1, RELATIONS[r], r) for r in ("self", "random_feature", "random_direction")]
    return [k for k in kinds if any(r["relation"] == k[0] and r["interference_bin"] == k[1] for r in rows)]


def _kl_curves(locus: Locus) -> list[Curve]:
    curves = []
    for relation in ("pair", "self", "random_feature", "random_direction"):
        own = locus.kl.filter(pc.equal(locus.kl["relation"], relation))
        by_dose = (
            own.group_by("dose", use_threads=False).aggregate([("kl", "mean")]).sort_by("dose").to_pylist()
        )
        if by_dose:
            curves.append(
                Curve(RELATIONS[relation], relation, [(r["dose"], r["kl_mean"], None, None) for r in by_dose])
            )
    return curves
