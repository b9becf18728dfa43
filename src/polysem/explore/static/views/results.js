// Effects over all pairs: against controls, over dose, by preset; transfer; what is missing.
import { el, link, note } from "../dom.js";
import { doseChart, dotPlot, doseWords, mark } from "../charts.js";
import { cellText, head } from "../grid.js";
import { address, first, here } from "../state.js";
import { count, interval, number, probability } from "../text.js";
import { svg } from "../dom.js";

const RELATIONS = { pair: "interfering features", random_feature: "random features", random_direction: "random directions", self: "the target itself", isotropic: "isotropic directions", cosine_matched: "directions of the same cosine", high_attribution: "features of high attribution", swapped_target: "another target read", rotated: "rotated neurons" };
const KINDS = { pair: "k-pair", self: "k-self", random_feature: "k-random_feature", random_direction: "k-random_direction" };
const TOKENS = { in: "tokens that activate the target", out: "tokens the target writes" };
const CONTRASTS = {
  slope_interference: "slope on interference", slope_similarity: "slope on gloss similarity", pair_minus_random_feature: "pairs minus random features",
  pair_minus_random_direction: "pairs minus random directions", sign_agreement: "share with the predicted sign", mean_effect: "mean effect",
  paper_model_a: "the paper's model A", paper_model_b: "the paper's model B",
};

// "locus=feature; sae=*" -> {locus: "feature", sae: "*"}
export const parts = (group) => Object.fromEntries(group.split("; ").filter(Boolean).map((p) => { const k = p.indexOf("="); return [p.slice(0, k), p.slice(k + 1).replace(/%3B/g, ";").replace(/%25/g, "%")]; }));

async function all(source, relation, f = []) {
  const found = [];
  for (;;) {
    const answer = await source.rows(relation, { f, limit: 1000, offset: found.length });
    found.push(...answer.rows);
    if (!answer.rows.length || found.length >= answer.total || found.length >= 20000) return found;
  }
}

export async function results(ctx) {
  const { study, source } = ctx;
  const has = (name) => Boolean(study.relations[name]);
  if (!has("effects")) return [el("h1", {}, "Results"), ctx.absent("effects"), await transfer(ctx, Object.keys(study.relations).filter((n) => /transfer/.test(n)))];
  const rows = (await all(source, "effects")).map((r) => ({ ...r, parts: parts(r.group) }));
  const loci = [...new Set(rows.map((r) => r.parts.locus).filter(Boolean))];
  const locus = loci.includes(first(here().params, "locus")) ? first(here().params, "locus") : loci[0];
  const mine = rows.filter((r) => r.parts.locus === locus);
  const curves = has("dose_response") ? await all(source, "dose_response", ["sae=*", `locus=${locus}`]) : [];
  const missing = has("missing") ? await all(source, "missing") : [];
  const tabs = el("nav", { cls: "tabs", "aria-label": "Locus" }, loci.map((l) => link(address("results", [], { locus: l }), l, { "aria-current": l === locus ? "page" : null })));
  const gone = ["feature", "gradient", "prompt", "neuron"].filter((l) => !loci.includes(l));
  return [
    el("h1", {}, "Results"),
    el("p", { cls: "lead" }, "Effects pooled over pairs, with intervals clustered by target and source. Zero is no effect; the controls say what any push does."),
    loci.length > 1 ? tabs : null,
    gone.length ? el("p", { cls: "fine" }, `Loci that this study did not run: ${gone.join(", ")}.`) : null,
    declared(mine, study),
    el("div", { cls: "figures" }, study.token_sets.flatMap((t) => [means(mine, t, study), dose(curves, t, study, locus)])),
    await why(ctx, locus),
    await presets(ctx, rows),
    await transfer(ctx, Object.keys(study.relations).filter((n) => /transfer/.test(n))),
    ended(missing),
    el("p", {}, link(address("tables", ["effects"]), "All effects as a table"), " · ", link(address("pushes"), "Single pushes")),
  ];
}

function declared(rows, study) {
  const chosen = rows.filter((r) => r.p_adj !== null || ["slope_interference", "pair_minus_random_feature", "pair_minus_random_direction", "sign_agreement"].includes(r.contrast)).filter((r) => r.parts.sae === "*" && r.parts.outcome === "logodds" && r.parts.bin === undefined);
  if (!chosen.length) return note("No declared contrasts are in this run.");
  return el("section", { cls: "panel wide" }, el("h2", {}, "Contrasts"), el("div", { cls: "scroll", tabindex: "0", role: "region", "aria-label": "Declared contrasts" }, el("table", { cls: "numbers" },
    el("thead", {}, el("tr", {}, ["contrast", "tokens", "estimate", `${100 * study.level} % interval`, "unit", "p, Holm", "pairs", "targets", "missing"].map((h, k) => el("th", { scope: "col", cls: k < 2 ? "words" : "" }, h)))),
    el("tbody", {}, chosen.map((r) => el("tr", {}, el("th", { scope: "row" }, CONTRASTS[r.contrast] || head(r.contrast)), el("td", { cls: "words" }, r.parts.tokens || ""), el("td", {}, number(r.estimate, 3, true)), el("td", {}, interval(r.lo, r.hi)), el("td", {}, r.unit), el("td", {}, r.p_adj === null ? "not declared" : probability(r.p_adj)), el("td", {}, count(r.n_pairs)), el("td", {}, count(r.n_targets)), el("td", {}, count(r.n_missing))))))));
}

function means(rows, tokens, study) {
  const mine = rows.filter((r) => r.contrast === "mean_effect" && r.parts.sae === "*" && r.parts.outcome === "logodds" && r.parts.tokens === tokens);
  if (!mine.length) return null;
  const order = ["pair", "random_feature", "random_direction", "self"];
  const place = (r) => [order.indexOf(r.parts.relation) < 0 ? 9 : order.indexOf(r.parts.relation), Number(r.parts.bin ?? -1)];
  mine.sort((a, b) => { const [p, q] = [place(a), place(b)]; return p[0] - q[0] || p[1] - q[1]; });
  const bins = study.pairs.bins;
  const rows_ = mine.map((r) => ({ label: r.parts.bin !== undefined && r.parts.relation === "pair" ? `pairs at ${bins[r.parts.bin]} to ${bins[Number(r.parts.bin) + 1]}` : RELATIONS[r.parts.relation] || r.parts.relation, estimate: r.estimate, lo: r.lo, hi: r.hi, kind: KINDS[r.parts.relation] || "k-pair", words: `${count(r.n_pairs)} pairs` }));
  return el("figure", { cls: "panel" }, el("h3", {}, `Mean effect on ${TOKENS[tokens] || tokens}`), dotPlot(rows_, { xLabel: "change in log-odds (nats)", label: `mean effects on ${tokens}`, band: study.margin }), el("figcaption", {}, `By interference, beside the controls, at dose ${mine[0].parts.dose ?? "–"}. Grey: within ${study.margin} nats of zero, which counts as no effect.`));
}

function dose(rows, tokens, study, locus) {
  const { unit } = study.loci.find((l) => l.locus === locus) || { unit: study.dose_unit };
  const mine = rows.filter((r) => r.token_set === tokens && r.logodds !== null);
  if (!mine.length) return null;
  const keys = [...new Set(mine.map((r) => `${r.relation} ${r.interference_bin}`))].filter((k) => !k.startsWith("self"));
  const bins = study.pairs.bins;
  const top = Math.max(...mine.filter((r) => r.relation === "pair").map((r) => r.interference_bin));
  const curves = keys.filter((k) => !k.startsWith("pair") || k === `pair ${top}` || k === "pair 0").map((k) => {
    const [relation, bin] = k.split(" ");
    const words = relation === "pair" ? `pairs at ${bins[bin]} to ${bins[Number(bin) + 1]}` : RELATIONS[relation] || relation;
    return { label: words, kind: relation === "pair" ? (Number(bin) === top ? "k-pair" : "k-weak") : KINDS[relation] || "k-pair", points: mine.filter((r) => `${r.relation} ${r.interference_bin}` === k).map((r) => ({ x: r.dose, y: r.logodds, lo: r.lo, hi: r.hi })) };
  });
  return el("figure", { cls: "panel" }, el("h3", {}, `Over dose: ${TOKENS[tokens] || tokens}`), doseChart(curves, { xLabel: doseWords(unit, { signed: true }), unit, yLabel: "change in log-odds (nats)", label: `change over dose, ${tokens}` }),
    el("ul", { cls: "legend" }, curves.map((c, k) => el("li", {}, svg("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" }, svg("g", { cls: `mark ${c.kind}` }, mark(k, 0, 0, ""))), c.label))));
}

const MODELS = { linear: "linear response", cosine: "cosine", cosine_similarity: "cosine and similarity", all: "all" };

// How well effects of unseen pairs are predicted, and where the rest of the explanation lies.
async function why(ctx, locus) {
  const { study, source } = ctx;
  const tables = ["explained", "validity", "specification", "power", "compensation", "decomposition", "metrics", "response"].filter((n) => study.relations[n]);
  const title = el("h2", {}, "What explains the effects");
  if (!study.relations.explained) return el("section", {}, title, ctx.absent("explained"));
  const rows = (await all(source, "explained")).filter((r) => r.locus === locus);
  const figures = study.token_sets.flatMap((t) => ["targets", "sources"].map((unseen) => {
    const mine = rows.filter((r) => r.token_set === t && r.unseen === unseen);
    if (!mine.length) return null;
    return el("figure", { cls: "panel" }, el("h3", {}, `${TOKENS[t] || t}, ${unseen} not seen`), dotPlot(mine.map((r) => ({ label: MODELS[r.model] || r.model.replace(/_/g, " "), estimate: r.r2, lo: r.lo, hi: r.hi, kind: "k-pair", words: `${count(r.n_pairs)} pairs` })), { xLabel: "held-out R² (below 0: worse than the mean)", label: `held-out R², ${unseen} not seen` }));
  }));
  return el("section", {}, title, el("div", { cls: "figures" }, figures), el("p", { cls: "fine" }, "More of it: ", tables.map((n, k) => [k ? ", " : "", link(address("tables", [n]), head(n).toLowerCase())])));
}

async function presets(ctx, rows) {
  const by = rows.filter((r) => r.parts.preset);
  const own = Object.values(ctx.study.relations).filter((r) => /preset/.test(r.name) || r.columns.some((c) => c.name === "preset"));
  const title = el("h2", {}, "Paper against strict");
  if (!by.length && !own.length) return el("section", {}, title, note("This study ran one set of choices. With both presets, their answers stand here side by side."));
  if (!by.length) return el("section", {}, title, own.map((r) => el("p", {}, link(address("tables", [r.name]), head(r.name)))));
  const names = [...new Set(by.map((r) => r.parts.preset))].sort();
  const key = (r) => `${r.contrast} | ${Object.entries(r.parts).filter(([k]) => k !== "preset").map(([k, v]) => `${k}=${v}`).join("; ")}`;
  const pivot = new Map();
  for (const r of by) pivot.set(key(r), { ...(pivot.get(key(r)) || {}), [r.parts.preset]: r });
  return el("section", {}, title, el("div", { cls: "scroll", tabindex: "0", role: "region", "aria-label": "Presets side by side" }, el("table", { cls: "numbers" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "contrast"), names.map((n) => el("th", { scope: "col" }, n)))),
    el("tbody", {}, [...pivot].map(([k, cells]) => el("tr", {}, el("th", { scope: "row" }, k), names.map((n) => el("td", {}, cells[n] ? `${number(cells[n].estimate, 3, true)} (${interval(cells[n].lo, cells[n].hi)})` : "–"))))))));
}

const MEASURES = { logodds: "log-odds of the category's words", specific: "the category against the others", success: "more words in the top k", welch: "the paper's test, trial by trial" };

async function transfer(ctx, names) {
  const title = el("h2", {}, "Transfer to other models");
  if (!names.includes("transfer_effects")) return el("section", {}, title, note("This study holds no transfer tables: no other model was tried. ", el("code", {}, ctx.study.commands?.transfer || "polysem transfer TRANSFER.toml --out RUN")));
  const rows = await all(ctx.source, "transfer_effects");
  const unique = (key) => [...new Set(rows.map((r) => r[key]))];
  const measure = unique("contrast").includes(first(here().params, "measure")) ? first(here().params, "measure") : unique("contrast")[0];
  const mine = rows.filter((r) => r.contrast === measure);
  const tabs = el("nav", { cls: "tabs", "aria-label": "What is measured" }, unique("contrast").map((m) => link(address("results", [], { ...here().params, measure: m }), MEASURES[m] || m, { "aria-current": m === measure ? "true" : null })));
  const figures = unique("target").flatMap((target) => unique("arm").map((arm) => {
    const own = mine.filter((r) => r.target === target && r.arm === arm);
    if (!own.length) return null;
    const noise = Math.max(...own.map((r) => r.noise_floor || 0)) || null;
    const many = new Set(own.map((r) => `${r.template} ${r.position}`)).size > 1;
    const lines = own.map((r) => ({ label: many ? `${r.category} · ${r.template} · ${r.position}` : r.category, estimate: r.estimate, lo: r.lo, hi: r.hi, kind: "k-pair", words: `p ${probability(r.p)}, over all categories ${probability(r.p_adj)}; ${r.note || ""}` }));
    return el("figure", { cls: "panel" }, el("h3", {}, `${target}: ${head(arm).toLowerCase()}`), dotPlot(lines, { xLabel: own[0].unit, label: `${target}, ${arm}`, band: noise }), noise ? el("figcaption", {}, "Grey: what repeated baselines differ by.") : null);
  }));
  return el("section", {}, title, tabs, el("div", { cls: "figures" }, figures), el("p", {}, names.map((n, k) => [k ? " · " : "", link(address("tables", [n]), head(n))])));
}

function ended(rows) {
  if (!rows.length) return null;
  return el("section", {}, el("h2", {}, "How the trials ended"), el("div", { cls: "scroll", tabindex: "0", role: "region", "aria-label": "How the trials ended" }, el("table", { cls: "numbers" },
    el("thead", {}, el("tr", {}, ["locus", "relation", "status", "reason", "trials"].map((h, k) => el("th", { scope: "col", cls: k < 4 ? "words" : "" }, h)))),
    el("tbody", {}, rows.map((r) => el("tr", { cls: r.status === "ok" ? "" : "bad" }, el("td", { cls: "words" }, r.locus), el("td", { cls: "words" }, RELATIONS[r.relation] || r.relation), el("td", { cls: "words" }, r.status), el("td", { cls: "words" }, r.reason), el("td", {}, count(r.n_trials))))))));
}
