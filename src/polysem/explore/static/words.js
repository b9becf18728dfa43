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

// Names in the order in which people are shown them; unknown ones last.
export function inOrder(kindOf, names) {
  const there = new Set(names);
  const order = Object.keys(known[kindOf]);
  return [...order.filter((n) => there.has(n)), ...[...there].filter((n) => !order.includes(n)).sort()];
}
