// One feature as a column: what it is called, where it fires, what it writes.
import { el, link, outside } from "./dom.js";
import { address } from "./state.js";
import { count, number, visible } from "./text.js";

const SHADES = 5;
const CONTEXTS = 6;

export const gloss = (feature) => feature.gloss || "no gloss";

function glosses(feature) {
  if (!feature.glosses.length) return el("p", { cls: "fine" }, "This study holds no gloss of it.");
  return el("ul", { cls: "glosses" }, feature.glosses.map((g) => el("li", {}, el("span", { cls: "gloss" }, g.text), el("span", { cls: "id" }, ` ${[g.source, g.explainer].filter(Boolean).join(", ")}`))));
}

export function context(row, most) {
  const line = el("p", { cls: "context" });
  row.tokens.forEach((token, k) => {
    const value = row.values[k] || 0;
    const shade = most > 0 ? Math.max(0, Math.min(SHADES, Math.ceil((SHADES * value) / most - 0.25))) : 0;
    line.append(el("span", { cls: shade ? `s${shade}` : "", title: value > 0 ? number(value) : null }, visible(token, 60)));
  });
  return line;
}

function contexts(feature, open) {
  if (!feature.contexts.length) return el("p", { cls: "fine" }, "No contexts are stored.");
  const most = Math.max(...feature.contexts.map((c) => c.max_value));
  const lines = feature.contexts.map((c) => el("li", {}, context(c, most), el("span", { cls: "id" }, `${number(c.max_value)} · ${c.source}`)));
  const rest = lines.slice(CONTEXTS);
  return [el("ol", { cls: "contexts" }, lines.slice(0, CONTEXTS)), rest.length ? el("details", { open }, el("summary", {}, `${rest.length} more`), el("ol", { cls: "contexts", start: CONTEXTS + 1 }, rest)) : null];
}

function tokens(list, values, { unit }) {
  if (!list.length) return el("p", { cls: "fine" }, "none");
  const most = Math.max(...(values || []).map(Math.abs), 1e-12);
  return el("ul", { cls: "tokens" }, list.map((t, k) => {
    const v = values ? values[k] : null;
    return el("li", {}, el("code", {}, visible(t, 40)), v === null || v === undefined ? null : el("span", { cls: "bar", vars: { "--w": `${(100 * Math.abs(v)) / most}%` }, title: `${number(v)} ${unit}` }), v === null || v === undefined ? null : el("span", { cls: "id" }, number(v)));
  }));
}

export function featureCard(feature, { heading = "h2", name = "", full = false, titled = true, drawn = [] } = {}) {
  const facts = [
    ["active on", feature.density === null ? "not counted" : `${number(100 * feature.density)} % of tokens${feature.n_active === null ? "" : ` (${count(feature.n_active)})`}`],
    ["largest activation", number(feature.max_act)],
    ["decoder norm", number(feature.dec_norm)],
    ["coordinates", feature.neuron_alignment.map((c, k) => `${c} (${number(feature.neuron_alignment_values[k] / (feature.dec_norm || 1))})`).join(", ") || "–"],
    ["gloss clusters", feature.clusters.map((c) => `${c.cluster} at ${c.similarity_cut}`).join(", ") || "–"],
  ];
  return el("article", { cls: "feature-card" },
    titled && el(heading, { cls: "gloss" }, name ? el("span", { cls: "side" }, `${name} `) : null, gloss(feature)),
    el("p", { cls: "id" }, link(address("feature", [feature.sae, feature.feature]), `feature ${feature.feature}`), ` of ${feature.sae} `, feature.link ? ["· ", outside(feature.link, "Neuronpedia")] : null),
    el(titled ? "h3" : "h2", {}, `Glosses (${feature.glosses.length})`), glosses(feature),
    el("h3", {}, "Where it fires"), contexts(feature, full),
    drawn.length ? drawn : el("p", { cls: "fine" }, "No activations are stored."),
    el("div", { cls: "three" },
      el("div", {}, el("h3", {}, "Tokens that activate it"), tokens(feature.tokens_in_str, feature.tokens_in_act, { unit: "activation" })),
      el("div", {}, el("h3", {}, "Logits it raises"), tokens(feature.tokens_out_str, feature.tokens_out_logit, { unit: "logits per unit decoder" })),
      el("div", {}, el("h3", {}, "Logits it lowers"), tokens(feature.tokens_bottom_str, null, { unit: "" }))),
    el("dl", { cls: "facts" }, facts.map(([k, v]) => el("div", {}, el("dt", {}, k), el("dd", {}, v)))),
  );
}
