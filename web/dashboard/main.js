// The dashboard: how far it is, what runs, what the models are worth, who did what.

import { get, post, remove } from "/web/api.js";
import { attempt, complain, keepTrue, question } from "/web/live.js";
import { byId, clock, decimals, duration, fill, make, number, plural, say, who } from "/web/show.js";
import { diceChart } from "./chart.js";
import { showJobs } from "./jobs.js";

const ROUNDS = 8;
const LABELS = 8;
const PEOPLE = 12;

/** Which events change what is shown where; progress is read at each. */
const OF_MODELS = /^model_|^train_(done|error|stopped|lost)/;
const OF_ROUNDS = /^round_|^label_|^ticket_(skipped|submitted)|^items_|^sweep_(done|error)/;
const OF_LABELS = /^label_/;

let progress = null;

const load = async (kinds) => {
  const touched = (pattern) => kinds === null || [...kinds].some((kind) => pattern.test(kind));
  const none = Promise.resolve(null);
  const [now, models, rounds, people, labels] = await Promise.all([
    get("/al/progress"),
    touched(OF_MODELS) ? get("/al/models") : none,
    touched(OF_ROUNDS) ? get("/al/rounds", { limit: ROUNDS }) : none,
    touched(OF_LABELS) ? get("/al/annotators") : none,
    touched(OF_LABELS) ? get("/al/submissions", { limit: LABELS }) : none,
  ]);
  progress = now;
  showSituation(now);
  showCounts(now);
  showJobs(byId("jobs"), now, stop);
  for (const kind of ["train", "sweep"]) byId(kind === "train" ? "retrain" : "sweep").disabled = now.running[kind].length > 0;
  if (models) showModels(models, now);
  if (rounds) showRounds(rounds);
  if (people) showPeople(people);
  if (labels) showLabels(labels);
};

/** Progress of a job comes with its event: no request is needed to move the bar. */
const told = (kind, data) => {
  const found = /^(\w+?)_progress$/.exec(kind);
  const job = found && progress?.running[found[1]]?.find((one) => one.id === data.job);
  if (!job) return;
  const { at, job: id, ...rest } = data;
  job.progress = rest;
  showJobs(byId("jobs"), progress, stop);
};

function showSituation(now) {
  const { counts } = now;
  const left = Math.max(0, counts.slices - counts.labeled_slices - counts.skipped);
  const place = byId("situation");
  const failed = [now.last_training, now.last_sweep].find((job) => job?.status === "ERROR");
  let kind = "";
  let text;
  if (!counts.slices) {
    kind = "warning";
    text = "There are no images in the studies folder yet. Put volumes there, or upload them: they are found by themselves.";
  } else if (now.running.train.length) text = "A training is running. Annotating goes on meanwhile.";
  else if (now.running.sweep.length) text = "A new round is being chosen. Annotating goes on meanwhile.";
  else if (!left) { kind = "good"; text = "Finished: every slice is labelled or skipped."; }
  else if (failed) { kind = "error"; text = `The last ${"model" in failed.request ? "training" : "sweep"} failed: ${failed.details.at(-1) ?? "no reason is known"}`; }
  else if (!now.rounds.length) text = "No round is open; the next one follows by itself.";
  else text = `${plural(pending(now), "slice")} of the open round wait for an annotator. ${now.model ? "" : "There is no model yet: the first training starts when the round is done."}`;
  if (counts.unreadable_images) text += ` ${plural(counts.unreadable_images, "image")} cannot be read.`;
  place.dataset.kind = kind;
  say(place, text.trim());
}

function pending(now) {
  const items = now.rounds.reduce((sum, round) => sum + (round.items.pending ?? 0), 0);
  return Math.max(0, items - now.counts.leased);
}

function showCounts({ counts, new_slices_since_training: fresh, unit }) {
  const left = Math.max(0, counts.slices - counts.labeled_slices - counts.skipped - counts.leased);
  const share = counts.slices ? (100 * counts.labeled_slices) / counts.slices : 0;
  const cell = (id, name, value, more) => make("div", {}, make("dt", {}, name), make("dd", { id }, number(value), make("small", {}, more)));
  fill(byId("counts"),
    cell("labeled", "Labelled slices", counts.labeled_slices, `${share.toFixed(share < 10 ? 1 : 0)} % · ${number(fresh)} since the last training`),
    cell("leased", unit === "volume" ? "Being annotated, volumes" : "Being annotated", counts.leased, "leased to annotators now"),
    cell("remaining", "Remaining", left, `${number(counts.skipped)} skipped`),
    cell("pool", "Slices in all", counts.slices, `${plural(counts.images, "image")} of ${plural(counts.patients, "patient")}`));
}

function showModels({ current, models }, now) {
  const voted = models.filter((card) => !card.of);
  diceChart(byId("dice"), voted, now.labels, current);
  const some = voted.some((card) => card.metrics.dice !== null);
  say(byId("dice-note"), some ? "On patients kept for validation; bars are ± 1.96 standard errors" : "");
  const rows = voted.map((card, i) => modelRow(card, i, card.digest === current)).reverse();
  fill(byId("models"), voted.length
    ? table(["Version", "When", ["Dice", "n"], ["Time", "n"], ""], rows)
    : make("p", { class: "hint" }, "There is no model yet."));
}

function modelRow(card, i, isCurrent) {
  const validation = card.metrics.validation;
  const dice = card.metrics.dice === null ? "not measured" : decimals(card.metrics.dice) + (validation?.dice_se ? ` ± ${decimals(1.96 * validation.dice_se)}` : "");
  const last = isCurrent
    ? make("span", { class: "tag", "data-state": "current" }, "in use")
    : make("button", { type: "button", "aria-label": `Use version ${i + 1} again`, onclick: () => rollback(card, i) }, "Roll back");
  return [make("span", {}, `${i + 1} `, make("code", {}, card.digest.slice(0, 8))), clock(card.published_at), [dice, "n"], [duration(card.seconds), "n"], last];
}

function showRounds(rounds) {
  const row = (round) => {
    const { pending: open = 0, labeled = 0, skipped = 0 } = round.items;
    const by = round.selected_by === round.strategy ? round.strategy : `${round.strategy} (by ${round.selected_by})`;
    return [String(round.id), make("span", { class: "name" }, by), [`${number(labeled)} / ${number(open + labeled + skipped)}`, "n"],
      make("span", { class: "tag", "data-state": round.state }, round.state)];
  };
  fill(byId("rounds"), rounds.length
    ? table([["Round", ""], "Strategy", ["Labelled", "n"], "State"], rounds.map(row))
    : make("p", { class: "hint" }, "There was no round yet."));
}

function showPeople(people) {
  const rows = people.slice(0, PEOPLE).map((one) => [make("span", { class: "name" }, who(one.annotator)), [number(one.slices), "n"],
    [duration(one.median_seconds), "n"], clock(one.last_at)]);
  fill(byId("people"), ...(rows.length
    ? [table(["Annotator", ["Slices", "n"], ["Median time", "n"], "Last"], rows),
      people.length > PEOPLE ? make("p", { class: "hint" }, `and ${plural(people.length - PEOPLE, "other")}`) : null]
    : [make("p", { class: "hint" }, "Nobody has labelled anything yet.")]));
}

function showLabels(labels) {
  const row = (label) => [make("span", { class: "name" }, label.image),
    label.tag === "final" ? slices(label.slices) : "start mask", make("span", { class: "name" }, who(label.annotator)),
    [duration(label.seconds), "n"], clock(label.at)];
  fill(byId("labels"), labels.length
    ? table(["Image", "Slices", "By", ["Took", "n"], "When"], labels.map(row))
    : make("p", { class: "hint" }, "There is no label yet."));
}

const slices = (all) => (all.length > 4 ? plural(all.length, "slice") : all.join(", ") || "none");

/** Headers and cells are text or elements; [content, "n"] is a number's. */
function table(headers, rows) {
  const parts = (cell) => (Array.isArray(cell) ? cell : [cell, null]);
  const line = (cells, tag) => make("tr", {}, ...cells.map((cell) => {
    const [content, kind] = parts(cell);
    return make(tag, { class: kind || null, scope: tag === "th" ? "col" : null }, content);
  }));
  return make("table", {}, make("thead", {}, line(headers, "th")), make("tbody", {}, ...rows.map((row) => line(row, "td"))));
}

// --- what can be done here

async function rollback(card, i) {
  const sure = await question(`Use version ${i + 1} again?`, ["The server predicts with it from now on, and rounds are planned anew. No version is lost."], "Roll back");
  if (sure && await attempt(() => post(`/al/models/${card.digest}/rollback`))) complain(`Version ${i + 1} is in use.`, "good");
}

async function stop(kind) {
  const what = kind === "train" ? "training" : "sweep";
  const sure = await question(`Stop the ${what}?`, kind === "train" ? "The published model stays as it is." : "The open round stays as it is.", "Stop it");
  if (sure) await attempt(() => remove(kind === "train" ? "/train/" : "/scoring/"));
}

async function start(kind) {
  if (kind === "train") {
    const models = Object.keys((await attempt(() => get("/info/")))?.trainers ?? {});
    if (models.length) await attempt(() => post(`/train/${encodeURIComponent(models[0])}`));
  } else await attempt(() => post(`/scoring/${encodeURIComponent(progress.strategy)}`));
  again(null);
}

byId("retrain").addEventListener("click", () => start("train"));
byId("sweep").addEventListener("click", () => start("sweep"));
const again = keepTrue(load, told);
