// Transfer to other models: categories by arm, model by model.
import { el, link, note } from "../dom.js";
import { dotPlot } from "../charts.js";
import { head } from "../grid.js";
import { allRows } from "../source.js";
import { address, first, here } from "../state.js";
import { count, fixed, interval, number, probability } from "../text.js";
import { told } from "../words.js";

const MEASURES = { specific: "the category against the others", logodds: "log-odds of the category's words", success: "more words in the top k", welch: "the paper's test, trial by trial" };
const meaning = (arm) => (told("arms")[arm] ? `${head(arm).toLowerCase()}: ${told("arms")[arm][2]}` : arm);
const STEPS = 4;

const known = (order, values) => [...new Set(values)].sort((a, b) => (order.indexOf(a) < 0 ? 99 : order.indexOf(a)) - (order.indexOf(b) < 0 ? 99 : order.indexOf(b)) || (a < b ? -1 : 1));

export async function transfer(ctx) {
  const { study, source } = ctx;
  if (!study.relations.transfer_effects) return [note("This study holds no transfer tables: no other model was tried. ", el("code", {}, study.commands.transfer))];
  const rows = await allRows(source, "transfer_effects");
  const { params } = here();
  const measures = known(Object.keys(MEASURES), rows.map((r) => r.contrast));
  const measure = measures.includes(first(params, "measure")) ? first(params, "measure") : measures[0];
  const prompts = [...new Set(rows.map((r) => `${r.template}, ${r.position}`))];
  const prompt = prompts.includes(first(params, "prompt")) ? first(params, "prompt") : prompts[0];
  const mine = rows.filter((r) => r.contrast === measure && `${r.template}, ${r.position}` === prompt);
  const arms = known(Object.keys(told("arms")), mine.map((r) => r.arm));
  const arm = arms.includes(first(params, "arm")) ? first(params, "arm") : arms.includes("shared") ? "shared" : arms[0];
  const tabs = (name, values, now, words, label) => (values.length > 1 ? el("nav", { cls: "tabs", "aria-label": label }, values.map((v) => link(address("results", ["transfer"], { ...params, [name]: v }), words(v), { "aria-current": v === now ? "true" : null }))) : null);
  const targets = known([], mine.map((r) => r.target));
  const most = Math.max(...mine.map((r) => Math.abs(r.estimate || 0)), 1e-9);
  return [
    el("p", { cls: "lead" }, "Strings of interfering pairs that two small models share, put into the prompts of another model: do its answers move toward the pair's category, more than with matched strings?"),
    await shared(ctx),
    tabs("measure", measures, measure, (m) => MEASURES[m] || m, "What is measured"),
    tabs("prompt", prompts, prompt, (p) => `strings ${p}`, "How strings are put into the prompt"),
    el("div", { cls: "stack" }, targets.map((t) => grid(t, mine.filter((r) => r.target === t), { arms, most }))),
    el("h2", {}, "One arm with intervals"),
    tabs("arm", arms, arm, (a) => head(a), "Arm"),
    el("p", { cls: "fine" }, meaning(arm)),
    el("div", { cls: "figures" }, targets.map((t) => one(t, mine.filter((r) => r.target === t && r.arm === arm)))),
    el("p", {}, Object.keys(study.relations).filter((n) => n.startsWith("transfer_")).map((n, k) => [k ? " · " : "", link(address("tables", [n]), head(n))])),
  ];
}

async function shared(ctx) {
  if (!ctx.study.relations.transfer_shared) return null;
  const rows = await allRows(ctx.source, "transfer_shared");
  return rows.map((r) => el("p", {}, el("strong", {}, r.source_a), " and ", el("strong", {}, r.source_b), `: ${count(r.n_matched)} features matched by activation on the same text; ${count(r.n_shared)} pairs interfere in both, where a permuted matching gives ${number(r.expected)}. Lift ${r.lift === null ? "–" : `${number(r.lift)} (${number(r.lift_lo)} to ${number(r.lift_hi)})`}, p ${probability(r.p)}.`));
}

// Categories down, arms across; colour says how far, bold says that it was resolved.
function grid(target, rows, { arms, most }) {
  const at = new Map(rows.map((r) => [`${r.category} ${r.arm}`, r]));
  const categories = known([], rows.map((r) => r.category));
  const cell = (r) => {
    if (!r || r.estimate === null) return el("td", { title: (r && r.note) || null }, "–");
    const step = Math.ceil((STEPS * Math.abs(r.estimate)) / most - 0.5);
    const resolved = r.p_adj !== null && r.p_adj < 1 - r.level;
    return el("td", { cls: `${step > 0 ? (r.estimate > 0 ? `plus${step}` : `minus${step}`) : ""}${resolved ? " resolved" : ""}`, title: `${number(r.estimate, 3, true)} (${interval(r.lo, r.hi)}); p over all categories ${probability(r.p_adj)}` }, fixed(r.estimate, 2, true), resolved ? " *" : null);
  };
  return el("figure", { cls: "panel" }, el("h3", {}, target), el("div", { cls: "scroll", tabindex: "0", role: "region", "aria-label": `Categories by arm, ${target}` }, el("table", { cls: "numbers matrix" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "category"), arms.map((a) => el("th", { scope: "col", title: meaning(a) }, head(a).toLowerCase())))),
    el("tbody", {}, categories.map((c) => el("tr", {}, el("th", { scope: "row" }, c), arms.map((a) => cell(at.get(`${c} ${a}`)))))))),
    el("figcaption", {}, `In ${rows[0].unit}, treated minus reference. Blue up, orange down. *: resolved, adjusted over categories.`));
}

function one(target, rows) {
  if (!rows.length) return null;
  const noise = Math.max(...rows.map((r) => r.noise_floor || 0)) || null;
  const lines = rows.map((r) => ({ label: r.category, estimate: r.estimate, lo: r.lo, hi: r.hi, kind: "k-pair", words: `p ${probability(r.p)}, over all categories ${probability(r.p_adj)}; ${r.note || ""}` }));
  return el("figure", { cls: "panel" }, el("h3", {}, target), dotPlot(lines, { xLabel: rows[0].unit, label: `${target}, ${rows[0].arm}`, band: noise }), noise ? el("figcaption", {}, "Grey: what repeated baselines differ by.") : null);
}
