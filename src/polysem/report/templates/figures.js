// What the kit's drawings do under the pointer, in report and explorer. A drawing says its scales in data attributes.
export function scales(svg) {
  const axis = (name) => {
    const [start, stop, lo, hi] = ["0", "1", "lo", "hi"].map((end) => Number(svg.dataset[name + end]));
    return { lo, hi, start, stop, place: (v) => start + ((v - lo) / (hi - lo)) * (stop - start), value: (p) => lo + ((p - start) / (stop - start)) * (hi - lo) };
  };
  const [x, y] = [axis("x"), axis("y")];
  const under = (event) => {
    const matrix = svg.getScreenCTM();
    return [x.value((event.clientX - matrix.e) / matrix.a), y.value((event.clientY - matrix.f) / matrix.d)];
  };
  return { x, y, under };
}

// A map's cell under the pointer, in words.
export function readout(svg, place) {
  const cells = JSON.parse(svg.dataset.cells);
  const { under } = scales(svg);
  const minus = (v) => v.toFixed(2).replace("-", "−");
  const show = (event) => {
    const [s, i] = under(event);
    const cell = cells.find((c) => s >= c[0] && s < c[1] && i >= c[2] && i < c[3]);
    place.textContent = cell ? `${cell[4].toLocaleString("en")} pairs: similarity ${minus(cell[0])} to ${minus(cell[1])}, interference ${minus(cell[2])} to ${minus(cell[3])}` : "";
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", () => { place.textContent = ""; });
}
