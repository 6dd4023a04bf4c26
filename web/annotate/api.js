// The server's REST API, as far as this page needs it. Paths are described in docs/rest.md.

/** What the server answered when it said no. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.name = "Refused";
    this.status = status;
  }
}

/** The server could not be reached, or is not fit to answer now. */
export class Unreachable extends Error {
  constructor() {
    super("The server does not answer.");
    this.name = "Unreachable";
  }
}

let behind = 0;

/** The server's time in seconds, from its last answer: leases are counted by its clock. */
export function serverNow() {
  return Date.now() / 1000 + behind;
}

function sentence(detail, status) {
  if (typeof detail === "string") return detail;
  if (Array.isArray(detail)) return detail.map((problem) => problem.msg).join(" ");
  return `The server answered ${status}.`;
}

/** A response; throws Refused with the server's own sentence, or Unreachable. */
export async function request(path, options = {}) {
  const token = sessionStorage.getItem("nextslice.token");
  const headers = { ...(options.headers ?? {}), ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable();
  }
  const date = Date.parse(response.headers.get("Date") ?? "");
  if (date) behind = (date - Date.now()) / 1000;
  if (response.status === 502 || response.status === 503 || response.status === 504) throw new Unreachable();
  if (!response.ok) {
    const detail = await response.json().then((body) => body.detail, () => null);
    throw new Refused(response.status, sentence(detail, response.status));
  }
  return response;
}

async function json(path, options) {
  return (await request(path, options)).json();
}

function post(path, body, more = {}) {
  const headers = { "Content-Type": "application/json" };
  return json(path, { method: "POST", headers, body: JSON.stringify(body ?? {}), ...more });
}

/** An id in a path: ids may hold slashes, and anything else. */
function inPath(id) {
  return id.split("/").map(encodeURIComponent).join("/");
}

export const progress = () => json("/al/progress");
export const item = (image) => json(`/al/items/${inPath(image)}`);
export const ticket = (id) => json(`/al/tickets/${inPath(id)}`);
export const ask = (annotator, n) => post("/al/ask", { annotator, n });
export const renew = (id) => post(`/al/tickets/${inPath(id)}/renew`);
export const skip = (id, reason) => post(`/al/tickets/${inPath(id)}/skip`, { reason });
/** The request is sent even if the page closes meanwhile. */
export const release = (id) => post(`/al/tickets/${inPath(id)}/release`, {}, { keepalive: true });

/** The image's file: {buffer, name}; the name tells its type. */
export async function volume(image, signal) {
  const response = await request(`/datastore/image?image=${encodeURIComponent(image)}`, { signal });
  return { buffer: await response.arrayBuffer(), name: fileName(response.headers.get("Content-Disposition") ?? "") };
}

function fileName(disposition) {
  const encoded = /filename\*=utf-8''([^;]+)/i.exec(disposition);
  if (encoded) return decodeURIComponent(encoded[1]);
  return /filename="([^"]*)"/i.exec(disposition)?.[1] ?? "volume.nii.gz";
}

/** A mask or map of an image as the file's bytes; null if there is none, which `none` may take the reason of. */
async function bytesOrNull(path, none = () => {}) {
  try {
    return await (await request(path)).arrayBuffer();
  } catch (error) {
    if (!(error instanceof Refused) || ![404, 409].includes(error.status)) throw error;
    none(error.message);
    return null;
  }
}

/** The composite mask so far, as viewers draw. */
export const composite = (image) => bytesOrNull(`/datastore/label?label=${encodeURIComponent(image)}&tag=original`);
export const prediction = (image, none) => bytesOrNull(`/al/items/${inPath(image)}/prediction`, none);
export const uncertainty = (image, none) => bytesOrNull(`/al/items/${inPath(image)}/uncertainty`, none);

/** Hand in a mask; the answer comes when it is durable. The same mask for the same ticket counts once. */
export async function submit({ image, ticket: id, annotator, slices, mask }) {
  const form = new FormData();
  form.append("label", mask, "label.nii.gz");
  form.append("params", JSON.stringify({ client_id: annotator, ticket: id, annotated_slices: slices }));
  return json(`/datastore/label?image=${encodeURIComponent(image)}`, { method: "PUT", body: form });
}
