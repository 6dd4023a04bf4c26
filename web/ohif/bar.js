// The bar at the foot of OHIF: which slice is asked for, and the two answers. Shown only where the address names a ticket.
NextSlice.bar = (() => {
  const { viewer } = NextSlice;
  let asked = null;
  let at = 0; // the asked slice that the bar speaks of
  let busy = false;
  let warned = false;
  const parts = {};

  function button(name, text, action) {
    const made = document.createElement("button");
    made.type = "button";
    made.id = `nextslice-${name}`;
    made.textContent = text;
    made.addEventListener("click", action);
    parts[name] = made;
    return made;
  }

  function build() {
    const bar = document.createElement("div");
    bar.id = "nextslice-bar";
    bar.setAttribute("role", "toolbar");
    bar.setAttribute("aria-label", "Asked slices");
    parts.where = document.createElement("span");
    parts.where.id = "nextslice-where";
    parts.message = document.createElement("span");
    parts.message.id = "nextslice-message";
    for (const text of [parts.where, parts.message]) text.setAttribute("role", "status");
    bar.append(
      button("previous", "◀ Previous", () => turn(-1)),
      parts.where,
      button("back", "Go to the asked slice", () => viewer.goTo(asked.sops[at])),
      button("following", "Next ▶", () => turn(1)),
      button("nothing", "Nothing on this slice", () => attempt(nothingHere)),
      button("done", "Done, next", () => attempt(done)),
      parts.message,
    );
    parts.previous.setAttribute("aria-label", "Previous asked slice");
    parts.following.setAttribute("aria-label", "Next asked slice");
    document.body.append(bar);
    document.body.classList.add("nextslice");
    parts.bar = bar;
  }

  function say(text, kind = "") {
    parts.message.textContent = text;
    parts.message.dataset.kind = kind;
  }

  function turn(step) {
    at = (at + step + asked.sops.length) % asked.sops.length;
    viewer.goTo(asked.sops[at]);
    draw();
  }

  function draw() {
    if (!asked) return;
    const many = asked.sops.length > 1;
    const shown = asked.sops.indexOf(viewer.currentSop());
    if (shown >= 0) at = shown;
    const here = shown >= 0 || asked.sops.length === 0;
    parts.bar.dataset.state = here ? "asked" : "elsewhere";
    parts.previous.hidden = parts.following.hidden = !many;
    parts.back.hidden = here;
    parts.nothing.disabled = busy || shown < 0;
    parts.done.disabled = busy;
    if (asked.sops.length === 0) parts.where.textContent = "The whole volume is asked for.";
    else if (shown < 0) parts.where.textContent = "This slice is not asked for.";
    else {
      const which = many ? `Asked slice ${at + 1} of ${asked.sops.length}` : "The asked slice";
      const empty = asked.nothingOn.has(asked.sops[at]);
      parts.where.textContent = empty ? `${which}: nothing on it.` : `${which}: paint here.`;
    }
  }

  // One answer at a time; what fails is told and can be tried again, and the drawing stays.
  async function attempt(answer) {
    if (busy) return;
    busy = true;
    draw();
    try {
      await answer();
    } catch (error) {
      say(`${error?.message || "That did not work."} Your drawing is still here: try again.`, "error");
    } finally {
      busy = false;
      draw();
    }
  }

  async function nothingHere() {
    const sop = asked.sops[at];
    if (viewer.painted().has(sop)) return say("There is paint on this slice: erase it first, or press Done.", "error");
    asked.nothingOn.add(sop);
    draw();
    return onward();
  }

  async function done() {
    const open = asked.firstOpen(viewer.painted());
    if (open !== null) {
      viewer.goTo(open);
      return say("Paint this slice, or say that nothing is on it.", "error");
    }
    return onward();
  }

  // To the next slice without an answer; after the last one, send them and open the next ticket.
  async function onward() {
    const painted = viewer.painted();
    const open = asked.firstOpen(painted);
    if (open !== null) {
      say("");
      return viewer.goTo(open);
    }
    const beside = viewer.paintedBeside(asked.sops);
    if (asked.sops.length && beside.length && !warned) {
      warned = true;
      return say(`Also painted on ${beside.length} slice(s) not asked for. Press Done again to send all.`, "error");
    }
    say("Saving ...");
    if (asked.isEmpty(painted)) await asked.submitNothing();
    else if (painted.size === 0) return say("Nothing is painted.", "error");
    else {
      const refused = await asked.refused();
      await viewer.store(asked.annotator ? `annotation by ${asked.annotator}`.slice(0, 64) : "annotation");
      if (!(await asked.recorded(refused))) return say("Stored in the archive; the server has not recorded it yet.");
    }
    say("Saved. Asking for the next ...");
    const next = await asked.next();
    if (next) return location.assign(next);
    return say("Saved. Nothing else is asked for now.");
  }

  // Called when the viewer shows an image.
  async function ready() {
    if (!NextSlice.ticket || asked) return;
    if (!parts.bar) build();
    try {
      asked = await NextSlice.load(NextSlice.ticket);
      at = Math.max(0, asked.sops.indexOf(NextSlice.firstSop));
      if (NextSlice.startTrouble) say(NextSlice.startTrouble, "error");
      if (asked.state !== "open") say(`This ticket is ${asked.state}.`, "error");
      viewer.onChange(draw);
      draw();
    } catch (error) {
      say(error.message, "error");
    }
  }

  return { ready };
})();
