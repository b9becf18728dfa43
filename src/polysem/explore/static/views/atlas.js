// What linear response says of every pair, measured or not: how far to believe it, all pairs at once, the strongest.
import { el, link } from "../dom.js";
import { Grid, featureCell, several } from "../grid.js";
import { heat } from "../heat.js";
import { allRows } from "../source.js";
import { address } from "../state.js";
import { count, number, plural, tick } from "../text.js";

const STRATA = { uniform: "pairs drawn from all", top: "pairs drawn from the strongest" };

export async function predicted(ctx, { tabs, about }) {
  const { study, source } = ctx;
  const cells = {
    gloss_target: (row) => featureCell(row.sae, row.target, row.gloss_target, study),
    gloss_source: (row) => featureCell(row.sae, row.source, row.gloss_source, study),
    open: () => [el("span", { "aria-hidden": "true" }, "▸"), el("span", { cls: "hidden" }, "Open the pair")],
  };
  const grid = new Grid({
    source, relation: study.relations.atlas_top, cells, sort: "-effect",
    open: (row) => (row.source === row.target ? null : address("pair", [row.sae, Math.min(row.source, row.target), Math.max(row.source, row.target)])),
    columns: ["open", "gloss_source", "gloss_target", "effect", "interference", "similarity", ...several(study)],
    searchLabel: "Search in glosses of source and target",
    empty: "Only the strongest sources of every target are kept: remove a filter or try other words.",
  });
  ctx.update = () => grid.update();
  return [
    el("h1", {}, "Steering"), tabs,
    el("p", { cls: "lead" }, "The strongest sources of every target by linear response: a prediction to first order from gradients, for pairs of the plan and all others."),
    about,
    await fit(ctx),
    density(ctx),
    grid.node,
  ];
}

// Real steering of a sample against their prediction, nothing fitted.
async function fit(ctx) {
  if (!ctx.study.relations.atlas_fit) return null;
  const rows = await allRows(ctx.source, "atlas_fit");
  if (!rows.length) return null;
  const between = (r) => (r.r2 === null ? "–" : `${number(r.r2)} (${number(r.lo)} to ${number(r.hi)})`);
  return el("details", { cls: "panel wide", open: rows.length <= 6 }, el("summary", {}, "How far to believe it"),
    el("div", { cls: "scroll", tabindex: "0", role: "region", "aria-label": "Predictions against real steering" }, el("table", { cls: "numbers" },
      el("thead", {}, el("tr", {}, ["SAE", "steered in fact", "R² of the prediction", "measured / predicted", "of"].map((h, k) => el("th", { scope: "col", cls: k < 2 ? "words" : "" }, h)))),
      el("tbody", {}, rows.map((r) => el("tr", {}, el("th", { scope: "row" }, r.sae), el("td", { cls: "words" }, STRATA[r.stratum] || r.stratum), el("td", {}, between(r)), el("td", {}, r.slope === null ? "–" : number(r.slope)), el("td", {}, `${count(r.n)} pairs`)))))),
    el("p", { cls: "fine" }, "1 is perfect, 0 no better than the mean. Nothing is fitted; intervals resample pairs. ", link(address("tables", ["atlas_sample"]), "The sample"), "."));
}

// All ordered pairs of an SAE, counted by interference and predicted effect. Drawn when it is asked for.
function density(ctx) {
  if (!ctx.study.relations.atlas_density) return null;
  const place = el("div", { cls: "figures" });
  let begun = false;
  const begin = async () => {
    if (begun) return;
    begun = true;
    place.setAttribute("aria-busy", "true");
    for (const { label } of ctx.study.saes) {
      const rows = await allRows(ctx.source, "atlas_density", [`sae=${label}`, "axis=interference"]);
      if (rows.length) place.append(figure(label, rows));
    }
    place.removeAttribute("aria-busy");
  };
  return el("details", { cls: "panel wide", ontoggle: begin }, el("summary", {}, "All pairs: does interference foretell the effect?"), place);
}

function figure(sae, rows) {
  const edges = [...new Set(rows.flatMap((r) => [r.effect_lo, r.effect_hi]))].filter((v) => v > 0);
  const least = Math.min(...edges);
  // Decades on both sides of zero; what is smaller than the least edge lies between them.
  const at = (v) => (Math.abs(v) < least / 2 ? 0 : Math.sign(v) * (1 + Math.log10(Math.abs(v) / least)));
  const cells = rows.map((r) => [r.cosine_lo, r.cosine_hi, at(r.effect_lo), at(r.effect_hi), r.count]);
  const decades = [];
  // Every second decade from the largest down: more labels would touch.
  for (let d = Math.floor(Math.log10(Math.max(...edges)) + 1e-9); d >= Math.log10(least) - 1e-9; d -= 2) decades.push(10 ** d);
  const extent = (k) => [Math.min(...cells.map((c) => c[k])), Math.max(...cells.map((c) => c[k + 1]))];
  const n = cells.reduce((sum, c) => sum + c[4], 0);
  return el("figure", { cls: "inner" }, el("h3", {}, sae),
    heat({ cells, n, chance: [] }, {
      range: { x: extent(0), y: extent(2) }, most: Math.max(...cells.map((c) => c[4])), label: sae,
      axes: { x: "interference (cosine of directions)", y: "predicted effect (nats per norm)", yMarks: [[0, "0"], ...decades.flatMap((d) => [[at(d), tick(d)], [at(-d), tick(-d)]])] },
    }),
    el("figcaption", {}, `${plural(n, "ordered pair")}. Effects in decades on both sides of zero; the outermost cells hold what is beyond.`));
}
