// What the tables' names stand for and how they are marked: from the vocabulary that the study brings along. A name that
// it does not know is shown as it stands in the tables.
let known = {};

export const learn = (vocabulary) => { known = vocabulary; };
export const told = (kind) => known[kind];

const plain = (name) => String(name).replace(/_/g, " ");
const up = (text) => text.replace(/^./, (c) => c.toUpperCase());

export const label = (kind, name) => known[kind]?.[name]?.label ?? plain(name);
export const title = (kind, name) => up(label(kind, name));
export const help = (kind, name) => known[kind]?.[name]?.help ?? "";

export const relation = (name) => label("relations", name);
export const locus = (name) => title("loci", name);
export const tokens = (name) => label("token_sets", name);
export const contrast = (name) => known.contrasts[name]?.label ?? plain(name).replace(/^pair minus (.*)$/, (_, rest) => `pairs minus ${relation(rest.replace(/ /g, "_"))}`);

// Relations: the class that colours them, their shape, what they are to a pair.
export const kind = (name) => (known.relations[name] ? `k-${name}` : "k-other");
export const shape = (name) => (known.relations[name]?.mark ?? known.other).shape;
export const role = (name) => known.relations[name]?.role ?? "reference";

// Names in the order in which people are shown them; unknown ones last.
export function inOrder(kindOf, names) {
  const there = new Set(names);
  const order = Object.keys(known[kindOf]);
  return [...order.filter((n) => there.has(n)), ...[...there].filter((n) => !order.includes(n)).sort()];
}

// The best control at hand that says what any direction does.
export const floorAmong = (names) => known.floors.find((name) => names.includes(name));

export function doseAxis(unit, { signed = false } = {}) {
  const words = known.dose_units[unit]?.axis || label("dose_units", unit);
  return `${signed ? "signed " : ""}dose (${words}${unit === "kl" ? ", square-root scale" : ""})`;
}
