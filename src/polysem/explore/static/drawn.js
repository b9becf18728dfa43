// Figures come drawn, as in the report; here they get what a pointer does: marks that lead somewhere, cells that are told.
import { scales, readout } from "./figures.js";
import { address } from "./state.js";

// The figures of a name as nodes of this page, in their order: [{node, of}] of the figures among them.
export async function drawn(ctx, name, args = {}) {
  const nodes = await ctx.source.figures(name, args);
  for (const node of nodes) dress(node);
  return nodes;
}

function dress(node) {
  for (const svg of node.querySelectorAll("svg[data-cells]")) readout(svg, svg.closest("figure").querySelector(".readout"));
  for (const mark of node.querySelectorAll("[data-pair]")) {
    const [sae, i, j] = mark.dataset.pair.match(/^(.*)\/(\d+)\/(\d+)$/s).slice(1);
    mark.addEventListener("click", () => { location.hash = address("pair", [sae, i, j]); });
  }
  return node;
}

export const figuresOf = (nodes) => nodes.filter((node) => node.matches("figure"));

// A copy of a drawing with its mark at a value.
export function markedAt(figure, value) {
  const copy = figure.cloneNode(true);
  const svg = copy.querySelector("svg");
  const here = svg.querySelector(".here");
  here.toggleAttribute("hidden", value === null || value === undefined);
  if (value !== null && value !== undefined) here.setAttribute("transform", `translate(${scales(svg).x.place(value)} 0)`);
  return copy;
}

// A copy of a map for a list of maps: cells and corners, without words.
export function thumbnail(figure) {
  const svg = figure.querySelector("svg").cloneNode(true);
  const { x, y } = scales(svg);
  svg.setAttribute("viewBox", `${x.start - 4} ${y.stop - 4} ${x.stop - x.start + 8} ${y.start - y.stop + 8}`);
  svg.classList.add("small");
  return svg;
}
