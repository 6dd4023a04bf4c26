// Where a voxel of the file is in the order that the viewer draws in (R, A, S), and back.
//
// The viewer states how it turned the file's axes as a signed permutation: entry r names the file's axis (from 1) that
// runs along RAS axis r, negative if it runs the other way. Both orders count voxels from 0.

/** The turn between file voxels (i, j, k) and RAS voxels of one volume.
 *
 * shape: voxels along the file's axes. permutation: as NiiVue's permRAS, such as [-1, -2, 3] for an LPS file.
 * Throws a RangeError if it is not a signed permutation of 1, 2, 3.
 */
export class Orientation {
  constructor(shape, permutation) {
    const axes = Array.from(permutation, (entry) => Math.abs(entry) - 1);
    if ([...axes].sort().join() !== "0,1,2") {
      throw new RangeError(`A turn of axes must name each of 1, 2, 3 once, got ${Array.from(permutation)}.`);
    }
    this.shape = Array.from(shape);
    this.axes = axes;
    this.flipped = Array.from(permutation, (entry) => entry < 0);
    this.rasShape = axes.map((axis) => this.shape[axis]);
  }

  /** The RAS axis along which a file axis runs. */
  rasAxis(axis) {
    return this.axes.indexOf(axis);
  }

  /** RAS voxel of a file voxel; fractions are kept. */
  toRas(voxel) {
    return this.axes.map((axis, r) => (this.flipped[r] ? this.shape[axis] - 1 - voxel[axis] : voxel[axis]));
  }

  /** File voxel of a RAS voxel; fractions are kept. */
  toFile(ras) {
    const voxel = [0, 0, 0];
    this.axes.forEach((axis, r) => {
      voxel[axis] = this.flipped[r] ? this.shape[axis] - 1 - ras[r] : ras[r];
    });
    return voxel;
  }
}

/** The two file axes of a slice across `axis`, the faster one first: pixels of a slice are counted u + width * v. */
export function planeAxes(axis) {
  return [0, 1, 2].filter((other) => other !== axis);
}
