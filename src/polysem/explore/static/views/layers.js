// Weights between features of different layers: who writes to whom, and the edges one by one.
import { el, link } from "../dom.js";
import { Grid, dataOf, featureCell } from "../grid.js";
import { allRows } from "../source.js";
import { address, here } from "../state.js";
import { fixed, interval, number, plural } from "../text.js";

const LISTED = 8;
const between = (source, target) => [`source=${source}`, `target=${target}`];

// An end of an edge. Features of transcoders have no page: their edges are listed instead.
function endCell(study, side, label, feature, gloss) {
  const name = side === "source" ? "i" : "j";
  const where = el("span", { cls: "id" }, ` of ${label}`);
  if (study.saes.some((s) => s.label === label)) return [featureCell(label, feature, gloss), where];
  return [link(address("layers", [], { f: [`${side}=${label}`, `${name}=${feature}`] }), `feature ${feature}`, { cls: "gloss" }), where];
}

const nats = (value) => (value === null ? "–" : number(value));
const CELLS = {
  lift: (row) => (row.co_tokens ? `${number(row.lift)} ×` : "never"),
  effectiveness: (row) => nats(row.effectiveness),
  saved: (row) => (row.saved === null ? "–" : [el("strong", { cls: row.saved < 0 ? "down" : "up" }, number(row.saved, 3, true)), el("span", { cls: "id" }, ` ${interval(row.lo, row.hi)}`)]),
};

export async function layers(ctx) {
  const { study, source } = ctx;
  if (!study.relations.layer_edges) return [el("h1", {}, "Layers"), ctx.absent("layer_edges")];
  const blocks = await allRows(source, "layer_blocks");
  const place = el("div", {});
  const grid = new Grid({
    source, relation: study.relations.layer_edges, sort: "-effectiveness", searchLabel: "Search in glosses and dictionaries",
    cells: { ...CELLS, source: (row) => endCell(study, "source", row.source, row.i, row.gloss_i), target: (row) => endCell(study, "target", row.target, row.j, row.gloss_j) },
    columns: ["source", "target", "weight", "lift", "era", "twera", "effectiveness", "saved", "pushed", "natural"],
    empty: "No edge that is listed fits: remove a filter. Only the strongest by weight, ERA or effectiveness, and those that were measured, are listed.",
  });
  ctx.update = () => { place.replaceChildren(matrix(blocks)); return grid.update(); };
  return [
    el("h1", {}, "Layers"),
    el("p", { cls: "lead" }, "Features write where features of later layers read. Which of those weights are strong, which act when the model runs by itself, which only when somebody pushes?"),
    place, el("h2", {}, "Edges"), grid.node,
    el("p", { cls: "fine" }, "Helpfulness is what the loss rises without the edge, with a 95 % interval over documents; pushed and by itself are what was measured at the target. What the hypotheses say is under ", link(address("results", ["layers"]), "Results"), "."),
    dataOf(ctx, ["layer_blocks", "layer_edges", "layer_density", "layer_tokens", "layer_findings"].map((t) => [t.replace("_", " "), t, []])),
  ];
}

// Who writes, in rows; who reads, in columns: pairs beyond the chance of random directions, shaded by their share of all.
function matrix(blocks) {
  const linked = new Map(blocks.filter((b) => b.why === null).map((b) => [`${b.source}\n${b.target}`, b]));
  const ends = (side) => [...new Set([...linked.values()].map((b) => b[side]))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const share = (b) => b.n_strong / Math.max(1, b.n_i * b.n_j);
  const most = Math.max(...[...linked.values()].map(share), 1e-12);
  const chosen = here().params.f || [];
  const cell = (from, to) => {
    const b = linked.get(`${from}\n${to}`);
    if (!b) return el("td", {}, "–");
    const mine = between(from, to);
    const now = mine.every((f) => chosen.includes(f));
    return el("td", { cls: "linked", vars: { "--w": share(b) / most } },
      link(address("layers", [], now ? { all: "1" } : { f: mine }), plural(b.n_strong, "pair"), { "aria-current": now ? "true" : null, "aria-label": `${plural(b.n_strong, "strong pair")} from ${from} to ${to}: ${now ? "list all edges" : "list its edges"}` }),
      el("span", { cls: "id" }, b.strong_never === null ? "" : ` ${fixed(100 * b.strong_never, 0)} % never co-fire`), el("span", { cls: "id" }, ` rms ${nats(b.rms)}`));
  };
  const reasons = [...new Set(blocks.filter((b) => b.why !== null).map((b) => b.why))];
  return el("section", { cls: "panel wide" }, el("h2", {}, "Layer by layer"),
    el("p", { cls: "fine" }, "Strong: row and column are closer than random directions are in 1 of 10,000 pairs. The darker, the larger their share of all pairs that fire."),
    el("div", { cls: "scroll", tabindex: "0", role: "region", "aria-label": "Strong weights between dictionaries" }, el("table", { cls: "numbers layers" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col", cls: "words" }, "writes ↓ reads →"), ends("target").map((to) => el("th", { scope: "col" }, to)))),
      el("tbody", {}, ends("source").map((from) => el("tr", {}, el("th", { scope: "row" }, from), ends("target").map((to) => cell(from, to))))))),
    reasons.length ? el("p", { cls: "fine" }, `Pairs of dictionaries without weights: ${reasons.join("; ")}.`) : null);
}

// On a feature's page: the edges that act most, from it and to it.
export async function edgesOf(ctx, { sae, number: id }) {
  if (!ctx.study.relations.layer_edges) return null;
  const sides = [["Writes to", "source", "i", "target", "j"], ["Is written by", "target", "j", "source", "i"]];
  const found = await Promise.all(sides.map(([, side, own]) => ctx.source.rows("layer_edges", { f: [`${side}=${sae}`, `${own}=${id}`], sort: "-effectiveness", limit: LISTED, offset: 0 })));
  if (!found.some((answer) => answer.total)) return el("p", { cls: "fine" }, "No edge to or from another layer is listed of it.");
  return el("section", { cls: "panel wide edges" }, el("h2", {}, "Across layers"), el("div", { cls: "three even" }, sides.map(([title, side, own, other, far], k) => el("div", {}, el("h3", {}, title),
    found[k].total ? el("ol", {}, found[k].rows.map((row) => el("li", {}, endCell(ctx.study, other, row[other], row[far], row[`gloss_${far}`]),
      el("span", { cls: "id" }, ` weight ${number(row.weight, 3, true)}, ${row.effectiveness === null ? "effectiveness not measured" : `${nats(row.effectiveness)} nats a token`}${row.co_tokens ? "" : ", never co-fire"}`)))) : el("p", { cls: "fine" }, "No edge is listed."),
    found[k].total > LISTED ? el("p", {}, link(address("layers", [], { f: [`${side}=${sae}`, `${own}=${id}`] }), `All ${plural(found[k].total, "edge")}`)) : null))));
}
