// What the annotate page asks the server. Paths are described in docs/rest.md.

import { get, inPath, post, Refused, request } from "/web/api.js";

export { Refused, serverNow, Unreachable } from "/web/api.js";

export const progress = () => get("/al/progress");
export const item = (image) => get(`/al/items/${inPath(image)}`);
export const ticket = (id) => get(`/al/tickets/${inPath(id)}`);
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
  return (await request(`/datastore/label?image=${encodeURIComponent(image)}`, { method: "PUT", body: form })).json();
}
