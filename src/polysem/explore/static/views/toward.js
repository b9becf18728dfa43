// Which unrelated features push the model toward places, people, numbers: what was measured on the category's own words.
import { el, link } from "../dom.js";
import { Grid, featureCell, several } from "../grid.js";
import { address, here } from "../state.js";
import { fixed, interval } from "../text.js";
import { label, relation as called, told } from "../words.js";

// The answer's own filters: features that are not about it, and moved it on both halves of the prompts.
export function towardAddress(study, category) {
  const [locus] = study.loci;
  const f = [`category=${category}`, "unrelated=true", "moves=true"];
  if (locus) f.push(`locus=${locus.locus}`);
  if (locus && locus.headline !== null && locus.headline !== undefined) f.push(`dose=${locus.headline}`);
  return address("steering", ["toward"], { f, sort: "-select_lo" });
}

export async function toward(ctx, { tabs }) {
  const { study } = ctx;
  if (!study.relations.toward) return [el("h1", {}, "Steering"), tabs, ctx.absent("toward")];
  const cells = {
    gloss_source: (row) => featureCell(row.sae, row.source, row.gloss_source, study, { neuron: told("loci")[row.locus]?.source, direction: called(row.relation) }),
    category: (row) => told("toward")[row.category] || row.category,
    effect: (row) => [el("strong", { cls: row.effect < 0 ? "down" : "up" }, fixed(row.effect, 3, true)), el("span", { cls: "id" }, ` ${interval(row.lo, row.hi)}`)],
    locus: (row) => label("loci", row.locus),
    relation: (row) => called(row.relation),
  };
  const grid = new Grid({
    source: ctx.source, relation: study.relations.toward, cells, sort: "-select_lo",
    columns: () => ["gloss_source", "effect", "kl", ...["category", "locus", "relation", "unrelated", "moves"].filter((name) => !asked(`${name}=`).length && (name !== "locus" || study.loci.length > 1)), ...several(study)],
    searchLabel: "Search in glosses of what was pushed",
    empty: "Nothing that was pushed fits. Only features of the plan were steered: remove a filter.",
  });
  ctx.update = () => grid.update();
  return [
    el("h1", {}, "Steering"), tabs,
    el("p", { cls: "lead" }, "Every push, by what it did to the log-odds of a category's own words: in nats, averaged over prompts and odd in the sign of the dose, whatever target it was planned for."),
    kinds(study), fine(study), grid.node,
  ];
}

const asked = (beginning) => (here().params.f || []).filter((f) => f.startsWith(beginning));

function kinds(study) {
  const now = asked("category=")[0];
  return el("p", { cls: "kinds" }, "Toward ", Object.keys(study.categories).map((k, n) => [n ? ", " : "", link(towardAddress(study, k), told("toward")[k] || k, { "aria-current": now === `category=${k}` ? "true" : null })]), ".");
}

function fine(study) {
  const atlas = study.relations.atlas_toward;
  const category = asked("category=");
  return el("p", { cls: "fine" }, "A feature is unrelated if neither its gloss nor a token that activates it names a word of the category. It moves the model if both intervals lie above 0: rows are ordered on the select prompts and show what was measured on the confirm prompts. Any direction moves something: set the filter relation to random_direction to see how much. ",
    atlas ? [link(address("tables", ["atlas_toward"], { f: [...category, "unrelated=true"], sort: "rank" }), "Every feature of the SAEs, by its gradient"), "."] : null);
}
