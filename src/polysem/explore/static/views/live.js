// Steer along a feature in the loaded model: next tokens before and after, and what the model goes on to write.
import { el, link, note, problem, replace, say } from "../dom.js";
import { address, first, here, note as noteAddress } from "../state.js";
import { fixed, number, visible } from "../text.js";
import { fetchJson } from "../source.js";
import { tokens } from "../words.js";

const EVERY = 250;

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
  const out = el("div", { cls: "live-out", "aria-live": "polite" });
  const go = el("button", { type: "submit", cls: "main" }, "Steer");
  const again = el("div", { "aria-live": "polite" });
  const stop = el("button", { type: "button", disabled: true }, "Cancel");
  let running = null;

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
  unit.addEventListener("change", () => place(unit.value === "kl" ? 0.05 : 0.2));

  // What the dose means, and whether the source is a feature, follows from the locus.
  const suit = () => {
    const [kind] = [locus.value];
    source.labels[0].textContent = kind === "neuron" ? "Steer neuron" : "Steer feature";
    unit.options[0].textContent = kind === "neuron" ? "scale (−1 ablates)" : "scale (× mean norm)";
    if (kind === "prompt") unit.value = "scale";
    unit.disabled = kind === "prompt";
    slider.disabled = kind === "prompt";
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

  const steer = async (event) => {
    event?.preventDefault();
    const asked = { prompt: prompt.value, sae: sae.value, source: Number(source.value), target: Number(target.value), locus: locus.value, unit: unit.value, dose: Number(dose().toPrecision(4)), n_tokens: 24 };
    noteAddress({ prompt: asked.prompt, sae: asked.sae, source: asked.source, target: asked.target, locus: asked.locus, unit: asked.unit, dose: asked.dose });
    go.disabled = true; stop.disabled = false;
    try {
      let job = await fetchJson("live", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(asked) });
      running = job.id;
      while (["waiting", "running"].includes(job.state)) {
        if (job.result) drawn(out, job); else replace(out, el("p", { cls: "wait" }, job.doing));
        await new Promise((done) => setTimeout(done, EVERY));
        job = await fetchJson(`live/${running}`);
      }
      if (job.state === "failed") replace(out, problem({ message: job.error, hint: job.hint }));
      else if (job.state === "cancelled") { replace(out, note("Cancelled.")); say("cancelled"); } else { drawn(out, job); say("done"); }
    } catch (error) { replace(out, problem(error)); }
    running = null; go.disabled = false; stop.disabled = true;
  };
  stop.addEventListener("click", async () => { if (running) await fetchJson(`live/${running}`, { method: "DELETE" }).catch(() => {}); });
  const field = (label, control, more) => el("div", { cls: "field" }, el("label", { for: control.id }, label), control, more);
  const form = el("form", { cls: "live-form", onsubmit: steer },
    el("div", { cls: "field whole" }, el("label", { for: "live-prompt" }, "Prompt"), prompt),
    field("SAE", sae), field("Steer feature", source), field("Read feature", target), field("Locus", locus), field("Dose in", unit), field("Dose", slider, exact),
    el("div", { cls: "field buttons" }, go, stop));
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
  return [el("h1", {}, "Live"), el("p", { cls: "lead" }, `Steer along a feature in ${choices.model} and see what changes. Nothing of this is stored.`), el("section", { cls: "panel wide" }, form, names), again, out];
}

// The row's own trials, all prompts and both signs, run again beside what is stored.
async function rowAgain(place, row) {
  replace(place, el("p", { cls: "wait" }, "running the row's prompts again"));
  try {
    let job = await fetchJson("live", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ row }) });
    while (["waiting", "running"].includes(job.state)) {
      await new Promise((done) => setTimeout(done, EVERY));
      job = await fetchJson(`live/${job.id}`);
    }
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
    el("section", { cls: "panel wide" }, el("h2", {}, "Next token"),
      el("ul", { cls: "legend" }, el("li", {}, el("span", { cls: "pbar before key", vars: { "--w": "100%" } }), "before"), el("li", {}, el("span", { cls: "pbar after key", vars: { "--w": "100%" } }), "after")),
      el("div", { cls: "scroll", tabindex: "0", role: "region", "aria-label": "Next tokens" }, el("table", { cls: "numbers bars" }, el("thead", {}, el("tr", {}, ["token", "probability", "before", "after", "change in log-probability"].map((h, k) => el("th", { scope: "col", cls: k > 1 ? "num" : "words" }, h)))), el("tbody", {}, rows))),
      el("dl", { cls: "facts" }, el("div", {}, el("dt", {}, "dose"), el("dd", {}, r.locus === "prompt" ? "the snippet, once" : r.locus === "neuron" ? `${number(r.dose, 3, true)} × the coordinate` : `${number(r.dose, 3, true)} × mean norm ${number(r.norm)} = ${number(r.dose * r.norm, 3, true)}`)), el("div", {}, el("dt", {}, "KL to the unedited model"), el("dd", {}, `${number(r.kl)} nats${r.asked_kl === null ? "" : `, asked for ${number(r.asked_kl)}`}`)), el("div", {}, el("dt", {}, "cosine of the steered direction with the target"), el("dd", {}, fixed(r.alignment))), sets)),
    el("section", { cls: "two" }, [["Not steered", r.text_before], ["Steered", r.text_after]].map(([h, text]) => el("div", { cls: "panel" }, el("h2", {}, h), el("p", { cls: "generated" }, el("span", { cls: "id" }, visible(r.prompt, 400)), visible(text || "", 2000), job.state === "running" ? "…" : "")))),
    el("p", { cls: "fine" }, `Greedy continuation; steering acts at ${{ last: "the last position of each step", all: "every position", all_but_first: "every position but the first" }[r.positions] || r.positions}, as in the study. Took ${number(job.seconds)} s.`),
    el("p", {}, r.locus === "neuron" ? null : link(address("pair", [r.sae, Math.min(r.source, r.target), Math.max(r.source, r.target)]), "The pair's card")));
}
