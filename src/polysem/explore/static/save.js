// What is on the page as one file that opens anywhere: its styles inside, no script, nothing to fetch.
import { el, say } from "./dom.js";

const POLICY = "default-src 'none'; style-src 'unsafe-inline'";

export function saveButton(name) {
  return el("p", {}, el("button", { type: "button", cls: "save", onclick: () => save(name) }, "Save this card as a file"));
}

async function save(name) {
  const sheets = await Promise.all([...document.querySelectorAll("link[rel=stylesheet]")].map(async (l) => (await fetch(l.href, { credentials: "same-origin" })).text()));
  const copy = document.getElementById("main").cloneNode(true);
  for (const node of copy.querySelectorAll("button, form, .button, .crumbs, [data-tool]")) node.remove();
  for (const a of copy.querySelectorAll("a")) a.replaceWith(...a.childNodes); // they lead into the study, which the file is not
  for (const d of copy.querySelectorAll("details")) d.open = true;
  const head = ["<meta charset=\"utf-8\">", `<meta http-equiv="Content-Security-Policy" content="${POLICY}">`, "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">", el("title", {}, document.title).outerHTML, "<style>", ...sheets, "</style>"];
  const blob = new Blob(["<!doctype html>\n<html lang=\"en\"><head>", ...head, "</head><body>", copy.outerHTML, "</body></html>\n"], { type: "text/html" });
  const href = URL.createObjectURL(blob);
  const a = el("a", { download: `${name}.html` });
  a.href = href;
  a.click();
  setTimeout(() => URL.revokeObjectURL(href), 10000);
  say("saved");
}
