// A table of any size: the server finds and sorts, a page is drawn. Search, filters, order, columns and page
// are in the address.
import { add, el, link, note, problem, replace, say } from "./dom.js";
import { address, change, first, here, note as noteAddress } from "./state.js";
import { count, fixed, number, plural, probability } from "./text.js";

export const PAGE = 50;
const PATIENCE = 300; // ms
// The column that says of which SAE a row is, where there are several.
export const several = (study) => (study.saes.length > 1 ? ["sae"] : []);
const HEADS = {
  gloss_i: "First feature", gloss_j: "Second feature", gloss_target: "Target", gloss_source: "Source",
  interference: "Interference", strength: "|Interference|", similarity: "Gloss similarity", z_covariance: "Chance z",
  q_covariance: "Chance q", token_overlap: "Token overlap", logodds: "Change in log-odds", kl: "KL", dose: "Dose",
  token_set: "Tokens read", relation: "Relation", locus: "Locus", sae: "SAE", n_pairs: "Pairs", steered: "Steered",
  n_unflagged: "Unflagged pairs", strongest: "Strongest", load: "Load", density: "Density", gloss: "Gloss",
  feature: "Feature", max_act: "Largest activation", coordinate: "Coordinate", n_features: "Features",
  n_first: "First for", share: "Share", largest: "Largest entry", site: "Site", n_prompts: "Prompts",
  n_active: "Active on", n_positive: "Positive", n_negative: "Negative", tokens_in_str: "Activating tokens", tokens_out_str: "Logits raised", tokens_bottom_str: "Logits lowered",
  lift: "Co-firing", era: "ERA", twera: "TWERA", saved: "Helpfulness", natural: "By itself",
  is_duplicate: "Duplicate?", is_dense: "Dense or dead?",
};
const PROBABILITY = /^(p|q)(_|$)/;
const WORDS = { ">=": "≥", "<=": "≤", "!=": "is not", "=": "=", ">": ">", "<": "<", "~": "contains" };

export const head = (name) => HEADS[name] || name.replace(/_/g, " ").replace(/^./, (c) => c.toUpperCase());

export function cellText(column, value) {
  if (value === null || value === undefined) return "–";
  if (Array.isArray(value)) return value.map((v) => (typeof v !== "number" ? v : Number.isInteger(v) ? String(v) : number(v))).join(" · ");
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (column.kind === "number") {
    if (PROBABILITY.test(column.name)) return probability(value);
    return ["cosine", "nats"].includes(column.unit) ? fixed(value, 3) : number(value);
  }
  return column.kind === "integer" && !["feature", "i", "j", "target", "source", "coordinate"].includes(column.name) ? count(value) : String(value);
}

const OPERATORS = { number: [">=", "<=", "=", "!="], integer: [">=", "<=", "=", "!="], feature: ["=", "~", "!="], flag: ["="], text: ["~", "=", "!="], list: ["~"] };

export function parseFilter(text) {
  const match = /^([a-z0-9_]+)(>=|<=|!=|=|>|<|~)(.*)$/s.exec(text);
  return match ? { name: match[1], operator: match[2], value: match[3] } : null;
}

// What the address asks of a relation.
export function queryOf(params, { limit = PAGE, sort = "" } = {}) {
  const page = Math.max(1, Number.parseInt(first(params, "page", "1"), 10) || 1);
  return { f: (params.f || []).filter(Boolean), q: first(params, "q"), near: first(params, "near"), sort: first(params, "sort", sort), limit, offset: (page - 1) * limit, page };
}

export class Grid {
  // cells: name -> (row) => nodes, in place of the plain text. open: (row) => address of the row.
  constructor({ source, relation, columns, cells = {}, open = null, sort = "", searchLabel = "Search in glosses", empty = "No row fits.", limit = PAGE }) {
    Object.assign(this, { source, relation, cells, open, sort, searchLabel, empty, limit });
    this.known = new Map(relation.columns.map((c) => [c.name, c]));
    this.columnsNow = typeof columns === "function" ? columns : () => columns;
    this.body = el("div", { cls: "scroll", tabindex: "0", role: "region", "aria-label": relation.title });
    this.summary = el("p", { cls: "summary" });
    this.pager = el("nav", { cls: "pager", "aria-label": "Pages" });
    this.bar = el("div", { cls: "filters" });
    this.node = el("div", { cls: "grid-block" }, this.bar, this.summary, this.body, this.pager);
    this.stopped = null;
  }

  // Columns without a choice in the address; some views have others while a filter is off.
  get standard() {
    return this.columnsNow();
  }

  column(name) {
    return this.known.get(name) || { name, kind: "text", unit: "", meaning: "" };
  }

  get columns() {
    const chosen = first(here().params, "cols").split(",").filter((c) => this.known.has(c) || this.cells[c]);
    return chosen.length ? chosen : this.standard;
  }

  async update() {
    const { params } = here();
    const query = queryOf(params, { sort: this.sort, limit: this.limit });
    this.drawBar(params, query);
    this.stopped?.abort();
    const stop = new AbortController();
    this.stopped = stop;
    this.node.setAttribute("aria-busy", "true");
    // What takes longer than a blink says so.
    clearTimeout(this.slow);
    this.slow = setTimeout(() => { if (this.node.getAttribute("aria-busy")) replace(this.summary, el("span", { cls: "wait" }, "Working…")); }, PATIENCE);
    let answer;
    try {
      answer = await this.source.rows(this.relation.name, query, stop.signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      replace(this.body, problem(error));
      replace(this.summary);
      replace(this.pager);
      this.node.removeAttribute("aria-busy");
      return;
    }
    if (stop.signal.aborted) return;
    const pages = Math.max(1, Math.ceil(answer.total / query.limit));
    if (query.page > pages) {
      noteAddress({ page: pages > 1 ? pages : [] });
      return this.update();
    }
    const focused = this.node.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    this.drawRows(answer.rows, query);
    this.drawPager(answer, query, pages);
    if (focused) this.node.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
    this.node.removeAttribute("aria-busy");
    say(`${plural(answer.total, "row")} found`);
  }

  drawBar(params, query) {
    if (this.bar.contains(document.activeElement) && this.search && document.activeElement === this.search) {
      replace(this.chips, this.chipNodes(query));
      this.drawTools(query);
      return;
    }
    this.search = el("input", { type: "search", value: query.q, "aria-label": this.searchLabel, placeholder: `${this.searchLabel} (commas: any of)`, autocomplete: "off", spellcheck: "false" });
    let timer = 0;
    this.search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => change({ q: this.search.value.trim() || [], page: [] }, { replace: true }), 180);
    });
    this.chips = el("div", { cls: "chips" }, this.chipNodes(query));
    this.tools = el("div", { cls: "tools" });
    const searchable = this.relation.features.length || this.relation.texts.length;
    replace(this.bar, el("div", { cls: "row" }, searchable ? this.search : null, this.adder(params), this.chooser(), this.tools), this.chips);
    this.drawTools(query);
  }

  drawTools(query) {
    replace(this.tools, this.source.files(this.relation.name, query).map((file) => (file.href
      ? el("a", { cls: "button", href: file.href, download: file.name, title: "All rows that fit" }, file.words)
      : el("button", { type: "button", title: "All rows that fit", onclick: file.save }, file.words))));
  }

  chipNodes(query) {
    const all = here().params.f || [];
    const chips = query.f.map((text) => {
      const parts = parseFilter(text);
      const category = parts && parts.operator === "~" && /^@\w+$/.test(parts.value);
      const words = !parts ? text : category ? `${head(parts.name)} has a word of: ${parts.value.slice(1)}` : `${head(parts.name)} ${WORDS[parts.operator]} ${parts.value}`;
      const rest = all.filter((f) => f !== text);
      return el("button", { type: "button", cls: "chip", title: "Remove this filter", onclick: () => change({ f: rest, all: rest.length ? [] : "1", page: [] }) }, words, el("span", { "aria-hidden": "true" }, " ×"), el("span", { cls: "hidden" }, " remove"));
    });
    if (query.near) chips.push(el("button", { type: "button", cls: "chip", onclick: () => change({ near: [], page: [] }) }, `Names feature ${query.near}`, el("span", { "aria-hidden": "true" }, " ×"), el("span", { cls: "hidden" }, " remove")));
    return chips;
  }

  adder(params) {
    const columns = this.relation.columns;
    const which = el("select", { "aria-label": "Column" }, columns.map((c) => el("option", { value: c.name }, head(c.name))));
    const operator = el("select", { "aria-label": "Comparison" });
    const value = el("input", { type: "text", size: "10", "aria-label": "Value", autocomplete: "off" });
    const hint = el("span", { cls: "fine" });
    const suit = () => {
      const column = this.column(which.value);
      replace(operator, OPERATORS[column.kind].map((o) => el("option", { value: o }, WORDS[o])));
      value.placeholder = column.kind === "flag" ? "true or false" : column.kind === "text" || column.kind === "list" ? "text" : "number";
      replace(hint, `${column.meaning}${column.unit ? ` (${column.unit})` : ""}`);
    };
    which.addEventListener("change", suit);
    suit();
    const form = el("form", { cls: "adder", onsubmit: (event) => {
      event.preventDefault();
      if (value.value.trim() === "") { value.focus(); return; }
      const kept = (params.f || []).filter((f) => f.trim());
      change({ f: [...kept, `${which.value}${operator.value}${value.value.trim()}`], page: [] });
    } }, which, operator, value, el("button", { type: "submit" }, "Add"), hint);
    return el("details", { cls: "pop" }, el("summary", { cls: "button" }, "Filter"), form);
  }

  chooser() {
    const shown = new Set(this.columns);
    const names = [...new Set([...this.standard, ...this.known.keys()])];
    const boxes = names.map((name) => {
      const box = el("input", { type: "checkbox", checked: shown.has(name) });
      box.addEventListener("change", () => {
        if (box.checked) shown.add(name); else shown.delete(name);
        const chosen = names.filter((n) => shown.has(n));
        const same = chosen.join() === this.standard.join() || !chosen.length;
        noteAddress({ cols: same ? [] : chosen.join(",") });
        window.dispatchEvent(new Event("polysem:address"));
      });
      return el("label", { title: this.column(name).meaning }, box, head(name));
    });
    const list = el("details", { cls: "pop" }, el("summary", { cls: "button" }, "Columns"), el("div", { cls: "boxes" }, boxes));
    if (this.chooserOpen) list.open = true;
    list.addEventListener("toggle", () => { this.chooserOpen = list.open; });
    return list;
  }

  drawRows(rows, query) {
    if (!rows.length) { replace(this.body, note(this.empty)); return; }
    const names = this.columns;
    const heads = names.map((name) => {
      const column = this.column(name);
      const sortable = this.known.has(name) && column.kind !== "list";
      const state = query.sort === name ? "ascending" : query.sort === `-${name}` ? "descending" : null;
      const numeric = ["number", "integer", "feature"].includes(column.kind) && !this.cells[name];
      const start = ["number", "integer", "flag"].includes(column.kind) ? `-${name}` : name;
      const next = state === null ? start : state === "descending" ? name : `-${name}`;
      const content = sortable ? el("button", { type: "button", "data-key": `sort ${name}`, title: column.meaning, onclick: () => change({ sort: next, page: [] }) }, head(name)) : el("span", { title: column.meaning, cls: name === "open" ? "hidden" : "" }, head(name));
      return el("th", { scope: "col", cls: numeric ? "num" : "", "aria-sort": state }, content, column.unit ? el("span", { cls: "unit" }, column.unit) : null);
    });
    const body = el("tbody", {}, rows.map((row) => el("tr", {}, names.map((name, k) => this.cell(row, name, k === 0)))));
    const table = el("table", { cls: "grid" }, el("caption", { cls: "hidden" }, this.relation.title), el("thead", {}, el("tr", {}, heads)), body);
    body.addEventListener("keydown", arrows);
    replace(this.body, table);
  }

  cell(row, name, isFirst) {
    const column = this.column(name);
    const numeric = ["number", "integer", "feature"].includes(column.kind) && !this.cells[name];
    let content = this.cells[name] ? this.cells[name](row) : cellText(column, row[name]);
    if (Array.isArray(row[name]) && !this.cells[name]) content = el("span", { cls: "clamped", title: content }, content);
    const to = isFirst && this.open ? this.open(row) : null;
    if (to) content = el("a", { href: to, cls: "open" }, content);
    else if (name === "open") content = null;
    return el("td", { cls: `${numeric ? "num " : ""}col-${name}`, "data-label": head(name) }, content);
  }

  drawPager(answer, query, pages) {
    const from = answer.total ? query.offset + 1 : 0;
    replace(this.summary, answer.total ? `${count(from)} to ${count(query.offset + answer.rows.length)} of ${plural(answer.total, "row")}` : "0 rows");
    const step = (page, words) => {
      const dead = page < 1 || page > pages || page === query.page;
      return el("button", { type: "button", disabled: dead, "data-key": words, onclick: () => { change({ page: page === 1 ? [] : page }); this.body.scrollIntoView({ block: "nearest" }); } }, words);
    };
    replace(this.pager);
    if (pages > 1) add(this.pager, step(1, "First"), step(query.page - 1, "Previous"), el("span", {}, `page ${count(query.page)} of ${count(pages)}`), step(query.page + 1, "Next"), step(pages, "Last"));
  }
}

// Up and down go from row to row.
function arrows(event) {
  if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
  const row = event.target.closest("tr");
  const next = row && (event.key === "ArrowDown" ? row.nextElementSibling : row.previousElementSibling);
  const goal = next && next.querySelector("a, button");
  if (goal) { event.preventDefault(); goal.focus(); }
}

// A feature in a cell: its gloss and its number, leading to its page.
// Neurons count on from the last feature; random directions have no number.
export function featureCell(sae, feature, gloss, study, { neuron = "neuron", direction = "random direction" } = {}) {
  if (feature < 0) return el("span", { cls: "id" }, direction);
  const size = study?.saes.find((s) => s.label === sae)?.n_features;
  if (size && feature >= size && !gloss) return el("span", {}, `${neuron} ${feature - size}`);
  const words = gloss || "no gloss";
  const number_ = el("span", { cls: "id" }, `feature ${feature}`);
  return [link(address("feature", [sae, feature]), words, { cls: "gloss", title: words }), " ", number_];
}

export function flags(row) {
  const found = [];
  if (row.is_duplicate) found.push(el("span", { cls: "flag", title: "likely one concept twice" }, "duplicate?"));
  if (row.token_overlap > 0) found.push(el("span", { cls: "flag", title: `Jaccard overlap of activating tokens ${number(row.token_overlap)}` }, "shared tokens"));
  if (row.is_dense) found.push(el("span", { cls: "flag", title: "one fires on more than 10 % or less than a millionth of tokens" }, "dense or dead"));
  return found;
}

// What a view shows, as files: [[words, relation, filters]]; relations that are not there are left out.
export function dataOf(ctx, places) {
  const there = places.filter(([, relation]) => ctx.study.relations[relation]);
  if (!there.length) return null;
  return el("details", { cls: "data", "data-tool": true }, el("summary", {}, "Data of this view"), el("ul", {}, there.map(([words, relation, f]) => el("li", {}, el("span", {}, words), ctx.source.files(relation, { f }).map((file) => (file.href
    ? el("a", { href: file.href, download: file.name, "aria-label": `${words} as ${file.words}` }, file.words)
    : el("button", { type: "button", onclick: file.save, "aria-label": `${words} as ${file.words}` }, file.words)))))));
}
