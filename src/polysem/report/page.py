"""What the template prints: every section as plain values, panels and sentences."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from polysem.config import Study
from polysem.report import cards, charts, panels, selftest
from polysem.report.checks import check_rows, pair_sentences, qap_rows, replication_sentences
from polysem.report.concepts import concepts_section
from polysem.report.decomposition import compensation_panel, decomposition_panels
from polysem.report.findings import STEP, finding
from polysem.report.hubs import hubs_section
from polysem.report.nested import explained_panels, stops, validity_rows
from polysem.report.neurons import neurons_section
from polysem.report.pairs import details, pair_rows
from polysem.report.power import power_rows
from polysem.report.presets import presets_section
from polysem.report.source import Run
from polysem.report.specification import specification_panels
from polysem.report.text import Real, count, interval, number, p_value, plural, visible
from polysem.report.toward import toward_section
from polysem.stats import HYPOTHESES, POOLED
from polysem.store.stages import Stage
from polysem.types import Site

STAGE_TABLES: dict[Stage, str] = {
    "features": "feature table",
    "pairs": "map of pairs",
    "plan": "plan",
    "trials": "steering trials",
    "response": "linear response",
    "effects": "effects",
}
CONTRASTS = {
    "slope_interference": "slope of the effect on interference",
    "slope_interference_sae_fixed_effects": "the same, with a fixed effect of every SAE",
    "slope_similarity": "slope of the effect on gloss similarity",
    "slope_similarity_sae_fixed_effects": "the same, with a fixed effect of every SAE",
    "paper_model_a": "the paper's Model A, interference",
    "paper_model_b": "the paper's Model B, interference",
    "mean_effect": "mean effect",
    "pair_minus_random_feature": "pairs minus random features",
    "pair_minus_random_direction": "pairs minus random directions",
    "sign_agreement": "share of pairs whose effect has the sign of the interference",
}
REASONS = {
    "absent": "not run yet",
    "non_finite_logits": "the edited model gave NaN or infinite logits",
    "non_finite_baseline": "the unedited model gave NaN or infinite logits",
    "zero_activation": "the site's activations are zero",
    "control_unmatched": "no feature matches the target in density and norm",
    "empty_target_set": "the target has no tokens of that kind",
    "full_target_set": "the target's tokens are the whole vocabulary",
    "token_out_of_vocab": "a target token is not in the model's vocabulary",
    "zero_embedding": "a target token has a zero embedding",
    "zero_direction": "the direction is zero",
    "no_covariance": "too few activations for a covariance",
    "prompt_too_long": "the prompt is longer than the model's context",
    "prompt_out_of_vocab": "a token is not in the model's vocabulary",
    "empty_prompt": "the prompt is empty",
    "no_edited_position": "the prompt is too short to be edited where the study asks",
    "non_finite_direction": "the direction is not finite",
    "unstable_gradient": "float32 and float64 disagree on the gradient: it is rounding",
    "no_round_trip": "the snippet is read back as other tokens: nobody could type it",
    "no_activation": "the feature was never seen to be active",
    "kl_not_reached": "no strength of this push gives the KL that the dose asks for",
    "over_kl_budget": "the strength is over the KL budget of the study",
}


def context(run: Run) -> dict[str, Any]:
    """Everything that the template reads."""
    from polysem.report import transfer

    density = run.table("density")
    pairs = run.table("pairs", columns=("sae", "interference"))
    spectrum = run.table("spectrum")
    found = _loci(run)
    first = found[0] if found else None
    measured = panels.measured(first) if first else {}
    rows, n_listed = pair_rows(run, measured)
    units = {locus.name: dose_words(run.study, locus.name) for locus in found}
    drawn, n_drawn = cards.curves(found, rows, study=run.study, units=units)
    return {
        "name": visible(run.study.name),
        "model": visible(run.study.model.ref),
        "absent": [(s, STAGE_TABLES[s], f"polysem {s} RUN/study.toml --out RUN") for s in run.absent()],
        "tiles": _tiles(run, density, n_listed),
        "asked": _asked(run),
        "maps": list(panels.maps(density, spectrum, pairs, run.study)),
        "spectra": _spectra(spectrum),
        "pairs": rows,
        "n_listed": n_listed,
        "details": details(run, rows),
        "drawn": [*drawn, *cards.activations(run, {(r.sae, f) for r in rows for f in (r.i, r.j)})],
        "n_drawn": n_drawn,
        "n_measured": sum(bool(row.effects) for row in rows),
        "toward": toward_section(run, first, rows),
        "hubs": hubs_section(run),
        "saes": sorted({row.sae for row in rows}),
        "loci": [_locus(run, locus) for locus in found],
        "made_of": _made_of(run),
        "angles": qap_rows(run.table("checks")),
        "replication": list(replication_sentences(run.table("replication"))),
        "missing": _missing(run.table("missing")),
        "margin": run.study.effects.margin,
        "level": f"{100 * run.study.effects.level:g}",
        "alpha": f"{1 - run.study.effects.level:g}",
        "step": STEP,
        "dose_unit": dose_words(run.study, "feature"),
        "study_text": visible_lines(run.study_text),
        "provenance": _provenance(run),
        "selftest": selftest.section(),
        "presets": presets_section(run),
        "concepts": concepts_section(run),
        "neurons": neurons_section(run),
        "study": run.study,
        "transfer": transfer.section(run.folder) if transfer.has_transfer(run.folder) else "",
    }


def visible_lines(value: str) -> str:
    """A text of many lines with hostile characters shown, line ends kept."""
    return "\n".join(visible(line, limit=2000) for line in value.splitlines())


def _loci(run: Run) -> list[panels.Locus]:
    effects = run.table("effects")
    if not effects.num_rows:
        return []
    sites = run.table("features", columns=("sae", "site")).group_by(["sae", "site"]).aggregate([]).to_pylist()
    return panels.loci(
        effects,
        run.table("pair_effects"),
        run.table("dose_response"),
        layer_types={r["sae"]: Site.parse(r["site"]).layer_type for r in sites},
    )


def dose_words(study: Study, locus: str) -> str:
    """What a dose counts at a locus."""
    unit = study.plan.dose_unit
    if locus == "prompt":
        return "1: the snippet, −1: its match"
    if locus == "clamp":
        return "× the feature's largest activation"
    if unit == "kl":
        return "nats of KL divergence that the push causes"
    if locus in ("neuron", "mlp_neuron"):
        return "relative change of the coordinate"
    return "length of the added vector" if unit == "absolute" else "× mean norm of the site's activations"


def _tiles(run: Run, density: pa.Table, n_listed: int) -> list[tuple[str, str]]:
    """The size of the study in a row of numbers."""
    missing = run.table("missing")
    tiles = [(count(len(run.study.saes)), "SAE" if len(run.study.saes) == 1 else "SAEs")]
    if density.num_rows:
        tiles.append((count(pc.sum(density["count"]).as_py()), "pairs examined"))
        tiles.append((count(n_listed), "interfering, unrelated pairs"))
    if missing.num_rows:
        planned = pc.sum(missing["n_trials"]).as_py()
        ok = pc.sum(missing.filter(pc.equal(missing["status"], "ok"))["n_trials"]).as_py() or 0
        tiles += [
            (count(planned), "steering trials planned"),
            (f"{100 * ok / planned:.1f} %", "of them with an outcome"),
        ]
    return tiles


def _asked(run: Run) -> list[tuple[str, str]]:
    """The settings in words."""
    s = run.study
    where = {
        "last": "the last position",
        "all": "all positions",
        "all_but_first": "all positions but the first",
    }
    doses = ", ".join(f"±{d:g}" for d in s.plan.doses)
    return [
        (
            "Model",
            f"{s.model.ref}{f' at revision {s.model.revision}' if s.model.revision else ''}, {s.model.dtype}",
        ),
        ("SAEs", "; ".join(f"{sae.label}: {sae.ref}" if sae.label else sae.ref for sae in s.saes)),
        ("Features from", _features_source(run)),
        ("Glosses from", f"{s.glosses.source}; compared by the embedder {s.glosses.embedder}"),
        (
            "A pair is listed if",
            f"|interference| ≥ {s.pairs.min_interference:g} "
            f"and gloss similarity < {s.pairs.max_similarity:g}",
        ),
        ("Interference bins", ", ".join(panels.bin_label(s, k) for k in range(len(s.pairs.bins) - 1))),
        (
            "Steered",
            f"{plural(s.plan.n_targets, 'target')} per SAE, up to {plural(s.plan.sources_per_bin, 'source')} "
            f"per target and bin, {plural(s.plan.n_random, 'draw')} of each random control",
        ),
        ("Doses", f"{doses} ({dose_words(s, 'feature')}), added at {where[s.plan.positions]}"),
        (
            "Prompts",
            f"{s.prompts.n} from {s.prompts.source}; {100 * s.prompts.confirm_fraction:g} % of them "
            "for the results, the rest only for choosing the dose",
        ),
        ("Seed", str(s.seed)),
    ]


def _features_source(run: Run) -> str:
    s = run.study
    if s.features.source == "harvest":
        return f"{count(s.corpus.n_tokens)} tokens of {s.corpus.ref}, in contexts of {s.corpus.context}"
    return s.features.source


def _spectra(spectrum: pa.Table) -> list[dict[str, Any]]:
    result = []
    for sae in sorted(set(spectrum["sae"].to_pylist())):
        rows = spectrum.filter(pc.equal(spectrum["sae"], sae)).sort_by("threshold").to_pylist()
        facts = rows[0]
        words = (
            f"{facts['d_in']} dimensions, {number(facts['d_eff'])} effective; "
            f"the mean decoder row has norm {number(facts['mean_norm'])}"
        )
        shown = [
            {
                "threshold": ("< −" if r["threshold"] < 0 else "> ") + f"{abs(r['threshold']):g}",
                "counts": [count(r["n_pairs"]), count(r["n_isotropic"]), count(r["n_covariance"])],
                "excess": _ratio(r["n_pairs"], r["n_covariance"]),
            }
            for r in rows
        ]
        result.append({"sae": visible(sae), "facts": words, "rows": shown})
    return result


def _ratio(seen: Real, expected: Real) -> str:
    """How many times chance; not a number where chance gives less than a pair in a million studies."""
    if expected < 1e-6:
        return "> 10⁶ ×" if seen else "–"
    return f"{number(seen / expected, digits=2)} ×"


def _locus(run: Run, locus: panels.Locus) -> dict[str, Any]:
    study = run.study
    dose_unit = dose_words(study, locus.name)
    sentences = []
    for contrast, parts in HYPOTHESES:
        row = locus.row(contrast, sae=POOLED, **parts)
        if row is not None:
            sentences.append(finding(row, parts, margin=study.effects.margin))
    notes = sorted(
        {part for r in locus.effects for part in str(r["note"] or "").split("; ") if "dose" in part}
    )
    # One scale for all strips: the reader compares their lengths.
    reach = max([abs(v) for f in sentences for v in (f.lo, f.hi, f.margin) if v is not None], default=1.0)
    return {
        "name": panels.LOCI[locus.name],
        "dose": f"{locus.dose:g}",
        "dose_unit": dose_unit,
        "caveats": [n for n in notes if "smallest" in n],
        "findings": [
            (f, charts.strip(f.estimate, f.lo, f.hi, margin=f.margin, reach=reach)) for f in sentences
        ],
        "scatters": list(panels.scatters(locus, study)),
        "bars": [p for p in (panels.by_relation(locus, study), panels.by_sae(locus)) if p],
        "doses": list(panels.doses(locus, study, dose_unit)),
        "explained": list(explained_panels(run.table("explained"), locus.name)),
        "validity": validity_rows(run.table("validity"), locus.name),
        "stops": stops(run.table("validity"), locus.name),
        "specification": list(
            specification_panels(run.table("specification"), locus.name, level=study.effects.level)
        ),
        "power": power_rows(run.table("power"), locus.name),
        "checks": check_rows(run.table("checks"), locus.name),
        "single": list(pair_sentences(run.table("pair_tests"), locus.name, level=study.effects.level)),
        "table": [_effect_row(r, study) for r in locus.effects if r["parts"]["sae"] == POOLED],
    }


def _made_of(run: Run) -> list[panels.Panel]:
    """Decomposition by SAE, then compensation by token set."""
    table = run.table("compensation")
    found = [compensation_panel(table, tokens=tokens) for tokens in panels.TOKENS]
    return [*decomposition_panels(run.table("decomposition")), *(panel for panel in found if panel)]


def _effect_row(row: Mapping[str, Any], study: Any) -> dict[str, Any]:
    parts = row["parts"]
    about = [panels.RELATIONS.get(parts.get("relation", ""), "")]
    if parts.get("bin", "all") != "all":
        about.append(f"interference {panels.bin_label(study, int(parts['bin']))}")
    outcome = {"logodds": "log-odds", "cosine": "weighted cosine c", "mass": "mass w", "kl": "KL"}[
        parts["outcome"]
    ]
    return {
        "contrast": CONTRASTS.get(row["contrast"], row["contrast"]),
        "about": ", ".join(a for a in about if a),
        "outcome": f"{outcome}, T-{parts['tokens']}",
        "estimate": number(row["estimate"], sign=True),
        "interval": interval(row["lo"], row["hi"]) if row["estimate"] is not None else "–",
        "unit": row["unit"],
        "p": p_value(row["p"]),
        "p_adj": p_value(row["p_adj"]),
        "n": " / ".join(
            count(row[k]) for k in ("n_pairs", "n_targets", "n_sources", "n_prompts", "n_trials", "n_missing")
        ),
        "note": visible(row["note"] or ""),
        "declared": row["p_adj"] is not None,
    }


def _missing(table: pa.Table) -> list[dict[str, Any]]:
    """Rows of MISSING with the share of the relation's planned trials."""
    rows = table.to_pylist()
    planned: dict[tuple[str, str], int] = {}
    for r in rows:
        key = (r["locus"], r["relation"])
        planned[key] = planned.get(key, 0) + r["n_trials"]
    return [
        {
            "what": f"{panels.LOCI.get(r['locus'], r['locus'])}: {panels.RELATIONS.get(r['relation'], r['relation'])}",
            "status": r["status"],
            "reason": ""
            if r["status"] == "ok"
            else REASONS.get(r["reason"] or r["status"], visible(r["reason"])),
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
        packages |= manifest.recipe.packages
        sources |= {k: str(v) for k, v in manifest.recipe.sources.items()}
        outputs = [
            (visible(n), o.sha256, "" if o.rows is None else count(o.rows))
            for n, o in manifest.outputs.items()
        ]
        stages.append((stage, manifest.recipe.fingerprint, outputs))
        facts += [(f"{stage}: {visible(k)}", visible(v, limit=300)) for k, v in _flat(manifest.facts)]
    return {
        "packages": sorted(packages.items()),
        "sources": [(visible(k), visible(v)) for k, v in sorted(sources.items())],
        "stages": stages,
        "facts": facts,
        "version": packages.get("polysem", ""),
    }


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    result = []
    for key in sorted(value):
        name = f"{prefix}{key}"
        if isinstance(value[key], Mapping):
            result += _flat(value[key], f"{name}.")
        else:
            result.append((name, str(value[key])))
    return result
