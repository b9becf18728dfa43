// Elements, never HTML: every string becomes a text node or an attribute, made visible on the way.
import { visible } from "./text.js";

const SVG = "http://www.w3.org/2000/svg";

function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "disabled" || name === "hidden") node[name] = value;
    else if (name === "vars") for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
    else node.setAttribute(name === "cls" ? "class" : name, value === true ? "" : typeof value === "string" && name !== "href" && name !== "d" ? visible(value, 2000) : value);
  }
  add(node, ...children);
  return node;
}

export function add(node, ...children) {
  for (const child of children.flat(3)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(visible(child, 4000)));
  }
  return node;
}

export const el = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);
export const svg = (tag, properties, ...children) => fill(document.createElementNS(SVG, tag), properties, children);

export function replace(node, ...children) {
  node.replaceChildren();
  return add(node, ...children);
}

export const link = (href, text, properties = {}) => el("a", { href, ...properties }, text);

// A page of another site, opened without telling it where from.
export const outside = (href, text) => el("a", { href, target: "_blank", rel: "noopener noreferrer" }, text, el("span", { cls: "hidden" }, " (opens another site)"));

export function say(text) {
  const place = document.getElementById("said");
  place.textContent = "";
  place.textContent = text;
}

export const note = (...children) => el("p", { cls: "absent" }, children);

export function problem(error) {
  return el("div", { cls: "absent", role: "alert" }, el("strong", {}, error.message || String(error)), error.hint ? el("span", {}, " Next: ", el("code", {}, error.hint)) : null);
}
