// The paper's estimates beside the strict ones, and the way from one to the other.
import { el, link, note } from "../dom.js";
import { dotPlot } from "../charts.js";
import { allRows } from "../source.js";
import { address } from "../state.js";
import { count, interval, number, plural, probability } from "../text.js";
import { locus, relation as called, tokens, told } from "../words.js";

const choice = (row) => told("choices")[row.choice] || [row.choice, row.choice];
// Relative changes are told in per cent.
const scale = (row) => (row.unit.startsWith("relative change") ? 100 : 1);
const unit = (row) => ({ "relative change": "%", cosine: "of c" }[row.unit.replace(" per cosine", "")] || "nats");
const value = (row) => (row.estimate === null ? row.note || "not estimated" : `${number(scale(row) * row.estimate, 3, true)} ${unit(row)}`);
const between = (row) => (row.lo === null ? "no interval" : interval(scale(row) * row.lo, scale(row) * row.hi));
const clear = (row, end) => (row.estimate === null || row[end] === null || !row.se ? null : row[end] / row.se);

export async function presets(ctx) {
  const { study } = ctx;
  if (!study.relations.presets) return [ctx.absent("presets")];
  const rows = await allRows(ctx.source, "presets");
  if (!rows.length) return [note("This study holds strict estimates only. With ", el("code", {}, 'preset = "both"'), " in its study.toml the paper's way of estimating stands beside them: ", el("code", {}, study.commands.effects))];
  const groups = new Map();
  const place = (row) => `${locus(row.locus)}: ${tokens(row.token_set)}`;
  for (const row of rows) groups.set(place(row), [...(groups.get(place(row)) || []), row]);
  return [
    el("p", { cls: "lead" }, "The same trials, pairs and prompts, answered in the way of arXiv 2505.11611 and in this instrument's way. From top to bottom one choice after another is replaced."),
    [...groups].map(([name, own]) => part(name, own)),
    el("p", { cls: "fine" }, "A way from one end to the other depends on its order: where a change does something else alone than on top of the others, the choices interact, and neither number is the share of that choice. The p values are not adjusted."),
    el("p", {}, link(address("tables", ["presets"]), "All of it as a table")),
  ];
}

function part(name, rows) {
  const asked = Object.keys(told("questions")).map((q) => [q, walk(rows, q)]).filter(([, steps]) => steps.length);
  return el("section", {}, el("h2", {}, name), ends(asked, name), el("div", { cls: "figures" }, asked.map(([q, steps]) => way(q, steps, rows)), optimism(rows)));
}

const walk = (rows, question) => rows.filter((r) => r.question === question && r.relation === "pair" && r.path === "walk").sort((a, b) => a.step - b.step);

function ends(asked, name) {
  const cell = (row) => el("td", { cls: "words" }, row.estimate === null ? value(row) : [el("strong", {}, value(row)), el("br", {}), el("span", { cls: "id" }, `${between(row)}; p ${probability(row.p)}; ${plural(row.n_rows, "value")} of ${plural(row.n_pairs, "arm")}`)]);
  return el("div", { cls: "panel wide scroll", tabindex: "0", role: "region", "aria-label": `Paper and strict, ${name}` }, el("table", { cls: "numbers" },
    el("thead", {}, el("tr", {}, ["question", "the paper's way", "the strict way"].map((h) => el("th", { scope: "col", cls: "words" }, h)))),
    el("tbody", {}, asked.map(([q, steps]) => el("tr", {}, el("th", { scope: "row" }, told("questions")[q]), cell(steps[0]), steps.length > 1 ? cell(steps[steps.length - 1]) : el("td", { cls: "words" }, "not asked for"))))));
}

// Units change on the way, so every estimate is told in its own standard errors: one picture holds all of it.
function way(question, steps, rows) {
  if (steps.filter((r) => clear(r, "estimate") !== null).length < 2) return null;
  const alone = new Map(rows.filter((r) => r.question === question && r.relation === "pair" && r.path === "alone").map((r) => [r.choice, r]));
  const lines = steps.map((r) => ({ label: choice(r)[0], estimate: clear(r, "estimate"), lo: clear(r, "lo"), hi: clear(r, "hi"), kind: r.step ? "k-pair" : "k-random_feature", words: value(r) }));
  return el("figure", { cls: "panel" }, el("h3", {}, told("questions")[question]),
    dotPlot(lines, { xLabel: "estimate over its standard error", label: `${told("questions")[question]}: from the paper's way to the strict one` }),
    el("figcaption", {}, "Each row adds one change to those above it. Estimates and intervals are in standard errors."),
    el("details", {}, el("summary", {}, "In numbers, and each change by itself"), el("div", { cls: "scroll", tabindex: "0", role: "region", "aria-label": `Steps: ${told("questions")[question]}` }, el("table", { cls: "numbers" },
      el("thead", {}, el("tr", {}, ["changed", "with all so far", "alone"].map((h) => el("th", { scope: "col" }, h)))),
      el("tbody", {}, steps.map((r) => el("tr", {}, el("th", { scope: "row" }, choice(r)[1].replace("{paper}", "the paper's outcome").replace("{strict}", told("outcomes")[r.outcome]?.label || r.outcome).replace("{steered}", "")), [r, alone.get(r.choice)].map((s) => el("td", {}, s ? `${value(s)} (${between(s)})` : "–")))))))));
}

// What choosing the best strength on the reported prompts adds, for pairs and controls alike.
function optimism(rows) {
  const mine = rows.filter((r) => r.path === "optimism" && r.question === "mean");
  const relations = [...new Set(mine.map((r) => r.relation))];
  const lines = relations.flatMap((relation) => [["best_per_prompt", "best of each prompt", "k-random_feature"], ["same_on_confirm", "chosen elsewhere", "k-pair"]].map(([choice, words, kind]) => {
    const r = mine.find((m) => m.relation === relation && m.choice === choice);
    return r && r.estimate !== null ? { label: `${called(relation)}: ${words}`, estimate: 100 * r.estimate, lo: r.lo === null ? null : 100 * r.lo, hi: r.hi === null ? null : 100 * r.hi, kind, words: `${count(r.n_pairs)} arms` } : null;
  })).filter(Boolean);
  if (!lines.length) return null;
  return el("figure", { cls: "panel" }, el("h3", {}, "What choosing the strength adds"), dotPlot(lines, { xLabel: "mean relative change of c (%)", label: "chosen on the reported prompts against chosen elsewhere" }),
    el("figcaption", {}, "The best strength of each reported prompt, and a strength chosen on other prompts. What lies between the two is there for controls as well as for pairs, so it says nothing about interference."));
}
