// Small charts as SVG: change over dose with its noise floor, intervals in rows, bars, a value against chance.
import { svg } from "./dom.js";
import { ticks } from "./heat.js";
import { interval, number, tick } from "./text.js";
import { shape, told } from "./words.js";

const WIDTH = 640;

function frame(parts, { xs, ys, height, left = 64, right = 16, bottom = 50, xLabel, yLabel, label, marks = null }) {
  const x = (v) => left + ((v - xs[0]) / (xs[1] - xs[0] || 1)) * (WIDTH - left - right);
  const y = (v) => height - bottom - ((v - ys[0]) / (ys[1] - ys[0] || 1)) * (height - bottom - 12);
  const root = svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, cls: "chart", role: "img", "aria-label": label });
  for (const [v, words] of marks || ticks(xs).map((t) => [t, t])) root.append(svg("line", { cls: "grid", x1: x(v), x2: x(v), y1: 12, y2: height - bottom }), svg("text", { cls: "tick", x: x(v), y: height - bottom + 18, "text-anchor": "middle" }, tick(words)));
  for (const v of ticks(ys, 5)) root.append(svg("line", { cls: "grid", x1: left, x2: WIDTH - right, y1: y(v), y2: y(v) }), svg("text", { cls: "tick", x: left - 8, y: y(v) + 4.5, "text-anchor": "end" }, tick(v)));
  root.append(svg("text", { cls: "axis", x: (left + WIDTH - right) / 2, y: height - 8, "text-anchor": "middle" }, xLabel));
  if (yLabel) root.append(svg("text", { cls: "axis", x: 14, y: (height - bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${(height - bottom) / 2})` }, yLabel));
  parts(root, x, y);
  return root;
}

export function padded(values, include = []) {
  const all = [...values, ...include].filter((v) => v !== null && v !== undefined && Number.isFinite(v));
  if (!all.length) return [-1, 1];
  const [lo, hi] = [Math.min(...all), Math.max(...all)];
  const room = (hi - lo || Math.abs(hi) || 1) * 0.07;
  return [lo - room, hi + room];
}

const SHAPES = {
  circle: (x, y, cls) => svg("circle", { cls, cx: x, cy: y, r: 4.5 }),
  square: (x, y, cls) => svg("rect", { cls, x: x - 4, y: y - 4, width: 8, height: 8 }),
  triangle: (x, y, cls) => svg("path", { cls, d: `M${x} ${y - 5.5}l5 9h-10z` }),
  diamond: (x, y, cls) => svg("path", { cls, d: `M${x} ${y - 6}l6 6l-6 6l-6 -6z` }),
};
// The mark of a curve: of its relation where it has one, else by its place, so that two of a colour can be told apart.
export const mark = (k, x, y, cls, name = null) => SHAPES[name ? shape(name) : Object.keys(SHAPES)[k % 4]](x, y, cls);

// curves: [{label, kind, relation, points: [{x, y, lo, hi}]}]; floor: [{x, lo, hi}]
export function doseChart(curves_, { floor: floor_ = [], xLabel, yLabel, headline: headline_ = null, label, zeroed = true, unit = "" }) {
  // Effects grow like the square root of a KL: on that scale small doses are not crammed into a corner.
  const root_ = unit === "kl";
  const to = (v) => (root_ && v !== null ? Math.sign(v) * Math.sqrt(Math.abs(v)) : v);
  const curves = curves_.map((c) => ({ ...c, points: c.points.map((p) => ({ ...p, dose: p.x, x: to(p.x) })) }));
  const floor = floor_.map((p) => ({ ...p, x: to(p.x) }));
  const headline = to(headline_);
  const marks = root_ ? [...new Set([0, ...curves_.flatMap((c) => c.points.map((p) => p.x))])].map((v) => [to(v), v]) : null;
  const points = curves.flatMap((c) => c.points);
  const xs = padded(points.map((p) => p.x), [0]);
  const ys = padded([...points.flatMap((p) => [p.y, p.lo, p.hi]), ...floor.flatMap((p) => [p.lo, p.hi])], [0]);
  return frame((root, x, y) => {
    if (floor.length) {
      const all = [...(zeroed && floor.every((p) => p.x > 0) ? [{ x: 0, lo: 0, hi: 0 }] : []), ...floor].sort((a, b) => a.x - b.x);
      const d = `M${all.map((p) => `${x(p.x)} ${y(p.hi)}`).join("L")}L${[...all].reverse().map((p) => `${x(p.x)} ${y(p.lo)}`).join("L")}z`;
      root.append(svg("path", { cls: "floor", d }));
    }
    root.append(svg("line", { cls: "zero", x1: x(xs[0]), x2: x(xs[1]), y1: y(0), y2: y(0) }));
    if (headline !== null) root.append(svg("line", { cls: "headline", x1: x(headline), x2: x(headline), y1: 12, y2: y(ys[0]) }));
    curves.forEach((c, k) => {
      const line = [...c.points].sort((a, b) => a.x - b.x);
      const all = zeroed && line.every((p) => p.x !== 0) ? [...line, { x: 0, y: 0 }].sort((a, b) => a.x - b.x) : line;
      const group = svg("g", { cls: `mark ${c.kind}` });
      group.append(svg("path", { cls: `line${c.plain ? " plain" : k % 2 ? " dashed" : ""}`, d: `M${all.map((p) => `${x(p.x).toFixed(1)} ${y(p.y).toFixed(1)}`).join("L")}` }));
      for (const p of c.plain ? [] : line) {
        if (p.lo !== null && p.lo !== undefined) group.append(svg("line", { cls: "whisker", x1: x(p.x), x2: x(p.x), y1: y(p.lo), y2: y(p.hi) }));
        const spot = mark(k, x(p.x), y(p.y), "", c.relation);
        spot.append(svg("title", {}, `${c.label}, dose ${number(p.dose)}: ${number(p.y, 3, true)} (${interval(p.lo, p.hi)})`));
        group.append(spot);
      }
      root.append(group);
    });
  }, { xs, ys, height: 330, xLabel, yLabel, label, marks });
}

// rows: [{label, estimate, lo, hi, kind, words}]
export function dotPlot(rows, { xLabel, label, reference = 0, band = null }) {
  const left = Math.min(400, Math.max(110, 18 + 6.9 * Math.max(...rows.map((r) => r.label.length))));
  const height = 64 + rows.length * 30;
  const xs = padded(rows.flatMap((r) => [r.estimate, r.lo, r.hi]), [reference]);
  return frame((root, x) => {
    if (band) root.append(svg("rect", { cls: "margin", x: x(Math.max(xs[0], -band)), width: x(Math.min(xs[1], band)) - x(Math.max(xs[0], -band)), y: 12, height: height - 62 }));
    root.append(svg("line", { cls: "zero", x1: x(reference), x2: x(reference), y1: 12, y2: height - 50 }));
    rows.forEach((r, k) => {
      const at = 12 + 30 * k + 17;
      root.append(svg("text", { cls: "row-label", x: left - 10, y: at + 4.5, "text-anchor": "end" }, r.label));
      if (r.estimate === null) { root.append(svg("text", { cls: "tick halo", x: left + 6, y: at + 4.5 }, "not estimated")); return; }
      const group = svg("g", { cls: `mark ${r.kind}` }, svg("title", {}, `${r.label}: ${number(r.estimate, 3, true)} (${interval(r.lo, r.hi)}) ${r.words || ""}`));
      if (r.lo !== null && r.hi !== null) {
        group.append(svg("line", { cls: "interval", x1: x(r.lo), x2: x(r.hi), y1: at, y2: at }));
        for (const v of [r.lo, r.hi]) group.append(svg("line", { cls: "interval", x1: x(v), x2: x(v), y1: at - 4, y2: at + 4 }));
      }
      group.append(svg("circle", { cx: x(r.estimate), cy: at, r: 4.8 }));
      root.append(group);
    });
  }, { xs, ys: [0, 0], height, left, xLabel, label });
}

// A cosine on a line: where chance lies, how all pairs are spread (bars), and where this pair is.
export function onScale(value, { bands = [], bars = [], from = -1, to = 1, label }) {
  const [width, height] = [420, 74];
  const x = (v) => 10 + ((v - from) / (to - from)) * (width - 20);
  const base = height - 22;
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, cls: "chart scale", role: "img", "aria-label": label });
  const most = Math.max(1, ...bars.map((b) => b.n));
  for (const b of bars) {
    const tall = b.n > 0 ? 4 + (30 * Math.log10(1 + b.n)) / Math.log10(1 + most) : 0;
    root.append(svg("rect", { cls: "spread", x: x(b.lo), width: Math.max(0.5, x(b.hi) - x(b.lo) - 0.5), y: base - tall, height: tall }));
  }
  bands.forEach((b, k) => root.append(svg("rect", { cls: `chance-band c${k}`, x: x(Math.max(from, -b)), width: x(Math.min(to, b)) - x(Math.max(from, -b)), y: base - 30 + 8 * k, height: 30 - 8 * k })));
  root.append(svg("line", { cls: "zero", x1: x(from), x2: x(to), y1: base, y2: base }));
  for (const v of ticks([from, to], 4)) root.append(svg("text", { cls: "tick", x: x(v), y: height - 5, "text-anchor": v === from ? "start" : v === to ? "end" : "middle" }, tick(v)));
  if (value !== null && value !== undefined) root.append(svg("line", { cls: "here", x1: x(value), x2: x(value), y1: 4, y2: base + 3 }), svg("circle", { cls: "here-dot", cx: x(value), cy: 9, r: 5 }));
  return root;
}

// A histogram of values, heights on a log scale.
export function histogram(values, { label, bins = 20 }) {
  const most = Math.max(...values, 0);
  const counts = new Array(bins).fill(0);
  for (const v of values) if (v > 0) counts[Math.min(bins - 1, Math.floor((v / most) * bins))] += 1;
  const [width, height] = [420, 96];
  const tallest = Math.max(1, ...counts);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, cls: "chart scale", role: "img", "aria-label": label });
  counts.forEach((n, k) => {
    const tall = n ? 3 + (66 * n) / tallest : 0;
    const bar = svg("rect", { cls: "spread strong", x: 4 + (k * (width - 8)) / bins, width: (width - 8) / bins - 1.5, y: height - 20 - tall, height: tall });
    bar.append(svg("title", {}, `${number((k * most) / bins)} to ${number(((k + 1) * most) / bins)}: ${n}`));
    root.append(bar);
  });
  root.append(svg("line", { cls: "zero", x1: 4, x2: width - 4, y1: height - 20, y2: height - 20 }), svg("text", { cls: "tick", x: 4, y: height - 4 }, "0"), svg("text", { cls: "tick", x: width - 4, y: height - 4, "text-anchor": "end" }, number(most)));
  return root;
}

// One effect taken apart in three ways: parts add up from zero, the line is the whole.
export function decomposition(row, { label }) {
  const known = Object.entries(told("splits")).map(([words, parts]) => [words, Object.keys(parts).filter((n) => row[n] !== null && row[n] !== undefined)]).filter(([, names]) => names.length);
  const sums = known.flatMap(([, names]) => [names.reduce((n, k) => n + Math.max(0, row[k]), 0), names.reduce((n, k) => n + Math.min(0, row[k]), 0)]);
  const xs = padded(sums, [0, row.total]);
  const height = 58 + known.length * 46;
  const left = 150;
  return frame((root, x) => {
    root.append(svg("line", { cls: "zero", x1: x(0), x2: x(0), y1: 12, y2: height - 50 }));
    known.forEach(([words, names], k) => {
      const top = 18 + 46 * k;
      root.append(svg("text", { cls: "row-label", x: left - 10, y: top + 18, "text-anchor": "end" }, words));
      const ends = { up: 0, down: 0 };
      names.forEach((name, n) => {
        const side = row[name] >= 0 ? "up" : "down";
        const [from, to] = [ends[side], ends[side] + row[name]];
        ends[side] = to;
        const wide = Math.abs(x(to) - x(from));
        const bar = svg("g", {}, svg("rect", { cls: `part f${(k + n + (n > 0 ? 1 : 0)) % 6}`, x: Math.min(x(from), x(to)), y: top, width: Math.max(1, wide), height: 26 }), svg("title", {}, `${name}: ${number(row[name], 3, true)} nats, ${told("splits")[words][name]}`));
        if (wide > 7.4 * name.length + 8) bar.append(svg("text", { cls: "in-bar", x: (x(from) + x(to)) / 2, y: top + 18, "text-anchor": "middle" }, name));
        root.append(bar);
      });
      if (row.total !== null) root.append(svg("line", { cls: "whole", x1: x(row.total), x2: x(row.total), y1: top - 5, y2: top + 31 }));
    });
  }, { xs, ys: [0, 0], height, left, xLabel: "change in log-odds (nats)", label });
}

export const decompositionWords = (row) => Object.values(told("splits")).flatMap((parts) => Object.entries(parts)).filter(([n]) => row[n] !== null && row[n] !== undefined).map(([n, words]) => [n, row[n], words]);
