// Colours: of states, told apart also without seeing colours well, and of scores, evenly bright from low to high.

/** In the order of drawing, so that what matters lies on top; `shape` and size tell them apart as well. */
export const STATES = {
  pool: { name: "in the pool", shape: "dot", size: 3 },
  skipped: { name: "skipped", colour: "#8a7f99", shape: "cross", size: 4 },
  labeled: { name: "annotated", colour: "#35b779", shape: "dot", size: 4.5 },
  leased: { name: "with an annotator", colour: "#f0a830", shape: "diamond", size: 6 },
  asked: { name: "asked for", colour: "#ff6b5e", shape: "diamond", size: 6 },
};

const STOPS = [[68, 30, 100], [62, 74, 137], [40, 124, 142], [42, 174, 124], [140, 210, 70], [250, 230, 40]];

/** Of a share from 0 to 1. */
export function shade(share) {
  const at = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
  const low = Math.min(Math.floor(at), STOPS.length - 2);
  const mixed = STOPS[low].map((from, k) => Math.round(from + (STOPS[low + 1][k] - from) * (at - low)));
  return `rgb(${mixed.join(" ")})`;
}

/** Shares of values between their 2nd and 98th percentile, so that one outlier does not make all others alike. */
export function shares(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const low = sorted[Math.floor(0.02 * (sorted.length - 1))];
  const high = sorted[Math.ceil(0.98 * (sorted.length - 1))];
  const of = (value) => (high > low ? (value - low) / (high - low) : 0.5);
  return { low, high, of };
}
