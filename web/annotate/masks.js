// The page's side of mask_worker.js.

const worker = new Worker("/annotate/mask_worker.js", { type: "module" });
const open = new Map();
let last = 0;

worker.onmessage = ({ data: { id, result, error } }) => {
  const { resolve, reject } = open.get(id);
  open.delete(id);
  if (error) reject(new Error(error));
  else resolve(result);
};

function run(job, input, transfer = []) {
  return new Promise((resolve, reject) => {
    last += 1;
    open.set(last, { resolve, reject });
    worker.postMessage({ id: last, job, input }, transfer);
  });
}

/** Planes of a mask file by slice; those without any value are left out. The buffer is used up. */
export const readMask = (buffer, shape, axis) => run("read", { buffer, shape, axis }, [buffer]);

/** A mask as a gzipped NIfTI Blob; voxels outside the planes are `rest`. */
export const writeMask = (shape, affine, axis, planes, rest) => run("write", { shape, affine, axis, planes, rest });
