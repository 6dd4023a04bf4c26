// Mouse, pen, touch and keyboard on the picture: painting, moving through slices, window and level, zoom.

const LINE = 40; // pixels of the wheel for one slice
const LARGEST = 64;

/** Tools: "brush", "eraser", "fill", "move". `told` hears of what only the page can show:
 *
 * changed(slice): a stroke ended. moved(): another slice or plane is shown. refused(): painting is off here. window(low, high).
 */
export class Stage {
  constructor(surface, marks, viewer, told) {
    [this.surface, this.viewer, this.told] = [surface, viewer, told];
    this.marks = marks.getContext("2d");
    this.drawing = null;
    this.tool = "brush";
    this.size = 5;
    this.value = 1;
    this.cursor = null;
    this.drag = null;
    this.wheel = 0;
    this.touches = new Map();
    surface.addEventListener("pointerdown", (event) => this.down(event));
    surface.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) surface.addEventListener(end, (event) => this.up(event));
    surface.addEventListener("pointerleave", () => this.hover(null));
    surface.addEventListener("contextmenu", (event) => event.preventDefault());
    surface.addEventListener("wheel", (event) => this.scroll(event), { passive: false });
    surface.addEventListener("keydown", (event) => this.key(event));
  }

  /** Begin with another drawing; null while there is none. */
  open(drawing) {
    [this.drawing, this.cursor, this.drag] = [drawing, null, null];
    this.touches.clear();
    this.mark();
  }

  get slice() {
    return this.viewer.position()[this.viewer.axis];
  }

  get mayPaint() {
    return Boolean(this.drawing) && this.viewer.axis === this.drawing.axis && this.drawing.may(this.slice);
  }

  setSize(size) {
    this.size = Math.max(1, Math.min(LARGEST, Math.round(size)));
    this.mark();
  }

  /** To a slice of the shown plane, or of another one. */
  go(axis, slice) {
    const last = this.viewer.orientation.shape[axis] - 1;
    this.viewer.go(axis, Math.max(0, Math.min(last, slice)));
    this.mark();
    this.told.moved();
  }

  step(by) {
    this.go(this.viewer.axis, this.slice + by);
  }

  at(event) {
    const box = this.surface.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  down(event) {
    if (!this.drawing || this.drag?.kind === "paint") return;
    this.surface.focus({ preventScroll: true });
    this.surface.setPointerCapture(event.pointerId);
    const at = this.at(event);
    if (event.pointerType === "touch") this.touches.set(event.pointerId, at);
    if (this.touches.size > 1) {
      this.drag = { kind: "pinch", from: this.spread() };
    } else if (event.button === 2) {
      this.drag = { kind: "window", from: at, window: this.viewer.window };
    } else if (event.button === 1 || this.tool === "move") {
      this.drag = { kind: "pan", from: at };
    } else if (event.button === 0) {
      this.begin(this.viewer.pixelAt(...at));
    }
  }

  move(event) {
    const at = this.at(event);
    if (this.touches.has(event.pointerId)) this.touches.set(event.pointerId, at);
    const drag = this.drag;
    if (drag?.kind === "paint") {
      // What the pointer did between two frames is a part of the line.
      for (const each of event.getCoalescedEvents?.() ?? []) this.stroke(this.viewer.pixelAt(...this.at(each)));
      this.stroke(this.viewer.pixelAt(...at));
    } else if (drag?.kind === "pan") {
      this.viewer.pan(at[0] - drag.from[0], at[1] - drag.from[1]);
      drag.from = at;
    } else if (drag?.kind === "window") {
      this.windowBy(drag, at);
    } else if (drag?.kind === "pinch" && this.touches.size > 1) {
      const to = this.spread();
      this.viewer.zoom(to.width / drag.from.width);
      this.viewer.pan(to.middle[0] - drag.from.middle[0], to.middle[1] - drag.from.middle[1]);
      drag.from = to;
    }
    this.hover(at);
  }

  up(event) {
    this.touches.delete(event.pointerId);
    const drag = this.drag;
    if (!drag || (drag.kind === "pinch" && this.touches.size > 1)) return;
    this.drag = null;
    if (drag.kind === "paint" && this.drawing?.end()) this.told.changed(drag.slice);
  }

  spread() {
    const [one, other] = [...this.touches.values()];
    return {
      width: Math.max(1, Math.hypot(one[0] - other[0], one[1] - other[1])),
      middle: [(one[0] + other[0]) / 2, (one[1] + other[1]) / 2],
    };
  }

  /** Right to left: wider or narrower; up and down: darker or brighter. */
  windowBy(drag, at) {
    const [low, high] = drag.window;
    const width = (high - low) * Math.exp((at[0] - drag.from[0]) / 200);
    const centre = (low + high) / 2 + ((at[1] - drag.from[1]) / 300) * (high - low);
    this.told.window(centre - width / 2, centre + width / 2);
  }

  /** A stroke (or fill) at a pixel of the shown slice. */
  begin(pixel) {
    if (!pixel) return;
    if (!this.mayPaint) {
      this.told.refused();
      return;
    }
    const slice = this.slice;
    this.drawing.begin(slice);
    if (this.tool === "fill") {
      this.show(slice, this.drawing.fill(...pixel, this.value));
      if (this.drawing.end()) this.told.changed(slice);
      return;
    }
    this.drag = { kind: "paint", slice, last: pixel };
    this.stroke(pixel);
  }

  stroke(pixel) {
    const drag = this.drag;
    if (!pixel) {
      drag.last = null; // over the edge: the line goes on where the pointer comes back
      return;
    }
    const value = this.tool === "eraser" ? 0 : this.value;
    this.show(drag.slice, this.drawing.line(drag.last ?? pixel, pixel, this.size, value));
    drag.last = pixel;
  }

  show(slice, box) {
    if (!box) return;
    this.viewer.paint(this.drawing.axis, slice, this.drawing.plane(slice), box);
    this.viewer.draw();
  }

  scroll(event) {
    event.preventDefault();
    if (!this.drawing) return;
    if (event.ctrlKey || event.metaKey) {
      this.viewer.zoom(Math.exp(-event.deltaY / 300));
      this.mark();
      return;
    }
    this.wheel += event.deltaMode ? event.deltaY * LINE : event.deltaY;
    const steps = Math.trunc(this.wheel / LINE);
    this.wheel -= steps * LINE;
    if (steps) this.step(steps);
  }

  /** Arrows move a cursor over the picture (with shift by ten), space uses the tool there. */
  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!this.drawing || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key in moves) {
      event.preventDefault();
      const length = event.shiftKey ? 10 : 1;
      this.walk(moves[event.key].map((each) => each * length));
    } else if (event.key === " " && this.cursor) {
      event.preventDefault();
      this.begin(this.cursor);
      this.up({});
    }
  }

  /** Move the keyboard's cursor as seen on the screen, whatever way the file's axes run. */
  walk(by) {
    const { width, height } = this.plane();
    this.cursor ??= [Math.floor(width / 2), Math.floor(height / 2)];
    const here = this.viewer.pointOf(...this.cursor);
    const right = this.viewer.pointOf(this.cursor[0] + (this.cursor[0] + 1 < width ? 1 : -1), this.cursor[1]);
    const below = this.viewer.pointOf(this.cursor[0], this.cursor[1] + (this.cursor[1] + 1 < height ? 1 : -1));
    if (!here || !right || !below) return;
    const uIsAcross = Math.abs(right[0] - here[0]) >= Math.abs(right[1] - here[1]);
    const sign = (other, axis, n) =>
      Math.sign(other[axis] - here[axis]) * (this.cursor[n] + 1 < [width, height][n] ? 1 : -1);
    const moved = uIsAcross
      ? [by[0] * sign(right, 0, 0), by[1] * sign(below, 1, 1)]
      : [by[1] * sign(right, 1, 0), by[0] * sign(below, 0, 1)];
    this.cursor = [width, height].map((length, n) => Math.max(0, Math.min(length - 1, this.cursor[n] + moved[n])));
    this.mark();
    this.told.cursor?.(this.cursor);
  }

  plane() {
    const shape = this.viewer.orientation.shape.filter((_, axis) => axis !== this.viewer.axis);
    return { width: shape[0], height: shape[1] };
  }

  hover(at) {
    this.pointer = at;
    this.mark();
  }

  /** Draw the brush's outline where the pointer or the keyboard's cursor is. */
  mark() {
    const { canvas } = this.marks;
    const ratio = window.devicePixelRatio || 1;
    const size = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    this.marks.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.marks.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
    if (!this.drawing) return;
    if (this.pointer) this.outline(this.pointer, "rgba(255, 255, 255, 0.85)");
    const at = this.cursor && this.viewer.pointOf(...this.cursor);
    if (at) this.outline(at, "#ffd166");
  }

  outline([x, y], colour) {
    const { marks } = this;
    marks.lineWidth = 1.25;
    marks.strokeStyle = this.mayPaint ? colour : "rgba(255, 120, 110, 0.9)";
    marks.beginPath();
    if (this.tool === "fill" || this.tool === "move" || !this.mayPaint) {
      for (const [dx, dy] of [[7, 0], [0, 7]]) {
        marks.moveTo(x - dx, y - dy);
        marks.lineTo(x + dx, y + dy);
      }
    } else {
      const radius = Math.max(2, (this.size / 2) * this.screenPixel());
      marks.arc(x, y, radius, 0, 2 * Math.PI);
    }
    marks.stroke();
  }

  screenPixel() {
    const [across, down] = this.viewer.pixelSize();
    return (across + down) / 2;
  }
}
