// Where the data comes from: the server, or the files of an export (local.js); both answer the same calls.
export class Refused extends Error {
  constructor(message, hint) {
    super(message);
    this.hint = hint;
  }
}

async function asked(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("the explorer does not answer; was it stopped?", "polysem explore RUN");
  }
  if (response.ok) return response;
  if (response.status === 401) throw new Refused("this page has no valid token any more", "open the address that polysem explore printed");
  if (response.status === 421) throw new Refused("the explorer does not answer to this address any more", `polysem explore RUN --allow-host ${location.host}`);
  let told = null;
  try { told = await response.json(); } catch { /* no JSON: the status says it */ }
  throw new Refused((told && told.error) || `the server answered ${response.status}`, told && told.hint);
}

export const fetchJson = async (path, options) => (await asked(path, options)).json();

// One JSON object a line, each as it comes.
export async function* fetchLines(path) {
  const reader = (await asked(path)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
      const lines = (rest + piece.value).split("\n");
      rest = lines.pop();
      for (const line of lines) yield JSON.parse(line);
    }
  } finally { reader.cancel().catch(() => {}); }
}

// Drawn figures as nodes: the browser reads the file as a document in which nothing runs.
export function fetchNodes(path) {
  return new Promise((done, fail) => {
    const request = new XMLHttpRequest();
    request.open("GET", path);
    request.responseType = "document";
    request.onload = () => (request.status === 200 ? done([...(request.response?.body?.children ?? [])].map((node) => document.importNode(node, true))) : fail(new Refused(`the explorer has no figures at ${path} (${request.status})`)));
    request.onerror = () => fail(new Refused("the explorer does not answer; was it stopped?", "polysem explore RUN"));
    request.send();
  });
}

export function queryString({ f = [], q = "", near = "", among = "", sort = "", limit, offset, format } = {}) {
  const query = new URLSearchParams();
  for (const filter of f) if (filter) query.append("f", filter);
  for (const [name, value] of Object.entries({ q, near, among, sort, limit, offset, format })) {
    if (value !== "" && value !== undefined && value !== null) query.set(name, value);
  }
  return query.toString();
}

export class Server {
  constructor() {
    this.live = document.querySelector("meta[name=polysem-mode]").content === "live";
    this.documents = new Map();
  }

  async doc(name) {
    if (!this.documents.has(name)) {
      this.documents.set(name, fetchJson(`data/${name}.json`));
      this.documents.get(name).catch(() => this.documents.delete(name));
    }
    return this.documents.get(name);
  }

  forget() { this.documents.clear(); }
  progress() { return fetchJson("data/progress.json"); }

  rows(relation, query, signal) {
    return fetchJson(`data/rows/${encodeURIComponent(relation)}?${queryString(query)}`, { signal });
  }

  feature(sae, feature) {
    return fetchJson(`data/feature?${new URLSearchParams({ sae, feature })}`);
  }

  // Figures of a name; of a pair or a feature by its numbers.
  figures(name, args) {
    return fetchNodes(Object.keys(args).length ? `data/figures/${name}?${new URLSearchParams(args)}` : `data/figures/${name}.html`);
  }

  // All rows of a query as files: [{words, name, href}].
  files(relation, query) {
    const whole = { ...query, limit: undefined, offset: undefined };
    const href = (format) => `data/rows/${encodeURIComponent(relation)}?${queryString({ ...whole, format })}`;
    return [["CSV", "csv"], ["Parquet", "parquet"], ["JSON", "jsonl"]].map(([words, format]) => ({ words, name: `${relation}.${format}`, href: href(format) }));
  }
}

// Every row of a relation that fits, in pages.
export async function allRows(source, relation, f = []) {
  const found = [];
  for (;;) {
    const answer = await source.rows(relation, { f, limit: 1000, offset: found.length });
    found.push(...answer.rows);
    if (!answer.rows.length || found.length >= answer.total || found.length >= 20000) return found;
  }
}
