// Effects over all pairs: against controls, over dose; what explains them; what is missing. Presets and transfer
// have pages of their own.
import { el, link, note, svg } from "../dom.js";
import { doseChart, dotPlot, mark } from "../charts.js";
import { dataOf, head } from "../grid.js";
import { allRows } from "../source.js";
import { address, first, here } from "../state.js";
import { count, interval, number, probability } from "../text.js";
import { presets } from "./presets.js";
import { transfer } from "./transfer.js";
import { contrast, doseAxis, inOrder, kind as colour, label, locus as called, relation, role, tokens as read, told } from "../words.js";

// Whether a contrast answers a question of its own; the pairs against a control do.
const asks = (name) => Boolean(told("contrasts")[name]?.question) || name.startsWith("pair_minus_");

// "locus=feature; sae=*" -> {locus: "feature", sae: "*"}
export const parts = (group) => Object.fromEntries(group.split("; ").filter(Boolean).map((p) => { const k = p.indexOf("="); return [p.slice(0, k), p.slice(k + 1).replace(/%3B/g, ";").replace(/%25/g, "%")]; }));

export async function results(ctx) {
  const { study, source } = ctx;
  const has = (name) => Boolean(study.relations[name]);
  const kind = here().args[0];
  const top = [el("h1", {}, "Results"), kinds(study, kind)];
  if (kind === "presets") return [...top, await presets(ctx)];
  if (kind === "transfer") return [...top, await transfer(ctx)];
  if (!has("effects")) return [...top, ctx.absent("effects")];
  const rows = (await allRows(source, "effects")).map((r) => ({ ...r, parts: parts(r.group) }));
  const there = new Set(rows.map((r) => r.parts.locus));
  const loci = inOrder("loci", there);
  const locus = loci.includes(first(here().params, "locus")) ? first(here().params, "locus") : loci[0];
  const mine = rows.filter((r) => r.parts.locus === locus);
  const curves = has("dose_response") ? await allRows(source, "dose_response", ["sae=*", `locus=${locus}`]) : [];
  const missing = has("missing") ? await allRows(source, "missing") : [];
  const tabs = el("nav", { cls: "tabs", "aria-label": "Locus" }, loci.map((l) => link(address("results", [], { locus: l }), called(l), { "aria-current": l === locus ? "page" : null })));
  const gone = Object.keys(told("loci")).filter((l) => !loci.includes(l));
  return [
    ...top,
    el("p", { cls: "lead" }, "Effects pooled over pairs, with intervals clustered by target and source. Zero is no effect; the controls say what steering along any direction does."),
    loci.length > 1 ? tabs : null,
    gone.length ? el("p", { cls: "fine" }, `Loci that this study did not run: ${gone.map((l) => label("loci", l)).join(", ")}.`) : null,
    declared(mine, study, has("findings") ? await allRows(source, "findings", [`locus=${locus}`]) : []),
    el("div", { cls: "figures" }, study.token_sets.flatMap((t) => [means(mine, t, study), dose(curves, t, study, locus)])),
    await why(ctx, locus),
    ended(missing),
    el("p", {}, link(address("tables", ["effects"]), "All effects as a table"), " · ", link(address("steering"), "Single pairs")),
    dataOf(ctx, ["effects", "dose_response", "explained", "missing"].map((name) => [head(name).toLowerCase(), name, []])),
  ];
}

function kinds(study, now) {
  const places = [["", "Effects"], ["presets", "Paper against strict"], ["transfer", "Transfer to other models"]];
  return el("nav", { cls: "tabs", "aria-label": "Kind of result" }, places.map(([name, words]) => link(address("results", name ? [name] : []), words, { "aria-current": (now || "") === name ? "page" : null })));
}

function declared(rows, study, findings) {
  const claim = (r) => findings.find((f) => f.contrast === r.contrast && f.group === r.group);
  const grades = Object.keys(told("grades"));
  const chosen = rows.filter((r) => r.p_adj !== null || asks(r.contrast)).filter((r) => r.parts.sae === "*" && r.parts.outcome === "logodds" && (r.parts.bin ?? "all") === "all");
  if (!chosen.length) return note("No declared contrasts are in this run.");
  return el("section", { cls: "panel wide" }, el("h2", {}, "Contrasts"), el("div", { cls: "scroll", tabindex: "0", role: "region", "aria-label": "Declared contrasts" }, el("table", { cls: "numbers" },
    el("thead", {}, el("tr", {}, ["contrast", "tokens", "claim", "estimate", `${100 * study.level} % interval`, "unit", "p, Holm", "pairs", "targets", "missing"].map((h, k) => el("th", { scope: "col", cls: k < 3 ? "words" : "" }, h)))),
    el("tbody", {}, chosen.map((r) => el("tr", {}, el("th", { scope: "row" }, contrast(r.contrast)), el("td", { cls: "words" }, r.parts.tokens || ""), said(claim(r), grades), el("td", {}, number(r.estimate, 3, true)), el("td", {}, interval(r.lo, r.hi)), el("td", {}, r.unit), el("td", {}, r.p_adj === null ? "not declared" : probability(r.p_adj)), el("td", {}, count(r.n_pairs)), el("td", {}, count(r.n_targets)), el("td", {}, count(r.n_missing))))))));
}

// The word that the grades allow, and on request what disagrees.
function said(found, grades) {
  if (!found) return el("td", { cls: "words" }, "–");
  const given = grades.map((g) => `${label("grades", g)}: ${found[g]}`).join(", ");
  return el("td", { cls: "words", title: found.against ? `${given}. ${found.against}` : given }, label("claims", found.claim));
}

function means(rows, tokens, study) {
  const mine = rows.filter((r) => r.contrast === "mean_effect" && r.parts.sae === "*" && r.parts.outcome === "logodds" && r.parts.tokens === tokens);
  if (!mine.length) return null;
  const order = ["pair", "reference", "null", "self"];
  const names = inOrder("relations", mine.map((r) => r.parts.relation)).sort((a, b) => order.indexOf(role(a)) - order.indexOf(role(b)));
  const place = (r) => [names.indexOf(r.parts.relation), Number(r.parts.bin ?? -1)];
  mine.sort((a, b) => { const [p, q] = [place(a), place(b)]; return p[0] - q[0] || p[1] - q[1]; });
  const bins = study.pairs.bins;
  const rows_ = mine.map((r) => ({ label: r.parts.bin !== undefined && r.parts.relation === "pair" ? `pairs at ${bins[r.parts.bin]} to ${bins[Number(r.parts.bin) + 1]}` : relation(r.parts.relation), estimate: r.estimate, lo: r.lo, hi: r.hi, kind: colour(r.parts.relation), words: `${count(r.n_pairs)} pairs` }));
  return el("figure", { cls: "panel" }, el("h3", {}, `Mean effect on ${read(tokens)}`), dotPlot(rows_, { xLabel: "change in log-odds (nats)", label: `mean effects on ${tokens}`, band: study.margin }), el("figcaption", {}, `By interference, beside the controls, at dose ${mine[0].parts.dose ?? "–"}. Grey: within ${study.margin} nats of zero, which counts as no effect.`));
}

function dose(rows, tokens, study, locus) {
  const { unit } = study.loci.find((l) => l.locus === locus) || { unit: study.dose_unit };
  const mine = rows.filter((r) => r.token_set === tokens && r.logodds !== null);
  if (!mine.length) return null;
  const keys = [...new Set(mine.map((r) => `${r.relation} ${r.interference_bin}`))].filter((k) => !k.startsWith("self"));
  const bins = study.pairs.bins;
  const top = Math.max(...mine.filter((r) => r.relation === "pair").map((r) => r.interference_bin));
  const curves = keys.filter((k) => !k.startsWith("pair") || k === `pair ${top}` || k === "pair 0").map((k) => {
    const [name, bin] = k.split(" ");
    const words = `${name === "pair" ? "pairs" : relation(name)}${bins[Number(bin) + 1] === undefined || bin < 0 ? "" : ` at ${bins[bin]} to ${bins[Number(bin) + 1]}`}`;
    return { label: words, relation: name, kind: name === "pair" && Number(bin) !== top ? "k-weak" : colour(name), points: mine.filter((r) => `${r.relation} ${r.interference_bin}` === k).map((r) => ({ x: r.dose, y: r.logodds, lo: r.lo, hi: r.hi })) };
  });
  return el("figure", { cls: "panel" }, el("h3", {}, `Over dose: ${read(tokens)}`), doseChart(curves, { xLabel: doseAxis(unit, { signed: true }), unit, yLabel: "change in log-odds (nats)", label: `change over dose, ${tokens}` }),
    el("ul", { cls: "legend" }, curves.map((c, k) => el("li", {}, svg("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" }, svg("g", { cls: `mark ${c.kind}` }, mark(k, 0, 0, "", c.relation))), c.label))));
}

// How well effects of unseen pairs are predicted, and where the rest of the explanation lies.
async function why(ctx, locus) {
  const { study, source } = ctx;
  const tables = ["explained", "validity", "specification", "power", "compensation", "decomposition", "metrics", "response"].filter((n) => study.relations[n]);
  const title = el("h2", {}, "What explains the effects");
  if (!study.relations.explained) return el("section", {}, title, ctx.absent("explained"));
  const rows = (await allRows(source, "explained")).filter((r) => r.locus === locus);
  const figures = study.token_sets.flatMap((t) => ["targets", "sources"].map((unseen) => {
    const mine = rows.filter((r) => r.token_set === t && r.unseen === unseen);
    if (mine.every((r) => r.r2 === null)) return null;
    return el("figure", { cls: "panel" }, el("h3", {}, `${read(t)}, ${unseen} not seen`), dotPlot(mine.map((r) => ({ label: told("models")[r.model] || r.model.replace("metric:", "metric: ").replace(/_/g, " "), estimate: r.r2, lo: r.lo, hi: r.hi, kind: "k-pair", words: `${count(r.n_pairs)} pairs` })), { xLabel: "held-out R² (below 0: worse than the mean)", label: `held-out R², ${unseen} not seen` }));
  }));
  return el("section", {}, title, figures.some(Boolean) ? el("div", { cls: "figures" }, figures) : note(`Too few targets or sources to hold some out at this locus${rows[0]?.note ? `: ${rows[0].note}` : "."}`), el("p", { cls: "fine" }, "More of it: ", tables.map((n, k) => [k ? ", " : "", link(address("tables", [n]), head(n).toLowerCase())])));
}

function ended(rows) {
  if (!rows.length) return null;
  return el("section", {}, el("h2", {}, "How the trials ended"), el("div", { cls: "scroll", tabindex: "0", role: "region", "aria-label": "How the trials ended" }, el("table", { cls: "numbers" },
    el("thead", {}, el("tr", {}, ["locus", "relation", "status", "reason", "trials"].map((h, k) => el("th", { scope: "col", cls: k < 4 ? "words" : "" }, h)))),
    el("tbody", {}, rows.map((r) => el("tr", { cls: r.status === "ok" ? "" : "bad" }, el("td", { cls: "words" }, label("loci", r.locus)), el("td", { cls: "words" }, relation(r.relation)), el("td", { cls: "words" }, r.status), el("td", { cls: "words", title: r.reason }, r.reason ? label("reasons", r.reason) : ""), el("td", {}, count(r.n_trials))))))));
}
