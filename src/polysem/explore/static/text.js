// Text for people. Glosses and tokens are written by models and strangers: characters that reorder, hide or
// overflow are shown as their code points. The same rules as polysem.report.text; a test compares the two.
const MAX_LENGTH = 400;
const MAX_MARKS = 3;
const SHOWN = new Map([["\n", "↵"], ["\r", "↲"], ["\t", "⇥"]]);
const BLANK = new Set([..."\u115f\u1160\u2800\u3164\uffa0\u00a0\u2007\u202f\u3000\u034f\u17b4\u17b5"]);
const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/u;
const MARK = /[\p{Mn}\p{Me}]/u;

export function visible(value, limit = MAX_LENGTH) {
  const characters = [...String(value)];
  const parts = [];
  let marks = 0;
  for (const c of characters.slice(0, limit)) {
    marks = MARK.test(c) ? marks + 1 : 0;
    if (SHOWN.has(c)) parts.push(SHOWN.get(c));
    else if (HIDDEN.test(c) || BLANK.has(c) || marks > MAX_MARKS) {
      parts.push(`⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
    } else parts.push(c);
  }
  if (characters.length > limit) parts.push(`… [${characters.length} characters]`);
  return parts.join("");
}

const minus = (text) => text.replace("-", "−");

export function fixed(value, places = 3, sign = false) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const text = value.toFixed(places);
  if (Number(text) === 0) return text.replace("-", ""); // no sign of what is rounded away
  return minus(sign && value > 0 ? `+${text}` : text);
}

export function number(value, digits = 3, sign = false) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const plus = sign && value > 0 ? "+" : "";
  if (size < 1e-4 || size >= 1e9) return plus + minus(value.toExponential(digits - 1));
  const places = Math.min(8, Math.max(0, digits - 1 - Math.floor(Math.log10(size))));
  return plus + minus(value.toLocaleString("en", { minimumFractionDigits: places, maximumFractionDigits: places }));
}

export const tick = (value) => minus(String(Number(value.toPrecision(6))));

export const count = (n) => (n === null || n === undefined ? "–" : Number(n).toLocaleString("en"));
export const plural = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;

export function probability(p) {
  if (p === null || p === undefined) return "–";
  return p < 1e-4 ? "< 0.0001" : p.toFixed(p < 0.1 ? 4 : 2);
}

export function interval(lo, hi) {
  if (lo === null || lo === undefined || hi === null || hi === undefined) return "no interval";
  const size = Math.max(Math.abs(lo), Math.abs(hi), 1e-12);
  const places = Math.min(8, Math.max(0, 2 - Math.floor(Math.log10(size))));
  return `${fixed(lo, places, true)} to ${fixed(hi, places, true)}`;
}

// A gloss without what it quotes: where a feature fired once is not what it is about.
export const ownWords = (gloss) => gloss.replace(/( — as in )?«[^»]*»?/g, " ");
