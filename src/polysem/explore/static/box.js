// A rectangle on a map: drawn with the pointer or typed, and what lies inside by the cells.
import { el, svg } from "./dom.js";
import { scales } from "./figures.js";
import { fixed } from "./text.js";

const EDGES = { s0: -1, s1: 1, i0: -1, i1: 1 };
const clamp = (v, { lo, hi }) => Math.min(hi, Math.max(lo, v));

// What lies inside a rectangle, from the histogram: whole cells, and whether its edges cut cells.
export function inside(cells, box) {
  let n = 0;
  let cut = false;
  for (const [s0, s1, i0, i1, k] of cells) {
    if (s1 <= box.s0 + 1e-9 || s0 >= box.s1 - 1e-9 || i1 <= box.i0 + 1e-9 || i0 >= box.i1 - 1e-9) continue;
    const middle = (s0 + s1) / 2 >= box.s0 && (s0 + s1) / 2 < box.s1 && (i0 + i1) / 2 >= box.i0 && (i0 + i1) / 2 < box.i1;
    if (s0 < box.s0 - 1e-9 || s1 > box.s1 + 1e-9 || i0 < box.i0 - 1e-9 || i1 > box.i1 + 1e-9) cut = true;
    if (middle) n += k;
  }
  return { n, cut };
}

export function brush(root, box, onbox) {
  const { x, y, under } = scales(root);
  const ground = { x: x.start, y: y.stop, width: x.stop - x.start, height: y.start - y.stop };
  const [shown, place] = [svg("rect", { cls: "brush" }), svg("rect", { cls: "catch", ...ground })];
  root.append(shown, place);
  const draw = (b) => {
    shown.toggleAttribute("hidden", !b);
    if (!b) return;
    const [l, r, t, u] = [x.place(clamp(b.s0, x)), x.place(clamp(b.s1, x)), y.place(clamp(b.i1, y)), y.place(clamp(b.i0, y))];
    for (const [name, v] of Object.entries({ x: l, y: t, width: Math.max(1, r - l), height: Math.max(1, u - t) })) shown.setAttribute(name, v);
  };
  draw(box);
  const at = (event) => { const [s, i] = under(event); return { s: clamp(s, x), i: clamp(i, y) }; };
  const between = (a, b) => Object.fromEntries(Object.entries({ s0: Math.min(a.s, b.s), s1: Math.max(a.s, b.s), i0: Math.min(a.i, b.i), i1: Math.max(a.i, b.i) }).map(([k, v]) => [k, Math.round(v * 1000) / 1000]));
  let from = null;
  place.addEventListener("pointerdown", (event) => { from = at(event); place.setPointerCapture(event.pointerId); });
  place.addEventListener("pointermove", (event) => { if (from) draw(between(from, at(event))); });
  place.addEventListener("pointerup", (event) => {
    if (!from) return;
    const b = between(from, at(event));
    from = null;
    onbox(b.s1 - b.s0 > 0.004 && b.i1 - b.i0 > 0.004 ? b : null);
  });
  place.addEventListener("pointercancel", () => { from = null; draw(null); });
}

export const boxWords = (box) => `similarity ${fixed(box.s0, 2)} to ${fixed(box.s1, 2)}, interference ${fixed(box.i0, 2)} to ${fixed(box.i1, 2)}`;

// The rectangle as four fields: for the keyboard, and to the digit.
export function boxFields(box, onbox) {
  const field = (name, label) => {
    const input = el("input", { type: "number", step: "0.01", min: "-1", max: "1", value: box ? box[name] : "", id: `box-${name}` });
    input.addEventListener("change", () => {
      const next = Object.fromEntries(Object.entries(EDGES).map(([k, edge]) => [k, Number(form.querySelector(`#box-${k}`).value || edge)]));
      onbox(next.s1 > next.s0 && next.i1 > next.i0 ? next : null);
    });
    return el("label", { for: `box-${name}` }, label, input);
  };
  const form = el("div", { cls: "fields" }, field("s0", "similarity from"), field("s1", "to"), field("i0", "interference from"), field("i1", "to"), el("button", { type: "button", onclick: () => onbox(null), disabled: !box }, "Clear"));
  return form;
}
