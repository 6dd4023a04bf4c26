// The server's REST API, as far as the map needs it. Paths are described in docs/rest.md.

/** The server said no, in a sentence. */
export class Refused extends Error {}

async function request(path, options = {}) {
  const token = sessionStorage.getItem("nextslice.token");
  const headers = { ...(options.headers ?? {}), ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server does not answer.");
  }
  if (!response.ok) {
    const detail = await response.json().then((body) => body.detail, () => null);
    throw new Refused(typeof detail === "string" ? detail : `The server answered ${response.status}.`);
  }
  return response;
}

/** {ready, body}: the map, or the progress of the job that makes it. */
export async function poolMap(method, signal) {
  const response = await request(`/al/map?method=${encodeURIComponent(method)}&signal=${encodeURIComponent(signal)}`);
  return { ready: response.status === 200, body: await response.json() };
}

/** An id in a path: ids may hold slashes, and anything else. */
function inPath(id) {
  return id.split("/").map(encodeURIComponent).join("/");
}

/** A picture of a slice, of the middle one where `slice` is null; what is predicted and annotated is drawn on it. */
export async function thumbnail(image, slice, size, signal) {
  const query = `size=${size}&contour=1&heat=1&label=1`;
  return (await request(`/al/items/${inPath(image)}/thumbnail/${slice ?? "middle"}.png?${query}`, { signal })).blob();
}

/** A ticket of this image for this annotator. */
export async function askFor(image, annotator) {
  const body = JSON.stringify({ image, annotator, n: 1 });
  const headers = { "Content-Type": "application/json" };
  return (await request("/al/ask", { method: "POST", headers, body })).json();
}

/** Calls back when something happened that the map shows. */
export function onChange(changed) {
  const events = new EventSource("/al/events");
  for (const kind of ["label_saved", "round_opened", "round_done", "ticket_opened", "ticket_skipped", "ticket_released",
    "ticket_expired", "model_published", "images_changed", "map_done"]) events.addEventListener(kind, changed);
}
