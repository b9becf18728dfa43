// The page: opens the study, draws the view that the address names, and draws it again when the address changes.
import { el, link, note, problem, replace } from "./dom.js";
import { address, here, shows } from "./state.js";
import { Server } from "./source.js";
import { feature } from "./views/feature.js";
import { home } from "./views/home.js";
import { layers } from "./views/layers.js";
import { find, hubs, pairs, steering, tables } from "./views/lists.js";
import { live } from "./views/live.js";
import { map } from "./views/map.js";
import { pair } from "./views/pair.js";
import { results } from "./views/results.js";
import { learn } from "./words.js";

const VIEWS = { home, map, pairs, steering, hubs, layers, results, live, tables, pair, feature, find };
const NAV = [["home", "Study"], ["map", "Map"], ["pairs", "Pairs"], ["steering", "Steering"], ["hubs", "Hubs"], ["layers", "Layers"], ["results", "Results"], ["live", "Live"], ["tables", "Tables"]];
const WITHIN = { pair: "pairs", feature: "hubs", find: "" };
const POLL = 2500;

const main = document.getElementById("main");
const ctx = { source: null, study: null, update: null, absent: null };
let drawn = "";
let turn = 0;

ctx.absent = (table) => {
  const stage = ctx.study.homes[table];
  const why = ctx.study.problems[table] || ctx.study.problems[stage];
  return note(why ? `${table}: ${why}` : `Not there yet: the stage ${stage} has not made the table ${table}.`, " ", el("code", {}, ctx.study.commands[stage]));
};

function theme() {
  const names = { "": "Colours: system", light: "Colours: light", dark: "Colours: dark" };
  const order = ["", "light", "dark"];
  let now = "";
  try { now = localStorage.getItem("polysem-theme") || ""; } catch { /* no storage: the system decides */ }
  const apply = () => { if (now) document.documentElement.dataset.theme = now; else delete document.documentElement.dataset.theme; };
  apply();
  const button = el("button", { type: "button", cls: "theme", onclick: () => {
    now = order[(order.indexOf(now) + 1) % order.length];
    try { localStorage.setItem("polysem-theme", now); } catch { /* kept for this page only */ }
    apply();
    replace(button, names[now]);
  } }, names[now] || names[""]);
  return button;
}

// On every page: a number leads to the feature, words to those whose gloss or tokens hold one of them.
function finder() {
  const box = el("input", { type: "text", id: "find", "aria-label": "Find features by words, tokens or number", placeholder: "Find features", autocomplete: "off", maxlength: "200" });
  const words = here().view === "find" ? (here().params.f || []).map((f) => f.replace(/^feature[~=]/, "")).join(" ") : "";
  box.value = words;
  return el("form", { role: "search", cls: "finder", onsubmit: (event) => {
    event.preventDefault();
    const asked = box.value.trim();
    if (!asked) return;
    const one = ctx.study.saes.length === 1 && /^\d+$/.test(asked);
    location.hash = one ? address("feature", [ctx.study.saes[0].label, asked]) : address("find", [], { f: /^\d+$/.test(asked) ? `feature=${asked}` : `feature~${asked}` });
  } }, box);
}

function header() {
  const { view } = here();
  replace(document.getElementById("top"), el("div", { cls: "wrap bar" }, link(address("home"), [el("strong", {}, "polysem"), " ", ctx.study.name], { cls: "brand" }),
    el("nav", { "aria-label": "Views" }, NAV.filter(([name]) => name !== "layers" || ctx.study.relations.layer_edges).map(([name, words]) => link(address(name), words, { "aria-current": (WITHIN[view] ?? view) === name ? "page" : null }))), finder(), themeButton, ctx.running));
}

const themeButton = theme();

async function draw({ again = false } = {}) {
  const { view, args } = here();
  const key = JSON.stringify([view, args, ctx.study.version]);
  const own = (turn += 1);
  const asked = location.hash;
  const done = () => { if (own === turn && asked === location.hash) shows(asked); };
  if (key === drawn && ctx.update && !again) { await ctx.update(); done(); return; }
  const moved = drawn !== "" && key !== drawn && !again;
  drawn = key;
  ctx.update = null;
  header();
  main.setAttribute("aria-busy", "true");
  let content;
  try {
    content = VIEWS[view] ? await VIEWS[view](ctx) : [el("h1", {}, "No such view"), note(`The address names no view ${view}.`)];
  } catch (error) {
    content = [el("h1", {}, "That did not work"), problem(error)];
    if (error instanceof TypeError || error instanceof ReferenceError) console.error(error);
  }
  if (own !== turn) return; // the address has moved on meanwhile
  replace(main, content);
  document.title = `${main.querySelector("h1")?.textContent.slice(0, 80) || view} · ${ctx.study.name} · polysem`;
  if (moved) { main.focus({ preventScroll: true }); window.scrollTo(0, 0); }
  if (ctx.update) await ctx.update();
  main.removeAttribute("aria-busy");
  done();
}

// A running study fills in: when its version changes, the view is drawn anew from the same address.
async function watch() {
  let unfinished = ctx.study.stages.some((s) => !s.finished);
  for (;;) {
    await new Promise((done) => setTimeout(done, unfinished ? POLL : 8 * POLL));
    let now;
    try { now = await ctx.source.progress(); } catch { continue; }
    unfinished = now.stages.some((s) => !s.finished);
    if (now.version === ctx.study.version) continue;
    ctx.source.forget();
    try { ctx.study = await ctx.source.doc("overview"); } catch { continue; }
    running();
    if (!["live"].includes(here().view) && !main.contains(document.activeElement?.closest("input, textarea, select"))) await draw({ again: true });
    else header();
  }
}

function running() {
  const open = ctx.study.stages.filter((s) => !s.finished);
  const now = open[0];
  ctx.running = now ? el("a", { cls: "running-note", href: address("home") }, now.n_parts ? `${now.stage}: ${now.n_parts} of ${now.planned_parts ?? "?"} parts` : `${now.stage}: not there yet`) : null;
}

async function open() {
  const mode = document.querySelector("meta[name=polysem-mode]").content;
  try {
    ctx.source = mode === "static" ? new (await import("./local.js")).Local() : new Server();
    ctx.study = await ctx.source.doc("overview");
    learn(ctx.study.vocabulary);
  } catch (error) {
    replace(main, el("h1", {}, "The study cannot be opened"), problem(error));
    return;
  }
  running();
  window.addEventListener("hashchange", () => draw());
  window.addEventListener("polysem:address", () => draw());
  await draw();
  if (mode !== "static") watch();
}

open();
