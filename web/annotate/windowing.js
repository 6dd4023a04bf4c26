// Window and level: presets, the two sliders, and no more changes than can be shown.

import { element, make } from "./panel.js";

const CT = { "Soft tissue": [-160, 240], Lung: [-1350, 150], Bone: [-500, 1300], Brain: [0, 80], Liver: [-20, 140] };
const LARGE = 2 ** 24; // voxels
const REST = 120; // milliseconds
const CT_AIR = -500; // intensities this low are Hounsfield units

export class Windowing {
  constructor(viewer) {
    this.viewer = viewer;
    this.wanted = null;
    element("preset").addEventListener("change", () => {
      this.preset(element("preset").value);
      element("surface").focus({ preventScroll: true }); // a list that keeps the focus takes the shortcuts for its own
    });
    for (const id of ["level", "width"]) element(id).addEventListener("input", () => this.fromSliders());
  }

  /** Begin with a new volume. */
  open() {
    const { image } = this.viewer;
    this.wanted = null; // what was wanted of the volume before
    [this.low, this.high] = [image.global_min, image.global_max];
    this.start = this.viewer.window;
    const names = ["Automatic", "All values", ...(this.low <= CT_AIR ? Object.keys(CT) : [])];
    element("preset").replaceChildren(...names.map((name) => make("option", name)));
    this.toSliders(...this.start);
  }

  preset(name) {
    const window = { Automatic: this.start, "All values": [this.low, this.high], ...CT }[name];
    this.set(...window);
  }

  set(low, high) {
    this.toSliders(low, high);
    this.wanted = [low, high];
    // The whole volume is shaded anew. A large one only when the hand rests.
    if (this.viewer.image.nVox3D > LARGE) {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.apply(), REST);
    } else {
      this.frame ??= requestAnimationFrame(() => this.apply());
    }
  }

  apply() {
    this.frame = null;
    if (this.wanted) this.viewer.setWindow(...this.wanted);
    this.wanted = null;
  }

  get range() {
    return Math.max(this.high - this.low, 1e-6);
  }

  toSliders(low, high) {
    // Brighter to the right: a lower centre. More contrast to the right: a narrower window.
    element("level").value = 1000 * (1 - ((low + high) / 2 - this.low) / this.range);
    element("width").value = 1000 * (1 - Math.sqrt(Math.min(1, (high - low) / this.range)));
  }

  fromSliders() {
    const centre = this.low + (1 - element("level").value / 1000) * this.range;
    const half = Math.max(((1 - element("width").value / 1000) ** 2 * this.range) / 2, this.range / 2000);
    this.set(centre - half, centre + half);
  }
}
