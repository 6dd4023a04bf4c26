// Reads and writes whole masks beside the page, so that large volumes do not stop the brush.

import { readPlanes, unpacked, writeMask } from "./nifti.js";

const jobs = {
  async read({ buffer, shape, axis }) {
    return readPlanes(await unpacked(buffer), shape, axis);
  },
  write: ({ shape, affine, axis, planes, rest }) => writeMask(shape, affine, axis, planes, rest),
};

self.onmessage = async ({ data: { id, job, input } }) => {
  try {
    self.postMessage({ id, result: await jobs[job](input) });
  } catch (error) {
    self.postMessage({ id, error: error.message });
  }
};
