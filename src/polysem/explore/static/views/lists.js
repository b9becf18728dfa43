// The lists: pairs, steering, hubs, coordinates, and every stored table.
import { el, link, note } from "../dom.js";
import { Grid, featureCell, flags, head, several } from "../grid.js";
import { address, here, note as noteAddress } from "../state.js";
import { fixed, interval } from "../text.js";
import { label, relation as called, told } from "../words.js";
import { predicted } from "./atlas.js";
import { toward, towardAddress } from "./toward.js";

export const pairAddress = (row) => address("pair", [row.sae, row.i, row.j]);
export const PAIR_FILTERS = ["is_duplicate=false", "is_dense=false"];

export function steeringFilters(study, locus, { relation = "pair" } = {}) {
  const found = [`relation=${relation}`];
  if (locus) {
    found.push(`locus=${locus.locus}`);
    if (locus.headline !== null && locus.headline !== undefined) found.push(`dose=${locus.headline}`);
  }
  found.push(`token_set=${study.token_sets[0] || "in"}`);
  return found;
}

// Without filters in the address, the ones that most people want.
function standing(filters) {
  const { params } = here();
  if (!params.f && !params.all) noteAddress({ f: filters });
}

export const pairCells = {
  gloss_i: (row) => featureCell(row.sae, row.i, row.gloss_i),
  gloss_j: (row) => featureCell(row.sae, row.j, row.gloss_j),
  flags: (row) => flags(row),
  open: () => "Open",
};

export function pairGrid(ctx, extra = {}) {
  const cells = { ...pairCells, open: () => [el("span", { "aria-hidden": "true" }, "▸"), el("span", { cls: "hidden" }, "Open the pair")] };
  return new Grid({
    source: ctx.source, relation: ctx.study.relations.pairs, cells, open: pairAddress, sort: "-strength",
    columns: ["open", "gloss_i", "gloss_j", "interference", "similarity", "z_covariance", "flags", "steered", ...several(ctx.study)],
    empty: "No listed pair fits. Remove a filter, or search for fewer words.", ...extra,
  });
}

export async function pairs(ctx) {
  if (!ctx.study.relations.pairs) return [el("h1", {}, "Pairs"), ctx.absent("pairs")];
  standing(PAIR_FILTERS);
  const grid = pairGrid(ctx);
  ctx.update = () => grid.update();
  const { min_interference: low, max_similarity: high } = ctx.study.pairs;
  return [el("h1", {}, "Pairs"), el("p", { cls: "lead" }, `Pairs of one SAE whose directions overlap (|interference| at least ${low}) though their glosses differ (similarity below ${high}).`), grid.node];
}

function effectCell(row) {
  return [el("strong", { cls: row.logodds < 0 ? "down" : "up" }, fixed(row.logodds, 3, true)), el("span", { cls: "id" }, ` ${interval(row.lo, row.hi)}`)];
}

export async function steering(ctx) {
  const { study } = ctx;
  if (here().args[0] === "predicted" && study.relations.atlas_top) return predicted(ctx, { tabs: steeringTabs(study), about: about({ plan: false }) });
  if (here().args[0] === "toward") return toward(ctx, { tabs: steeringTabs(study) });
  if (!study.relations.steering) return [el("h1", {}, "Steering"), steeringTabs(study), ctx.absent("pair_effects")];
  const locus = study.loci[0];
  standing(steeringFilters(study, locus));
  const said = new Map();
  const cells = {
    gloss_target: (row) => [featureCell(row.sae, row.target, row.gloss_target, study), reasons(said.get(`${row.sae} ${row.target}`), row.token_set)],
    gloss_source: (row) => featureCell(row.sae, row.source, row.gloss_source, study, { neuron: told("loci")[row.locus]?.source, direction: called(row.relation) }),
    relation: (row) => called(row.relation),
    logodds: effectCell,
    locus: (row) => label("loci", row.locus),
    token_set: (row) => READ[row.token_set] || row.token_set,
    open: () => [el("span", { "aria-hidden": "true" }, "▸"), el("span", { cls: "hidden" }, "Open the pair")],
  };
  const grid = new Grid({
    source: reasoned(ctx, said), relation: study.relations.steering, cells, sort: "-logodds",
    open: (row) => (row.source < 0 || row.source === row.target || row.gloss_source === null ? null : address("pair", [row.sae, Math.min(row.source, row.target), Math.max(row.source, row.target)])),
    // Where the filters leave several loci or relations, rows say which they are of.
    columns: () => ["open", "gloss_source", "gloss_target", "token_set", "logodds", "interference", "similarity", ...["relation", "locus"].filter((name) => !fixedTo(name) && (name === "relation" || study.loci.length > 1)), ...several(study)],
    searchLabel: "Search in glosses of source and target",
    empty: "No row fits. Only pairs of the plan were steered: remove a filter or try other words.",
  });
  ctx.update = () => grid.update();
  return [
    el("h1", {}, "Steering"), steeringTabs(study),
    el("p", { cls: "lead" }, "The source's direction was added to the model; the change in log-odds of the target's tokens is what it did, in nats, averaged over prompts and odd in the sign of the dose."),
    about(),
    grid.node,
    el("p", { cls: "fine" }, "Intervals are over prompts of this pair alone. Sorting by effect picks extremes: with many rows, the largest are partly luck. The pooled effects with honest error rates are under ", link(address("results"), "Results"), "."),
  ];
}

// What a category or word in the address means, and where its other features are.
function about({ plan = true } = {}) {
  const wanted = (here().params.f || []).filter((f) => f.startsWith("target~"));
  if (!wanted.length) return null;
  const others = link(address("hubs", [], { f: wanted.map((f) => f.replace("target~", "feature~")) }), "All features about it, steered or not");
  return el("p", { cls: "fine" }, plan
    ? "A target counts when one of its tokens that were read holds the word, or a word of the category; the row says which. Only features that the plan drew were steered. "
    : "A target counts as about a word or category when its gloss or one of its tokens holds it. ", others, ".");
}

const fixedTo = (name) => (here().params.f || []).some((f) => f.startsWith(`${name}=`));

const READ = { in: "that activate it", out: "that it writes" };
const WHY = { in: "fires on", out: "writes" };
const reasons = (sides, read) => (sides?.[read]?.length ? el("span", { cls: "fine" }, ` · ${WHY[read]}: ${sides[read].join(", ")}`) : null);

// Rows as asked for; where a category was, the words that make each target count as about it are noted in `said`.
function reasoned(ctx, said) {
  const look = async (row, wanted) => {
    const f = await ctx.source.feature(row.sae, row.target);
    const hits = (texts) => [...new Set(texts.join(" ").toLowerCase().match(/[\p{L}\p{N}]+/gu) || [])].filter((w) => wanted.has(w));
    said.set(`${row.sae} ${row.target}`, { in: hits(f.tokens_in_str), out: hits(f.tokens_out_str) });
  };
  return {
    files: (relation, query) => ctx.source.files(relation, query),
    rows: async (relation, query, signal) => {
      const answer = await ctx.source.rows(relation, query, signal);
      const names = query.f.flatMap((f) => (/^target~(.*)$/s.exec(f)?.[1] || "").split(",")).map((w) => w.trim()).filter((w) => w.startsWith("@"));
      const wanted = new Set(names.flatMap((n) => ctx.study.categories[n.slice(1).toLowerCase()] || []));
      said.clear();
      const targets = new Map(answer.rows.map((row) => [`${row.sae} ${row.target}`, row]));
      if (wanted.size) await Promise.all([...targets.values()].map((row) => look(row, wanted)));
      return answer;
    },
  };
}

// What was read: tokens of a target, words of a category; and where the study has an atlas, what it says of every pair.
function steeringTabs(study) {
  const target = (here().params.f || []).filter((f) => f.startsWith("target"));
  const now = here().args[0] || "";
  const tab = (where, to, words) => link(to, words, { "aria-current": now === where ? "page" : null });
  return el("nav", { cls: "tabs", "aria-label": "Kind of effect" },
    tab("", address("steering", [], { f: [...steeringFilters(study, study.loci[0]), ...target] }), "Toward a target"),
    study.relations.toward ? tab("toward", towardAddress(study, Object.keys(study.categories)[0]), "Toward a category") : null,
    study.relations.atlas_top ? tab("predicted", address("steering", ["predicted"], { f: target }), "Predicted") : null);
}

// Features by what was typed into the box of every page.
export async function find(ctx) {
  const { study } = ctx;
  if (!study.relations.features) return [el("h1", {}, "Features"), ctx.absent("features")];
  const grid = new Grid({
    source: ctx.source, relation: study.relations.features,
    cells: { gloss: (row) => featureCell(row.sae, row.feature, row.gloss) },
    columns: ["gloss", "tokens_in_str", "tokens_out_str", "density", ...several(study)],
    empty: "No feature has that number, or one of these words in its gloss or tokens.",
  });
  ctx.update = () => grid.update();
  return [el("h1", {}, "Features"), el("p", { cls: "lead" }, "Features whose gloss or tokens hold one of the words (commas between them), or that have the number."), grid.node];
}

export async function hubs(ctx) {
  const { study } = ctx;
  const asked = here().args[0];
  const kind = ["coordinates", "neuron_effects"].includes(asked) ? asked : "hubs";
  if (!study.relations[kind]) return [el("h1", {}, "Hubs"), ctx.absent({ hubs: "pairs", coordinates: "features", neuron_effects: "effects" }[kind])];
  const grid = kind === "hubs"
    ? new Grid({
      source: ctx.source, relation: study.relations.hubs, sort: "-n_unflagged",
      cells: { gloss: (row) => featureCell(row.sae, row.feature, row.gloss) },
      columns: ["gloss", "n_unflagged", "n_pairs", "n_positive", "n_negative", "strongest", ...several(study)],
    })
    : kind === "neuron_effects" ? new Grid({
      source: ctx.source, relation: study.relations.neuron_effects, sort: "-degree",
      columns: ["neuron", "operation", "degree", "kl", "tied", "variance", "write_norm", "basis", "locus", ...several(study)],
    }) : new Grid({
      source: ctx.source, relation: study.relations.coordinates, sort: "-n_features", searchLabel: "Search in SAE and site",
      columns: ["coordinate", "n_features", "n_first", "share", "largest", "sae"],
    });
  ctx.update = () => grid.update();
  const words = kind === "hubs"
    ? "Features ranked by how many unrelated features they interfere with. Open one to see its neighbours as a graph."
    : kind === "neuron_effects" ? "Neurons masked, ablated and amplified one by one, ranked by their degree: gloss clusters of the features tied to them. Basis 1 are directions of a randomly rotated basis."
    : "Coordinates of the site (super-neurons, if few carry much) ranked by how many features have them among their three largest entries.";
  return [
    el("h1", {}, "Hubs"),
    el("nav", { cls: "tabs", "aria-label": "What is ranked" }, link(address("hubs"), "Features", { "aria-current": kind === "hubs" ? "page" : null }), link(address("hubs", ["coordinates"]), "Coordinates", { "aria-current": kind === "coordinates" ? "page" : null }), study.relations.neuron_effects ? link(address("hubs", ["neuron_effects"]), "Neurons", { "aria-current": kind === "neuron_effects" ? "page" : null }) : null),
    el("p", { cls: "lead" }, words),
    grid.node,
  ];
}

export async function tables(ctx) {
  const name = here().args[0];
  const { relations } = ctx.study;
  if (!name || !relations[name]) {
    const rows = Object.values(relations).map((r) => el("li", {}, el("h2", {}, link(address("tables", [r.name]), r.name)), el("p", { cls: "fine" }, `${r.columns.length} columns: ${r.columns.map((c) => c.name).slice(0, 8).join(", ")}${r.columns.length > 8 ? ", …" : ""}`)));
    const gone = Object.entries(ctx.study.homes).filter(([table]) => !relations[table]);
    return [
      el("h1", {}, "Tables"), name ? note(`There is no table ${name} in this study.`) : null,
      el("ul", { cls: "cards" }, rows),
      gone.length ? el("p", { cls: "fine" }, "Not there: ", gone.map(([t, stage]) => `${t} (stage ${stage})`).join(", ")) : null,
    ];
  }
  const relation = relations[name];
  // Glosses first, lists of numbers not at first: what a person can read.
  const readable = relation.columns.filter((c) => c.kind !== "list" || /(_str|tokens|categories)$/.test(c.name)).map((c) => c.name);
  const glosses = readable.filter((n) => /^gloss(_|$)/.test(n) && n !== "gloss_source" && n !== "gloss_index");
  const cells = Object.fromEntries([...glosses, ...readable.filter((n) => n === "text")].map((n) => [n, (row) => el("span", { cls: "gloss", title: row[n] }, row[n] ?? "–")]));
  const columns = [...readable.filter((n) => relation.features.includes(n)), ...glosses, ...readable.filter((n) => !glosses.includes(n) && !relation.features.includes(n) && !(n === "site" && relation.key.includes("sae")))].slice(0, 9);
  const grid = new Grid({ source: ctx.source, relation, cells, columns, searchLabel: relation.features.length ? "Search in glosses" : "Search in texts" });
  ctx.update = () => grid.update();
  const meaning = el("details", {}, el("summary", {}, "What the columns mean"), el("dl", { cls: "facts" }, relation.columns.map((c) => el("div", {}, el("dt", {}, c.name, c.unit ? el("span", { cls: "unit" }, ` ${c.unit}`) : null), el("dd", {}, c.meaning || head(c.name))))));
  return [el("p", { cls: "crumbs" }, link(address("tables"), "Tables"), " › ", name), el("h1", {}, name), meaning, grid.node];
}
