// Dice over model versions as a drawing: the mean and each class, with intervals where they are known.

import { decimals, fill, make } from "/web/show.js";

const WIDTH = 720;
const HEIGHT = 300;
const LEFT = 44;
const RIGHT = 16;
const TOP = 12;
const BOTTOM = 40;
const COLOURS = 8;
const INTERVAL = 1.96;

/** One step to the right for each of `cards`, oldest first; a table beside it says the same to screen readers. */
export function diceChart(place, cards, labels, current) {
  const measured = cards.filter((card) => card.metrics.dice !== null && card.metrics.dice !== undefined);
  if (!measured.length) {
    fill(place, make("p", { class: "hint" }, cards.length
      ? "No model has been measured yet: that takes labels of a patient who is kept for validation."
      : "The curve begins with the first model."));
    return;
  }
  const curves = [
    { name: "mean", colour: "c0", points: measured.map((card) => [card.metrics.dice, card.metrics.validation?.dice_se]) },
    ...labels.map((label, i) => ({
      name: label, colour: `c${1 + (i % COLOURS)}`,
      points: measured.map((card) => [card.metrics.dice_per_class?.[label], card.metrics.validation?.classes?.[label]?.dice_se]),
    })),
  ];
  const versions = measured.map((card) => cards.indexOf(card) + 1);
  const x = (i) => LEFT + (measured.length > 1 ? (i * (WIDTH - LEFT - RIGHT)) / (measured.length - 1) : (WIDTH - LEFT - RIGHT) / 2);
  const y = (dice) => TOP + (1 - Math.min(1, Math.max(0, dice))) * (HEIGHT - TOP - BOTTOM);
  const best = measured.at(-1).metrics.dice;
  fill(place,
    make("ul", { class: "legend", "aria-hidden": "true" }, ...curves.map((curve) => make("li", { class: curve.colour },
      `${curve.name} ${decimals(curve.points.at(-1)[0], 2)}`))),
    make("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `Dice of ${measured.length} models; the last has ${decimals(best)}` },
      ...grid(y, x, versions, measured.map((card) => card.digest === current)),
      ...[...curves.entries()].reverse().flatMap(([i, curve]) => drawn(curve, x, y, i, curves.length))),
    spoken(curves, versions));
}

function grid(y, x, versions, inUse) {
  const lines = [0, 0.2, 0.4, 0.6, 0.8, 1].flatMap((dice) => [
    make("line", { class: dice ? "grid" : "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(dice), y2: y(dice) }),
    make("text", { x: LEFT - 8, y: y(dice) + 4, "text-anchor": "end" }, dice.toFixed(1)),
  ]);
  const every = Math.ceil(versions.length / 16);
  const names = versions.map((version, i) => ((versions.length - 1 - i) % every ? null
    : make("text", { x: x(i), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, inUse[i] ? `${version} ●` : String(version))));
  return [...lines, ...names, make("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "model version (● in use)")];
}

function drawn({ name, colour, points }, x, y, order, of) {
  const known = points.map(([dice, error], i) => ({ dice, error, i })).filter(({ dice }) => typeof dice === "number");
  const aside = (order - (of - 1) / 2) * 3; // so that intervals of classes do not hide one another
  const bars = known.filter(({ error }) => typeof error === "number").map(({ dice, error, i }) => make("line", {
    class: `range ${colour}`, x1: x(i) + aside, x2: x(i) + aside, y1: y(dice - INTERVAL * error), y2: y(dice + INTERVAL * error),
  }));
  const line = make("polyline", { class: `curve ${colour}${order ? "" : " mean"}`, points: known.map(({ dice, i }) => `${x(i) + aside},${y(dice)}`).join(" ") });
  const dots = known.map(({ dice, error, i }) => make("circle", { class: `dot ${colour}`, cx: x(i) + aside, cy: y(dice), r: order ? 3.5 : 5 },
    make("title", {}, `${name}: ${decimals(dice)}${typeof error === "number" ? ` ± ${decimals(INTERVAL * error)}` : ""}`)));
  return [...bars, line, ...dots];
}

function spoken(curves, versions) {
  const head = make("tr", {}, make("th", { scope: "col" }, "Version"), ...curves.map(({ name }) => make("th", { scope: "col" }, name)));
  const rows = versions.map((version, i) => make("tr", {}, make("th", { scope: "row" }, String(version)),
    ...curves.map(({ points }) => make("td", {}, decimals(points[i][0])))));
  return make("table", { class: "for-readers" }, make("caption", {}, "Dice of each model version"), make("thead", {}, head), make("tbody", {}, ...rows));
}
