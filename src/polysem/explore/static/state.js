// The address holds the whole state: #/view/argument/argument?name=value&name=value
const encode = (text) => encodeURIComponent(text).replace(/%2C/g, ",").replace(/%3A/g, ":").replace(/%3D/g, "=").replace(/%20/g, "+");
const decode = (text) => {
  try { return decodeURIComponent(text.replace(/\+/g, " ")); } catch { return text; }
};

export function parse(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [view, ...args] = path.split("/").map(decode);
  const params = {};
  for (const part of query.split("&")) {
    if (!part) continue;
    const at = part.indexOf("=");
    const name = decode(at < 0 ? part : part.slice(0, at));
    (params[name] ||= []).push(at < 0 ? "" : decode(part.slice(at + 1)));
  }
  return { view: view || "home", args, params };
}

export function address(view, args = [], params = {}) {
  const query = [];
  for (const [name, values] of Object.entries(params)) {
    for (const value of Array.isArray(values) ? values : [values]) {
      if (value !== null && value !== undefined && value !== "") query.push(`${encode(name)}=${encode(String(value))}`);
    }
  }
  const path = [view, ...args.map((a) => encodeURIComponent(String(a)))].join("/");
  return `#/${path}${query.length ? `?${query.join("&")}` : ""}`;
}

export const here = () => parse(location.hash);
export const first = (params, name, otherwise = "") => (params[name] && params[name].length ? params[name][0] : otherwise);

// Change parameters of the address in place; the page hears of it, and the way back stays.
export function change(changes, { replace = false } = {}) {
  const now = here();
  const next = address(now.view, now.args, { ...now.params, ...changes });
  if (next === location.hash) return;
  if (replace) history.replaceState(null, "", next);
  else history.pushState(null, "", next);
  window.dispatchEvent(new Event("polysem:address"));
}

// As change, for what is drawn already: only the address is written.
export function note(changes) {
  const now = here();
  history.replaceState(null, "", address(now.view, now.args, { ...now.params, ...changes }));
  shows(location.hash);
}

// The address that the page shows: it lags behind the bar's by the time a view takes, and by the event that tells of a click.
export function shows(address) {
  document.documentElement.dataset.shows = address;
}
