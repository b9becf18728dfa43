"""From a run folder to one HTML file: every section as plain values, figures and sentences, printed by a template that
forbids the page to load or send anything."""

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from polysem.report import cards, charts, html, joint, panels, selftest, side_effects, sure, text, why, words
from polysem.report.budgets import budgets_section
from polysem.report.compare import flat
from polysem.report.concepts import concepts_section
from polysem.report.dictionaries import dictionaries
from polysem.report.findings import finding
from polysem.report.hubs import hubs_section
from polysem.report.kinship import NOT_ASKED, kinship_line, kinship_section
from polysem.report.neurons import neurons_section
from polysem.report.pairs import details, pair_rows
from polysem.report.presets import presets_section
from polysem.report.source import Run, Tables, where
from polysem.report.text import Real, count, interval, number, p_value, plural, visible
from polysem.report.toward import toward_section
from polysem.selftest import record
from polysem.stats import HYPOTHESES, POOLED
from polysem.store import io
from polysem.store.tables import HOMES
from polysem.vocabulary import DOSE_UNITS, POSITIONS

NAME = "report.html"
_COUNTS = ("n_pairs", "n_targets", "n_sources", "n_prompts", "n_trials", "n_missing")
_GLOSSARY = (
    "pairs",
    "spectrum",
    "pair_effects",
    "effects",
    "missing",
    "validity",
    "power",
    "findings",
    "graded",
)
"""tables whose columns the report shows"""
_BESIDE = {
    "side-effects": ("Side effects", partial(side_effects.page, cards=side_effects.REPORTED)),
    "joint": ("Several at once", joint.page),
}
"""stages beside a study that the report shows: what the section is called, and what makes it"""


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder; gives its path.

    Works on unfinished runs too: a section whose stage is absent says so and names the command. Equal tables
    and manifests give equal
    bytes: the page holds no time, host or path.

    Raises:
        StoreError: if the folder is no run, a table or manifest is damaged, or the file cannot be written.
        ConfigError: if the run's study file is not one.
    """
    path = run_dir / NAME
    io.write_text(path, render(Run.open(run_dir)))
    return path


def render(run: Run) -> str:
    """The page as text."""
    style, script = html.asset("report.css"), html.asset("report.js")
    page = _environment().get_template("report.html.j2")
    return page.render(style=style, script=script, policy=html.policy(style, script), **context(run))


def results(tables: Tables) -> str:
    """What was found at every locus, for a page of its own: a section per locus."""
    template = _environment().get_template("results.html.j2")
    found, level = panels.loci(tables), f"{100 * tables.study.effects.level:g}"
    shown = [_locus(tables, locus) for locus in found]
    return template.render(loci=shown, level=level, missing=_missing(tables.table("missing")))


def presets(tables: Tables) -> str:
    """The paper's way beside the strict one, for a page of its own; nothing where the study holds one of them only."""
    found = presets_section(tables)
    return _environment().get_template("presets.html.j2").render(presets=found) if found else ""


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("polysem.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (text.visible, text.number, text.fixed, text.count, text.p_value)
    environment.filters |= {filter_.__name__: filter_ for filter_ in filters}
    environment.filters["measured"] = record.number
    environment.globals |= {"embed_json": text.embed_json, "head": html.head, "legend": charts.legend}
    return environment


def context(run: Run) -> dict[str, Any]:
    """Everything that the template reads."""
    study, level = run.study, run.study.effects.level
    density, spectrum = run.table("density"), run.table("spectrum")
    pairs = run.table("pairs", columns=("sae", "interference"))
    found = panels.loci(run)
    first = found[0] if found else None
    rows, n_listed = pair_rows(run, panels.measured(first) if first else {})
    shown = [(row.sae, row.i, row.j) for row in rows]
    drawn, n_drawn = cards.curves(found, shown, level=level, response=run.table("response"))
    return {
        "name": visible(study.name),
        "model": visible(study.model.ref),
        "absent": [(s, words.STAGES[s], f"polysem {s} RUN/study.toml --out RUN") for s in run.absent()],
        "tiles": _tiles(run, density, n_listed),
        "asked": _asked(run),
        "maps": list(panels.maps(density, spectrum, pairs, study.pairs)),
        "spectra": _spectra(spectrum),
        "pairs": rows,
        "n_listed": n_listed,
        "kinship": kinship_section(run),
        "kinship_said": kinship_line(run) or ("" if study.relations else NOT_ASKED),
        "details": details(run, rows),
        "drawn": [*drawn, *cards.activations(run, {(r.sae, f) for r in rows for f in (r.i, r.j)})],
        "n_drawn": n_drawn,
        "n_measured": sum(bool(row.effects) for row in rows),
        "toward": toward_section(run, first, rows),
        "hubs": hubs_section(run),
        "budgets": budgets_section(run),
        "saes": sorted({row.sae for row in rows}),
        "loci": [_locus(run, locus) for locus in found],
        "made_of": [
            *why.decomposition_panels(run.table("decomposition")),
            *why.compensation_panels(run.table("compensation")),
        ],
        "angles": sure.qap_rows(run.table("checks")),
        "one_dictionary": sure.one_dictionary(_sites(run)),
        "dictionaries": dictionaries(run, _sites(run)),
        "replication": list(sure.replication_sentences(run.table("replication"))),
        "missing": _missing(run.table("missing")),
        "margin": study.effects.margin,
        "level": f"{100 * level:g}",
        "alpha": f"{1 - level:g}",
        "dose_unit": _dose_words(run),
        "study_text": "\n".join(visible(line, limit=2000) for line in run.study_text.splitlines()),
        "provenance": _provenance(run),
        "selftest": selftest.section(),
        "presets": presets_section(run),
        "concepts": concepts_section(run),
        "neurons": neurons_section(run),
        "study": study,
        "beside": [
            (stage, name, make(html.rows_of(run.folder, stage)).section(stage))
            for stage, (name, make) in _BESIDE.items()
            if run.finished(stage)
        ],
        "transfer": html.chapter_of("transfer", html.rows_of(run.folder, "transfer")).body
        if run.finished("transfer")
        else "",
        "glossary": _glossary(),
    }


def _dose_words(run: Run) -> str:
    unit = DOSE_UNITS[run.study.plan.dose_unit]
    return unit.axis or unit.label


def _tiles(run: Run, density: pa.Table, n_listed: int) -> list[tuple[str, str]]:
    """The size of the study in a row of numbers."""
    missing = run.table("missing")
    tiles = [(count(len(run.study.saes)), "SAE" if len(run.study.saes) == 1 else "SAEs")]
    if density.num_rows:
        tiles.append((count(pc.sum(density["count"]).as_py()), "pairs examined"))
        tiles.append((count(n_listed), "interfering, unrelated pairs"))
    if missing.num_rows:
        planned = pc.sum(missing["n_trials"]).as_py()
        ok = pc.sum(where(missing, status="ok")["n_trials"]).as_py() or 0
        tiles.append((count(planned), "steering trials planned"))
        tiles.append((f"{100 * ok / planned:.1f} %", "of them with an outcome"))
    return tiles


def _asked(run: Run) -> list[tuple[str, str]]:
    """The settings in words; what others wrote made visible."""
    s = run.study
    doses = ", ".join(f"±{d:g}" for d in s.plan.doses)
    revision = f" at revision {s.model.revision}" if s.model.revision else ""
    read = f"{count(s.corpus.n_tokens)} tokens of {visible(s.corpus.ref)}, in contexts of {s.corpus.context}"
    low, high = s.pairs.min_interference, s.pairs.max_similarity
    return [
        ("Model", visible(f"{s.model.ref}{revision}, {s.model.dtype}")),
        ("SAEs", "; ".join(visible(f"{sae.label}: {sae.ref}" if sae.label else sae.ref) for sae in s.saes)),
        ("Features from", read if s.features.source == "harvest" else visible(s.features.source)),
        ("Glosses from", visible(f"{s.glosses.source}; compared by the embedder {s.glosses.embedder}")),
        ("A pair is listed if", f"|interference| ≥ {low:g} and gloss similarity < {high:g}"),
        ("Interference bins", ", ".join(panels.bin_label(s, k) for k in range(len(s.pairs.bins) - 1))),
        (
            "Steered",
            f"{plural(s.plan.n_targets, 'target')} per SAE, up to {plural(s.plan.sources_per_bin, 'source')} "
            f"per target and bin, {plural(s.plan.n_random, 'draw')} of each random control",
        ),
        ("Doses", f"{doses} ({_dose_words(run)}), added at {POSITIONS[s.plan.positions].label}"),
        (
            "Prompts",
            f"{s.prompts.n} from {visible(s.prompts.source)}; {100 * s.prompts.confirm_fraction:g} % of them "
            "for the results, the rest only for choosing the dose",
        ),
        ("Seed", str(s.seed)),
    ]


def _spectra(spectrum: pa.Table) -> list[dict[str, Any]]:
    result = []
    for sae in sorted(set(spectrum["sae"].to_pylist())):
        rows = where(spectrum, sae=sae).sort_by("threshold").to_pylist()
        facts = rows[0]
        said = (
            f"{facts['d_in']} dimensions, {number(facts['d_eff'])} effective; "
            f"the mean decoder row has norm {number(facts['mean_norm'])}"
        )
        shown = [
            {
                "threshold": ("< −" if r["threshold"] < 0 else "> ") + f"{abs(r['threshold']):g}",
                "counts": [count(r["n_pairs"]), count(r["n_isotropic"]), _simulated(r)],
                "excess": _ratio(r["n_pairs"], r["n_covariance"]),
            }
            for r in rows
        ]
        result.append({"sae": visible(sae), "facts": said, "rows": shown})
    return result


def _simulated(row: Mapping[str, Any]) -> str:
    """A number of pairs with its Monte-Carlo error, where that shows."""
    value, error = count(row["n_covariance"]), row["n_covariance_se"]
    return value if error < 0.5 else f"{value} ± {count(error)}"


def _ratio(seen: Real, expected: Real) -> str:
    """How many times chance; not a number where chance gives less than a pair in a million studies."""
    if expected < 1e-6:
        return "> 10⁶ ×" if seen else "–"
    return f"{number(seen / expected, digits=2)} ×"


def _locus(run: Tables, locus: panels.LocusSection) -> dict[str, Any]:
    study, level = run.study, run.study.effects.level
    asked = [
        (row, told)
        for contrast, parts in HYPOTHESES
        if (row := locus.row(contrast, sae=POOLED, **parts)) and (told := locus.told(contrast, **parts))
    ]
    findings = [finding(row, told, told["lines"], margin=study.effects.margin) for row, told in asked]
    notes = sorted({part for r in locus.effects for part in str(r["note"] or "").split("; ")})
    # One scale for all strips: the reader compares their lengths.
    reach = max([abs(v) for f in findings for v in (f.lo, f.hi, f.margin) if v is not None], default=1.0)
    strips = [charts.strip(f.estimate, f.lo, f.hi, margin=f.margin, reach=reach) for f in findings]
    validity = run.table("validity")
    return {
        "key": locus.name,
        "name": words.locus(locus.name),
        "dose": f"{locus.dose:g}",
        "dose_unit": locus.axis,
        "caveats": [n for n in notes if "dose" in n and "smallest" in n],
        "declared": any(told["declared"] for _, told in asked),
        "findings": list(zip(findings, strips, strict=True)),
        "scatters": list(panels.scatters(locus, study)),
        "legend": panels.scatter_legend(locus),
        "bars": [p for p in (panels.by_relation(locus, study),) if p],
        "by_sae": panels.by_sae(locus),
        "doses": list(panels.doses(locus, study)),
        "explained": list(why.explained_panels(run.table("explained"), locus.name)),
        "validity": why.validity_rows(validity, locus.name),
        "stops": why.stops(validity, locus.name),
        "specification": list(sure.specification_panels(run.table("specification"), locus.name, level=level)),
        "power": sure.power_rows(run.table("power"), locus),
        "checks": sure.check_rows(run.table("checks"), locus.name),
        "single": list(sure.pair_sentences(run.table("pair_tests"), locus.name, level=level)),
        "table": [_effect_row(r, study) for r in locus.effects if r["parts"]["sae"] == POOLED],
    }


def _effect_row(row: Mapping[str, Any], study: Any) -> dict[str, Any]:
    parts = row["parts"]
    about = [words.relation(parts["relation"]).label] if "relation" in parts else []
    if parts.get("bin", "all") != "all":
        about.append(f"interference {panels.bin_label(study, int(parts['bin']))}")
    return {
        "contrast": words.contrast(row["contrast"]).label,
        "about": ", ".join(about),
        "outcome": f"{words.outcome(parts['outcome'])}, T-{parts['tokens']}",
        "estimate": number(row["estimate"], sign=True),
        "interval": interval(row["lo"], row["hi"]) if row["estimate"] is not None else "–",
        "unit": row["unit"],
        "p": p_value(row["p"]),
        "p_adj": p_value(row["p_adj"]),
        "n": " / ".join(count(row[k]) for k in _COUNTS),
        "note": visible(row["note"] or ""),
        "declared": row["p_adj"] is not None,
    }


def _sites(run: Run) -> dict[str, str]:
    """The site of every SAE of the study, by label."""
    table = run.table("features", columns=("sae", "site"))
    return dict(zip(table["sae"].to_pylist(), table["site"].to_pylist(), strict=True))


def _missing(table: pa.Table) -> list[dict[str, Any]]:
    """Rows of MISSING with the share of the relation's planned trials."""
    rows = table.to_pylist()
    planned: dict[tuple[str, str], int] = {}
    for r in rows:
        key = (r["locus"], r["relation"])
        planned[key] = planned.get(key, 0) + r["n_trials"]
    return [
        {
            "what": f"{words.locus(r['locus'])}: {words.relation(r['relation']).label}",
            "status": r["status"],
            "reason": "" if r["status"] == "ok" else visible(words.reason(r["reason"] or r["status"])),
            "n": count(r["n_trials"]),
            "share": f"{100 * r['n_trials'] / planned[r['locus'], r['relation']]:.2f} %",
            "bad": r["status"] != "ok",
        }
        for r in rows
    ]


def _provenance(run: Run) -> dict[str, Any]:
    """Versions, sources and hashes, from the manifests; no time, host or path."""
    packages: dict[str, str] = {}
    sources: dict[str, str] = {}
    stages, facts = [], []
    for stage, manifest in run.manifests.items():
        packages |= manifest.made_from.packages
        sources |= {k: str(v) for k, v in manifest.made_from.sources.items()}
        outputs = [
            (visible(n), o.sha256, "" if o.rows is None else count(o.rows))
            for n, o in manifest.outputs.items()
        ]
        stages.append((stage, manifest.made_from.fingerprint, outputs))
        told = sorted(flat(manifest.facts).items())
        facts += [(f"{stage}: {visible(k)}", visible(str(v), limit=300)) for k, v in told]
    return {
        "packages": sorted(packages.items()),
        "sources": [(visible(k), visible(v)) for k, v in sorted(sources.items())],
        "stages": stages,
        "facts": facts,
        "version": packages.get("polysem", ""),
    }


def _glossary() -> list[tuple[str, list[tuple[str, str, str]]]]:
    """(heading, (term, unit, meaning) of each): every word of the vocabulary, and the columns of the tables shown."""
    found = [
        (
            f"{kind.kind[0].upper()}{kind.kind[1:]}",
            [(w.title, words.unit_of(w), w.help) for w in kind.values()],
        )
        for kind in words.KINDS.values()
    ]
    for name in _GLOSSARY:
        columns = [(c.name, c.unit, c.meaning) for c in HOMES[name][1].columns if c.meaning]
        found.append((f"Table {name}", columns))
    return found
