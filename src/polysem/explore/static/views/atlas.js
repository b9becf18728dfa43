// What linear response says of every pair, measured or not: how far to believe it, all pairs at once, the strongest.
import { el, link } from "../dom.js";
import { Grid, featureCell, several } from "../grid.js";
import { drawn } from "../drawn.js";
import { allRows } from "../source.js";
import { address } from "../state.js";
import { count, number } from "../text.js";

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
    place.append(...await drawn(ctx, "predicted"));
    place.removeAttribute("aria-busy");
  };
  return el("details", { cls: "panel wide", ontoggle: begin }, el("summary", {}, "All pairs: does interference foretell the effect?"), place);
}
