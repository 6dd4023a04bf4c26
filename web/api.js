// The server's REST API for the pages: answers as JSON, errors as sentences, events as they happen.

/** The server said no; the message is a sentence for people. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.name = "Refused";
    this.status = status;
  }
}

/** The server could not be reached (status 0), or is not fit to answer now. */
export class Unreachable extends Refused {
  constructor(status = 0, message = "The server does not answer.") {
    super(status, message);
    this.name = "Unreachable";
  }
}

const TOKEN = "nextslice.token";
const NAME = "nextslice.annotator";
const RECONNECT_MS = 2000;
const UNFIT = [502, 503, 504];

let behind = 0;

/** The server's time in seconds, from its last answer: leases are counted by its clock. */
export const serverNow = () => Date.now() / 1000 + behind;

/** Who works in this browser; "" until somebody said so. */
export const annotator = () => localStorage.getItem(NAME) ?? "";
export const setAnnotator = (name) => localStorage.setItem(NAME, name);

function headers(more = {}) {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

function sentence(detail, status) {
  if (typeof detail === "string") return detail;
  if (Array.isArray(detail)) return detail.map((problem) => problem.msg).join(" ");
  if (status === 401) return "Please sign in.";
  return `The server answered ${status}.`;
}

/** A response; throws Refused with the server's own sentence, or Unreachable. */
export async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable();
  }
  const date = Date.parse(response.headers.get("Date") ?? "");
  if (date) behind = (date - Date.now()) / 1000;
  if (!response.ok) {
    const detail = await response.json().then((body) => body.detail, () => null);
    const Kind = UNFIT.includes(response.status) ? Unreachable : Refused;
    throw new Kind(response.status, sentence(detail, response.status));
  }
  return response;
}

export async function get(path, query = {}) {
  const pairs = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const text = new URLSearchParams(pairs).toString();
  return (await request(text ? `${path}?${text}` : path)).json();
}

export async function post(path, body = {}, more = {}) {
  const headers = { "Content-Type": "application/json" };
  const options = { method: "POST", headers, body: JSON.stringify(body), ...more };
  return (await request(path, options)).json();
}

export async function remove(path) {
  return (await request(path, { method: "DELETE" })).json();
}

/** A picture as an object URL, or null where there is none. */
export async function picture(path, signal) {
  try {
    return URL.createObjectURL(await (await request(path, { signal, cache: "default" })).blob());
  } catch (error) {
    if (error instanceof Refused) return null;
    throw error;
  }
}

/** An id in a path: ids may hold slashes, and anything else. */
export const inPath = (id) => id.split("/").map(encodeURIComponent).join("/");

export async function signIn(username, password) {
  const answer = await request("/auth/token", { method: "POST", body: new URLSearchParams({ username, password }) });
  sessionStorage.setItem(TOKEN, (await answer.json()).access_token);
}

/**
 * Calls happened(kind, data) for every event, and connected(true or false) when the stream opens and breaks.
 *
 * Not an EventSource: that cannot send the token of accounts. It goes on after a restart of the server where it was.
 */
export async function events(happened, connected) {
  let last = null;
  let stream = new AbortController();
  // A page that is left may be kept for the way back, and its connection with it: a browser has six for a server.
  addEventListener("pagehide", () => stream.abort());
  for (;;) {
    stream = new AbortController();
    try {
      const headers = last === null ? {} : { "Last-Event-ID": last };
      const response = await request("/al/events", { headers, signal: stream.signal });
      connected(true);
      for await (const event of messages(response.body)) {
        if (event.id) last = event.id;
        if (event.data) happened(event.event, JSON.parse(event.data));
      }
    } catch (error) {
      if (error instanceof Refused && error.status === 401) return;
    }
    connected(false);
    await new Promise((resolve) => setTimeout(resolve, RECONNECT_MS));
  }
}

/** The server-sent events of a body: {id, event, data} each. */
async function* messages(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value.replaceAll("\r", "");
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) yield fields(block);
  }
}

function fields(block) {
  const found = {};
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon > 0) found[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
  }
  return found;
}
