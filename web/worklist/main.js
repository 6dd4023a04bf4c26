// The worklist: the items of a round as cards, to be annotated, skipped and given back.

import { annotator, get, inPath, post, setAnnotator } from "/web/api.js";
import { attempt, complain, keepTrue, question } from "/web/live.js";
import { byId, fill, make, number, plural, say, who } from "/web/show.js";
import { showCards } from "./cards.js";

const PAGE = 24;
const TYPING_MS = 300;
const REASONS = ["Image quality", "Cannot tell", "Wrong body part"];

let list = { entries: [], next: null, round: null };
let wantedCards = PAGE;

/** The filters are in the address, so that a filtered list can be sent to somebody. */
const FILTERS = ["round", "state", "annotator", "image"];

function filters() {
  const found = Object.fromEntries(FILTERS.map((name) => [name, byId(name).value]));
  const chosen = byId("annotator").selectedOptions[0];
  return { ...found, annotator: chosen?.dataset.name };
}

function keepInAddress() {
  const { round, state, annotator: name, image } = filters();
  const pairs = Object.entries({ round, state, image }).filter(([, value]) => value);
  if (name !== undefined) pairs.push(["annotator", name]);
  const text = new URLSearchParams(pairs).toString();
  history.replaceState(null, "", text ? `?${text}` : location.pathname);
}

const load = async (kinds) => {
  if (kinds && ![...kinds].some((kind) => /^(label|ticket|items|round|images|preview|model)_/.test(kind))) return;
  const people = kinds === null || [...kinds].some((kind) => /^(label|ticket|items)_/.test(kind));
  const [fresh, annotators, rounds] = await Promise.all([
    readCards(),
    people ? get("/al/annotators") : null,
    kinds === null || [...kinds].some((kind) => /^round_/.test(kind)) ? get("/al/rounds", { limit: 50 }) : null,
  ]);
  list = fresh;
  if (annotators) showAnnotators(annotators);
  if (rounds) showRoundChoice(rounds);
  show();
};

/** As many cards as are shown already: a reload must not shorten the list under somebody's hand. */
async function readCards() {
  let found = await get("/al/worklist", { ...filters(), limit: Math.min(wantedCards, 500) });
  while (found.entries.length < wantedCards && found.next !== null) {
    const more = await get("/al/worklist", { ...filters(), after: found.next, limit: Math.min(wantedCards - found.entries.length, 500) });
    found = { ...more, entries: [...found.entries, ...more.entries] };
  }
  return found;
}

function show() {
  const { round, counts, entries, next } = list;
  say(byId("round-title"), round ? `Round ${round.id}: ${round.strategy}` : "There is no round yet");
  say(byId("round-note"), round ? note(round, counts) : "The first one opens by itself when there are images.");
  say(byId("shown"), round ? `${plural(entries.length, "item")} shown${next === null ? "" : "; there are more"}` : "");
  byId("more").hidden = next === null;
  showCards(byId("cards"), entries, { annotate, release, skip });
}

function note(round, counts) {
  const parts = [`${number(counts.open)} open`, `${number(counts.leased)} being annotated`, `${number(counts.labeled)} labelled`, `${number(counts.skipped)} skipped`];
  const by = round.selected_by === round.strategy ? "" : ` Chosen by ${round.selected_by} while there is no model for ${round.strategy}.`;
  const state = round.state === "open" ? "" : ` This round is ${round.state}.`;
  return `${parts.join(" · ")}.${by}${state}`;
}

function showAnnotators(annotators) {
  const select = byId("annotator");
  const chosen = select.selectedOptions[0]?.dataset.name;
  const leased = list.entries.filter((entry) => entry.annotator !== null).map((entry) => entry.annotator);
  const names = [...new Set([...annotators.map((one) => one.annotator), ...leased, ...(annotator() ? [annotator()] : []), ...(chosen === undefined ? [] : [chosen])])].sort();
  const options = names.map((name) => {
    const option = make("option", { value: `is ${name}`, selected: name === chosen }, name === annotator() && name ? `${name} (me)` : who(name));
    option.dataset.name = name;
    return option;
  });
  fill(select, make("option", { value: "" }, "everybody"), ...options);
  select.value = chosen === undefined ? "" : `is ${chosen}`;
}

function showRoundChoice(rounds) {
  const select = byId("round");
  const chosen = select.value;
  fill(select, make("option", { value: "" }, "the one served now"),
    ...rounds.map((round) => make("option", { value: String(round.id) }, `${round.id}: ${round.strategy}, ${round.state}`)));
  select.value = chosen;
}

// --- what can be done with a card

/** Who annotates; asked once, and kept in this browser. */
async function name() {
  if (!annotator()) {
    const given = await question("Who annotates?", "The name is kept with what you do, and in this browser.", "Begin", { label: "Your name" });
    if (given) setAnnotator(given);
    showName();
  }
  return annotator() || null;
}

function showName() {
  say(byId("who"), annotator() ? `Annotator: ${annotator()}` : "Set your name");
}

async function annotate(entry) {
  if (entry.state === "leased" && entry.annotator === annotator()) {
    location.assign(entry.links.annotate);
    return;
  }
  const me = await name();
  if (!me) return;
  const wish = { strategy: list.round.strategy, annotator: me, image: entry.image, ...(entry.slice === null ? {} : { slice: entry.slice }) };
  await open(await attempt(() => post("/al/ask", wish)));
}

async function next() {
  const me = await name();
  if (me) await open(await attempt(() => post("/al/ask", { annotator: me })));
}

async function open(answer) {
  if (!answer) return again(null);
  if (!answer.tickets.length) return complain(answer.reason, "warning");
  return location.assign(`/annotate/${inPath(answer.tickets[0].ticket)}`);
}

async function skip(entry) {
  const of = entry.state === "leased" ? " and what else its ticket asks for" : "";
  const reason = await question(`Skip ${where(entry)}?`, `It${of} is never asked for again.`, "Skip", { label: "Why it cannot be annotated", maxlength: "1000" }, REASONS);
  if (!reason) return;
  const path = entry.state === "leased" ? `/al/tickets/${inPath(entry.ticket)}/skip` : `/al/items/${inPath(entry.image)}/skip`;
  const body = entry.state === "leased" ? { reason } : { slices: [entry.slice], reason, annotator: annotator() };
  if (await attempt(() => post(path, body))) complain("");
  again(null);
}

async function release(entry) {
  const sure = await question(`Give ${where(entry)} back?`, [`${who(entry.annotator)} has it now. Others can take it at once; what is drawn and not yet submitted stays in that browser.`], "Release");
  if (sure && await attempt(() => post(`/al/tickets/${inPath(entry.ticket)}/release`))) complain("");
  if (sure) again(null);
}

const where = (entry) => (entry.slice === null ? entry.image : `slice ${entry.slice} of ${entry.image}`);

// --- the page

function begin() {
  const given = new URLSearchParams(location.search);
  for (const key of ["state", "image"]) byId(key).value = given.get(key) ?? "";
  if (given.has("round")) showRoundChoice([{ id: given.get("round"), strategy: "", state: "" }]);
  byId("round").value = given.get("round") ?? "";
  if (given.has("annotator")) {
    const option = make("option", { value: "is", selected: true }, who(given.get("annotator")));
    option.dataset.name = given.get("annotator");
    byId("annotator").append(option);
  }
  showName();
}

const filtered = () => { wantedCards = PAGE; keepInAddress(); again(null); };
let typing = null;
begin();
const again = keepTrue(load);
byId("filters").addEventListener("submit", (event) => { event.preventDefault(); filtered(); });
for (const id of ["round", "state", "annotator"]) byId(id).addEventListener("change", filtered);
byId("image").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(filtered, TYPING_MS); });
byId("more").addEventListener("click", () => { wantedCards = list.entries.length + PAGE; again(null); });
byId("next").addEventListener("click", next);
byId("who").addEventListener("click", async () => {
  const given = await question("Who annotates?", "The name is kept with what you do, and in this browser.", "Keep", { label: "Your name", value: annotator() });
  if (given) setAnnotator(given);
  showName();
  again(null);
});
