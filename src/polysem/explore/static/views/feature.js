// One feature and its neighbours.
import { el, link, note, replace } from "../dom.js";
import { featureCard, gloss } from "../card.js";
import { drawn, figuresOf } from "../drawn.js";
import { graph } from "../graph.js";
import { Grid, dataOf, featureCell, flags } from "../grid.js";
import { kinOf } from "./kin.js";
import { edgesOf } from "./layers.js";
import { address, change, first, here } from "../state.js";
import { fixed, number as shown, plural } from "../text.js";

const ROOM = 300;

export async function feature(ctx) {
  const [sae, id] = here().args;
  const number = Number(id);
  if (!sae || !Number.isInteger(number)) return [el("h1", {}, "Feature"), note("The address names no feature: expected #/feature/SAE/NUMBER.")];
  const [record, fires] = await Promise.all([ctx.source.feature(sae, number), drawn(ctx, "feature", { sae, feature: number })]);
  const graphPlace = el("div", { cls: "graph-place" });
  const listPlace = el("div", {});
  const title = [...gloss(record)].length > 90 ? `${[...gloss(record)].slice(0, 89).join("")}…` : gloss(record);
  const head = [
    el("p", { cls: "crumbs" }, link(address("hubs"), "Hubs"), ` › ${sae} › ${number}`),
    el("h1", { cls: "gloss" }, title),
  ];
  head.push(...await Promise.all([verdict(ctx, { sae, number }), kinOf(ctx, { sae, number }), edgesOf(ctx, { sae, number })]));
  const judged = fires.filter((node) => node.matches(".steering-card"));
  if (judged.length) head.push(el("details", { cls: "panel wide" }, el("summary", {}, "What steering along it does besides its target"), judged));
  if (!ctx.study.relations.pairs) return [...head, ctx.absent("pairs"), featureCard(record, { heading: "h2", full: true, drawn: figuresOf(fires) })];
  const grid = new Grid({
    source: scoped(ctx.source, sae, number), relation: ctx.study.relations.pairs, sort: "-strength", limit: 12,
    cells: {
      other: (row) => { const right = row.i === number; return featureCell(sae, right ? row.j : row.i, right ? row.gloss_j : row.gloss_i); },
      flags: (row) => flags(row),
      open: () => [el("span", { "aria-hidden": "true" }, "▸"), el("span", { cls: "hidden" }, "Open the pair")],
    },
    open: (row) => address("pair", [row.sae, row.i, row.j]),
    columns: ["open", "other", "interference", "similarity", "flags"],
    empty: "No listed pair names this feature.",
  });
  let seen = null;
  ctx.update = async () => {
    const key = `${first(here().params, "open")} ${first(here().params, "show")}`;
    if (key !== seen) {
      seen = key;
      graphPlace.setAttribute("aria-busy", "true");
      await neighbours(ctx, { sae, number, record, place: graphPlace });
      graphPlace.removeAttribute("aria-busy");
    }
    await grid.update();
  };
  replace(listPlace, el("h2", {}, "Its pairs"), grid.node);
  return [...head, el("div", { cls: "page-two" }, featureCard(record, { full: true, titled: false, drawn: figuresOf(fires) }), el("div", {}, el("h2", {}, "Neighbours"), graphPlace, listPlace)),
    dataOf(ctx, ["features", "glosses", "contexts", "clusters", "partners"].map((name) => [name, name, [`sae=${sae}`, `feature=${number}`]]))];
}

// Is it polysemantic? What its contexts say, against chance, and how many unrelated features it interferes with, against the others.
async function verdict(ctx, { sae, number }) {
  const { relations, saes } = ctx.study;
  const ask = async (name, f) => (relations[name] ? ctx.source.rows(name, { f: [`sae=${sae}`, ...f], limit: 1, offset: 0 }) : { rows: [], total: 0 });
  const [concepts, hub, clean] = await Promise.all(["concepts", "hubs", "side_effects_linear"].map((name) => ask(name, [`feature=${number}`])));
  const percentile = clean.rows[0]?.percentile;
  const [c] = concepts.rows;
  const near = hub.rows[0]?.n_unflagged ?? 0;
  const all = saes.find((s) => s.label === sae)?.n_features || 0;
  const more = relations.hubs ? (await ask("hubs", [`n_unflagged>=${Math.max(1, near)}`])).total : 0;
  const of = c && c.silhouette !== null && c.limit !== null ? ` (silhouette ${fixed(c.silhouette)}; contexts without groups stay below ${fixed(c.limit)} in 98 % of draws)` : "";
  const share = all ? (100 * (all - more)) / all : 0;
  const rank = near && all ? `more than ${shown(share, 3)} % of this SAE's features have` : "";
  const said = !c ? (near ? `By its neighbours: it interferes with ${near} unrelated features, ${rank}.` : "No unrelated feature that is listed interferes with it.")
    : c.k > 1 ? `Polysemantic by its contexts: ${c.n_contexts} fall into ${c.k} groups${of}.` : `One sense, as far as ${c.n_contexts} contexts show: no grouping beats contexts without groups${of}.`;
  const facts = [
    c ? [fixed(c.score), `polysemanticity (1 − cosine between groups)${c.mixed === null ? "" : `; two features in one have ${fixed(c.mixed)}`}`] : null,
    relations.hubs ? [String(near), `unrelated features that it interferes with${rank ? `: ${rank}` : ""}`] : null,
    near ? [fixed(hub.rows[0].strongest), "strongest |interference|"] : null,
    percentile !== null && percentile !== undefined ? [`${shown(100 * percentile, 2)} %`, "of this SAE's features steer less cleanly: effect on their own tokens per root of KL, by gradient"] : null,
  ].filter(Boolean);
  return el("section", { cls: "panel wide verdict" }, el("h2", {}, "Is it polysemantic?"), el("p", {}, el("strong", {}, said)),
    c ? null : el("p", { cls: "fine" }, "Whether its contexts have several senses was not asked: with glosses.similarity = [\"contexts:minilm\"] a study groups those of its planned features."),
    c && c.k > 1 ? el("ol", {}, c.examples.map((text, k) => el("li", {}, `${text} `, el("span", { cls: "id" }, `${c.sizes[k]} contexts`)))) : null,
    el("dl", { cls: "tiles" }, facts.map(([n, words]) => el("div", {}, el("dt", {}, words), el("dd", {}, n)))));
}

function scoped(source, sae, number) {
  const own = (query) => ({ ...query, near: number, f: [...query.f, `sae=${sae}`] });
  return { rows: (r, q, s) => source.rows(r, own(q), s), files: (r, q) => source.files(r, own(q)) };
}

async function neighbours(ctx, { sae, number, record, place }) {
  const { params } = here();
  const open = first(params, "open").split(",").filter(Boolean).map(Number).filter(Number.isInteger).slice(0, 12);
  const show = Math.min(ROOM, Math.max(5, Number.parseInt(first(params, "show", "30"), 10) || 30));
  const near = async (id) => (await ctx.source.rows("pairs", { f: [`sae=${sae}`, "is_duplicate=false"], near: id, sort: "-strength", limit: show, offset: 0 }));
  const rings = await Promise.all([number, ...open].map(near));
  const nodes = new Map([[number, { id: number, gloss: record.gloss, centre: true }]]);
  const edges = new Map();
  for (const ring of rings) {
    for (const row of ring.rows) {
      for (const [id, words] of [[row.i, row.gloss_i], [row.j, row.gloss_j]]) {
        if (!nodes.has(id) && nodes.size < ROOM) nodes.set(id, { id, gloss: words, open: open.includes(id) });
      }
      if (nodes.has(row.i) && nodes.has(row.j)) edges.set(`${row.i} ${row.j}`, { a: row.i, b: row.j, w: Math.abs(row.interference), sign: Math.sign(row.interference) });
    }
  }
  // Lines between neighbours, the strongest only: who of them belongs together.
  const between = await ctx.source.rows("pairs", { f: [`sae=${sae}`, "is_duplicate=false"], among: [...nodes.keys()].join(","), sort: "-strength", limit: 2 * nodes.size + 20, offset: 0 });
  for (const row of between.rows) {
    const key = `${row.i} ${row.j}`;
    if (!edges.has(key)) edges.set(key, { a: row.i, b: row.j, w: Math.abs(row.interference), sign: Math.sign(row.interference), between: true });
  }
  if (nodes.size === 1) { replace(place, note("It interferes with no unrelated feature that is listed.")); return; }
  const total = rings[0].total;
  const choose = (id) => {
    if (id === number) return;
    change({ open: open.includes(id) ? open.filter((o) => o !== id).join(",") : [...open, id].join(",") });
  };
  const picture = graph([...nodes.values()], [...edges.values()], { label: `feature ${number} and ${nodes.size - 1} neighbours`, onnode: choose });
  const more = el("select", { "aria-label": "Neighbours of each feature that are shown", onchange: (event) => change({ show: event.target.value }) }, [10, 30, 60, 120, 240].map((n) => el("option", { value: n, selected: n === show }, `${n} strongest`)));
  replace(place, el("div", { cls: "row" }, el("label", {}, "Show ", more), el("span", { cls: "fine" }, `of ${plural(total, "pair")}; ${nodes.size} features drawn. Solid: positive interference; dashed: negative; wide: strong. A click adds a feature's own neighbours, or takes them away.`)),
    open.length ? el("div", { cls: "chips" }, open.map((id) => el("button", { type: "button", cls: "chip", onclick: () => choose(id) }, `neighbours of ${id}`, el("span", { "aria-hidden": "true" }, " ×"), el("span", { cls: "hidden" }, " take away")))) : null,
    picture,
    open.length ? el("p", {}, "Open: ", [...open].map((id, k) => [k ? ", " : "", link(address("feature", [sae, id]), `feature ${id}`)])) : null);
}
