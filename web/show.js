// How things are shown: elements made of text alone, numbers and times as people read them.

/** The element of an id that the page has. */
export const byId = (id) => document.getElementById(id);

/**
 * An element with attributes and children. Children are text or elements: text is never read as HTML, so that a name
 * such as "<script>" stays a name.
 */
export function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "circle", "text", "g", "title", "rect", "polyline"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined).map((child) => child));
  return element;
}

/** Replaces what an element holds, but only if it changed: screen readers speak what is replaced. */
export function fill(element, ...children) {
  const fresh = make("div", {}, ...children);
  const same = fresh.childNodes.length === element.childNodes.length
    && [...fresh.childNodes].every((child, i) => child.isEqualNode(element.childNodes[i]));
  if (!same) element.replaceChildren(...fresh.childNodes);
  return !same;
}

/** Text into an element, if it is another. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const number = (value) => (value ?? 0).toLocaleString("en-US");
export const decimals = (value, n = 3) => (value === null || value === undefined ? "–" : value.toFixed(n));
export const plural = (n, one, many = `${one}s`) => `${number(n)} ${n === 1 ? one : many}`;

/** Seconds in words: 8 s, 3 min, 2 h 5 min, 4 days. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  if (minutes < 48 * 60) return minutes % 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${minutes / 60} h`;
  return `${Math.round(minutes / 1440)} days`;
}

/** A time of the server (seconds since the epoch) as this browser's clock and calendar show it. */
export function clock(at) {
  const when = new Date(at * 1000);
  const time = when.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return when.toDateString() === new Date().toDateString() ? time : `${when.toLocaleDateString()} ${time}`;
}

/** The name of somebody, or what is said of nobody in particular. */
export const who = (name) => name || "(no name)";
