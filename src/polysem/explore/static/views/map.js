// The map: all pairs of every SAE by gloss similarity and interference; a rectangle lists what lies inside.
import { el, link, note, replace } from "../dom.js";
import { boxFields, boxWords, brush, inside } from "../box.js";
import { drawn, thumbnail } from "../drawn.js";
import { address, change, first, here } from "../state.js";
import { plural } from "../text.js";
import { dataOf } from "../grid.js";
import { pairGrid } from "./lists.js";

export const readBox = (text) => {
  const v = text.split(",").map(Number);
  return v.length === 4 && v.every(Number.isFinite) && v[1] > v[0] && v[3] > v[2] ? { s0: v[0], s1: v[1], i0: v[2], i1: v[3] } : null;
};
const writeBox = (b) => (b ? [b.s0, b.s1, b.i0, b.i1].join(",") : []);
export const boxFilters = (sae, b) => [`sae=${sae}`, `similarity>=${b.s0}`, `similarity<=${b.s1}`, `interference>=${b.i0}`, `interference<=${b.i1}`];

export async function map(ctx) {
  if (!ctx.study.relations.density) return [el("h1", {}, "Map"), ctx.absent("density")];
  const { pairs, saes } = ctx.study;
  const found_ = await drawn(ctx, "maps");
  const maps = saes.map(({ label }) => found_.find((node) => node.dataset.of === label)).filter(Boolean);
  if (!maps.length) return [el("h1", {}, "Map"), note("No two features have a gloss: there is no map to draw.")];
  const small = el("ul", { cls: "small-multiples", "aria-label": "SAEs" });
  const large = el("div", { cls: "map-place" });
  const found = el("section", { cls: "found" });
  const chosen = () => maps.find((m) => m.dataset.of === first(here().params, "sae")) || maps[0];
  const onbox = (b) => change({ box: writeBox(b), page: [] });
  let grid = null;
  let seen = "";

  const draw = async () => {
    const now = chosen();
    const box = readBox(first(here().params, "box"));
    const sae = now.dataset.of;
    const key = `${sae} ${first(here().params, "box")}`;
    if (key !== seen) {
      seen = key;
      replace(small, maps.length > 1 ? maps.map((m) => el("li", {}, link(address("map", [], { sae: m.dataset.of, box: first(here().params, "box") }), [thumbnail(m), el("span", {}, m.dataset.of)], { "aria-current": m === now ? "true" : null }))) : null);
      for (const old of now.querySelectorAll(".brush, .catch")) old.remove();
      brush(now.querySelector("svg"), box, onbox);
      replace(large, now, boxFields(box, onbox), el("p", { cls: "fine" }, "Draw a rectangle to list its pairs."),
        dataOf(ctx, [["cells of the map", "density", [`sae=${sae}`]], ["counts beyond thresholds, and chance", "spectrum", [`sae=${sae}`]]]));
    }
    if (!box) { replace(found, el("p", { cls: "fine" }, "No rectangle is drawn. The mined corner is under ", link(address("pairs"), "Pairs"), ".")); grid = null; return; }
    const { n, cut } = inside(JSON.parse(now.querySelector("svg").dataset.cells), box);
    const beyond = box.s1 > pairs.max_similarity || (box.i0 < pairs.min_interference && box.i1 > -pairs.min_interference);
    const words = [el("h2", {}, `${cut ? "About " : ""}${plural(n, "pair")} inside`), el("p", {}, boxWords(box), cut ? ". The edges cut cells of the histogram; a cell counts where its middle is inside." : "."),
      beyond ? note(`Pairs are listed one by one only in the mined corner (|interference| ≥ ${pairs.min_interference}, similarity < ${pairs.max_similarity}); elsewhere they are counted.`) : null];
    if (!grid) {
      grid = pairGrid(ctx, { limit: 20, columns: ["open", "gloss_i", "gloss_j", "interference", "similarity", "z_covariance", "flags", "steered"] });
      const inner = ctx.source;
      // The rectangle becomes filters of the list; the rest of the address is the list's own.
      grid.source = {
        rows: (relation, query, signal) => inner.rows(relation, withBox(query), signal),
        files: (relation, query) => inner.files(relation, withBox(query)),
      };
    }
    replace(found, words, grid.node);
    await grid.update();
  };
  const withBox = (query) => ({ ...query, f: [...query.f, ...boxFilters(chosen().dataset.of, readBox(first(here().params, "box")))] });
  ctx.update = draw;
  return [el("h1", {}, "Map"), el("p", { cls: "lead" }, "Directions of features with like glosses should overlap; the others should not. Every pair is in one of these cells."), el("div", { cls: "map-row" }, large, small), found];
}
