import assert from "node:assert/strict";
import test from "node:test";

import { Drawing, decodeRuns, encodeRuns } from "../../web/annotate/drawing.js";

const drawn = (drawing, slice) => [...drawing.plane(slice)].flatMap((value, pixel) => (value ? [pixel] : []));

/** A drawing of 7 x 5 pixels, whose slices 3 and 4 are asked for. */
const fresh = () => new Drawing([7, 9, 5], 1, [3, 4]);

function paint(drawing, slice, act) {
  drawing.begin(slice);
  const box = act();
  drawing.end();
  return box;
}

test("the smallest brush gives one pixel", () => {
  const drawing = fresh();
  assert.deepEqual(paint(drawing, 3, () => drawing.dab(2, 1, 1, 6)), [2, 1, 2, 1]);
  assert.deepEqual(drawn(drawing, 3), [2 + 7]);
  assert.equal(drawing.plane(3)[9], 6);
  assert.ok(drawing.isEmpty(4));
});

test("a brush of 3 gives 3 x 3, cut off at the edge", () => {
  const drawing = fresh();
  assert.deepEqual(paint(drawing, 4, () => drawing.dab(0, 0, 3, 1)), [0, 0, 1, 1]);
  assert.deepEqual(drawn(drawing, 4), [0, 1, 7, 8]);
});

test("a line has no gap, whatever its slope", () => {
  const drawing = fresh();
  paint(drawing, 3, () => drawing.line([0, 0], [6, 3], 1, 1));
  const pixels = drawn(drawing, 3).map((pixel) => [pixel % 7, Math.floor(pixel / 7)]);
  assert.equal(pixels.length, 7);
  assert.deepEqual([pixels[0], pixels.at(-1)], [[0, 0], [6, 3]]);
});

test("fill stops at other values and at the edge", () => {
  const drawing = fresh();
  paint(drawing, 3, () => drawing.line([3, 0], [3, 4], 1, 1));
  paint(drawing, 3, () => drawing.fill(6, 4, 2));
  const plane = drawing.plane(3);
  for (let pixel = 0; pixel < 35; pixel++) assert.equal(plane[pixel], pixel % 7 < 3 ? 0 : pixel % 7 === 3 ? 1 : 2);
  assert.equal(paint(drawing, 3, () => drawing.fill(6, 4, 2)), null);
});

test("undo and redo go step by step, over slices, and a new step forgets what was undone", () => {
  const drawing = fresh();
  paint(drawing, 3, () => drawing.dab(1, 1, 3, 1));
  const first = [...drawing.plane(3)];
  paint(drawing, 3, () => drawing.dab(2, 1, 3, 2));
  const second = [...drawing.plane(3)];
  paint(drawing, 4, () => drawing.dab(5, 2, 1, 3));
  assert.equal(drawing.undo(), 4);
  assert.ok(drawing.isEmpty(4));
  assert.equal(drawing.undo(), 3);
  assert.deepEqual([...drawing.plane(3)], first);
  assert.equal(drawing.redo(), 3);
  assert.deepEqual([...drawing.plane(3)], second);
  drawing.undo();
  paint(drawing, 3, () => drawing.dab(6, 4, 1, 1));
  assert.equal(drawing.redo(), null);
  drawing.undo();
  drawing.undo();
  assert.equal(drawing.undo(), null);
  assert.ok(drawing.isEmpty(3));
});

test("a stroke that changes nothing is no step", () => {
  const drawing = fresh();
  drawing.begin(3);
  drawing.dab(1, 1, 5, 0);
  assert.equal(drawing.end(), false);
  assert.equal(drawing.undo(), null);
});

test("only asked slices can be drawn on", () => {
  assert.throws(() => fresh().begin(5), /Slice 5 is not asked for/);
});

test("a drawing survives as runs", () => {
  const drawing = fresh();
  paint(drawing, 3, () => drawing.line([0, 4], [6, 0], 2, 3));
  const runs = JSON.parse(JSON.stringify(drawing.toRuns()));
  const other = fresh();
  other.fromRuns({ ...runs, 8: [1, 35] });
  assert.deepEqual([...other.plane(3)], [...drawing.plane(3)]);
  assert.deepEqual([...other.planes.keys()], [3]);
  assert.deepEqual(encodeRuns(Uint8Array.of(0, 0, 0, 2, 2, 0)), [0, 3, 2, 2, 0, 1]);
  assert.throws(() => decodeRuns([1, 3], 4), /must make up 4 values, got 3/);
});
