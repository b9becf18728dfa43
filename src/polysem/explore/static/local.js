// The same answers as the server gives, from the files of an export: one file per column, read when needed.
import { fetchJson, fetchNodes, Refused } from "./source.js";
import { ownWords } from "./text.js";

const EMPTY_INTEGER = -(2 ** 31);
const FILTER = /^([a-z0-9_]+)(>=|<=|!=|=|>|<|~)(.*)$/s;
const FORMULA = /^[ \u00a0]*[=+\-@\t\r\n＝＋－＠]/;

const words = (text) => text.split(",").map((w) => w.trim().toLowerCase()).filter(Boolean);

class Column {
  constructor(type, values, dictionary) {
    this.type = type;
    this.values = values;
    this.dictionary = dictionary;
  }

  at(row) {
    const v = this.values[row];
    if (this.type === "f64") return Number.isNaN(v) ? null : v;
    if (this.type === "i32") return v === EMPTY_INTEGER ? null : v;
    if (this.type === "u8") return v === 255 ? null : v === 1;
    return v < 0 ? null : this.dictionary[v];
  }

  // For texts: which codes fit, so that a million rows cost a million look-ups and no comparison of texts.
  codes(fits) {
    return Uint8Array.from(this.dictionary, (value) => (fits(Array.isArray(value) ? value.join(" ") : value) ? 1 : 0));
  }
}

class Relation {
  constructor(meta, described) {
    this.meta = meta;
    this.rows = described.rows;
    this.described = described.columns;
    this.columns = new Map();
  }

  async column(name) {
    if (!this.columns.has(name)) {
      this.columns.set(name, this.read(name));
      this.columns.get(name).catch(() => this.columns.delete(name));
    }
    return this.columns.get(name);
  }

  async read(name) {
    const { type } = this.described[name];
    const base = `data/relations/${this.meta.name}/${name}`;
    const response = await fetch(`${base}.bin`);
    if (!response.ok) throw new Refused(`the export lacks ${base}.bin`, "polysem explore RUN --export DIR");
    const bytes = await response.arrayBuffer();
    if (type === "f64") return new Column(type, new Float64Array(bytes));
    if (type === "u8") return new Column(type, new Uint8Array(bytes));
    return new Column(type, new Int32Array(bytes), type === "i32" ? null : await fetchJson(`${base}.json`));
  }
}

export class Local {
  constructor() {
    this.live = false;
    this.documents = new Map();
    this.relations = new Map();
    this.chunks = new Map();
  }

  async doc(name) {
    if (!this.documents.has(name)) this.documents.set(name, fetchJson(`data/${name}.json`));
    return this.documents.get(name);
  }

  forget() {}

  async relation(name) {
    if (!this.relations.has(name)) {
      const { relations } = await this.doc("overview");
      if (!relations[name]) throw new Refused(`the export holds no ${name}`);
      this.relations.set(name, fetchJson(`data/relations/${name}/columns.json`).then((d) => new Relation(relations[name], d)));
    }
    return this.relations.get(name);
  }

  async feature(sae, feature) {
    const { saes, chunk } = await this.doc("overview");
    const k = saes.findIndex((s) => s.label === sae);
    const path = `data/features/${k}/${Math.floor(feature / chunk)}.json`;
    const missing = new Refused(`${sae} has no feature ${feature} in the feature table`);
    if (k < 0) throw missing;
    if (!this.chunks.has(path)) this.chunks.set(path, fetchJson(path));
    const found = (await this.chunks.get(path).catch(() => [])).find((f) => f.feature === Number(feature));
    if (!found) throw missing;
    return found;
  }

  async figures(name, { sae, feature, i, j }) {
    const { saes, chunk } = await this.doc("overview");
    const k = saes.findIndex((s) => s.label === sae);
    if (name === "pair") return fetchNodes(`data/figures/pair/${k}/${i}-${j}.html`);
    if (name === "feature") return (await fetchNodes(`data/figures/feature/${k}/${Math.floor(feature / chunk)}.html`)).filter((node) => node.dataset.of === `${sae}/${feature}`);
    return fetchNodes(`data/figures/${name}.html`);
  }

  async rows(name, query) {
    const relation = await this.relation(name);
    const found = await this.find(relation, query);
    const offset = query.offset || 0;
    const limit = query.limit ?? 50;
    const page = await this.top(relation, found, query.sort || "", offset + limit);
    return { total: found.length, offset, rows: await this.shown(relation, page.slice(offset, offset + limit)) };
  }

  async shown(relation, rows) {
    const columns = await Promise.all(relation.meta.columns.map(async (c) => [c.name, await relation.column(c.name)]));
    return rows.map((row) => Object.fromEntries(columns.map(([name, column]) => [name, column.at(row)])));
  }

  // Rows that fit, in the order of the table.
  async find(relation, query) {
    const tests = [];
    for (const text of query.f || []) tests.push(await this.test(relation, text));
    const keys = await Promise.all(relation.meta.features.map((k) => relation.column(k)));
    if (query.near !== undefined && query.near !== null && query.near !== "") {
      const near = Number(query.near);
      tests.push((row) => keys.some((k) => k.values[row] === near));
    }
    if (query.among) {
      const among = new Set(String(query.among).split(",").map(Number));
      tests.push((row) => keys.every((k) => among.has(k.values[row])));
    }
    if (query.q && words(query.q).length) tests.push(await this.search(relation, words(query.q)));
    const found = [];
    for (let row = 0; row < relation.rows; row += 1) {
      let fits = true;
      for (const test of tests) if (!test(row)) { fits = false; break; }
      if (fits) found.push(row);
    }
    return found;
  }

  async search(relation, wanted) {
    const texts = relation.meta.features.length ? relation.meta.features.map((k) => (k === "feature" ? "gloss" : `gloss_${k}`)) : relation.meta.texts;
    const columns = await Promise.all(texts.map((t) => relation.column(t)));
    const hits = columns.map((c) => c.codes((value) => wanted.some((w) => value.toLowerCase().includes(w))));
    return (row) => columns.some((c, k) => c.values[row] >= 0 && hits[k][c.values[row]] === 1);
  }

  async test(relation, text) {
    const match = FILTER.exec(text);
    const known = match && relation.meta.columns.find((c) => c.name === match[1]);
    if (!known) throw new Refused(`filter ${text}: expected COLUMN OPERATOR VALUE of ${relation.meta.name}`);
    const [, name, operator, value] = match;
    const column = await relation.column(name);
    if (operator === "~" && known.kind === "feature") return this.called(relation, name, words(value));
    if (known.kind === "text" || known.kind === "list") {
      const needle = value.trim();
      const fits = operator === "~" ? (v) => v.toLowerCase().includes(needle.toLowerCase()) : operator === "=" ? (v) => v === needle : (v) => v !== needle;
      const codes = column.codes(fits);
      return (row) => column.values[row] >= 0 && codes[column.values[row]] === 1;
    }
    if (known.kind === "flag") {
      const wanted = (value.trim() === "true") === (operator === "=") ? 1 : 0;
      return (row) => column.values[row] === wanted;
    }
    const wanted = Number(value);
    if (value.trim() === "" || !Number.isFinite(wanted)) throw new Refused(`filter ${text}: ${value} is no number`);
    const empty = column.type === "i32" ? (v) => v === EMPTY_INTEGER : Number.isNaN;
    const compare = { ">=": (v) => v >= wanted, "<=": (v) => v <= wanted, ">": (v) => v > wanted, "<": (v) => v < wanted, "=": (v) => v === wanted, "!=": (v) => v !== wanted }[operator];
    return (row) => !empty(column.values[row]) && compare(column.values[row]);
  }

  // Features whose gloss or tokens hold one of the words; of a target whose tokens were read, only those tokens.
  async called(relation, name, wanted) {
    const column = await relation.column(name);
    const read = name === "target" && relation.meta.columns.some((c) => c.name === "token_set") ? await relation.column("token_set") : null;
    const features = await this.relation("features");
    const [sae, number, ...texts] = await Promise.all(["sae", "feature", "gloss", "tokens_in_str", "tokens_out_str"].map((c) => features.column(c)));
    const { categories } = await this.doc("overview");
    const tests = wanted.map((w) => {
      if (!w.startsWith("@")) return (value) => value.includes(w);
      if (!categories[w.slice(1)]) throw new Refused(`there is no category ${w.slice(1)}; there are ${Object.keys(categories).join(", ")}`);
      const whole = new Set(categories[w.slice(1)]);
      return (value) => (value.match(/[\p{L}\p{N}]+/gu) || []).some((x) => whole.has(x));
    });
    const hits = texts.map((t, k) => t.codes((value) => tests.some((test) => test((k === 0 ? ownWords(value) : value).toLowerCase()))));
    const fits = (k, row) => texts[k].values[row] >= 0 && hits[k][texts[k].values[row]] === 1;
    const sides = { in: new Set(), out: new Set() };
    for (let row = 0; row < features.rows; row += 1) {
      const key = `${sae.at(row)} ${number.values[row]}`;
      const gloss = !read && fits(0, row);
      if (gloss || fits(1, row)) sides.in.add(key);
      if (gloss || fits(2, row)) sides.out.add(key);
    }
    const own = await relation.column("sae");
    return (row) => (read ? [read.at(row)] : ["in", "out"]).some((side) => sides[side]?.has(`${own.at(row)} ${column.values[row]}`));
  }

  // The first n rows in the order asked for; rows that are equal keep the order of the table.
  async top(relation, found, sort, n) {
    if (!sort) return found.slice(0, n);
    const descending = sort.startsWith("-");
    const column = await relation.column(sort.replace(/^-/, ""));
    const text = column.dictionary ? column.dictionary.map((v) => String(v).toLowerCase()) : null;
    const value = text ? (row) => (column.values[row] < 0 ? null : text[column.values[row]]) : (row) => column.at(row);
    const before = (a, b) => {
      const [u, v] = [value(a), value(b)];
      if (u === null || v === null) return u === v ? a - b : u === null ? 1 : -1;
      if (u === v) return a - b;
      return (u < v) !== descending ? -1 : 1;
    };
    if (found.length <= 4 * n) return [...found].sort(before).slice(0, n);
    // A heap whose root is the last of the best n so far.
    const heap = [];
    const down = (k) => {
      for (;;) {
        let last = k;
        for (const child of [2 * k + 1, 2 * k + 2]) if (child < heap.length && before(heap[child], heap[last]) > 0) last = child;
        if (last === k) return;
        [heap[k], heap[last]] = [heap[last], heap[k]];
        k = last;
      }
    };
    for (const row of found) {
      if (heap.length < n) {
        heap.push(row);
        if (heap.length === n) for (let k = n >> 1; k >= 0; k -= 1) down(k);
      } else if (before(row, heap[0]) < 0) { heap[0] = row; down(0); }
    }
    return heap.sort(before);
  }

  files(name, query) {
    const save = (kind, text) => async () => {
      const relation = await this.relation(name);
      const found = await this.find(relation, query);
      const rows = await this.shown(relation, await this.top(relation, found, query.sort || "", found.length));
      const url = URL.createObjectURL(new Blob([text(rows, relation.meta.columns.map((c) => c.name))]));
      const anchor = document.createElement("a");
      anchor.href = url;
      anchor.download = `${name}.${kind}`;
      anchor.click();
      setTimeout(() => URL.revokeObjectURL(url), 10000);
    };
    return [{ words: "CSV", save: save("csv", csv) }, { words: "JSON", save: save("jsonl", (rows) => rows.map((r) => `${JSON.stringify(r)}\n`).join("")) }];
  }
}

// As the server writes it: what a spreadsheet could take for a formula gets an apostrophe.
export function csv(rows, names) {
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    const text = Array.isArray(value) ? JSON.stringify(value) : String(value);
    const safe = typeof value === "string" && FORMULA.test(text) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe;
  };
  return [names, ...rows.map((row) => names.map((n) => row[n]))].map((line) => `${line.map(cell).join(",")}\r\n`).join("");
}
