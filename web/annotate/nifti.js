// Masks from and to NIfTI-1: read what the server sends, write what it takes.

const HEADER = 352;
const READERS = {
  2: (view, at) => view.getUint8(at),
  4: (view, at, little) => view.getInt16(at, little),
  8: (view, at, little) => view.getInt32(at, little),
  16: (view, at, little) => view.getFloat32(at, little),
  64: (view, at, little) => view.getFloat64(at, little),
  256: (view, at) => view.getInt8(at),
  512: (view, at, little) => view.getUint16(at, little),
};
const WIDTH = { 2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 256: 1, 512: 2 };

/** Shape, and where and of which type the voxels are. Throws an Error for what is no 3-D NIfTI-1 file of plain numbers. */
export function readHeader(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.byteLength < HEADER) throw new Error("The mask is no NIfTI file: it is too short.");
  const little = view.getInt32(0, true) === 348;
  if (!little && view.getInt32(0, false) !== 348) throw new Error("The mask is no NIfTI-1 file.");
  const shape = [1, 2, 3].map((n) => view.getInt16(40 + 2 * n, little));
  const type = view.getInt16(70, little);
  if (!(type in READERS)) throw new Error(`The mask must hold plain numbers, got NIfTI type ${type}.`);
  return { shape, type, little, at: view.getFloat32(108, little) };
}

/** Planes of a mask as bytes: {slice: Uint8Array}, pixels u + width * v. Slices without any value are left out.
 *
 * axis: of the slices. wanted: only these slices; all if null.
 */
export function readPlanes(bytes, shape, axis, wanted = null) {
  const header = readHeader(bytes);
  if (header.shape.join() !== shape.join()) {
    throw new Error(`The mask must have the image's shape ${shape}, got ${header.shape}.`);
  }
  const [u, v] = [0, 1, 2].filter((other) => other !== axis);
  const step = [1, shape[0], shape[0] * shape[1]];
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const [read, width] = [READERS[header.type], WIDTH[header.type]];
  const planes = new Map();
  for (let slice = 0; slice < shape[axis]; slice++) {
    if (wanted && !wanted.includes(slice)) continue;
    const plane = new Uint8Array(shape[u] * shape[v]);
    let any = 0;
    for (let q = 0, to = 0; q < shape[v]; q++) {
      let from = slice * step[axis] + q * step[v];
      for (let p = 0; p < shape[u]; p++, from += step[u], to++) {
        const value =
          header.type === 2 ? bytes[header.at + from] : read(view, header.at + from * width, header.little);
        plane[to] = value;
        any |= value;
      }
    }
    if (any) planes.set(slice, plane);
  }
  return planes;
}

/** The 352 bytes before the voxels of a uint8 mask with this shape and (4, 4) affine to RAS mm. */
export function maskHeader(shape, affine) {
  const view = new DataView(new ArrayBuffer(HEADER));
  const put16 = (at, value) => view.setInt16(at, value, true);
  const put32 = (at, value) => view.setFloat32(at, value, true);
  view.setInt32(0, 348, true);
  [3, ...shape, 1, 1, 1, 1].forEach((length, n) => put16(40 + 2 * n, length));
  put16(70, 2); // uint8
  put16(72, 8); // bits
  put32(76, 1);
  [0, 1, 2].forEach((axis) => put32(80 + 4 * axis, Math.hypot(...[0, 1, 2].map((row) => affine[row][axis]))));
  put32(108, HEADER);
  put32(112, 1); // slope
  view.setUint8(123, 2); // mm
  put16(252, 0); // no qform: it cannot hold every affine
  put16(254, 1);
  [0, 1, 2].forEach((row) => [0, 1, 2, 3].forEach((column) => put32(280 + 16 * row + 4 * column, affine[row][column])));
  [0x6e, 0x2b, 0x31, 0].forEach((byte, n) => view.setUint8(344 + n, byte)); // "n+1"
  return new Uint8Array(view.buffer);
}

/** The voxels of a mask, one slab along k after another, so that a large volume is never held as a whole.
 *
 * planes: Map of slice -> pixels; other voxels are `rest`.
 */
export function* maskSlabs(shape, axis, planes, rest = 0) {
  const [width, height, depth] = shape;
  for (let k = 0; k < depth; k++) {
    if (axis === 2) {
      yield planes.get(k) ?? new Uint8Array(width * height).fill(rest);
      continue;
    }
    const slab = new Uint8Array(width * height).fill(rest);
    for (const [slice, plane] of planes) {
      // Across i a slice's pixels run along j then k; across j along i then k.
      const length = axis === 0 ? height : width;
      for (let p = 0; p < length; p++) {
        slab[axis === 0 ? slice + p * width : p + slice * width] = plane[p + k * length];
      }
    }
    yield slab;
  }
}

/** A mask as gzipped NIfTI, in a Blob. */
export async function writeMask(shape, affine, axis, planes, rest = 0) {
  const slabs = maskSlabs(shape, axis, planes, rest);
  const source = new ReadableStream({
    start: (sink) => sink.enqueue(maskHeader(shape, affine)),
    pull: (sink) => {
      const { value, done } = slabs.next();
      if (done) sink.close();
      else sink.enqueue(value.slice());
    },
  });
  return new Response(source.pipeThrough(new CompressionStream("gzip"))).blob();
}

/** The bytes of a file that may be gzipped. */
export async function unpacked(buffer) {
  const bytes = new Uint8Array(buffer);
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
