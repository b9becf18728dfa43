// Two features side by side: what they are, how they overlap, what steering along one does to the other.
import { el, link, note } from "../dom.js";
import { featureCard, gloss } from "../card.js";
import { drawn, figuresOf, markedAt } from "../drawn.js";
import { cellText, dataOf, flags, head } from "../grid.js";
import { saveButton } from "../save.js";
import { address, here } from "../state.js";
import { fixed, interval, number, probability } from "../text.js";
import { kinOfPair } from "./kin.js";
import { locus as called, relation, tokens as read, told } from "../words.js";

export async function pair(ctx) {
  const [sae, a, b] = here().args;
  const [i, j] = [Number(a), Number(b)].sort((p, q) => p - q);
  if (!Number.isInteger(i) || !Number.isInteger(j) || i === j) return [el("h1", {}, "Pair"), note("The address names no pair: expected #/pair/SAE/I/J with two different features.")];
  const { source, study } = ctx;
  const none = { rows: [] };
  const get = (name, f) => (study.relations[name] ? source.rows(name, { f, limit: 1000, offset: 0 }) : none);
  const [first, second, listed, lines, forward, backward, floors, parts] = await Promise.all([
    source.feature(sae, i), source.feature(sae, j),
    get("pairs", [`sae=${sae}`, `i=${i}`, `j=${j}`]), study.relations.density ? drawn(ctx, "lines") : [],
    get("steering", [`sae=${sae}`, `target=${j}`, `source=${i}`, "relation=pair"]), get("steering", [`sae=${sae}`, `target=${i}`, `source=${j}`, "relation=pair"]),
    source.doc("floors"), Promise.all([[i, j], [j, i]].map(([from, to]) => get("decomposition", [`sae=${sae}`, `target=${to}`, `source=${from}`]))),
  ]);
  const [rows, made] = [[...forward.rows, ...backward.rows], parts.flatMap((p) => p.rows)];
  const [figures, ...fires] = await Promise.all([rows.length || made.length ? drawn(ctx, "pair", { sae, i, j }) : [], ...[i, j].map((n) => drawn(ctx, "feature", { sae, feature: n }))]);
  // A steered pair that was not mined has its cosines in its effects, and no chance of its own.
  const row = listed.rows[0] || forward.rows[0] || backward.rows[0];
  const line = (axis) => lines.find((node) => node.dataset.of === `${axis}/${sae}`);
  return [
    el("p", { cls: "crumbs" }, link(address("pairs"), "Pairs"), ` › ${sae} › ${i} and ${j}`),
    el("h1", { cls: "pair-title" }, el("span", { cls: "gloss" }, short(gloss(first), 70)), el("span", { cls: "and" }, " and "), el("span", { cls: "gloss" }, short(gloss(second), 70))),
    saveButton(`pair-${sae}-${i}-${j}`.replace(/[^\w.-]+/g, "_")),
    overlap(row, line, study, { listed: Boolean(listed.rows.length) }),
    await kinOfPair(ctx, { sae, i, j }),
    steered(ctx, { sae, i, j, rows, floors: floors.floors, figures: figures.filter((node) => node.dataset.of !== "apart") }),
    apart(ctx, made, figures.filter((node) => node.dataset.of === "apart")),
    await others(ctx, { sae, i, j }),
    el("section", { cls: "two" }, featureCard(first, { name: "First:", drawn: figuresOf(fires[0]) }), featureCard(second, { name: "Second:", drawn: figuresOf(fires[1]) })),
    dataOf(ctx, files({ sae, i, j })),
  ];
}

function files({ sae, i, j }) {
  const own = [`sae=${sae}`];
  const ways = [[i, j], [j, i]].flatMap(([from, to]) => ["steering", "response", "decomposition"].map((name) => [`${name.replace("response", "linear response")}, ${from} steered`, name, [...own, `source=${from}`, `target=${to}`]]));
  const sides = [i, j].flatMap((n) => ["features", "glosses", "contexts"].map((name) => [`${name} of ${n}`, name, [...own, `feature=${n}`]]));
  return [["the pair", "pairs", [...own, `i=${i}`, `j=${j}`]], ...ways, ...sides];
}

function overlap(row, line, study, { listed }) {
  if (!row || row.interference === null) return note(`This pair is not among the listed ones (|interference| ≥ ${study.pairs.min_interference} and similarity < ${study.pairs.max_similarity}), so its cosines are not stored.`);
  const spread = line("similarity") ? JSON.parse(line("similarity").querySelector("svg").dataset.bars) : [];
  const below = spread.reduce((n, [lo, hi, k]) => n + (hi <= row.similarity ? k : lo < row.similarity ? (k * (row.similarity - lo)) / (hi - lo) : 0), 0);
  const total = spread.reduce((n, [, , k]) => n + k, 0);
  const marked = (axis, value) => (line(axis) ? markedAt(line(axis), value).querySelector("svg") : null);
  const facts = !listed ? [["listed", `no: |interference| ≥ ${study.pairs.min_interference} and similarity < ${study.pairs.max_similarity} are`]] : [
    ["interference without the shared mean direction", fixed(row.interference_demeaned)],
    ["what one reads when the other is written", `${fixed(row.enc_dec_ij)} and ${fixed(row.enc_dec_ji)} (encoder against decoder)`],
    ["overlap of activating tokens", number(row.token_overlap)],
    ["overlap of top contexts", number(row.context_overlap)],
    ["flags", flags(row).length ? flags(row) : "none"],
  ];
  return el("section", { cls: "panel overlap" },
    el("div", { cls: "three even" },
      el("div", {}, el("h2", {}, `Interference ${fixed(row.interference, 3, true)}`), marked("interference", row.interference),
        el("p", { cls: "fine" }, `Bars: all pairs of the SAE (log height). Shaded: 99.9 % of random directions.${listed ? ` ${number(row.z_covariance, 3, true)} sd of this SAE's own chance; p ${probability(row.p_covariance)}, q over all pairs ${probability(row.q_covariance)}.` : ""}`)),
      el("div", {}, el("h2", {}, `Gloss similarity ${fixed(row.similarity)}`), marked("similarity", row.similarity),
        el("p", { cls: "fine" }, total ? `${number((100 * below) / total)} % of all pairs of glosses are less alike. That is its chance: two glosses drawn at random.` : "No histogram of all pairs is stored.")),
      el("div", {}, el("h2", {}, "In detail"), el("dl", { cls: "facts" }, facts.map(([k, v]) => el("div", {}, el("dt", {}, k), el("dd", {}, v)))))),
  );
}

function steered(ctx, { sae, i, j, rows, floors, figures }) {
  const { study } = ctx;
  const liveLink = ctx.source.live ? el("p", {}, link(address("live", [], { sae, source: i, target: j }), "Steer live", { cls: "button main" })) : null;
  const title = el("h2", {}, "What steering along one does to the tokens of the other");
  if (!study.relations.steering) return el("section", {}, title, ctx.absent("pair_effects"), liveLink);
  if (!rows.length) return el("section", {}, title, note("The plan did not draw this pair, so it was not steered. ", link(address("steering"), "These were"), ctx.source.live ? "; or steer yourself:" : "; start the explorer with --live to steer yourself."), liveLink);
  const keys = study.loci.flatMap((l) => study.token_sets.map((tokens) => ({ ...l, tokens }))).map((k) => ({ ...k, rows: rows.filter((r) => r.locus === k.locus && r.token_set === k.tokens) })).filter((k) => k.rows.length);
  const panels = keys.map((key) => {
    const words = `${called(key.locus)}: ${read(key.tokens)}`;
    const panel = figures.find((node) => node.querySelector("h4").textContent === words) || el("figure", { cls: "panel" }, el("h4", {}, words));
    const ways = [[i, j], [j, i]].map(([from, to]) => ({ label: `${from} steered, ${to} read`, rows: key.rows.filter((r) => r.source === from && r.target === to) })).filter((w) => w.rows.length);
    panel.append(...[numbers(ways, floors.filter((f) => f.sae === sae && f.locus === key.locus && f.token_set === key.tokens), key.headline),
      ctx.source.live ? el("p", {}, ways.map((w) => rowLive(study, w.rows.find((r) => r.dose === key.headline) || w.rows[w.rows.length - 1]))) : null].filter(Boolean));
    return panel;
  });
  return el("section", {}, title, el("div", { cls: "figures" }, panels), el("p", { cls: "fine" }, "The effect is the odd part over +dose and −dose."), liveLink);
}

// To the live page with all that the row was: direction, dose, positions, prompts.
function rowLive(study, row) {
  const { unit } = study.loci.find((l) => l.locus === row.locus);
  const dose = unit === "kl" || unit === "resid_norm" ? row.dose : null;
  return [link(address("live", [], { sae: row.sae, source: row.source, target: row.target, locus: row.locus, unit: unit === "kl" ? "kl" : "scale", dose, set: row.token_set, row: row.dose }), `Push ${row.source} live`, { cls: "button" }), " "];
}

const short = (text, n = 44) => { const c = [...text]; return c.length > n ? `${c.slice(0, n - 1).join("")}…` : text; };

function numbers(ways, floors, headline) {
  const rows = ways.flatMap((w) => w.rows.map((r) => ({ label: w.label, ...r }))).sort((a, b) => a.dose - b.dose);
  const floorAt = (relation, dose) => floors.find((f) => f.relation === relation && Math.abs(f.dose - dose) < 1e-9);
  const controls = [...new Set(floors.map((f) => f.relation))].sort();
  const cell = (f) => (f ? `${interval(f.lo, f.hi)} (${f.n})` : "–");
  return el("details", {}, el("summary", {}, "Numbers, with controls"), el("div", { cls: "scroll", tabindex: "0", role: "region", "aria-label": "Numbers of this chart" }, el("table", { cls: "numbers" },
    el("thead", {}, el("tr", {}, ["dose", "", "effect (nats)", "interval", "KL (nats)", ...controls.map((c) => `${relation(c)}, 95 %`)].map((h) => el("th", { scope: "col" }, h)))),
    el("tbody", {}, rows.map((r) => el("tr", { cls: r.dose === headline ? "strong" : "" }, el("th", { scope: "row" }, number(r.dose)), el("td", { cls: "words" }, r.label), el("td", {}, fixed(r.logodds, 3, true)), el("td", {}, interval(r.lo, r.hi)), el("td", {}, number(r.kl)), controls.map((c) => el("td", {}, cell(floorAt(c, r.dose))))))))));
}

// Tables of other stages that speak of this pair: the decomposition as a bar, the rest as rows.
async function others(ctx, { sae, i, j }) {
  const shown = new Set(["pairs", "relations", "steering", "pair_effects", "plan", "trials", "atlas_sample", "decomposition"]);
  const found = [];
  for (const table of Object.values(ctx.study.relations)) {
    if (shown.has(table.name)) continue;
    const keys = ["target", "source"].every((k) => table.features.includes(k)) ? ["target", "source"] : ["i", "j"].every((k) => table.features.includes(k)) ? ["i", "j"] : null;
    if (!keys) continue;
    const sides = keys[0] === "i" ? [[i, j]] : [[i, j], [j, i]];
    for (const [p, q] of sides) {
      const answer = await ctx.source.rows(table.name, { f: [`sae=${sae}`, `${keys[0]}=${p}`, `${keys[1]}=${q}`], limit: 60, offset: 0 });
      if (answer.rows.length) found.push(el("details", {}, el("summary", {}, `${head(table.name)}: ${keys[0]} ${p}, ${keys[1]} ${q} (${answer.rows.length})`), small(table, answer.rows)));
    }
  }
  return found;
}

function apart(ctx, rows, figures) {
  const title = el("h2", {}, "What the effect is made of");
  if (!ctx.study.relations.decomposition) return el("section", {}, title, note("The study holds no decomposition of effects. ", el("code", {}, ctx.study.commands.response || "")));
  if (!figures.length) return el("section", {}, title, note(rows.length ? "No total could be computed." : "The decomposition of this pair was not computed; it is for pairs that were steered."));
  const words = Object.values(told("splits")).flatMap((parts) => Object.entries(parts));
  const whole = rows.filter((r) => r.total !== null);
  return el("section", {}, title, el("div", { cls: "figures" }, figures), el("details", {}, el("summary", {}, "Parts in numbers"), whole.map((row) => [
    el("h3", {}, `${row.source} steered, ${row.target} read: ${read(row.token_set)}`),
    el("dl", { cls: "facts" }, words.filter(([name]) => row[name] !== null && row[name] !== undefined).map(([name, meaning]) => el("div", {}, el("dt", {}, name), el("dd", {}, `${number(row[name], 3, true)}: ${meaning}`))))])));
}

function small(table, rows) {
  const columns = table.columns.filter((c) => !["sae", "target", "source", "i", "j"].includes(c.name) && !c.name.startsWith("gloss")).slice(0, 8);
  return el("div", { cls: "scroll", tabindex: "0", role: "region", "aria-label": table.name }, el("table", { cls: "numbers" }, el("thead", {}, el("tr", {}, columns.map((c) => el("th", { scope: "col", title: c.meaning || null }, head(c.name), c.unit ? el("span", { cls: "unit" }, ` ${c.unit}`) : null)))), el("tbody", {}, rows.map((r) => el("tr", {}, columns.map((c) => el("td", {}, cellText(c, r[c.name]))))))));
}
