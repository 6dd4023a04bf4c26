// The plane on which items are drawn: zoom, pan, and which item is where.

import { STATES, shade } from "./scale.js";

const NEAR = 14;
const MARGIN = 36;
const MOST_ZOOM = 60;

/** A canvas of points. `points` is {x, y, state, states, share}: arrays of one length, x and y from 0 to 1. */
export class Plane {
  constructor(canvas, { onHover, onChoose }) {
    this.canvas = canvas;
    this.points = null;
    this.byScore = false;
    this.zoom = 1;
    this.middle = [0.5, 0.5];
    this.hovered = this.chosen = -1;
    this.onHover = onHover;
    this.onChoose = onChoose;
    this.pointers = new Map();
    new ResizeObserver(() => {
      this.hover(-1);
      this.draw();
    }).observe(canvas);
    matchMedia("(prefers-color-scheme: light)").addEventListener("change", () => this.draw());
    this.listen();
  }

  show(points, byScore) {
    this.points = points;
    this.byScore = byScore;
    const rank = Object.keys(STATES);
    const height = points.states.map((name) => rank.indexOf(name));
    this.order = points.state.map((_, i) => i).sort((a, b) => height[points.state[a]] - height[points.state[b]]);
    this.draw();
  }

  get scale() {
    return (Math.min(this.canvas.clientWidth, this.canvas.clientHeight) - 2 * MARGIN) * this.zoom;
  }

  /** CSS pixels within the canvas. */
  place(i) {
    return [
      (this.points.x[i] - this.middle[0]) * this.scale + this.canvas.clientWidth / 2,
      (this.middle[1] - this.points.y[i]) * this.scale + this.canvas.clientHeight / 2,
    ];
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.paint());
  }

  paint() {
    const { canvas } = this;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    if (!this.points) return;
    const style = getComputedStyle(document.body);
    const dot = style.getPropertyValue("--dot"), back = style.getPropertyValue("--back");
    const grow = Math.min(1.8, Math.sqrt(this.zoom)) * (this.points.x.length < 800 ? 1.3 : 1);
    for (const i of this.order) {
      const [x, y] = this.place(i);
      if (x < -20 || y < -20 || x > canvas.clientWidth + 20 || y > canvas.clientHeight + 20) continue;
      const kind = STATES[this.points.states[this.points.state[i]]];
      const colour = this.byScore ? shade(this.points.share[i]) : kind.colour ?? dot;
      mark(pen, x, y, kind.shape, kind.size * grow, colour, back);
    }
    for (const [i, width] of [[this.hovered, 2], [this.chosen, 3]]) {
      if (i < 0) continue;
      const [x, y] = this.place(i);
      pen.beginPath();
      pen.arc(x, y, 12, 0, 2 * Math.PI);
      pen.lineWidth = width;
      pen.strokeStyle = style.getPropertyValue("--text");
      pen.stroke();
    }
  }

  /** The item under a place in CSS pixels, or -1. */
  at(x, y) {
    let best = -1, least = NEAR * NEAR;
    for (let i = 0; i < (this.points?.x.length ?? 0); i++) {
      const [px, py] = this.place(i);
      const apart = (px - x) ** 2 + (py - y) ** 2;
      if (apart <= least) [best, least] = [i, apart];
    }
    return best;
  }

  choose(i) {
    this.chosen = i;
    const [x, y] = this.place(i);
    const inside = x > 0 && y > 0 && x < this.canvas.clientWidth && y < this.canvas.clientHeight;
    if (!inside) this.middle = [this.points.x[i], this.points.y[i]];
    this.draw();
    this.onChoose(i);
  }

  /** To the nearest item in a direction (right, down), judged by distance and by how far it lies aside. */
  step(right, down) {
    if (this.chosen < 0) {
      this.choose(this.order.at(-1));
      return;
    }
    const [x, y] = this.place(this.chosen);
    let best = -1, least = Infinity;
    for (let i = 0; i < this.points.x.length; i++) {
      const [px, py] = this.place(i);
      const ahead = (px - x) * right + (py - y) * down;
      const aside = Math.abs((px - x) * down) + Math.abs((py - y) * right);
      const far = ahead + 2 * aside;
      if (i !== this.chosen && ahead > 0.01 && aside <= 2 * ahead && far < least) [best, least] = [i, far];
    }
    if (best >= 0) this.choose(best);
  }

  /** Zoom by a factor, about a place in CSS pixels. */
  zoomBy(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const zoom = Math.min(Math.max(this.zoom * factor, 1), MOST_ZOOM);
    const right = x - this.canvas.clientWidth / 2, down = y - this.canvas.clientHeight / 2;
    const before = this.scale;
    this.zoom = zoom;
    const shift = 1 / before - 1 / this.scale;
    this.middle = [this.middle[0] + right * shift, this.middle[1] - down * shift];
    this.draw();
  }

  whole() {
    this.zoom = 1;
    this.middle = [0.5, 0.5];
    this.draw();
  }

  listen() {
    const { canvas } = this;
    const spot = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY / 400), ...spot(event));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, spot(event));
      this.moved = this.pointers.size > 1 ? Infinity : 0;
    });
    canvas.addEventListener("pointermove", (event) => this.move(event, spot(event)));
    canvas.addEventListener("pointerup", (event) => {
      if (this.pointers.delete(event.pointerId) && this.moved < 5 && event.button === 0) {
        const found = this.at(...spot(event));
        if (found >= 0) this.choose(found);
      }
    });
    canvas.addEventListener("pointercancel", (event) => this.pointers.delete(event.pointerId));
    canvas.addEventListener("pointerleave", () => this.hover(-1));
  }

  move(event, now) {
    const before = this.pointers.get(event.pointerId);
    if (!before) {
      this.hover(this.at(...now));
      return;
    }
    const others = [...this.pointers].filter(([id]) => id !== event.pointerId);
    if (others.length) {
      const other = others[0][1];
      const apart = (a) => Math.hypot(a[0] - other[0], a[1] - other[1]) || 1;
      this.zoomBy(apart(now) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    } else {
      this.moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
      this.middle = [this.middle[0] - (now[0] - before[0]) / this.scale, this.middle[1] + (now[1] - before[1]) / this.scale];
    }
    this.pointers.set(event.pointerId, now);
    this.hover(-1);
    this.draw();
  }

  hover(i) {
    if (i === this.hovered) return;
    this.hovered = i;
    this.draw();
    this.onHover(i);
  }
}

/** One item; a thin edge in the background's colour keeps neighbours apart. */
export function mark(pen, x, y, shape, size, colour, back) {
  pen.beginPath();
  if (shape === "cross") {
    pen.moveTo(x - size, y - size);
    pen.lineTo(x + size, y + size);
    pen.moveTo(x + size, y - size);
    pen.lineTo(x - size, y + size);
    pen.lineWidth = 1.8;
    pen.strokeStyle = colour;
    pen.stroke();
    return;
  }
  if (shape === "diamond") {
    pen.moveTo(x, y - size * 1.25);
    pen.lineTo(x + size * 1.25, y);
    pen.lineTo(x, y + size * 1.25);
    pen.lineTo(x - size * 1.25, y);
    pen.closePath();
  } else {
    pen.arc(x, y, size, 0, 2 * Math.PI);
  }
  pen.fillStyle = colour;
  pen.fill();
  pen.lineWidth = 1;
  pen.strokeStyle = back;
  pen.stroke();
}
