// What the map asks the server. Paths are described in docs/rest.md.

import { events, inPath, post, request } from "/web/api.js";

const SHOWN = new Set([
  "label_saved", "round_opened", "round_done", "ticket_opened", "ticket_skipped", "ticket_released", "ticket_expired",
  "model_published", "images_changed", "map_done",
]);

/** {ready, body}: the map, or the progress of the job that makes it. */
export async function poolMap(method, signal) {
  const response = await request(`/al/map?method=${encodeURIComponent(method)}&signal=${encodeURIComponent(signal)}`);
  return { ready: response.status === 200, body: await response.json() };
}

/** A picture of a slice, of the middle one where `slice` is null; what is predicted and annotated is drawn on it. */
export async function thumbnail(image, slice, size, signal) {
  const query = `size=${size}&contour=1&heat=1&label=1`;
  const path = `/al/items/${inPath(image)}/thumbnail/${slice ?? "middle"}.png?${query}`;
  return (await request(path, { signal, cache: "default" })).blob();
}

/** A ticket of this image for this annotator. */
export const askFor = (image, annotator) => post("/al/ask", { image, annotator, n: 1 });

/** Calls back when something happened that the map shows, and when the server is back. */
export const onChange = (changed) => events((kind) => SHOWN.has(kind) && changed(), (is) => is && changed());
