// An array seen along axes, in place of the one in OHIF that is written as text and evaluated, which our policy forbids.
// OHIF reads every DICOM SEG through it. The names and the order of arguments are those of the package ndarray.
const given = (place) => typeof place === "number" && place >= 0;

NextSlice.PlainView = class PlainView {
  constructor(data, shape, stride, offset, dtype) {
    this.data = data;
    this.shape = [...(shape ?? [])];
    this.stride = [...(stride ?? [])];
    this.offset = offset ?? 0;
    this.dtype = dtype;
  }

  get dimension() {
    return this.shape.length;
  }

  get size() {
    return this.shape.reduce((product, length) => product * length, 1);
  }

  // The axes, the one whose neighbours lie closest first.
  get order() {
    return this.stride.map((_, axis) => axis).sort((a, b) => Math.abs(this.stride[a]) - Math.abs(this.stride[b]));
  }

  index(...at) {
    return at.reduce((sum, place, axis) => sum + place * this.stride[axis], this.offset);
  }

  get(...at) {
    return this.data[this.index(...at)];
  }

  set(...atAndValue) {
    const value = atAndValue.pop();
    return (this.data[this.index(...atAndValue)] = value);
  }

  seen(shape, stride, offset) {
    return new PlainView(this.data, shape, stride, offset, this.dtype);
  }

  // Without what lies from `ends` on, of each axis that one is given for.
  hi(...ends) {
    const shape = this.shape.map((length, axis) => (given(ends[axis]) ? ends[axis] : length));
    return this.seen(shape, this.stride, this.offset);
  }

  // Without what lies before `starts`.
  lo(...starts) {
    const skipped = this.shape.map((_, axis) => (given(starts[axis]) ? starts[axis] : 0));
    const shape = this.shape.map((length, axis) => length - skipped[axis]);
    return this.seen(shape, this.stride, this.index(...skipped));
  }

  // Each axis by its step; backwards if that is negative.
  step(...steps) {
    const by = this.shape.map((_, axis) => steps[axis] ?? 1);
    const first = this.shape.map((length, axis) => (by[axis] < 0 ? length - 1 : 0));
    const shape = this.shape.map((length, axis) => Math.ceil(length / Math.abs(by[axis])));
    return this.seen(shape, this.stride.map((stride, axis) => stride * by[axis]), this.index(...first));
  }

  transpose(...axes) {
    const order = this.shape.map((_, axis) => axes[axis] ?? axis);
    return this.seen(order.map((axis) => this.shape[axis]), order.map((axis) => this.stride[axis]), this.offset);
  }

  // Fixed at a place along each axis that one is given for, which the view then lacks.
  pick(...at) {
    const kept = this.shape.map((_, axis) => axis).filter((axis) => !given(at[axis]));
    const fixed = this.shape.map((_, axis) => (given(at[axis]) ? at[axis] : 0));
    return this.seen(kept.map((axis) => this.shape[axis]), kept.map((axis) => this.stride[axis]), this.index(...fixed));
  }
};
