// A feature and its neighbours: a small force layout, the same each time, drawn once.
import { svg } from "./dom.js";
import { fixed, visible } from "./text.js";

const STEPS = 160;

// nodes: [{id, ring}], edges: [{a, b, w}] -> id -> [x, y] inside a unit square
export function layout(nodes, edges) {
  const n = nodes.length;
  const index = new Map(nodes.map((node, k) => [node.id, k]));
  // The golden angle spreads the start evenly and needs no chance.
  const x = new Float64Array(n);
  const y = new Float64Array(n);
  nodes.forEach((node, k) => {
    const r = k === 0 ? 0 : 0.25 + 0.75 * Math.sqrt(k / n);
    x[k] = r * Math.cos(k * 2.399963);
    y[k] = r * Math.sin(k * 2.399963);
  });
  const ideal = 1.1 / Math.sqrt(n + 1);
  for (let step = 0; step < STEPS; step += 1) {
    const dx = new Float64Array(n);
    const dy = new Float64Array(n);
    for (let a = 0; a < n; a += 1) {
      for (let b = a + 1; b < n; b += 1) {
        const ux = x[a] - x[b];
        const uy = y[a] - y[b];
        const d2 = Math.max(1e-5, ux * ux + uy * uy);
        const f = (ideal * ideal) / d2;
        dx[a] += ux * f; dy[a] += uy * f; dx[b] -= ux * f; dy[b] -= uy * f;
      }
    }
    for (const e of edges) {
      const a = index.get(e.a);
      const b = index.get(e.b);
      const ux = x[a] - x[b];
      const uy = y[a] - y[b];
      const f = (Math.hypot(ux, uy) / ideal) * (e.between ? 0.04 : 0.3) * (0.4 + e.w);
      dx[a] -= ux * f; dy[a] -= uy * f; dx[b] += ux * f; dy[b] += uy * f;
    }
    const heat = 0.12 * (1 - step / STEPS) + 0.004;
    for (let k = 1; k < n; k += 1) {
      const d = Math.hypot(dx[k], dy[k]) || 1;
      x[k] += (dx[k] / d) * Math.min(d, heat) - x[k] * 0.01;
      y[k] += (dy[k] / d) * Math.min(d, heat) - y[k] * 0.01;
    }
  }
  const spanX = Math.max(...x) - Math.min(...x) || 1;
  const spanY = Math.max(...y) - Math.min(...y) || 1;
  return new Map(nodes.map((node, k) => [node.id, [(x[k] - Math.min(...x)) / spanX, (y[k] - Math.min(...y)) / spanY]]));
}

// Labels that do not lie on each other nor on a node: the middle first, then what is open, then by strength.
function placed(nodes, at, width) {
  const taken = nodes.map((node) => { const [x, y] = at(node.id); return [x - 7, y - 7, x + 7, y + 7]; });
  const found = new Map();
  const order = [...nodes].sort((a, b) => (b.centre ? 2 : b.open ? 1 : 0) - (a.centre ? 2 : a.open ? 1 : 0));
  for (const node of order) {
    const short = visible(node.gloss || `feature ${node.id}`, 80);
    const text = short.length > 24 ? `${short.slice(0, 23)}…` : short;
    const [x, y] = at(node.id);
    const long = 8.5 * text.length;
    for (const [dx, anchor] of [[13, "start"], [-13, "end"]]) {
      const left = anchor === "start" ? x + dx : x + dx - long;
      const box = [left, y - 11, left + long, y + 11];
      const free = left > 0 && box[2] < width && taken.every((t) => box[2] < t[0] || box[0] > t[2] || box[3] < t[1] || box[1] > t[3]);
      if (free || (node.centre && anchor === "end")) {
        found.set(node.id, { text, x: x + dx, y: y + 4.5, anchor });
        taken.push(box);
        break;
      }
    }
  }
  return found;
}

// nodes: [{id, gloss, open, centre}], edges: [{a, b, w, sign}]; onnode(id) when one is chosen
export function graph(nodes, edges, { label, onnode }) {
  const [width, height] = [860, 560];
  const places = layout(nodes, edges);
  const at = (id) => { const [x, y] = places.get(id); return [46 + x * (width - 92), 34 + y * (height - 68)]; };
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, cls: "chart graph", role: "group", "aria-label": label });
  const lines = svg("g", {});
  for (const e of [...edges].sort((p, q) => p.w - q.w)) {
    const [[x1, y1], [x2, y2]] = [at(e.a), at(e.b)];
    const line = svg("line", { cls: `edge ${e.sign < 0 ? "negative" : "positive"}${e.between ? " between" : ""}`, x1, y1, x2, y2, "stroke-width": (0.6 + 4 * Math.max(0, e.w - 0.15)).toFixed(2), "stroke-opacity": Math.min(1, 0.25 + e.w).toFixed(2) });
    line.append(svg("title", {}, `${e.a} and ${e.b}: interference ${fixed(e.sign * e.w, 2)}`));
    lines.append(line);
  }
  root.append(lines);
  const labels = placed(nodes, at, width);
  const degree = new Map();
  for (const e of edges) for (const id of [e.a, e.b]) degree.set(id, (degree.get(id) || 0) + 1);
  for (const node of nodes) {
    const [x, y] = at(node.id);
    const short = visible(node.gloss || `feature ${node.id}`, 80);
    const group = svg("g", { cls: `node${node.centre ? " centre" : ""}${node.open ? " open" : ""}`, role: "button", tabindex: "0", "aria-label": `feature ${node.id}: ${short}; ${degree.get(node.id) || 0} drawn neighbours` });
    group.append(svg("circle", { cx: x, cy: y, r: (node.centre ? 11 : 5 + 1.4 * Math.min(4, Math.sqrt(degree.get(node.id) || 0))).toFixed(1) }));
    group.append(svg("title", {}, `${node.id}: ${short}`));
    const own = labels.get(node.id);
    if (own) group.append(svg("text", { cls: "node-label halo", x: own.x, y: own.y, "text-anchor": own.anchor }, own.text));
    const choose = () => onnode(node.id);
    group.addEventListener("click", choose);
    group.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(); } });
    root.append(group);
  }
  return root;
}
