// The study at a glance, how far it is, and the question that most people come with.
import { el, link, note } from "../dom.js";
import { address } from "../state.js";
import { count, plural } from "../text.js";
import { told } from "../words.js";
import { steeringFilters } from "./lists.js";
import { towardAddress } from "./toward.js";

export function share(stage) {
  if (stage.finished) return 1;
  return stage.planned_parts ? Math.min(0.99, stage.n_parts / stage.planned_parts) : 0;
}

export function stages(list) {
  return el("ol", { cls: "stages" }, list.map((s) => {
    const state = s.finished ? "done" : s.n_parts ? `${s.n_parts} of ${s.planned_parts ?? "?"} parts` : "not there yet";
    return el("li", { cls: s.finished ? "done" : s.n_parts ? "begun" : "waiting" }, el("span", { cls: "stage-name" }, told("stages")[s.stage] || s.stage), el("span", { cls: "meter", vars: { "--w": `${100 * share(s)}%` }, "aria-hidden": "true" }), el("span", { cls: "fine" }, state));
  }));
}

function ask(study) {
  const input = el("input", { type: "search", id: "toward", placeholder: "for example: London, street, town", autocomplete: "off", required: true });
  const locus = study.loci[0];
  // Of both token sets: a row counts where the tokens that were read hold the word.
  const filters = steeringFilters(study, locus).filter((f) => !f.startsWith("token_set="));
  const toward = (words) => address("steering", [], { f: [...filters, `target~${words}`], sort: "-logodds" });
  const kinds = study.relations.toward ? Object.keys(study.categories) : [];
  return el("section", { cls: "ask-block" }, el("form", { cls: "ask", onsubmit: (event) => {
    event.preventDefault();
    location.hash = toward(input.value.trim());
  } }, el("label", { for: "toward" }, "Which unrelated features steer this model toward"), input, el("button", { type: "submit", cls: "main" }, "Show"),
  kinds.length ? el("p", { cls: "kinds" }, "or toward ", kinds.map((k, n) => [n ? ", " : "", link(towardAddress(study, k), told("toward")[k] || k)])) : null));
}

export async function home(ctx) {
  const { study } = ctx;
  const tiles = [
    [study.saes.length, study.saes.length === 1 ? "SAE" : "SAEs"],
    [study.size.examined, "pairs examined"],
    [study.size.listed, "pairs interfere though their glosses differ"],
    [study.size.steered, "of them steered"],
    [study.size.ok === null ? null : study.size.ok, "steering trials with an outcome"],
  ].filter(([n]) => n !== null && n !== undefined);
  const unfinished = study.stages.some((s) => !s.finished);
  const cards = [
    ["map", "Map", "Every pair of features at once: how alike their glosses are against how much their directions overlap. Draw a rectangle to list what is inside."],
    ["pairs", "Pairs", "Search, filter and sort the pairs that interfere, and open any of them."],
    ["steering", "Steering", "What steering along one feature did to the tokens of another, with intervals and controls."],
    ["hubs", "Hubs", "Features that interfere with many others, and coordinates that many features share."],
    study.relations.layer_edges ? ["layers", "Layers", "Which features of one layer write to which of a later one, and whether those weights act."] : null,
    ["results", "Results", "Effects by locus, against controls and over dose; presets and transfer where the study has them."],
    ["live", "Live", ctx.source.live ? "Type a prompt, steer along a feature, watch the next-token distribution." : "Off: start the explorer with --live to steer yourself."],
    ["tables", "Tables", "Every table of the study, as it is stored."],
  ].filter(Boolean);
  return [
    el("h1", {}, study.name),
    el("p", { cls: "lead" }, "Features of ", el("strong", {}, study.model), " that share directions though their glosses have nothing in common, and what that does to the model."),
    unfinished ? el("section", { cls: "running" }, el("h2", {}, "The study is not finished"), el("p", {}, "What is there can be looked at; this page fills in by itself."), stages(study.stages)) : null,
    study.size.steered ? ask(study) : note("Nothing was steered yet: effects are not in this run. ", el("code", {}, "polysem run RUN/study.toml --out RUN"), " makes them."),
    el("dl", { cls: "tiles" }, tiles.map(([n, words]) => el("div", {}, el("dt", {}, words), el("dd", {}, count(n))))),
    el("ul", { cls: "cards" }, cards.map(([view, title, words]) => el("li", {}, el("h2", {}, link(address(view), title)), el("p", {}, words)))),
    unfinished ? null : el("details", {}, el("summary", {}, "Stages"), stages(study.stages)),
    Object.keys(study.problems).length ? el("section", {}, el("h2", {}, "Tables that cannot be shown"), el("ul", {}, Object.entries(study.problems).map(([name, why]) => el("li", {}, el("strong", {}, name), `: ${why}`)))) : null,
    el("p", { cls: "fine" }, `${plural(study.saes.reduce((n, s) => n + s.n_features, 0), "feature")} in ${study.saes.map((s) => s.label).join(", ")}.`),
  ];
}
