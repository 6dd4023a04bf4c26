// The map page: fetches the map, waits while it is made, and shows what is chosen. Names are shown as text only.

import { annotator, Refused } from "/web/api.js";

import { askFor, onChange, poolMap, thumbnail } from "./api.js";
import { Plane, mark } from "./plane.js";
import { STATES, shade, shares } from "./scale.js";

const WAIT = 2000;
const STALE_WAIT = 5000;
const LONGEST_LIST = 100;

const element = (id) => document.getElementById(id);
const plane = new Plane(element("plane"), { onHover: hint, onChoose: choose });
let map = null;
let timer = 0;
let turn = 0;

function say(text, kind = "") {
  element("message").textContent = text;
  element("message").dataset.kind = kind;
  element("message").hidden = !text;
}

function name(i) {
  const slice = map.slice[i];
  return slice === null ? map.images[map.image[i]] : `${map.images[map.image[i]]}, slice ${slice}`;
}

const stateOf = (i) => STATES[map.states[map.state[i]]].name;

async function load() {
  clearTimeout(timer);
  const mine = ++turn;
  try {
    const found = await poolMap(element("method").value, element("signal").value);
    if (mine !== turn) return;
    if (found.ready) show(found.body);
    else wait(found.body.progress);
    if (!found.ready || found.body.stale) timer = setTimeout(load, found.ready ? STALE_WAIT : WAIT);
  } catch (error) {
    if (mine !== turn) return;
    if (!(error instanceof Refused)) throw error;
    nothing(error.message);
    timer = setTimeout(load, STALE_WAIT);
  }
}

function wait(progress) {
  clear();
  const told = progress.of ? ` ${progress.items} of ${progress.of} items were looked at.` : " It begins when no training and no sweep runs.";
  element("wait-text").textContent = `The map is being made.${told}`;
  const bar = element("wait-bar");
  bar.hidden = false;
  if (progress.fraction === undefined) bar.removeAttribute("value");
  else bar.value = progress.fraction;
  document.body.dataset.state = "waiting";
}

function nothing(reason) {
  if (map) {
    say(reason, "error");
    return;
  }
  clear();
  element("wait-text").textContent = reason;
  element("wait-bar").hidden = true;
  document.body.dataset.state = "nothing";
}

function clear() {
  map = null;
  plane.points = null;
  plane.chosen = plane.hovered = -1;
  plane.draw();
  hint(-1);
  element("wait").hidden = false;
  element("legend").replaceChildren();
  element("chosen").hidden = true;
  element("count").textContent = "";
  say("");
  list();
}

function show(body) {
  const kept = map && plane.chosen >= 0 ? [map.images[map.image[plane.chosen]], map.slice[plane.chosen]] : null;
  map = body;
  const { low, high, of } = shares(body.score);
  map.share = body.score.map(of);
  element("wait").hidden = true;
  say(body.stale ? "The pool or the model has changed: a new map is being made." : "");
  const drawn = body.x.length;
  element("count").textContent = drawn < body.pool
    ? `${drawn} of ${body.pool} items: what is asked for or annotated, and a random part of the others`
    : `${drawn} items`;
  plane.chosen = kept ? map.x.findIndex((_, i) => map.images[map.image[i]] === kept[0] && map.slice[i] === kept[1]) : -1;
  if (plane.chosen < 0) element("chosen").hidden = true;
  plane.hovered = -1;
  hint(-1);
  const byScore = element("colour").value === "score";
  plane.show(map, byScore);
  legend(byScore, low, high);
  list();
  if (plane.chosen >= 0) facts(plane.chosen);
  document.body.dataset.state = "ready";
}

function legend(byScore, low, high) {
  const rows = byScore
    ? [1, 0.75, 0.5, 0.25, 0].map((share) => ["dot", 5, shade(share), (low + (high - low) * share).toPrecision(4)])
    : Object.entries(STATES).map(([key, kind]) => [kind.shape, kind.size, kind.colour, `${kind.name} (${count(key)})`]);
  const style = getComputedStyle(document.body);
  const title = document.createElement("div");
  title.textContent = byScore ? "Uncertainty: mean entropy" : "";
  element("legend").replaceChildren(...(byScore ? [title] : []), ...rows.map(([shape, size, colour, text]) => {
    const row = document.createElement("div"), sign = document.createElement("canvas"), said = document.createElement("span");
    sign.width = sign.height = 18;
    mark(sign.getContext("2d"), 9, 9, shape, size, colour ?? style.getPropertyValue("--dot"), style.getPropertyValue("--panel"));
    said.textContent = text;
    row.append(sign, said);
    return row;
  }));
}

const count = (key) => map.state.filter((state) => map.states[state] === key).length;

function list() {
  const asked = map ? Object.keys(map.asked).map(Number) : [];
  asked.sort((a, b) => map.asked[b].score - map.asked[a].score);
  element("none-asked").hidden = asked.length > 0;
  element("asked").replaceChildren(...asked.slice(0, LONGEST_LIST).map((i) => {
    const row = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.textContent = name(i);
    button.dataset.row = i;
    button.setAttribute("aria-current", String(i === plane.chosen));
    button.addEventListener("click", () => plane.choose(i));
    row.append(button);
    return row;
  }));
}

// --- one item

/** Puts a picture of an item into an image element, unless another item was wanted meanwhile. */
function pictureIn(image, size) {
  let asked = null;
  return async (i) => {
    asked?.abort();
    asked = new AbortController();
    const { signal } = asked;
    image.removeAttribute("src");
    image.alt = "";
    try {
      const blob = await thumbnail(map.images[map.image[i]], map.slice[i], size, signal);
      if (signal.aborted) return;
      URL.revokeObjectURL(image.dataset.url);
      image.dataset.url = image.src = URL.createObjectURL(blob);
      image.alt = `Slice ${map.slice[i] ?? "in the middle"} of ${map.images[map.image[i]]}`;
    } catch (error) {
      if (error.name !== "AbortError") image.alt = error.message;
    }
  };
}

const hintPicture = pictureIn(element("hint-picture"), 192);
const chosenPicture = pictureIn(element("chosen-picture"), 320);

function hint(i) {
  const box = element("hint");
  box.hidden = i < 0;
  if (i < 0) return;
  element("hint-text").textContent = [name(i), stateOf(i), map.asked[i]?.why].filter(Boolean).join("\n");
  const [x, y] = plane.place(i);
  const room = element("plane");
  box.style.left = `${x + 200 > room.clientWidth ? x - 212 : x + 16}px`;
  box.style.top = `${Math.max(8, Math.min(y - 90, room.clientHeight - 270))}px`;
  hintPicture(i);
}

function choose(i) {
  facts(i);
  chosenPicture(i);
  element("told").textContent = `${name(i)}, ${stateOf(i)}`;
  for (const button of element("asked").querySelectorAll("button")) {
    button.setAttribute("aria-current", String(Number(button.dataset.row) === i));
  }
}

function facts(i) {
  element("chosen").hidden = false;
  element("chosen-name").textContent = name(i);
  const shown = [["State", stateOf(i)], ["Entropy", map.score[i]]];
  if (map.asked[i]) shown.push(["Round", map.asked[i].round], ["Why", map.asked[i].why]);
  element("chosen-facts").replaceChildren(...shown.flatMap(([term, fact]) => {
    const dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = term;
    dd.textContent = fact;
    return [dt, dd];
  }));
  element("annotate").hidden = map.states[map.state[i]] !== "asked";
  element("worklist").href = `/worklist?image=${encodeURIComponent(map.images[map.image[i]])}`;
}

async function annotate() {
  const image = map.images[map.image[plane.chosen]];
  element("annotate").disabled = true;
  try {
    const { tickets, reason } = await askFor(image, annotator());
    if (tickets.length) location.href = `/annotate/${encodeURIComponent(tickets[0].ticket)}`;
    else say(reason, "error");
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    say(error.message, "error");
  } finally {
    element("annotate").disabled = false;
  }
}

// --- controls

for (const id of ["method", "signal"]) element(id).addEventListener("change", load);
element("colour").addEventListener("change", () => map && show(map));
element("closer").addEventListener("click", () => plane.zoomBy(1.5));
element("farther").addEventListener("click", () => plane.zoomBy(1 / 1.5));
element("whole").addEventListener("click", () => plane.whole());
element("annotate").addEventListener("click", annotate);

const KEYS = {
  ArrowRight: () => plane.step(1, 0), ArrowLeft: () => plane.step(-1, 0),
  ArrowDown: () => plane.step(0, 1), ArrowUp: () => plane.step(0, -1),
  "+": () => plane.zoomBy(1.5), "-": () => plane.zoomBy(1 / 1.5), 0: () => plane.whole(),
  Enter: () => !element("chosen").hidden && (element("annotate").hidden ? element("worklist") : element("annotate")).focus(),
};
element("plane").addEventListener("keydown", (event) => {
  if (!map || !KEYS[event.key] || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  KEYS[event.key]();
});

let soon = 0;
onChange(() => {
  clearTimeout(soon);
  soon = setTimeout(load, 500);
});
load();
