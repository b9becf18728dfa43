// Two features side by side: what they are, how they overlap, what steering along one does to the other.
import { el, link, note, svg } from "../dom.js";
import { featureCard, gloss } from "../card.js";
import { decomposition, decompositionWords, doseChart, mark, onScale } from "../charts.js";
import { cellText, dataOf, flags, head } from "../grid.js";
import { saveButton } from "../save.js";
import { address, here } from "../state.js";
import { fixed, interval, number, ownWords, probability } from "../text.js";
import { doseAxis, floorAmong, locus as called, relation, tokens as read } from "../words.js";

export async function pair(ctx) {
  const [sae, a, b] = here().args;
  const [i, j] = [Number(a), Number(b)].sort((p, q) => p - q);
  if (!Number.isInteger(i) || !Number.isInteger(j) || i === j) return [el("h1", {}, "Pair"), note("The address names no pair: expected #/pair/SAE/I/J with two different features.")];
  const { source, study } = ctx;
  const none = { rows: [] };
  const get = (name, f) => (study.relations[name] ? source.rows(name, { f, limit: 1000, offset: 0 }) : none);
  const [first, second, listed, density, forward, backward, floors, linear] = await Promise.all([
    source.feature(sae, i), source.feature(sae, j),
    get("pairs", [`sae=${sae}`, `i=${i}`, `j=${j}`]), study.relations.density ? source.doc("map") : { maps: [] },
    get("steering", [`sae=${sae}`, `target=${j}`, `source=${i}`, "relation=pair"]), get("steering", [`sae=${sae}`, `target=${i}`, `source=${j}`, "relation=pair"]),
    source.doc("floors"), Promise.all([[i, j], [j, i]].map(([from, to]) => get("response", [`sae=${sae}`, "relation=pair", `target=${to}`, `source=${from}`]))),
  ]);
  // A steered pair that was not mined has its cosines in its effects, and no chance of its own.
  const row = listed.rows[0] || forward.rows[0] || backward.rows[0];
  const map = density.maps.find((m) => m.sae === sae);
  return [
    el("p", { cls: "crumbs" }, link(address("pairs"), "Pairs"), ` › ${sae} › ${i} and ${j}`),
    el("h1", { cls: "pair-title" }, el("span", { cls: "gloss" }, short(gloss(first), 70)), el("span", { cls: "and" }, " and "), el("span", { cls: "gloss" }, short(gloss(second), 70))),
    saveButton(`pair-${sae}-${i}-${j}`.replace(/[^\w.-]+/g, "_")),
    overlap(row, map, study, { listed: Boolean(listed.rows.length) }),
    await steered(ctx, { sae, i, j, rows: [...forward.rows, ...backward.rows], linear: linear.flatMap((l) => l.rows), floors: floors.floors, features: { [i]: first, [j]: second } }),
    await apart(ctx, { sae, i, j }),
    await others(ctx, { sae, i, j }),
    el("section", { cls: "two" }, featureCard(first, { name: "First:" }), featureCard(second, { name: "Second:" })),
    dataOf(ctx, files({ sae, i, j })),
  ];
}

function files({ sae, i, j }) {
  const own = [`sae=${sae}`];
  const ways = [[i, j], [j, i]].flatMap(([from, to]) => ["steering", "response", "decomposition"].map((name) => [`${name.replace("response", "linear response")}, ${from} steered`, name, [...own, `source=${from}`, `target=${to}`]]));
  const sides = [i, j].flatMap((n) => ["features", "glosses", "contexts"].map((name) => [`${name} of ${n}`, name, [...own, `feature=${n}`]]));
  return [["the pair", "pairs", [...own, `i=${i}`, `j=${j}`]], ...ways, ...sides];
}

function overlap(row, map, study, { listed }) {
  if (!row || row.interference === null) return note(`This pair is not among the listed ones (|interference| ≥ ${study.pairs.min_interference} and similarity < ${study.pairs.max_similarity}), so its cosines are not stored.`);
  const bounds = map ? map.chance.map((c) => c.bound) : [];
  const similarity = map ? spread(map, 0, 1) : [];
  const below = similarity.reduce((n, b) => n + (b.hi <= row.similarity ? b.n : b.lo < row.similarity ? (b.n * (row.similarity - b.lo)) / (b.hi - b.lo) : 0), 0);
  const total = similarity.reduce((n, b) => n + b.n, 0);
  const facts = !listed ? [["listed", `no: |interference| ≥ ${study.pairs.min_interference} and similarity < ${study.pairs.max_similarity} are`]] : [
    ["interference without the shared mean direction", fixed(row.interference_demeaned)],
    ["what one reads when the other is written", `${fixed(row.enc_dec_ij)} and ${fixed(row.enc_dec_ji)} (encoder against decoder)`],
    ["overlap of activating tokens", number(row.token_overlap)],
    ["overlap of top contexts", number(row.context_overlap)],
    ["flags", flags(row).length ? flags(row) : "none"],
  ];
  return el("section", { cls: "panel overlap" },
    el("div", { cls: "three even" },
      el("div", {}, el("h2", {}, `Interference ${fixed(row.interference, 3, true)}`), onScale(row.interference, { bands: bounds, bars: map ? spread(map, 2, 3) : [], label: `interference ${fixed(row.interference)} against all pairs and chance` }),
        el("p", { cls: "fine" }, `Bars: all pairs of the SAE (log height). Shaded: 99.9 % of random directions.${listed ? ` ${number(row.z_covariance, 3, true)} sd of this SAE's own chance; p ${probability(row.p_covariance)}, q over all pairs ${probability(row.q_covariance)}.` : ""}`)),
      el("div", {}, el("h2", {}, `Gloss similarity ${fixed(row.similarity)}`), onScale(row.similarity, { bars: similarity, label: `gloss similarity ${fixed(row.similarity)} against all pairs` }),
        el("p", { cls: "fine" }, total ? `${number((100 * below) / total)} % of all pairs of glosses are less alike. That is its chance: two glosses drawn at random.` : "No histogram of all pairs is stored.")),
      el("div", {}, el("h2", {}, "In detail"), el("dl", { cls: "facts" }, facts.map(([k, v]) => el("div", {}, el("dt", {}, k), el("dd", {}, v)))))),
  );
}

// One axis of the joint histogram: counts by cell.
function spread(map, lo, hi) {
  const found = new Map();
  for (const c of map.cells) found.set(c[lo], { lo: c[lo], hi: c[hi], n: (found.get(c[lo])?.n || 0) + c[4] });
  return [...found.values()].sort((a, b) => a.lo - b.lo);
}

function legend(entries) {
  return el("ul", { cls: "legend" }, entries.map(([k, kind, words]) => el("li", {}, svg("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" }, kind === "plain" ? svg("line", { cls: "dotted", x1: -8, x2: 8, y1: 0, y2: 0 }) : kind === "floor" ? svg("rect", { cls: "floor", x: -8, y: -5, width: 16, height: 10 }) : svg("g", { cls: `mark ${kind}` }, mark(k, 0, 0, ""))), words)));
}

async function steered(ctx, { sae, i, j, rows, linear, floors, features }) {
  const { study } = ctx;
  const liveLink = ctx.source.live ? el("p", {}, link(address("live", [], { sae, source: i, target: j }), "Steer live", { cls: "button main" })) : null;
  const title = el("h2", {}, "What steering along one does to the tokens of the other");
  if (!study.relations.steering) return el("section", {}, title, ctx.absent("pair_effects"), liveLink);
  if (!rows.length) return el("section", {}, title, note("The plan did not draw this pair, so it was not steered. ", link(address("steering"), "These were"), ctx.source.live ? "; or steer yourself:" : "; start the explorer with --live to steer yourself."), liveLink);
  const figures = [];
  for (const locus of study.loci.map((l) => l.locus)) {
    for (const tokens of study.token_sets) {
      const mine = rows.filter((r) => r.locus === locus && r.token_set === tokens);
      if (!mine.length) continue;
      const { headline, unit } = study.loci.find((l) => l.locus === locus);
      const curves = [[i, j, "k-pair"], [j, i, "k-self"]].map(([from, to, kind]) => ({ label: `${from} steered, ${to} read`, kind, points: mine.filter((r) => r.source === from && r.target === to).map((r) => ({ x: r.dose, y: r.logodds, lo: r.lo, hi: r.hi, row: r })) })).filter((c) => c.points.length);
      const floor = floors.filter((f) => f.sae === sae && f.locus === locus && f.token_set === tokens && f.relation === floorOf(floors, locus)).map((f) => ({ x: f.dose, lo: f.lo, hi: f.hi, n: f.n }));
      const predicted = [[i, j], [j, i]].map(([from, to]) => ({ label: `${from} steered: predicted by linear response`, kind: "k-weak", plain: true, points: linear.filter((r) => r.locus === locus && r.token_set === tokens && r.source === from && r.target === to).map((r) => ({ x: r.dose, y: r.linear })) })).filter((c) => c.points.length);
      const words = `${called(locus)}: ${read(tokens)}`;
      figures.push(el("figure", { cls: "panel" }, el("h3", {}, words),
        doseChart([...curves, ...predicted], { floor, headline, xLabel: doseAxis(unit), unit, yLabel: "change in log-odds (nats)", label: words }),
        legend([...predicted.slice(0, 1).map((c) => [0, "plain", "dotted: predicted by linear response"]), ...curves.map((c, k) => [k, c.kind, `${c.label} (${short(ownWords(gloss(features[c.points[0].row.source])).trim())})`]), floor.length ? [0, "floor", `noise floor: 95 % of ${floor[0].n} ${relation(floorOf(floors, locus))}`] : null].filter(Boolean)),
        numbers(curves, floors.filter((f) => f.sae === sae && f.locus === locus && f.token_set === tokens), headline),
        ctx.source.live ? el("p", {}, curves.map((c) => rowLive(study, c.points.find((p) => p.x === headline) || c.points[c.points.length - 1]))) : null));
    }
  }
  return el("section", {}, title, el("div", { cls: "figures" }, figures), el("p", { cls: "fine" }, `Whiskers: ${100 * study.level} % intervals over prompts. The effect is the odd part over +dose and −dose.`), liveLink);
}

// To the live page with all that the row was: direction, dose, positions, prompts.
function rowLive(study, { row }) {
  const { unit } = study.loci.find((l) => l.locus === row.locus);
  const dose = unit === "kl" || unit === "resid_norm" ? row.dose : null;
  return [link(address("live", [], { sae: row.sae, source: row.source, target: row.target, locus: row.locus, unit: unit === "kl" ? "kl" : "scale", dose, set: row.token_set, row: row.dose }), `Push ${row.source} live`, { cls: "button" }), " "];
}

// The control that says what any direction does at this locus.
const floorOf = (floors, locus) => floorAmong(floors.filter((f) => f.locus === locus).map((f) => f.relation));

const short = (text, n = 44) => { const c = [...text]; return c.length > n ? `${c.slice(0, n - 1).join("")}…` : text; };

function numbers(curves, floors, headline) {
  const rows = curves.flatMap((c) => c.points.map((p) => ({ label: c.label, ...p }))).sort((a, b) => a.x - b.x);
  const floorAt = (relation, dose) => floors.find((f) => f.relation === relation && Math.abs(f.dose - dose) < 1e-9);
  const controls = [...new Set(floors.map((f) => f.relation))].sort();
  const cell = (f) => (f ? `${interval(f.lo, f.hi)} (${f.n})` : "–");
  return el("details", {}, el("summary", {}, "Numbers, with controls"), el("div", { cls: "scroll", tabindex: "0", role: "region", "aria-label": "Numbers of this chart" }, el("table", { cls: "numbers" },
    el("thead", {}, el("tr", {}, ["dose", "", "effect (nats)", "interval", "KL (nats)", ...controls.map((c) => `${relation(c)}, 95 %`)].map((h) => el("th", { scope: "col" }, h)))),
    el("tbody", {}, rows.map((r) => el("tr", { cls: r.x === headline ? "strong" : "" }, el("th", { scope: "row" }, number(r.x)), el("td", { cls: "words" }, r.label), el("td", {}, fixed(r.y, 3, true)), el("td", {}, interval(r.lo, r.hi)), el("td", {}, number(r.row.kl)), controls.map((c) => el("td", {}, cell(floorAt(c, r.x))))))))));
}

// Tables of other stages that speak of this pair: the decomposition as a bar, the rest as rows.
async function others(ctx, { sae, i, j }) {
  const shown = new Set(["pairs", "steering", "pair_effects", "plan", "trials", "atlas_sample", "decomposition"]);
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

async function apart(ctx, { sae, i, j }) {
  const title = el("h2", {}, "What the effect is made of");
  if (!ctx.study.relations.decomposition) return el("section", {}, title, note("The study holds no decomposition of effects. ", el("code", {}, ctx.study.commands.response || "")));
  const found = await Promise.all([[i, j], [j, i]].map(([p, q]) => ctx.source.rows("decomposition", { f: [`sae=${sae}`, `target=${p}`, `source=${q}`], limit: 20, offset: 0 })));
  const rows = found.flatMap((answer) => answer.rows);
  if (!rows.length) return el("section", {}, title, note("The decomposition of this pair was not computed; it is for pairs that were steered."));
  return el("section", {}, title, el("div", { cls: "figures" }, rows.map((row) => {
    const words = `${row.source} steered, ${row.target} read: ${read(row.token_set)}`;
    return el("figure", { cls: "panel" }, el("h3", {}, words), row.total === null ? note("No total could be computed.") : decomposition(row, { label: `${words}; whole ${number(row.total, 3, true)} nats` }),
      el("figcaption", {}, `The line is the whole, ${number(row.total, 3, true)} nats at dose ${number(row.dose)}, over ${row.n_prompts} prompts. ${row.clean === null ? "No target token is left without those of the source." : `Without tokens that are also the source's: ${number(row.clean, 3, true)}.`}`),
      el("details", {}, el("summary", {}, "Parts in numbers"), el("dl", { cls: "facts" }, decompositionWords(row).map(([name, value, meaning]) => el("div", {}, el("dt", {}, name), el("dd", {}, `${number(value, 3, true)}: ${meaning}`))))));
  })));
}

function small(table, rows) {
  const columns = table.columns.filter((c) => !["sae", "target", "source", "i", "j"].includes(c.name) && !c.name.startsWith("gloss")).slice(0, 8);
  return el("div", { cls: "scroll", tabindex: "0", role: "region", "aria-label": table.name }, el("table", { cls: "numbers" }, el("thead", {}, el("tr", {}, columns.map((c) => el("th", { scope: "col", title: c.meaning || null }, head(c.name), c.unit ? el("span", { cls: "unit" }, ` ${c.unit}`) : null)))), el("tbody", {}, rows.map((r) => el("tr", {}, columns.map((c) => el("td", {}, cellText(c, r[c.name]))))))));
}
