// What was found over all pairs, the paper's way beside the strict one, transfer to other models: as the report has it.
import { el, link, note } from "../dom.js";
import { drawn } from "../drawn.js";
import { dataOf, head } from "../grid.js";
import { address, first, here } from "../state.js";
import { inOrder, label, locus as called, told } from "../words.js";

const PLACES = {
  results: { words: "Effects", tables: ["effects", "dose_response", "explained", "missing"] },
  compare: { words: "SAEs side by side", tables: ["features", "pairs", "spectrum"] },
  presets: { words: "Paper against strict", tables: ["presets"] },
  "side-effects": { words: "Side effects", tables: ["directions", "side_effects", "side_effects_moved", "cleaner", "repairs"] },
  joint: { words: "Several at once", tables: ["joint_sizes", "joint_pairs", "joint_findings", "plans"] },
  layers: { words: "Across layers", tables: ["layer_blocks"] },
  transfer: { words: "Transfer to other models", tables: ["transfer_effects", "transfer_shared"] },
};

const ALWAYS = ["results", "compare", "presets", "transfer"];

export async function results(ctx) {
  const { study } = ctx;
  const name = PLACES[here().args[0]] ? here().args[0] : "results";
  const { tables } = PLACES[name];
  const tabs = el("nav", { cls: "tabs", "aria-label": "Kind of result" }, Object.entries(PLACES).filter(([place, { tables: [first_] }]) => study.relations[first_] || ALWAYS.includes(place) || place === name).map(([place, { words }]) => link(address("results", place === "results" ? [] : [place]), words, { "aria-current": place === name ? "page" : null })));
  const top = [el("h1", {}, "Results"), tabs];
  if (!study.relations[tables[0]]) return [...top, name === "transfer" ? note("This study holds no transfer tables: no other model was tried. ", el("code", {}, study.commands.transfer)) : ctx.absent(tables[0])];
  const found = await drawn(ctx, name);
  if (!found.length) return [...top, note("This study holds strict estimates only. With ", el("code", {}, 'preset = "both"'), " in its study.toml the paper's way of estimating stands beside them: ", el("code", {}, study.commands.effects))];
  const there = found.map((node) => node.dataset.locus).filter(Boolean);
  const loci = inOrder("loci", there);
  const locus = loci.includes(first(here().params, "locus")) ? first(here().params, "locus") : loci[0];
  const gone = name === "results" ? Object.keys(told("loci")).filter((l) => !loci.includes(l)) : [];
  const measures = found.flatMap((node) => [...node.querySelectorAll("[data-measure]")]);
  const measure = measures.find((node) => node.dataset.measure === first(here().params, "measure")) || measures[0];
  for (const node of measures) node.hidden = node !== measure;
  if (measures.length > 1) measure.before(el("nav", { cls: "tabs", "aria-label": "What is measured" }, measures.map((node) => link(address("results", [name], { measure: node.dataset.measure }), node.dataset.words, { "aria-current": node === measure ? "true" : null }))));
  return [
    ...top,
    loci.length > 1 ? el("nav", { cls: "tabs", "aria-label": "Locus" }, loci.map((l) => link(address("results", [], { locus: l }), called(l), { "aria-current": l === locus ? "page" : null }))) : null,
    gone.length ? el("p", { cls: "fine" }, `Loci that this study did not run: ${gone.map((l) => label("loci", l)).join(", ")}.`) : null,
    found.filter((node) => !node.dataset.locus || node.dataset.locus === locus),
    el("p", {}, tables.filter((t) => study.relations[t]).map((t, k) => [k ? " · " : "", link(address("tables", [t]), head(t))]), name === "results" ? [" · ", link(address("steering"), "Single pairs")] : null),
    dataOf(ctx, tables.map((t) => [head(t).toLowerCase(), t, []])),
  ];
}
