import assert from "node:assert/strict";
import test from "node:test";

import { Orientation, planeAxes } from "../../web/annotate/orientation.js";

const SHAPE = [4, 5, 6];
// The file's axes as letters, and the turn that NiiVue states for them.
const TURNS = { RAS: [1, 2, 3], LPS: [-1, -2, 3], PIR: [3, -1, -2], SRA: [2, 3, 1], ILP: [-2, -3, -1] };

/** Where a voxel is, towards right, front and head, counted from the volume's left, back, lowest corner. */
function place(letters, voxel) {
  const at = [0, 0, 0];
  [...letters].forEach((letter, axis) => {
    const world = ["RL", "AP", "SI"].findIndex((pair) => pair.includes(letter));
    at[world] = "RAS".includes(letter) ? voxel[axis] : SHAPE[axis] - 1 - voxel[axis];
  });
  return at;
}

for (const [letters, turn] of Object.entries(TURNS)) {
  test(`${letters} voxels go to RAS order and back`, () => {
    const orientation = new Orientation(SHAPE, turn);
    for (let n = 0; n < 120; n++) {
      const voxel = [n % 4, Math.floor(n / 4) % 5, Math.floor(n / 20)];
      const ras = orientation.toRas(voxel);
      assert.deepEqual(ras, place(letters, voxel));
      assert.deepEqual(orientation.toFile(ras), voxel);
    }
    assert.deepEqual(orientation.rasShape, place(letters, SHAPE.map((length, axis) => ("RAS".includes(letters[axis]) ? length : -1))));
  });
}

test("an axis is found again in RAS order", () => {
  const orientation = new Orientation(SHAPE, TURNS.PIR);
  assert.deepEqual([0, 1, 2].map((axis) => orientation.rasAxis(axis)), [1, 2, 0]);
});

test("what is no turn of axes is refused", () => {
  assert.throws(() => new Orientation(SHAPE, [1, 1, 3]), /each of 1, 2, 3 once, got 1,1,3/);
});

test("a slice has the two other axes, the faster first", () => {
  assert.deepEqual([0, 1, 2].map(planeAxes), [[1, 2], [0, 2], [0, 1]]);
});
