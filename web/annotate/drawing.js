// What the annotator draws: a plane of values for each asked slice, with undo. Knows nothing of the screen.

import { planeAxes } from "./orientation.js";

const MOST_UNDO = 200;

/** The drawing of one ticket.
 *
 * shape: of the volume, in voxels of the file. axis: of its slices. slices: which may be drawn on.
 * Pixels of a slice are counted u + width * v along the two other axes.
 */
export class Drawing {
  constructor(shape, axis, slices) {
    const [u, v] = planeAxes(axis);
    this.shape = Array.from(shape);
    this.axis = axis;
    this.slices = Array.from(slices);
    this.width = shape[u];
    this.height = shape[v];
    this.planes = new Map();
    this.done = [];
    this.undone = [];
    this.stroke = null;
  }

  may(slice) {
    return this.slices.includes(slice);
  }

  plane(slice) {
    if (!this.may(slice)) throw new RangeError(`Slice ${slice} is not asked for.`);
    if (!this.planes.has(slice)) this.planes.set(slice, new Uint8Array(this.width * this.height));
    return this.planes.get(slice);
  }

  isEmpty(slice) {
    return !this.planes.has(slice) || !this.planes.get(slice).some((value) => value);
  }

  /** Begin what one undo takes back. */
  begin(slice) {
    this.end();
    this.stroke = { slice, plane: this.plane(slice), before: new Map() };
  }

  /** End it; whether it changed anything. */
  end() {
    const stroke = this.stroke;
    this.stroke = null;
    if (!stroke || !stroke.before.size) return false;
    const pixels = Uint32Array.from(stroke.before.keys());
    const before = Uint8Array.from(stroke.before.values());
    const after = pixels.reduce((values, pixel, n) => ((values[n] = stroke.plane[pixel]), values), new Uint8Array(pixels.length));
    this.done.push({ slice: stroke.slice, pixels, before, after });
    if (this.done.length > MOST_UNDO) this.done.shift();
    this.undone = [];
    return true;
  }

  set(pixel, value) {
    const { plane, before } = this.stroke;
    if (plane[pixel] === value) return;
    if (!before.has(pixel)) before.set(pixel, plane[pixel]);
    plane[pixel] = value;
  }

  /** A disc of `size` pixels across, around pixel (u, v); the box [left, top, right, bottom] of it, null if outside. */
  dab(u, v, size, value) {
    const reach = size / 2;
    const [left, right] = [Math.max(0, Math.ceil(u - reach)), Math.min(this.width - 1, Math.floor(u + reach))];
    const [top, bottom] = [Math.max(0, Math.ceil(v - reach)), Math.min(this.height - 1, Math.floor(v + reach))];
    for (let q = top; q <= bottom; q++) {
      for (let p = left; p <= right; p++) {
        if ((p - u) ** 2 + (q - v) ** 2 <= reach ** 2) this.set(p + this.width * q, value);
      }
    }
    return left > right || top > bottom ? null : [left, top, right, bottom];
  }

  /** Dabs from one pixel to another, without a gap; the box of them. */
  line(from, to, size, value) {
    const steps = Math.max(Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]), 1);
    let box = null;
    for (let n = 0; n <= steps; n++) {
      const at = [0, 1].map((axis) => Math.round(from[axis] + ((to[axis] - from[axis]) * n) / steps));
      box = around(box, this.dab(at[0], at[1], size, value));
    }
    return box;
  }

  /** Give the connected pixels of one value (by their sides) another; the box of them. */
  fill(u, v, value) {
    const plane = this.stroke.plane;
    const old = plane[u + this.width * v];
    if (old === value) return null;
    let box = null;
    const todo = [[u, v]];
    while (todo.length) {
      const [x, q] = todo.pop();
      const row = this.width * q;
      if (plane[x + row] !== old) continue;
      let [left, right] = [x, x];
      while (left > 0 && plane[left - 1 + row] === old) left--;
      while (right < this.width - 1 && plane[right + 1 + row] === old) right++;
      for (let p = left; p <= right; p++) {
        this.set(p + row, value);
        for (const next of [q - 1, q + 1]) {
          if (next >= 0 && next < this.height && plane[p + this.width * next] === old) todo.push([p, next]);
        }
      }
      box = around(box, [left, q, right, q]);
    }
    return box;
  }

  /** Take over a whole plane (null: nothing), as one step that can be undone; the box of the slice. */
  replace(slice, plane) {
    this.begin(slice);
    for (let pixel = 0; pixel < this.width * this.height; pixel++) this.set(pixel, plane ? plane[pixel] : 0);
    this.end();
    return this.whole();
  }

  whole() {
    return [0, 0, this.width - 1, this.height - 1];
  }

  /** Take the last step back; the slice it was on, null if there is none. */
  undo() {
    return this.step(this.done, this.undone, "before");
  }

  redo() {
    return this.step(this.undone, this.done, "after");
  }

  step(from, to, which) {
    this.end();
    const change = from.pop();
    if (!change) return null;
    const plane = this.plane(change.slice);
    change.pixels.forEach((pixel, n) => (plane[pixel] = change[which][n]));
    to.push(change);
    return change.slice;
  }

  /** Compact and plain: {slice: [value, run, value, run, ...]}. */
  toRuns() {
    return Object.fromEntries([...this.planes].map(([slice, plane]) => [slice, encodeRuns(plane)]));
  }

  /** What toRuns gave, back in place; undo begins anew. */
  fromRuns(runs) {
    for (const [slice, encoded] of Object.entries(runs)) {
      if (this.may(Number(slice))) this.planes.set(Number(slice), decodeRuns(encoded, this.width * this.height));
    }
    [this.done, this.undone, this.stroke] = [[], [], null];
  }
}

function around(one, other) {
  if (!one || !other) return one ?? other;
  return [
    Math.min(one[0], other[0]), Math.min(one[1], other[1]), Math.max(one[2], other[2]), Math.max(one[3], other[3]),
  ];
}

/** Values with the length of their runs, one after the other. */
export function encodeRuns(plane) {
  const runs = [];
  for (let at = 0; at < plane.length; ) {
    let to = at + 1;
    while (to < plane.length && plane[to] === plane[at]) to++;
    runs.push(plane[at], to - at);
    at = to;
  }
  return runs;
}

/** Throws a RangeError unless the runs make up exactly `length` values. */
export function decodeRuns(runs, length) {
  const plane = new Uint8Array(length);
  let at = 0;
  for (let n = 0; n < runs.length; n += 2) {
    plane.fill(runs[n], at, at + runs[n + 1]);
    at += runs[n + 1];
  }
  if (at !== length) throw new RangeError(`Runs must make up ${length} values, got ${at}.`);
  return plane;
}
