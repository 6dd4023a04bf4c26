// Keeps a page true: what it shows is read anew when something happened, and the page says whether it can be told.

import { events, Refused, signIn } from "./api.js";
import { byId, make, say } from "./show.js";

const QUIET_MS = 400;

/**
 * Calls load(kinds) at once, and again soon after events came; kinds is the set of their names, null for everything.
 *
 * At most one load runs, and events that come together are one: a hundred saves a second do not become a hundred loads.
 */
export function keepTrue(load, told = () => {}) {
  let waiting = null;
  let timer = null;
  let running = false;

  const later = (kinds) => {
    if (kinds === null || waiting === "all") waiting = "all";
    else waiting = new Set([...(waiting ?? []), ...kinds]);
    if (!timer && !running) timer = setTimeout(run, QUIET_MS);
  };
  const run = async () => {
    timer = null;
    running = true;
    const kinds = waiting === "all" ? null : waiting;
    waiting = null;
    try {
      await load(kinds);
      complain("");
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (error.status === 401) await askToSignIn();
      else complain(error.message);
      if (error.status === 401) waiting = "all";
    } finally {
      running = false;
      if (waiting && !timer) timer = setTimeout(run, QUIET_MS);
    }
  };

  const listen = () => events(
    (kind, data) => { told(kind, data); later([kind]); },
    (connected) => {
      const line = byId("live");
      line.dataset.state = connected ? "on" : "off";
      say(line, connected ? "Live" : "The server does not answer; trying again");
      if (connected) later(null);
    },
  ).then(askToSignIn).then(listen);

  later(null);
  listen();
  return later;
}

/** An error where the page keeps them; "" takes it away. */
export function complain(text, kind = "error") {
  const place = byId("message");
  place.dataset.kind = kind;
  place.hidden = !text;
  say(place, text);
}

/** Does something that the server may refuse, and tells the refusal. */
export async function attempt(action) {
  try {
    return await action();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) await askToSignIn();
    else complain(error.message);
    return null;
  }
}

/**
 * A question in a dialog; the text that was typed, true where nothing is to be typed, or null if it was cancelled.
 *
 * input: {label, value, required} of the field, if there is one. options: suggestions for it.
 */
export function question(title, text, yes, input = null, options = []) {
  const field = input && make("input", {
    type: input.type ?? "text", maxlength: input.maxlength ?? "200", required: input.required ?? true,
    value: input.value ?? "", list: options.length ? "suggestions" : null, name: "answer", autocomplete: "off",
  });
  const form = make("form", { method: "dialog" },
    make("h2", { id: "question" }, title),
    ...[text].flat().filter(Boolean).map((line) => make("p", {}, line)),
    field && make("label", {}, input.label, field),
    options.length ? make("datalist", { id: "suggestions" }, ...options.map((option) => make("option", { value: option }))) : null,
    make("div", { class: "buttons" },
      make("button", { value: "yes", class: "primary" }, yes),
      make("button", { value: "no", formnovalidate: true }, "Cancel")));
  const dialog = make("dialog", { "aria-labelledby": "question" }, form);
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const agreed = dialog.returnValue === "yes";
      dialog.remove();
      resolve(agreed ? (field ? field.value.trim() : true) : null);
    });
  });
}

let signingIn = null;

/** Asks for an account until the server takes it; questions that come together are one. */
function askToSignIn() {
  signingIn ??= (async () => {
    for (let why = "This server knows its users."; ;) {
      const name = await question("Sign in", why, "Next", { label: "User name" });
      const password = name && await question("Sign in", `Password of ${name}`, "Sign in", { label: "Password", type: "password" });
      if (!password) { why = "Nothing is shown without an account."; continue; }
      try {
        await signIn(name, password);
        complain("");
        return;
      } catch (error) {
        why = error.message;
      }
    }
  })().finally(() => { signingIn = null; });
  return signingIn;
}
