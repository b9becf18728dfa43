// What a feature is to others of its dictionary, and whether other dictionaries of its site have it.
import { el, link } from "../dom.js";
import { featureCell } from "../grid.js";
import { address } from "../state.js";
import { count, fixed, number, plural } from "../text.js";
import { help, label } from "../words.js";

const LISTED = 8;
const SIDES = { parent: ["child of", "parent of"], absorbed: ["absorbed in part by", "absorbs a part of"] };

// Of a parent or absorbed pair, which of the two it is: `above` is the more general one.
function called(row, own) {
  if (row.above === null || !SIDES[row.relation]) return label("kinships", row.relation);
  const general = row.above === own;
  return SIDES[row.relation][row.relation === "parent" ? Number(general) : Number(!general)];
}

function evidence(row) {
  const found = [`cosine ${fixed(row.interference, 2, true)}`, `${row.i} fires on ${count(row.fires_i)} tokens, ${row.j} on ${count(row.fires_j)}, both on ${count(row.both)}`];
  return [...found, row.evidence].filter(Boolean).join("; ");
}

export async function kinOf(ctx, { sae, number: id }) {
  const { relations, saes } = ctx.study;
  const ask = (name, query) => (relations[name] ? ctx.source.rows(name, { limit: LISTED, offset: 0, ...query }) : { rows: [], total: 0 });
  const own = [`sae=${sae}`, `feature=${id}`];
  const near = { f: [`sae=${sae}`, "relation!=unrelated"], near: id };
  const [kin, lost, matches] = await Promise.all([ask("relations", { ...near, sort: "relation" }), ask("absorption", { f: own }), ask("matches", { f: own })]);
  const sides = [], others = saes.filter((s) => s.site === saes.find((one) => one.label === sae)?.site).length - 1;
  if (matches.total) sides.push(stable(matches, Math.max(others, matches.total)));
  else if (relations.matches && others > 0) sides.push(el("div", {}, el("h3", {}, "In other dictionaries"), el("p", { cls: "fine" }, "It has no match in another dictionary of its site: it is dead, or that one has fewer features.")));
  if (relations.relations) {
    const [one] = lost.rows;
    sides.push(el("div", {}, el("h3", {}, "In this dictionary"),
      kin.total ? el("ul", {}, kin.rows.map((row) => {
        const right = row.i === id;
        return el("li", {}, el("strong", { title: help("kinships", row.relation) }, called(row, id)), " ", featureCell(sae, right ? row.j : row.i, right ? row.gloss_j : row.gloss_i), " ", link(address("pair", [sae, row.i, row.j]), "pair"), el("span", { cls: "fine" }, ` ${evidence(row)}`));
      })) : el("p", { cls: "fine" }, "By where features fire it is nothing to any other."),
      kin.total > LISTED ? el("p", {}, link(address("tables", ["relations"], near), `All ${plural(kin.total, "relation")}`)) : null,
      one && one.rate !== null ? el("p", { cls: "fine" }, `Absorption: on ${number(100 * one.rate)} % of its tokens it is off and a child on.`) : null));
  }
  return sides.length ? el("section", { cls: "panel wide kin" }, el("h2", {}, "One feature, or a part of one?"), el("div", { cls: "three even" }, sides)) : null;
}

// One that has no match in another dictionary is stable there no more than one whose match is chance.
function stable({ rows, total }, others) {
  const n = Math.round(rows[0].stability * others), one = others === 1, without = others - total;
  return el("div", {}, el("h3", {}, "In other dictionaries"), el("p", {}, el("strong", {}, `Stable in ${n} of ${others}`), ` other ${one ? "dictionary" : "dictionaries"} of its site. The nearest direction there, of any feature: |cosine| ${fixed(rows[0].nearest, 2)}${one ? "" : " on average"}.`),
    el("ul", {}, rows.map((row) => el("li", {}, row.stable ? "stable: " : "its match is not beyond chance: ", featureCell(row.other, row.other_feature, row.gloss_other), el("span", { cls: "id" }, ` of ${row.other}, |cosine| ${fixed(row.cosine, 2)}`)))),
    without ? el("p", { cls: "fine" }, `It has no match in ${without} of them, with fewer features.`) : null);
}

export async function kinOfPair(ctx, { sae, i, j }) {
  if (!ctx.study.relations.relations) return null;
  const { rows: [row] } = await ctx.source.rows("relations", { f: [`sae=${sae}`, `i=${i}`, `j=${j}`], limit: 1, offset: 0 });
  const said = row ? [el("strong", {}, called(row, i)), row.above !== null && SIDES[row.relation] ? ` ${j}` : "", row.relation === "unrelated" ? " by where they fire. " : `: ${help("kinships", row.relation)}. `, el("span", { cls: "fine" }, `${evidence(row)}.`)]
    : ["Nothing by where they fire; pairs below |cosine| 0.3 that are nothing to each other are not listed."];
  return el("section", { cls: "panel wide kin" }, el("h2", {}, "What they are to each other"), el("p", {}, row && row.above !== null && SIDES[row.relation] ? `${i} is ` : "", said));
}
