// The annotate page: opens a ticket, lets its slices be drawn, hands the drawing in, and goes on to the next.

import { annotator, setAnnotator } from "/web/api.js";

import * as api from "./api.js";
import { Ahead, load } from "./cases.js";
import * as drafts from "./drafts.js";
import { Drawing } from "./drawing.js";
import { bindControls } from "./controls.js";
import { Lease } from "./lease.js";
import { Outbox } from "./outbox.js";
import { askFor, coloursOf, element, paintable, say, showAsked, showClasses } from "./panel.js";
import { Stage } from "./stage.js";
import { Viewer } from "./viewer.js";
import { Windowing } from "./windowing.js";

const LOOK_AGAIN = 5000;
const PATH = "/annotate/";

class Desk {
  constructor() {
    this.viewer = new Viewer(element("screen"));
    this.stage = new Stage(element("surface"), element("marks"), this.viewer, {
      changed: (slice) => this.changed(slice),
      moved: () => this.moved(),
      refused: () => this.notHere(),
      cursor: () => this.where(),
      window: (low, high) => this.windowing.set(low, high),
    });
    this.windowing = new Windowing(this.viewer);
    this.lease = new Lease((news) => this.leaseNews(news));
    this.outbox = new Outbox((news) => this.outboxNews(news));
    this.case = null;
    this.saving = Promise.resolve();
  }

  async begin() {
    bindControls(this);
    await this.viewer.attach();
    const { labels, unlabeled_value: unlabeled } = await this.patiently(() => api.progress());
    this.unlabeled = unlabeled ?? null;
    this.classes = paintable(labels, this.unlabeled);
    this.viewer.setColours(coloursOf(this.classes));
    showClasses(this.classes, this.stage.value, (value) => this.choose(value));
    element("scribble-hint").hidden = this.unlabeled === null;
    await this.signIn();
    this.outbox.flush();
    window.addEventListener("pagehide", () => this.ahead.giveBack());
    window.addEventListener("popstate", () => this.openPath());
    await this.openPath();
  }

  /** The annotator's name: asked for once. */
  async signIn(again = false) {
    let name = annotator();
    if (!name || again) name = (await askFor(element("name-dialog"), element("name"), name)) || name || "annotator";
    setAnnotator(name);
    element("who").textContent = name;
    this.annotator = name;
    this.ahead?.giveBack();
    this.ahead = new Ahead(name);
  }

  /** Try until the server answers; what it refuses is thrown. */
  async patiently(act) {
    for (let told = false; ; told = true) {
      try {
        const result = await act();
        if (told) say("");
        return result;
      } catch (error) {
        if (!(error instanceof api.Unreachable)) throw error;
        if (!told) say(`${error.message} This page goes on by itself when it is back.`, "warning");
        await new Promise((resolve) => setTimeout(resolve, 1000));
      }
    }
  }

  async openPath() {
    const id = decodeURIComponent(location.pathname.slice(PATH.length));
    if (!id || id === "next") {
      await this.next();
      return;
    }
    try {
      await this.open(await this.patiently(async () => load(await api.ticket(id))));
    } catch (error) {
      this.failed(error);
    }
  }

  failed(error) {
    this.close();
    element("image").textContent = "Nothing to annotate";
    const way = error.status === 401 ? SIGN_IN : ["Next ticket", () => this.next()];
    say(error.message, "error", [way]);
    if (!(error instanceof api.Refused)) console.error(error);
  }

  close() {
    this.case = null;
    this.lease.stop();
    this.stage.open(null);
    document.body.dataset.state = "empty";
    element("why").textContent = element("where").textContent = element("asked-mark").textContent = "";
  }

  /** Show a case that `load` gave, with the draft that this browser may have of it. */
  async open(found) {
    const { ticket, item, image, planes } = found;
    say("");
    this.viewer.show(image, item.shape);
    const drawing = new Drawing(item.shape, ticket.axis, ticket.slices);
    for (const [slice, plane] of planes) {
      if (drawing.may(slice)) drawing.planes.set(slice, plane.slice());
    }
    const draft = await drafts.draft(ticket.ticket);
    if (draft) {
      drawing.fromRuns(draft.runs);
      say("Your drawing from before is back.");
    }
    this.case = {
      ...found, drawing, prediction: null, heat: null,
      seen: new Set(draft?.seen), nothing: new Set(draft?.nothing), sure: false,
    };
    for (const [slice, plane] of planes) this.viewer.paint(ticket.axis, slice, plane, drawing.whole());
    for (const [slice, plane] of drawing.planes) this.viewer.paint(ticket.axis, slice, plane, drawing.whole());
    document.body.dataset.state = "open";
    element("image").textContent = ticket.image;
    element("image").title = ticket.image;
    element("why").textContent = [item.patient === ticket.image ? "" : item.patient, ticket.why].filter(Boolean).join(" - ");
    document.title = `${ticket.image} - NextSlice`;
    element("heat").checked = false;
    this.stage.open(drawing);
    this.windowing.open();
    this.stage.go(ticket.axis, (ticket.items[0].slice ?? Math.floor(item.shape[ticket.axis] / 2)));
    this.lease.start(ticket);
    this.undoable();
    if (ticket.state === "submitted") say("This ticket is handed in already. What you submit now takes its place.");
    else if (ticket.state !== "open" && ticket.state !== "expired") say(`This ticket is ${ticket.state}.`, "warning");
    else if (ticket.annotator && ticket.annotator !== this.annotator) {
      say(`This ticket is with ${ticket.annotator}.`, "warning");
    }
    const path = PATH + encodeURIComponent(ticket.ticket);
    if (location.pathname !== path) history.pushState(null, "", path);
    element("surface").focus({ preventScroll: true });
    this.loadAhead();
  }

  async loadAhead() {
    const waiting = await drafts.waiting();
    if (this.case) this.ahead.begin([this.case.ticket.ticket, ...waiting.map(({ ticket }) => ticket)]);
  }

  /** To the next ticket, as soon as there is one. */
  async next() {
    const done = this.case?.ticket.ticket;
    this.close();
    for (let first = true; !this.case; first = false) {
      const busy = [...(await drafts.waiting()).map(({ ticket }) => ticket), ...(done ? [done] : [])];
      const got = await this.ahead.take(busy);
      if (got.found) {
        await this.open(got.found);
        return;
      }
      if (got.error && !(got.error instanceof api.Unreachable)) {
        this.failed(got.error);
        return;
      }
      element("image").textContent = got.error ? "No connection" : "Nothing left for now";
      if (first || got.reason) say(got.reason ?? "The server does not answer. The next slice opens when it is back.");
      await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN));
    }
  }

  // --- while drawing

  get axis() {
    return this.case.ticket.axis;
  }

  choose(value) {
    this.stage.value = value;
    element("classes").dispatchEvent(new CustomEvent("chosen", { detail: value }));
  }

  /** Something was drawn on a slice, or taken back. */
  changed(slice) {
    this.case.nothing.delete(slice);
    this.case.sure = false;
    this.undoable();
    this.moved();
    this.keep();
  }

  undoable() {
    element("undo").disabled = !this.case.drawing.done.length;
    element("redo").disabled = !this.case.drawing.undone.length;
  }

  /** Keep the drawing in this browser; writes follow one another. */
  keep() {
    const { ticket, drawing, seen, nothing } = this.case;
    const entry = {
      ticket: ticket.ticket, image: ticket.image, runs: drawing.toRuns(), seen: [...seen], nothing: [...nothing],
    };
    this.lease.touch();
    this.saving = drafts.keepDraft(entry).catch((error) => {
      say(`This browser cannot keep the drawing (${error?.message}). Submit before you leave the page.`, "error");
    });
  }

  moved() {
    if (!this.case) return;
    this.lease.touch();
    const { drawing, seen } = this.case;
    if (this.stage.mayPaint) seen.add(this.stage.slice);
    this.where();
    const states = Object.fromEntries(drawing.slices.map((slice) => [slice, this.stateOf(slice)]));
    const current = this.viewer.axis === this.axis ? this.stage.slice : null;
    showAsked(drawing.slices, states, current, (slice) => this.stage.go(this.axis, slice));
  }

  stateOf(slice) {
    const { drawing, seen, nothing } = this.case;
    if (nothing.has(slice)) return "nothing";
    if (!drawing.isEmpty(slice)) return seen.has(slice) ? "drawn" : "unseen";
    return seen.has(slice) ? "seen" : "unseen";
  }

  where() {
    const { viewer, stage } = this;
    const { drawing } = this.case;
    const last = viewer.orientation.shape[viewer.axis] - 1;
    element("where").textContent = `Slice ${stage.slice} of 0 to ${last}${stage.cursor ? `, cursor ${stage.cursor.join(", ")}` : ""}`;
    element("slice").max = last;
    element("slice").value = stage.slice;
    const asked = stage.mayPaint;
    element("frame").dataset.asked = asked;
    element("asked-mark").textContent = asked ? "Asked: paint here" : "Not asked";
    const plane = viewer.orientation.rasAxis(viewer.axis);
    for (const button of document.querySelectorAll("[data-plane]")) {
      const each = Number(button.dataset.plane);
      button.setAttribute("aria-pressed", each === plane);
      button.classList.toggle("asked", viewer.axisOf(each) === drawing.axis);
    }
  }

  notHere() {
    const nearest = this.neighbour(1) ?? this.neighbour(-1);
    say("This slice is not asked for: painting is off here.", "warning", [
      ["To the asked slice", () => { say(""); this.stage.go(this.axis, nearest ?? this.case.drawing.slices[0]); }],
    ]);
  }

  /** The next asked slice upwards (1) or downwards (-1) of here; null if there is none. */
  neighbour(way) {
    const here = this.viewer.axis === this.axis ? this.stage.slice : -1;
    const there = this.case.drawing.slices.filter((slice) => (slice - here) * way > 0);
    return there.length ? (way > 0 ? Math.min(...there) : Math.max(...there)) : null;
  }

  toAsked(way) {
    const slices = this.case.drawing.slices;
    this.stage.go(this.axis, this.neighbour(way) ?? (way > 0 ? slices[0] : slices.at(-1)));
  }

  back(which) {
    const slice = this.case.drawing[which]();
    if (slice === null) return;
    this.repaint(slice);
    this.stage.go(this.axis, slice);
    this.changed(slice);
  }

  repaint(slice) {
    const { drawing } = this.case;
    this.viewer.paint(this.axis, slice, drawing.plane(slice), drawing.whole());
    this.viewer.draw();
  }

  /** Put a plane (null: nothing) on the shown slice, if it is asked for. */
  put(plane) {
    if (!this.stage.mayPaint) {
      this.notHere();
      return false;
    }
    const slice = this.stage.slice;
    this.case.drawing.replace(slice, plane);
    this.repaint(slice);
    this.changed(slice);
    return true;
  }

  // --- news

  leaseNews({ state, until }) {
    if (state === "over") {
      element("lease").textContent = "The time for this ticket ran out.";
      say("The time for this ticket ran out, and others may be asked for its slices. Your drawing is kept, and still counts if you submit it.", "warning");
    } else {
      const at = new Date((until - api.serverNow()) * 1000 + Date.now());
      element("lease").textContent = `Yours until ${at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })}; longer while you draw.`;
    }
  }

  outboxNews({ state, left, entry, reason }) {
    const line = element("sending");
    line.dataset.state = state;
    if (state === "refused") {
      say(`The drawing of ${entry.image} was not taken: ${reason} It is kept here.`, "error", [
        ["Open it", () => location.assign(PATH + encodeURIComponent(entry.ticket))],
      ]);
    }
    if (state === "waiting") line.textContent = `No connection: ${left} ${left > 1 ? "drawings are" : "drawing is"} kept here and sent later.`;
    if (state === "sending") line.textContent = "Sending";
    if (state === "taken" || state === "idle") line.textContent = state === "taken" ? "Saved" : line.textContent === "Saved" ? "Saved" : "";
  }
}

const SIGN_IN = ["Sign in", () => location.assign("/worklist")];

const desk = new Desk();
desk.begin().catch((error) => {
  say(error.message, "error", error.status === 401 ? [SIGN_IN] : []);
  console.error(error);
});
