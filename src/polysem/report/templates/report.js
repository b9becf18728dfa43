// Text from the run enters the page through textContent only.
(() => {
  "use strict";
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  // On paper nothing can be unfolded: what is folded opens for printing, and closes again.
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const part of folded) part.open = true;
  });
  window.addEventListener("afterprint", () => { for (const part of folded) part.open = false; });

  for (const svg of document.querySelectorAll("svg[data-cells]")) readout(svg, svg.closest("figure").querySelector(".readout"));

  const table = document.getElementById("pair-table");
  if (!table) return;
  const details = JSON.parse(document.getElementById("details").textContent);
  const body = table.tBodies[0];
  // Drawings lie in a template, which is not shown; an opened row shows copies of its own.
  const drawn = new Map();
  for (const figure of document.getElementById("drawn").content.querySelectorAll("figure")) {
    drawn.set(figure.dataset.of, [...(drawn.get(figure.dataset.of) || []), figure]);
  }
  const drawings = (of) => (drawn.get(of) || []).map((figure) => document.importNode(figure, true));
  const rows = [...body.querySelectorAll("tr.pair")];
  const opened = new Map();

  const feature = (sae, id, name) => {
    const known = details[`${sae}/${id}`];
    const box = make("div");
    box.append(make("h4", "", `${name} · feature ${id}`));
    if (!known) return box;
    box.append(make("p", "words-of gloss", known.gloss));
    const words = (label, list) => {
      if (list.length) box.append(make("p", "words-of", `${label}: ${list.join("  ·  ")}`));
    };
    words("activated by", known.in);
    words("writes", known.out);
    const facts = [`active on ${known.density} of tokens`, `largest activation ${known.max}`];
    if (known.source) facts.push(`gloss from ${known.source}`);
    box.append(make("p", "words-of id", facts.join("; ")));
    for (const context of known.contexts) {
      const line = make("p", "context");
      context.t.forEach((token, k) => {
        const shade = context.s[k];
        const span = make("span", shade > 0 ? `s${shade}` : "", token);
        if (context.v[k]) span.title = context.v[k];
        line.append(span);
      });
      box.append(line);
    }
    box.append(...drawings(`${sae}/${id}`));
    if (!known.contexts.length) box.append(make("p", "words-of id", "no contexts are stored"));
    return box;
  };

  const toggle = (row) => {
    const button = row.querySelector("button.open");
    let detail = opened.get(row);
    if (!detail) {
      detail = make("tr", "detail");
      const cell = make("td");
      cell.colSpan = row.cells.length;
      const pictures = drawings(`${row.dataset.sae}/${row.dataset.i}/${row.dataset.j}`);
      if (pictures.length) {
        const grid = make("div", "figures");
        grid.append(...pictures);
        cell.append(make("h4", "", "What steering does over its dose"), grid);
      }
      const two = make("div", "two");
      two.append(feature(row.dataset.sae, row.dataset.i, "First"), feature(row.dataset.sae, row.dataset.j, "Second"));
      cell.append(two);
      detail.append(cell);
      detail.hidden = true;
      row.after(detail);
      opened.set(row, detail);
    }
    detail.hidden = !detail.hidden;
    button.setAttribute("aria-expanded", String(!detail.hidden));
    button.textContent = detail.hidden ? "+" : "−";
  };
  body.addEventListener("click", (event) => {
    const button = event.target.closest("button.open");
    if (button) toggle(button.closest("tr"));
  });

  const find = document.getElementById("find");
  const which = document.getElementById("which");
  const steered = document.getElementById("steered");
  const unflagged = document.getElementById("unflagged");
  const all = document.getElementById("all");
  const FIRST = 12; // rows until all are asked for
  let most = FIRST;
  const filter = () => {
    const needle = find.value.trim().toLowerCase();
    let hits = 0;
    for (const row of rows) {
      const hit =
        (!needle || [...row.querySelectorAll(".gloss")].some((c) => c.textContent.toLowerCase().includes(needle))) &&
        (!which || !which.value || row.dataset.sae === which.value) &&
        (!steered.checked || row.dataset.e !== "") &&
        (!unflagged.checked || row.dataset.flags === "0");
      hits += hit;
      row.hidden = !hit || hits > most;
      const detail = opened.get(row);
      if (detail) detail.hidden = row.hidden || row.querySelector("button.open").getAttribute("aria-expanded") !== "true";
    }
    const shown = Math.min(hits, most);
    document.getElementById("shown").textContent = `${shown} of ${rows.length} shown`;
    all.hidden = hits === shown;
    all.textContent = `Show all ${hits}`;
  };
  all.addEventListener("click", () => {
    const next = rows.filter((row) => !row.hidden).length;
    most = rows.length;
    filter();
    // the button is gone: go on at the first row that it brought
    rows.filter((row) => !row.hidden)[next].querySelector("button.open").focus();
  });
  for (const control of [find, which, steered, unflagged]) if (control) control.addEventListener("input", filter);
  document.querySelector("form.filters").addEventListener("submit", (event) => event.preventDefault());

  const value = (row, key, kind) =>
    kind === "text" ? row.cells[key === "a" ? 1 : 2].textContent.toLowerCase() : row.dataset[key] === "" ? null : Number(row.dataset[key]);
  table.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-sort]");
    if (!button) return;
    const head = button.closest("th");
    const { sort, kind } = button.dataset;
    const first = kind === "text" ? "ascending" : "descending";
    const now = head.getAttribute("aria-sort");
    const next = !now ? first : now === "ascending" ? "descending" : "ascending";
    for (const th of table.tHead.querySelectorAll("th")) th.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", next);
    const sign = next === "ascending" ? 1 : -1;
    rows.sort((a, b) => {
      const [u, v] = [value(a, sort, kind), value(b, sort, kind)];
      if (u === null || v === null) return (u === null) - (v === null);
      return sign * (kind === "text" ? u.localeCompare(v) : u - v);
    });
    for (const row of rows) {
      body.append(row);
      if (opened.has(row)) body.append(opened.get(row));
    }
    filter();
  });
  window.addEventListener("beforeprint", () => { most = rows.length; filter(); });
  filter();

  // A link to a pair clears the filters that hide it, and opens it.
  const arrive = () => {
    const row = /^#pair-\d+$/.test(location.hash) && document.getElementById(location.hash.slice(1));
    if (!row) return;
    if (row.hidden) {
      find.value = "";
      if (which) which.value = "";
      steered.checked = false;
      unflagged.checked = false;
      most = rows.length;
      filter();
    }
    if (row.querySelector("button.open").getAttribute("aria-expanded") !== "true") toggle(row);
    row.scrollIntoView();
    row.querySelector("button.open").focus({ preventScroll: true });
  };
  window.addEventListener("hashchange", arrive);
  arrive();
})();
