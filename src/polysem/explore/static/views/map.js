// The map: all pairs of every SAE by gloss similarity and interference; a rectangle lists what lies inside.
import { el, link, note, replace } from "../dom.js";
import { boxFields, boxWords, extent, heat, inside, union } from "../heat.js";
import { address, change, first, here } from "../state.js";
import { count, plural } from "../text.js";
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
  const { maps, covered } = await ctx.source.doc("map");
  const { pairs } = ctx.study;
  const range = union(maps.map((m) => extent(m, pairs)));
  const most = Math.max(1, ...maps.flatMap((m) => m.cells.map((c) => c[4])));
  const small = el("ul", { cls: "small-multiples", "aria-label": "SAEs" });
  const large = el("figure", { cls: "panel wide" });
  const found = el("section", { cls: "found" });
  const chosen = () => maps.find((m) => m.sae === first(here().params, "sae")) || maps[0];
  const onbox = (b) => change({ box: writeBox(b), page: [] });
  let grid = null;
  let drawn = "";

  const draw = async () => {
    const now = chosen();
    const box = readBox(first(here().params, "box"));
    const key = `${now.sae} ${first(here().params, "box")}`;
    if (key !== drawn) {
      drawn = key;
      replace(small, maps.length > 1 ? maps.map((m) => el("li", {}, link(address("map", [], { sae: m.sae, box: first(here().params, "box") }), [heat(m, { pairs, range, most, small: true, label: m.sae }), el("span", {}, m.sae)], { "aria-current": m === now ? "true" : null }))) : null);
      const picture = heat(now, { pairs, range, most, box, onbox, label: now.sae });
      const share = now.n ? (100 * (now.above + now.below)) / now.n : 0;
      replace(large, el("h2", {}, now.sae), picture, boxFields(box, onbox),
        el("figcaption", {}, `${count(now.n)} pairs of features with a gloss; all are counted. Red: the corner that was mined, ${share.toPrecision(2)} % of them, |interference| ≥ ${pairs.min_interference} and similarity < ${pairs.max_similarity}. Dashed: ${100 * covered} % of pairs of random directions lie inside; dotted: of random directions of this SAE's effective width. Draw a rectangle to list its pairs.`),
        dataOf(ctx, [["cells of the map", "density", [`sae=${now.sae}`]], ["counts beyond thresholds, and chance", "spectrum", [`sae=${now.sae}`]]]));
    }
    if (!box) { replace(found, el("p", { cls: "fine" }, "No rectangle is drawn. The mined corner is under ", link(address("pairs"), "Pairs"), ".")); grid = null; return; }
    const { n, cut } = inside(now, box);
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
  const withBox = (query) => ({ ...query, f: [...query.f, ...boxFilters(chosen().sae, readBox(first(here().params, "box")))] });
  ctx.update = draw;
  return [el("h1", {}, "Map"), el("p", { cls: "lead" }, "Directions of features with like glosses should overlap; the others should not. Every pair is in one of these cells."), el("div", { cls: "map-row" }, large, small), found];
}
