// NiiVue as the screen: shows the volume and the drawing, and says which voxel is under the pointer. It takes no input
// itself and keeps no drawing, because its own would be copied as a whole with every stroke.

import { NVImage, Niivue, SLICE_TYPE } from "/packages/niivue/index.js";

import { Orientation, planeAxes } from "./orientation.js";

const DRAWING_UNIT = 33991; // gl.TEXTURE7, where NiiVue looks for a drawing
const SLICE_TYPES = [SLICE_TYPE.SAGITTAL, SLICE_TYPE.CORONAL, SLICE_TYPE.AXIAL]; // by the RAS axis they are across
const MOST_ZOOM = 20;

/** Decode a volume's file; slow, and free of the screen, so that it can be done ahead. */
export function decode({ buffer, name }) {
  return NVImage.loadFromUrl({ url: buffer, name });
}

export class Viewer {
  constructor(canvas) {
    this.canvas = canvas;
    this.nv = new Niivue({
      interactive: false,
      dragAndDropEnabled: false,
      loadingText: "",
      crosshairWidth: 0,
      isOrientCube: false,
      isRadiologicalConvention: true,
      isSliceMM: false,
      isNearestInterpolation: false,
      backColor: [0.035, 0.043, 0.051, 1],
      fontColor: [0.62, 0.68, 0.73, 1],
      sagittalNoseLeft: true,
      tileMargin: 0,
    });
    this.image = null;
  }

  async attach() {
    await this.nv.attachToCanvas(this.canvas, false);
    this.leaveOutLighting();
    this.nv.drawOpacity = 0.55;
  }

  /** NiiVue prepares the light of 3-D pictures anew whenever the window changes: two passes over the volume, and two more
   * textures of four times its voxels. Slices need none of it, so it gets a volume of 2 x 2 x 2 for that.
   */
  leaveOutLighting() {
    const { nv } = this;
    const [texture, layers] = [nv.rgbaTex.bind(nv), nv.refreshLayers.bind(nv)];
    nv.refreshLayers = (volume, layer) => {
      const { hdr } = volume;
      const { dims } = hdr;
      // Only the lighting asks for a texture by the header's own list of lengths.
      nv.rgbaTex = (old, unit, size, ...rest) => {
        if (size === dims) hdr.dims = [3, 2, 2, 2, 1, 1, 1, 1];
        return texture(old, unit, size === dims ? hdr.dims : size, ...rest);
      };
      try {
        layers(volume, layer);
      } finally {
        hdr.dims = dims;
      }
    };
  }

  /** Colours of the values from 1, as [r, g, b] of 0 to 255. */
  setColours(colours) {
    const all = [[0, 0, 0], ...colours];
    const [R, G, B] = [0, 1, 2].map((channel) => all.map((colour) => colour[channel]));
    this.nv.setDrawColormap({ R, G, B, A: all.map((_, value) => (value ? 255 : 0)), labels: all.map(() => "") });
  }

  /** Show a volume that `decode` gave, with nothing drawn. shape: as the server knows it. */
  show(image, shape) {
    const dims = Array.from(image.hdr.dims.slice(1, 4));
    if (dims.join() !== shape.join()) throw new Error(`The file must have the shape ${shape}, got ${dims}.`);
    this.orientation = new Orientation(shape, image.permRAS);
    performance.mark("show");
    this.nv.volumes = [];
    this.nv.addVolume(image);
    performance.measure("volume to the screen", "show");
    this.image = image;
    this.wide = [image.cal_min, image.cal_max];
    this.nv.drawTexture = this.nv.r8Tex(this.nv.drawTexture, DRAWING_UNIT, [3, ...this.orientation.rasShape], true);
    this.resetView();
  }

  resetView() {
    this.nv.scene.pan2Dxyzmm = [0, 0, 0, 1];
    this.draw();
  }

  draw() {
    this.nv.drawScene();
  }

  /** Look along a file axis, at one of its slices; the other two coordinates stay. */
  go(axis, slice) {
    const r = this.orientation.rasAxis(axis);
    this.axis = axis;
    const voxel = this.position();
    voxel[axis] = slice;
    const ras = this.orientation.toRas(voxel);
    this.nv.scene.crosshairPos = ras.map((at, n) => (at + 0.5) / this.orientation.rasShape[n]);
    if (this.nv.opts.sliceType !== SLICE_TYPES[r]) this.nv.setSliceType(SLICE_TYPES[r]);
    this.draw();
  }

  /** The file voxel that is looked at. */
  position() {
    const shape = this.orientation.rasShape;
    const ras = Array.from(this.nv.scene.crosshairPos, (at, r) =>
      Math.min(shape[r] - 1, Math.max(0, Math.floor(at * shape[r]))),
    );
    return this.orientation.toFile(ras);
  }

  /** The file axis that a plane is across: 0 sagittal, 1 coronal, 2 axial. */
  axisOf(plane) {
    return this.orientation.axes[plane];
  }

  get scale() {
    return this.canvas.width / this.canvas.clientWidth;
  }

  /** The pixel (u, v) of the shown slice under a point of the canvas, in CSS pixels; null beside the volume. */
  pixelAt(x, y) {
    const frac = this.nv.canvasPos2frac([x * this.scale, y * this.scale]);
    if (frac[0] < 0) return null;
    const shape = this.orientation.rasShape;
    const ras = Array.from(frac, (at, r) => Math.min(shape[r] - 1, Math.max(0, Math.floor(at * shape[r]))));
    const voxel = this.orientation.toFile(ras);
    return planeAxes(this.axis).map((axis) => voxel[axis]);
  }

  /** Where the middle of a pixel of the shown slice is, in CSS pixels of the canvas; null outside the view. */
  pointOf(u, v) {
    const voxel = this.position();
    planeAxes(this.axis).forEach((axis, n) => (voxel[axis] = [u, v][n]));
    const ras = this.orientation.toRas(voxel);
    const at = this.nv.frac2canvasPos(ras.map((each, r) => (each + 0.5) / this.orientation.rasShape[r]));
    return at && [at[0] / this.scale, at[1] / this.scale];
  }

  /** Size of a pixel on the screen, along u and v, in CSS pixels. */
  pixelSize() {
    const voxel = this.position();
    const [u, v] = planeAxes(this.axis).map((axis) => voxel[axis]);
    const one = this.pointOf(u, v);
    return [[u ? u - 1 : u + 1, v], [u, v ? v - 1 : v + 1]].map((next) => {
      const other = this.pointOf(...next);
      return one && other ? Math.max(1, Math.hypot(other[0] - one[0], other[1] - one[1])) : 1;
    });
  }

  /** Bring a box [left, top, right, bottom] of a slice's plane to the screen; nothing else is copied. */
  paint(axis, slice, plane, box) {
    if (!box) return;
    const [u, v] = planeAxes(axis);
    const corner = (p, q) => {
      const voxel = [0, 0, 0];
      [voxel[axis], voxel[u], voxel[v]] = [slice, p, q];
      return this.orientation.toRas(voxel);
    };
    const [one, other] = [corner(box[0], box[1]), corner(box[2], box[3])];
    const from = one.map((at, r) => Math.min(at, other[r]));
    const size = one.map((at, r) => Math.abs(at - other[r]) + 1);
    const stride = [1, size[0], size[0] * size[1]];
    const step = (end) => end.reduce((sum, at, r) => sum + Math.sign(at - one[r]) * stride[r], 0);
    const along = box[2] > box[0] ? step(corner(box[2], box[1])) : 0;
    const down = box[3] > box[1] ? step(corner(box[0], box[3])) : 0;
    const start = one.reduce((sum, at, r) => sum + (at - from[r]) * stride[r], 0);
    const packed = new Uint8Array(size[0] * size[1] * size[2]);
    const width = this.orientation.shape[u];
    for (let q = box[1]; q <= box[3]; q++) {
      for (let p = box[0]; p <= box[2]; p++) {
        packed[start + (p - box[0]) * along + (q - box[1]) * down] = plane[p + width * q];
      }
    }
    const { gl, drawTexture } = this.nv;
    gl.activeTexture(DRAWING_UNIT);
    gl.bindTexture(gl.TEXTURE_3D, drawTexture);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    gl.texSubImage3D(gl.TEXTURE_3D, 0, ...from, ...size, gl.RED, gl.UNSIGNED_BYTE, packed);
  }

  setDrawingOpacity(opacity) {
    const { nv } = this;
    nv.drawOpacity = opacity;
    // NiiVue hands it to its shader only together with the whole volume.
    nv.sliceMMShader.use(nv.gl);
    nv.gl.uniform1f(nv.sliceMMShader.uniforms.drawOpacity, opacity);
    this.draw();
  }

  get window() {
    return [this.image.cal_min, this.image.cal_max];
  }

  /** Intensities shown as black and as white. */
  setWindow(low, high) {
    [this.image.cal_min, this.image.cal_max] = [low, Math.max(high, low + 1e-6)];
    this.nv.updateGLVolume();
  }

  /** Show a map over the volume, null takes it away. */
  setHeat(map, opacity) {
    for (const shown of this.nv.volumes.slice(1)) this.nv.removeVolume(shown);
    if (!map) return;
    map.colormap = "hot";
    map.opacity = opacity;
    this.nv.addVolume(map);
  }

  setHeatOpacity(opacity) {
    if (this.nv.volumes.length > 1) this.nv.setOpacity(1, opacity);
  }

  /** Move the picture by CSS pixels. */
  pan(dx, dy) {
    const before = this.nv.canvasPos2frac(this.middle());
    const after = this.nv.canvasPos2frac(this.middle().map((at, n) => at - [dx, dy][n] * this.scale));
    if (before[0] < 0 || after[0] < 0) return;
    const [one, other] = [this.nv.frac2mm(before), this.nv.frac2mm(after)];
    const view = this.nv.scene.pan2Dxyzmm;
    this.nv.scene.pan2Dxyzmm = [0, 1, 2].map((n) => view[n] + one[n] - other[n]).concat(view[3]);
    this.draw();
  }

  middle() {
    return [this.canvas.width / 2, this.canvas.height / 2];
  }

  zoom(factor) {
    const [x, y, z, now] = this.nv.scene.pan2Dxyzmm;
    this.nv.scene.pan2Dxyzmm = [x, y, z, Math.min(MOST_ZOOM, Math.max(1, now * factor))];
    this.draw();
  }
}
