// Density of all pairs over gloss similarity and interference: counts by colour (two steps a decade), chance
// levels, the mined corner, and a rectangle to draw.
import { el, svg } from "./dom.js";
import { count, fixed, tick } from "./text.js";

const COLOURS = 17;

export function extent(map, pairs) {
  let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const c of map.cells) {
    x0 = Math.min(x0, c[0]); x1 = Math.max(x1, c[1]);
    y0 = Math.min(y0, c[2]); y1 = Math.max(y1, c[3]);
  }
  const { min_interference: low, max_similarity: high } = pairs;
  if (!map.cells.length) [x0, x1, y0, y1] = [-1, 1, -1, 1];
  return { x: [x0, Math.max(x1, high + 0.05)], y: [Math.min(y0, -low - 0.05), Math.max(y1, low + 0.05)] };
}

export function union(extents) {
  const of = (axis) => [Math.min(...extents.map((e) => e[axis][0])), Math.max(...extents.map((e) => e[axis][1]))];
  return { x: of("x"), y: of("y") };
}

export function ticks([lo, hi], wanted = 6) {
  const raw = (hi - lo) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let k = Math.ceil(lo / step - 1e-9); k * step <= hi + 1e-9; k += 1) found.push(Number((k * step).toPrecision(12)));
  return found;
}

// What lies inside a rectangle, from the histogram: whole cells, and whether its edges cut cells.
export function inside(map, box) {
  let n = 0;
  let cut = false;
  for (const [s0, s1, i0, i1, k] of map.cells) {
    if (s1 <= box.s0 + 1e-9 || s0 >= box.s1 - 1e-9 || i1 <= box.i0 + 1e-9 || i0 >= box.i1 - 1e-9) continue;
    const middle = (s0 + s1) / 2 >= box.s0 && (s0 + s1) / 2 < box.s1 && (i0 + i1) / 2 >= box.i0 && (i0 + i1) / 2 < box.i1;
    if (s0 < box.s0 - 1e-9 || s1 > box.s1 + 1e-9 || i0 < box.i0 - 1e-9 || i1 > box.i1 + 1e-9) cut = true;
    if (middle) n += k;
  }
  return { n, cut };
}

export function heat(map, { pairs, range, most, small = false, box = null, onbox = null, label, axes: words = {} }) {
  const [width, height] = small ? [300, 210] : [720, 470];
  const edge = small ? { left: 8, right: 8, top: 8, bottom: 8 } : { left: words.yMarks ? 88 : 62, right: 14, top: 12, bottom: 92 };
  const { x: xs, y: ys } = range;
  const x = (v) => edge.left + ((v - xs[0]) / (xs[1] - xs[0])) * (width - edge.left - edge.right);
  const y = (v) => height - edge.bottom - ((v - ys[0]) / (ys[1] - ys[0])) * (height - edge.top - edge.bottom);
  const steps = Math.max(1, Math.floor(2 * Math.log10(Math.max(1, most)) + 1e-9) + 1);
  const colour = (step) => Math.round((step / Math.max(1, steps - 1)) * (COLOURS - 1));
  const paths = new Map();
  for (const [s0, s1, i0, i1, n] of map.cells) {
    const k = colour(Math.floor(2 * Math.log10(n) + 1e-9));
    const d = `M${x(s0).toFixed(1)} ${y(i1).toFixed(1)}H${x(s1).toFixed(1)}V${y(i0).toFixed(1)}H${x(s0).toFixed(1)}z`;
    paths.set(k, (paths.get(k) || "") + d);
  }
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, cls: `chart heat${small ? " small" : ""}`, role: "img", "aria-label": `${label}: ${count(map.n)} pairs by ${words.x ? `${words.x} and ${words.y}` : "gloss similarity and interference"}` });
  root.append(svg("rect", { cls: "ground", x: edge.left, y: edge.top, width: width - edge.left - edge.right, height: height - edge.top - edge.bottom }));
  if (!small) axes(root, { xs, ys, x, y, width, height, edge, words });
  for (const [k, d] of [...paths].sort((a, b) => a[0] - b[0])) root.append(svg("path", { cls: `v v${k}`, d }));
  if (pairs) corner(root, { pairs, xs, ys, x, y, map, small });
  chanceLines(root, { map, ys, x, y, xs, small });
  if (small) return root;
  legend(root, { steps, colour, edge, width, height });
  const shown = svg("rect", { cls: "brush", hidden: true });
  root.append(shown);
  const draw = (b) => {
    shown.toggleAttribute("hidden", !b);
    if (!b) return;
    const clamp = (v, [lo, hi]) => Math.min(hi, Math.max(lo, v));
    const [l, r, t, u] = [x(clamp(b.s0, xs)), x(clamp(b.s1, xs)), y(clamp(b.i1, ys)), y(clamp(b.i0, ys))];
    for (const [name, v] of Object.entries({ x: l, y: t, width: Math.max(1, r - l), height: Math.max(1, u - t) })) shown.setAttribute(name, v);
  };
  draw(box);
  if (onbox) brush(root, { xs, ys, x, y, edge, width, height, draw, onbox });
  root.draw = draw;
  return root;
}

function axes(root, { xs, ys, x, y, width, height, edge, words }) {
  const bottom = height - edge.bottom;
  for (const v of ticks(xs)) {
    root.append(svg("line", { cls: "grid", x1: x(v), x2: x(v), y1: edge.top, y2: bottom }), svg("text", { cls: "tick", x: x(v), y: bottom + 18, "text-anchor": "middle" }, tick(v)));
  }
  for (const [v, text] of words.yMarks || ticks(ys).map((t) => [t, tick(t)])) {
    if (v < ys[0] || v > ys[1]) continue;
    root.append(svg("line", { cls: "grid", x1: edge.left, x2: width - edge.right, y1: y(v), y2: y(v) }), svg("text", { cls: "tick", x: edge.left - 8, y: y(v) + 4.5, "text-anchor": "end" }, text));
  }
  const middle = (edge.top + bottom) / 2;
  root.append(
    svg("text", { cls: "axis", x: (edge.left + width - edge.right) / 2, y: bottom + 38, "text-anchor": "middle" }, words.x || "gloss similarity (cosine)"),
    svg("text", { cls: "axis", x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` }, words.y || "interference (cosine of directions)"),
  );
}

function corner(root, { pairs, xs, ys, x, y, map, small }) {
  const { min_interference: low, max_similarity: high } = pairs;
  const [left, right] = [x(xs[0]), x(high)];
  root.append(
    svg("rect", { cls: "corner", x: left, y: y(ys[1]), width: right - left, height: y(low) - y(ys[1]) }),
    svg("rect", { cls: "corner weak", x: left, y: y(-low), width: right - left, height: y(ys[0]) - y(-low) }),
  );
  if (small) return;
  root.append(
    svg("text", { cls: "on-map strong", x: left + 7, y: y(ys[1]) + 18 }, `${count(map.above)} pairs listed`),
    svg("text", { cls: "on-map", x: left + 7, y: y(ys[0]) - 8 }, `${count(map.below)} pairs listed`),
  );
}

function chanceLines(root, { map, ys, x, y, xs, small }) {
  const highest = Math.max(...map.chance.map((c) => c.bound));
  map.chance.forEach((c, k) => {
    for (const v of [c.bound, -c.bound]) {
      if (v > ys[0] && v < ys[1]) root.append(svg("line", { cls: `chance c${k}`, x1: x(xs[0]), x2: x(xs[1]), y1: y(v), y2: y(v) }));
    }
    if (!small && c.bound < ys[1]) {
      const above = c.bound === highest;
      root.append(svg("text", { cls: "on-map", x: x(xs[1]) - 5, y: y(c.bound) + (above ? -5 : 14), "text-anchor": "end" }, `chance: ${c.name}`));
    }
  });
}

function legend(root, { steps, colour, edge, width, height }) {
  const at = height - 22;
  const wide = Math.min(28, (width - edge.left - 130) / steps);
  for (let step = 0; step < steps; step += 1) {
    const left = edge.left + step * wide;
    root.append(svg("rect", { cls: `v v${colour(step)}`, x: left, y: at - 12, width: wide, height: 12 }));
    if (step % 2 === 0) root.append(svg("text", { cls: "tick", x: left, y: at + 15 }, ["1", "10", "100", "1k", "10k", "100k", "1M", "10M", "100M", "1G"][Math.min(9, step / 2)]));
  }
  root.append(svg("text", { cls: "tick", x: edge.left + steps * wide + 10, y: at - 1 }, "pairs per cell"));
}

function brush(root, { xs, ys, x, y, edge, width, height, draw, onbox }) {
  const place = svg("rect", { cls: "catch", x: edge.left, y: edge.top, width: width - edge.left - edge.right, height: height - edge.top - edge.bottom });
  root.append(place);
  const at = (event) => {
    const m = root.getScreenCTM();
    const px = (event.clientX - m.e) / m.a;
    const py = (event.clientY - m.f) / m.d;
    const clamp = (v, [lo, hi]) => Math.min(hi, Math.max(lo, v));
    return {
      s: clamp(xs[0] + ((px - x(xs[0])) / (x(xs[1]) - x(xs[0]))) * (xs[1] - xs[0]), xs),
      i: clamp(ys[0] + ((py - y(ys[0])) / (y(ys[1]) - y(ys[0]))) * (ys[1] - ys[0]), ys),
    };
  };
  let from = null;
  const box = (a, b) => ({ s0: Math.min(a.s, b.s), s1: Math.max(a.s, b.s), i0: Math.min(a.i, b.i), i1: Math.max(a.i, b.i) });
  const round = (b) => Object.fromEntries(Object.entries(b).map(([k, v]) => [k, Math.round(v * 1000) / 1000]));
  place.addEventListener("pointerdown", (event) => { from = at(event); place.setPointerCapture(event.pointerId); });
  place.addEventListener("pointermove", (event) => { if (from) draw(box(from, at(event))); });
  place.addEventListener("pointerup", (event) => {
    if (!from) return;
    const drawn = round(box(from, at(event)));
    from = null;
    onbox(drawn.s1 - drawn.s0 > 0.004 && drawn.i1 - drawn.i0 > 0.004 ? drawn : null);
  });
  place.addEventListener("pointercancel", () => { from = null; draw(null); });
}

export function boxWords(box) {
  return `similarity ${fixed(box.s0, 2)} to ${fixed(box.s1, 2)}, interference ${fixed(box.i0, 2)} to ${fixed(box.i1, 2)}`;
}

// The rectangle as four fields: for the keyboard, and to the digit.
export function boxFields(box, onbox) {
  const field = (name, label) => {
    const input = el("input", { type: "number", step: "0.01", min: "-1", max: "1", value: box ? box[name] : "", id: `box-${name}` });
    input.addEventListener("change", () => {
      const next = {};
      for (const k of ["s0", "s1", "i0", "i1"]) next[k] = Number(form.querySelector(`#box-${k}`).value || { s0: -1, s1: 1, i0: -1, i1: 1 }[k]);
      onbox(next.s1 > next.s0 && next.i1 > next.i0 ? next : null);
    });
    return el("label", { for: `box-${name}` }, label, input);
  };
  const form = el("div", { cls: "fields" }, field("s0", "similarity from"), field("s1", "to"), field("i0", "interference from"), field("i1", "to"), el("button", { type: "button", onclick: () => onbox(null), disabled: !box }, "Clear"));
  return form;
}
