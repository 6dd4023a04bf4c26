// Writes a mask for each slice axis into a folder, as the page would, and reads it back: see tests/test_annotate_masks.py.

import { writeFile } from "node:fs/promises";

import { readPlanes, unpacked, writeMask } from "../../web/annotate/nifti.js";

const { folder, shape, affine, rest } = JSON.parse(process.argv[2]);
for (const axis of [0, 1, 2]) {
  const pixels = (shape[0] * shape[1] * shape[2]) / shape[axis];
  const plane = (seed) => Uint8Array.from({ length: pixels }, (_, n) => (n * 7 + seed) % 5);
  const planes = new Map([[0, plane(1)], [shape[axis] - 2, plane(3)]]);
  const mask = await writeMask(shape, affine, axis, planes, rest);
  const bytes = await mask.arrayBuffer();
  await writeFile(`${folder}/axis${axis}.nii.gz`, new Uint8Array(bytes));
  const back = readPlanes(await unpacked(bytes), shape, axis, [...planes.keys()]);
  for (const [slice, drawn] of planes) {
    if (back.get(slice).join() !== drawn.join()) throw new Error(`axis ${axis}, slice ${slice} came back changed`);
  }
}
