// What runs now, with its progress, and what the last one of each kind left to say.

import { duration, fill, make, say } from "/web/show.js";

const NAMES = { train: "Training", sweep: "Sweep", preview: "Previews", map: "Map" };
const STATES = { DONE: "done", ERROR: "error", STOPPED: "stopped", SUBMITTED: "queued", RUNNING: "running" };

/** stop(kind) is called by the button of a running job. */
export function showJobs(place, progress, stop) {
  const running = Object.entries(progress.running).flatMap(([kind, jobs]) => jobs.map((job) => [kind, job]));
  const ended = [["train", progress.last_training], ["sweep", progress.last_sweep]]
    .filter(([, job]) => job && job.end_ts && !running.some(([, other]) => other.id === job.id));
  keep(place, "running", running.map(([kind, job]) => [job.id, () => card(kind, stop), (element) => update(element, kind, job)]));
  keep(place, "ended", ended.map(([kind, job]) => [job.id, () => make("section", { class: "job" }), (element) => fill(element, ...last(kind, job))]));
  const nothing = place.querySelector(":scope > .hint") ?? place.appendChild(make("p", { class: "hint" }));
  say(nothing, running.length ? "" : "Nothing runs now.");
  nothing.hidden = running.length > 0;
}

/** Elements stay while what they show does, so that a bar moves and the focus stays on its button. */
function keep(place, group, wanted) {
  const box = place.querySelector(`:scope > [data-group="${group}"]`) ?? place.appendChild(make("div", { "data-group": group }));
  const there = new Map([...box.children].map((element) => [element.dataset.job, element]));
  for (const [id, create, show] of wanted) {
    let element = there.get(id);
    there.delete(id);
    if (!element) {
      element = create();
      element.dataset.job = id;
      box.append(element);
    }
    show(element);
  }
  for (const element of there.values()) element.remove();
}

function card(kind, stop) {
  const title = `${NAMES[kind] ?? kind} in progress`;
  return make("section", { class: "job", "aria-label": title },
    make("div", { class: "line" }, make("h3", {}, NAMES[kind] ?? kind),
      kind === "train" || kind === "sweep" ? make("button", { type: "button", onclick: () => stop(kind) }, "Stop") : null),
    make("progress", { max: "1", "aria-label": title }),
    make("p", { class: "state" }), make("p", { class: "hint" }), make("ul", {}));
}

function update(element, kind, job) {
  const { fraction, eta, epoch, epochs, items, images, of, loss, dice, member, members } = job.progress;
  const bar = element.querySelector("progress");
  if (job.status === "SUBMITTED" || fraction === undefined) bar.removeAttribute("value");
  else bar.value = fraction;
  const facts = [
    job.status === "SUBMITTED" ? "queued" : fraction === undefined ? "starting" : `${Math.round(100 * fraction)} %`,
    members ? `network ${member} of ${members}` : null,
    epoch ? `epoch ${epoch} of ${epochs}` : null,
    of ? `${images ?? items} of ${of} ${images === undefined ? "items" : "images"}` : null,
    typeof loss === "number" ? `loss ${loss.toFixed(3)}` : null,
    typeof dice === "number" ? `Dice ${dice.toFixed(3)}` : null,
    typeof eta === "number" && eta > 0.5 ? `about ${duration(eta)} left` : null,
  ];
  say(element.querySelector(".state"), facts.filter(Boolean).join(" · "));
  say(element.querySelector(".hint"), `${name(kind, job)} · because: ${job.reason}`);
  fill(element.querySelector("ul"), ...job.details.map((line) => make("li", {}, line)));
}

function last(kind, job) {
  const state = STATES[job.status] ?? job.status;
  return [
    make("div", { class: "line" }, make("h3", {}, `Last ${(NAMES[kind] ?? kind).toLowerCase()}`),
      make("span", { class: "tag", "data-state": state }, state)),
    make("p", { class: "hint" }, `${name(kind, job)} · ended ${job.end_ts} · because: ${job.reason}`),
    make("ul", {}, ...job.details.map((line) => make("li", {}, line))),
  ];
}

const name = (kind, job) => job.request.model ?? job.request.method ?? kind;
