// Steer along a feature in the loaded model: next tokens before and after, and what the model goes on to write.
import { el, link, note, problem, replace, say } from "../dom.js";
import { context } from "../card.js";
import { address, first, here, note as noteAddress } from "../state.js";
import { fixed, number, visible } from "../text.js";
import { fetchJson, fetchLines } from "../source.js";
import { tokens } from "../words.js";

const start = (asked) => fetchJson("live", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(asked) });

export async function live(ctx) {
  if (!ctx.source.live) return [el("h1", {}, "Live"), note("No model is loaded: the explorer only reads tables. ", el("code", {}, "polysem explore RUN --live"), " lets you steer along features in the study's model.")];
  const choices = await fetchJson("live");
  const { params } = here();
  const value = (name, otherwise) => first(params, name, otherwise);
  const sae = el("select", { id: "live-sae" }, choices.saes.map((s) => el("option", { value: s, selected: s === value("sae", choices.saes[0]) }, s)));
  const input = (id, type, v, more = {}) => el("input", { id, type, value: v, ...more });
  const prompt = el("textarea", { id: "live-prompt", rows: "3", maxlength: "4000" });
  prompt.value = value("prompt", choices.prompt);
  const source = input("live-source", "number", value("source", ""), { min: "0", required: true });
  const target = input("live-target", "number", value("target", ""), { min: "0", required: true });
  const locus = el("select", { id: "live-locus" }, choices.loci.map((l) => el("option", { value: l.name, selected: l.name === value("locus", "feature") }, l.words)));
  const unit = el("select", { id: "live-unit" }, [["scale", "scale (× mean norm)"], ["kl", "nats of KL"]].map(([k, words]) => el("option", { value: k, selected: k === value("unit", "scale") }, words)));
  const slider = input("live-dose", "range", "0", { step: "any" });
  const exact = el("output", { for: "live-dose" });
  const names = el("p", { cls: "fine", "aria-live": "polite" });
  const places = [el("div", { cls: "live-out", "aria-live": "polite" }), el("div", { cls: "live-out", "aria-live": "polite" })];
  const go = el("button", { type: "submit", cls: "main" }, "Steer");
  const again = el("div", { "aria-live": "polite" });
  const stop = el("button", { type: "button", disabled: true }, "Cancel");
  const more = together(value("more", ""), () => steer());
  const beside = besides(choices, value("beside", ""));
  let running = null;
  let turn = 0;

  const dose = () => (unit.value === "kl" ? 10 ** Number(slider.value) : Number(slider.value));
  const place = (d) => {
    const [lo, hi] = unit.value === "kl" ? [-3, 0] : locus.value === "neuron" ? [-2, 2] : [-0.5, 0.5];
    slider.min = lo; slider.max = hi;
    slider.value = unit.value === "kl" ? Math.log10(Math.max(1e-3, Math.abs(d))) : d;
    show();
  };
  const show = () => { exact.value = unit.value === "kl" ? `${number(dose())} nats` : fixed(dose(), 3, true); slider.setAttribute("aria-valuetext", exact.value); };
  place(Number(value("dose", unit.value === "kl" ? "0.05" : "0.2")) || 0.2);
  slider.addEventListener("input", show);
  // Let go of the slider, and the text is written anew from there.
  slider.addEventListener("change", () => { if (source.value !== "" && target.value !== "") steer(); });
  unit.addEventListener("change", () => place(unit.value === "kl" ? 0.05 : 0.2));

  // What the dose means, and whether the source is a feature, follows from the locus.
  const suit = () => {
    const [kind] = [locus.value];
    source.labels[0].textContent = kind === "neuron" ? "Steer neuron" : "Steer feature";
    unit.options[0].textContent = kind === "neuron" ? "scale (−1 ablates)" : "scale (× mean norm)";
    if (kind === "prompt") unit.value = "scale";
    unit.disabled = kind === "prompt";
    slider.disabled = kind === "prompt";
    more.node.hidden = kind !== "feature";
    place(dose());
    called();
  };
  locus.addEventListener("change", () => suit());

  const called = async () => {
    const words = [];
    for (const [role, box] of [["Source", source], ["Target", target]]) {
      if (box.value === "" || (box === source && locus.value === "neuron")) continue;
      try { const f = await ctx.source.feature(sae.value, box.value); words.push([el("strong", {}, `${role}: `), link(address("feature", [sae.value, box.value]), f.gloss || "no gloss"), " "]); } catch (error) { words.push([`${role}: ${error.message} `]); }
    }
    replace(names, words);
  };
  for (const box of [source, target, sae]) box.addEventListener("change", called);

  const push = async (asked, out, own) => {
    let job = await start(asked);
    running = job.id;
    for await (const told of fetchLines(`live/${job.id}/changes`)) {
      if (own !== turn) return;
      if (!told.state) continue; // nothing has changed
      job = { ...job, ...told };
      if (told.texts) written(out, { ...job.result, ...told.texts }, true);
      else if (job.result) drawn(out, job);
      else replace(out, el("p", { cls: "wait" }, job.doing));
    }
    if (job.texts) job.result = { ...job.result, ...job.texts };
    if (job.state === "failed") replace(out, problem({ message: job.error, hint: job.hint }));
    else if (job.state === "cancelled") { replace(out, note("Cancelled.")); say("cancelled"); } else { drawn(out, job); say("done"); }
  };
  const cancel = async () => { if (running) await fetchJson(`live/${running}`, { method: "DELETE" }).catch(() => {}); };
  const steer = async (event) => {
    event?.preventDefault();
    const own = (turn += 1);
    await cancel();
    const joint = locus.value === "feature" ? more.pushes() : [];
    if (joint.length && unit.value === "kl") { unit.value = "scale"; place(0.2); }
    const asked = { prompt: prompt.value, sae: sae.value, source: Number(source.value), target: Number(target.value), locus: locus.value, unit: unit.value, dose: Number(dose().toPrecision(4)), n_tokens: 24, more: joint };
    const other = beside.push();
    noteAddress({ prompt: asked.prompt, sae: asked.sae, source: asked.source, target: asked.target, locus: asked.locus, unit: asked.unit, dose: asked.dose, more: more.text() || [], beside: beside.text() || [] });
    go.disabled = true; stop.disabled = false;
    places[1].hidden = !other;
    try {
      await push(asked, places[0], own);
      if (other && own === turn) await push({ ...asked, more: [], ...other }, places[1], own);
    } catch (error) { if (own === turn) replace(places[0], problem(error)); }
    if (own !== turn) return;
    running = null; go.disabled = false; stop.disabled = true;
  };
  stop.addEventListener("click", cancel);
  const field = (label, control, more) => el("div", { cls: "field" }, el("label", { for: control.id }, label), control, more);
  const form = el("form", { cls: "live-form", onsubmit: steer },
    el("div", { cls: "field whole" }, el("label", { for: "live-prompt" }, "Prompt"), prompt),
    field("SAE", sae), field("Steer feature", source, picker(ctx, sae, source)), field("Read feature", target, picker(ctx, sae, target)), field("Locus", locus), field("Dose in", unit), field("Dose", slider, exact),
    more.node, beside.node, el("div", { cls: "field buttons" }, go, stop));
  // A row of the study: its prompts are offered, and its number is made again.
  if (value("row", "")) {
    const given = (await ctx.source.rows("prompts", { f: ["split=confirm"], limit: 200, offset: 0 })).rows;
    if (given.length && !params.prompt) prompt.value = given[0].text;
    const list = el("select", { id: "live-of-row", onchange: () => { prompt.value = list.value; steer(); } }, given.map((p) => el("option", { value: p.text, selected: p.text === prompt.value }, p.text)));
    form.prepend(el("div", { cls: "field whole" }, el("label", { for: "live-of-row" }, "A prompt of the row"), list));
    setTimeout(() => rowAgain(again, { sae: sae.value, locus: value("locus", "feature"), source: Number(value("source", "")), target: Number(value("target", "")), token_set: value("set", "in"), dose: Number(value("row", "")) }));
  }
  // Once the form is on the page; an address that says everything is steered at once.
  setTimeout(() => {
    suit();
    if (["source", "target", "dose"].every((name) => value(name, "") !== "")) steer();
  });
  return [el("h1", {}, "Live"), el("p", { cls: "lead" }, `Steer along a feature in ${choices.model} and see what changes. Nothing of this is stored.`), el("section", { cls: "panel wide" }, form, names), again, el("div", { cls: "beside" }, places)];
}

// A feature by words of its gloss or tokens, beside the field for its number.
function picker(ctx, sae, box) {
  const found = el("ul", { cls: "picks" });
  const words = el("input", { type: "text", placeholder: "or find it by words", "aria-label": `Words of the feature for: ${box.id.replace("live-", "")}`, autocomplete: "off", maxlength: "200" });
  let timer = 0;
  const look = async () => {
    const asked = words.value.trim();
    if (!asked || !ctx.study.relations.features) { replace(found); return; }
    const { rows } = await ctx.source.rows("features", { f: [`sae=${sae.value}`, `feature~${asked}`], limit: 6, offset: 0 });
    if (asked !== words.value.trim()) return;
    replace(found, rows.length ? rows.map((row) => el("li", {}, el("button", { type: "button", cls: "chip", onclick: () => { box.value = row.feature; replace(found); words.value = ""; box.dispatchEvent(new Event("change")); } }, `${row.feature}: ${visible(row.gloss || "no gloss", 60)}`))) : el("li", { cls: "fine" }, "no feature says this"));
  };
  words.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(look, 150); });
  return [words, found];
}

// More features at the same time, as chips: FEATURE:DOSE,FEATURE:DOSE in the address.
function together(text, onchange) {
  const list = text.split(",").map((one) => one.split(":").map(Number)).filter(([f, d]) => Number.isInteger(f) && f >= 0 && Number.isFinite(d));
  const chips = el("span", { cls: "chips" });
  const [feature, dose] = [el("input", { type: "number", id: "live-more", min: "0", "aria-label": "Feature that is steered as well" }), el("input", { type: "number", step: "0.01", value: "0.2", "aria-label": "Its dose" })];
  const draw = () => replace(chips, list.map(([f, d], k) => el("button", { type: "button", cls: "chip", onclick: () => { list.splice(k, 1); draw(); onchange(); } }, `${f} at ${fixed(d, 2, true)}`, el("span", { "aria-hidden": "true" }, " ×"), el("span", { cls: "hidden" }, " take away"))));
  const add = el("button", { type: "button", onclick: () => { if (feature.value === "") return; list.push([Number(feature.value), Number(dose.value)]); feature.value = ""; draw(); } }, "Add");
  draw();
  return { node: el("div", { cls: "field" }, el("label", { for: "live-more" }, "Together with (feature, dose)"), el("span", { cls: "row" }, feature, dose, add), chips), pushes: () => list.map(([source, d]) => ({ source, dose: d })), text: () => list.map(([f, d]) => `${f}:${d}`).join(",") };
}

// A second push beside the first: SAE/SOURCE/TARGET/DOSE in the address.
function besides(choices, text) {
  const [label, f, t, d] = (text.match(/^(.*)\/(\d+)\/(\d+)\/(-?[\d.]+)$/s) || []).slice(1);
  const sae = el("select", { id: "live-beside", "aria-label": "SAE of the second push" }, choices.saes.map((s) => el("option", { value: s, selected: s === label }, s)));
  const number_ = (what, v, more = {}) => el("input", { type: "number", min: "0", value: v ?? "", placeholder: what, "aria-label": `${what}, second push`, ...more });
  const [source, target, dose] = [number_("steer", f), number_("read", t), number_("dose", d ?? "0.2", { min: "-4", step: "any" })];
  const push = () => (source.value === "" || target.value === "" ? null : { sae: sae.value, source: Number(source.value), target: Number(target.value), dose: Number(dose.value) });
  return { node: el("details", { cls: "field", open: Boolean(f) }, el("summary", {}, "Beside another push"), sae, el("span", { cls: "row" }, source, target, dose)), push, text: () => { const p = push(); return p ? `${p.sae}/${p.source}/${p.target}/${p.dose}` : ""; } };
}

// The row's own trials, all prompts and both signs, run again beside what is stored.
async function rowAgain(place, row) {
  replace(place, el("p", { cls: "wait" }, "running the row's prompts again"));
  try {
    let job = await start({ row });
    for await (const told of fetchLines(`live/${job.id}/changes`)) job = { ...job, ...told };
    if (job.state !== "done") { replace(place, problem({ message: job.error || job.state, hint: job.hint })); return; }
    const r = job.result.row;
    replace(place, el("section", { cls: "panel wide row-again" }, el("h2", {}, "The row, run again"), el("p", {}, "stored ", el("strong", {}, fixed(r.stored, 6, true)), ", now ", el("strong", { cls: "now" }, fixed(r.again, 6, true)), ` nats: ${r.same ? "equal to the last bit" : `${number(Math.abs(r.again - r.stored))} apart (another machine or version rounds differently)`}.`),
      el("p", { cls: "fine" }, `${r.source} steered, ${r.target} read (${tokens(r.token_set)}), at ${number(r.dose)} ${r.dose_unit}, both signs, on the ${r.n_prompts} prompts of the row; KL ${number(r.kl)} nats. Below, one of these prompts.`)));
  } catch (error) { replace(place, problem(error)); }
}

function drawn(place, job) {
  const r = job.result;
  const most = Math.max(...r.tokens.flatMap((t) => [t.before, t.after]), 1e-9);
  const bar = (p, kind) => el("span", { cls: `pbar ${kind}`, vars: { "--w": `${(100 * p) / most}%` } });
  const rows = r.tokens.map((t) => el("tr", { cls: t.target ? "target" : "" },
    el("th", { scope: "row" }, el("code", {}, visible(t.text, 40)), t.target ? el("span", { cls: "flag", title: t.target.split("+").map(tokens).join("; ") }, "target") : null),
    el("td", {}, bar(t.before, "before"), bar(t.after, "after")), el("td", { cls: "num" }, number(t.before)), el("td", { cls: "num" }, number(t.after)), el("td", { cls: "num" }, fixed(t.after_logp - t.before_logp, 2, true))));
  const sets = r.sets.map((s) => el("div", {}, el("dt", {}, tokens(s.name)), el("dd", {}, s.reason ? s.reason : `log-odds ${fixed(s.before, 2)} → ${fixed(s.after, 2)} (${fixed(s.after - s.before, 3, true)} nats)`)));
  replace(place,
    r.alone ? joint(r) : null,
    el("section", { cls: "panel wide" }, el("h2", {}, r.alone ? `Next token: ${r.alone.length} features together` : `Next token: ${r.source} steered`),
      el("ul", { cls: "legend" }, el("li", {}, el("span", { cls: "pbar before key", vars: { "--w": "100%" } }), "before"), el("li", {}, el("span", { cls: "pbar after key", vars: { "--w": "100%" } }), "after")),
      el("div", { cls: "scroll", tabindex: "0", role: "region", "aria-label": "Next tokens" }, el("table", { cls: "numbers bars" }, el("thead", {}, el("tr", {}, ["token", "probability", "before", "after", "change in log-probability"].map((h, k) => el("th", { scope: "col", cls: k > 1 ? "num" : "words" }, h)))), el("tbody", {}, rows))),
      el("dl", { cls: "facts" }, el("div", {}, el("dt", {}, "dose"), el("dd", {}, r.locus === "prompt" ? "the snippet, once" : r.locus === "neuron" ? `${number(r.dose, 3, true)} × the coordinate` : `${number(r.dose, 3, true)} × mean norm ${number(r.norm)} = ${number(r.dose * r.norm, 3, true)}`)), el("div", {}, el("dt", {}, "KL to the unedited model"), el("dd", {}, `${number(r.kl)} nats${r.asked_kl === null ? "" : `, asked for ${number(r.asked_kl)}`}`)), el("div", {}, el("dt", {}, "cosine of the steered direction with the target"), el("dd", {}, fixed(r.alignment))), sets)),
    el("section", { cls: "two" }, ["Not steered", "Steered"].map((h) => el("div", { cls: "panel" }, el("h2", {}, h), el("p", { cls: "generated" }, el("span", { cls: "id" }, visible(r.prompt, 400)), el("span", { cls: "written" }))))),
    el("p", { cls: "fine" }, el("span", { cls: "shades" }), `Greedy continuation; steering acts at ${{ last: "the last position of each step", all: "every position", all_but_first: "every position but the first" }[r.positions] || r.positions}, as in the study. Took ${number(job.seconds)} s.`),
    el("p", {}, r.locus === "neuron" ? null : link(address("pair", [r.sae, Math.min(r.source, r.target), Math.max(r.source, r.target)]), "The pair's card")));
  written(place, r, job.state === "running");
}

// The two texts as far as they are written; when one is, shaded by where the target fires when the model without a push reads it.
function written(place, r, goingOn) {
  const boxes = place.querySelectorAll(".written");
  const read = [r.read_text_before, r.read_text_after];
  const most = Math.max(0, ...read.flatMap((one) => (one ? one.values : [])));
  [r.text_before, r.text_after].forEach((text, k) => {
    if (read[k]) replace(boxes[k], ...context(read[k], most).childNodes);
    else boxes[k].textContent = `${visible(text || "", 2000)}${goingOn ? "…" : ""}`;
  });
  const fires = read.map((one) => (one ? one.values.filter((v) => v > 0).length : null));
  if (read[0] && read[1]) replace(place.querySelector(".shades"), most ? `Shaded: where feature ${r.target} fires when the model without a push reads the text, the darkest at ${number(most)}; on ${fires[0]} of ${read[0].values.length} tokens, steered on ${fires[1]} of ${read[1].values.length}. ` : `Feature ${r.target} fires on no token of either text when the model without a push reads them. `);
}

// Several at once: what each does alone, what their sum predicts, what they do.
function joint(r) {
  const change = (s) => (s.reason ? "–" : fixed(s.after - s.before, 3, true));
  const sum = r.sets.map((_, k) => r.alone.reduce((n, one) => n + (one.sets[k].reason ? NaN : one.sets[k].after - one.sets[k].before), 0));
  return el("section", { cls: "panel wide" }, el("h2", {}, "Together against one by one"), el("div", { cls: "scroll", tabindex: "0", role: "region", "aria-label": "Together against one by one" }, el("table", { cls: "numbers joint" },
    el("thead", {}, el("tr", {}, ["steered", "dose", "KL (nats)", ...r.sets.map((s) => `${tokens(s.name)} (nats)`)].map((h) => el("th", { scope: "col" }, h)))),
    el("tbody", {}, r.alone.map((one) => el("tr", {}, el("th", { scope: "row" }, `${one.source} alone`), el("td", {}, fixed(one.dose, 2, true)), el("td", {}, number(one.kl)), one.sets.map((s) => el("td", {}, change(s))))),
      el("tr", { cls: "predicted" }, el("th", { scope: "row" }, "predicted by addition"), el("td", {}), el("td", {}, number(r.alone.reduce((n, one) => n + one.kl, 0))), sum.map((v) => el("td", {}, fixed(v, 3, true)))),
      el("tr", { cls: "strong measured" }, el("th", { scope: "row" }, "measured together"), el("td", {}), el("td", {}, number(r.kl)), r.sets.map((s) => el("td", {}, change(s))))))),
    el("p", { cls: "fine" }, `${r.unexplained === null ? "" : `${number(100 * r.unexplained)} % of the joint change of logits is not said by the sum of the single ones. `}This one prompt; polysem joint asks it of many, with intervals.`));
}
