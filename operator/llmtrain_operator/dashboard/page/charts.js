// Curves and timelines as SVG, drawn at the width that there is.

import { h } from "./dom.js";
import { duration, number, percent } from "./format.js";

const HEIGHT = 220;
const ROOM = { left: 52, right: 12, top: 12, bottom: 26 };
const pointed = new Map(); // chart -> index of the point that is looked at

/** A curve over steps. `points` are {x, y}; `marks` are {x, text}; `name` tells charts apart and says what y is. */
export function curve({ name, unit, points, marks, width, redraw }) {
  const title = h("h2", null, name, unit ? h("span", { class: "quiet" }, ` ${unit}`) : null);
  if (points.length < 2) {
    return h("figure", { class: "card", key: name }, title, h("p", { class: "quiet" }, "Nothing to draw yet: the first steps are awaited."));
  }
  const x = scale(points[0].x, points.at(-1).x, ROOM.left, width - ROOM.right);
  const [low, high, yTicks] = range(points.map((point) => point.y));
  const y = scale(low, high, HEIGHT - ROOM.bottom, ROOM.top);
  const index = Math.min(pointed.get(name) ?? points.length - 1, points.length - 1);
  const at = points[index];
  const look = (to) => { pointed.set(name, Math.max(0, Math.min(points.length - 1, to))); redraw(); };
  const drawing = h("svg", {
    class: "chart", width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", tabindex: "0",
    "aria-label": `${name}: ${number(points[0].y)} at step ${points[0].x}, ${number(points.at(-1).y)} at step ${points.at(-1).x}. Arrow keys read single steps.`,
    onpointermove: (event) => look(nearest(points, x.back(offset(event)))),
    onpointerleave: () => { pointed.delete(name); redraw(); },
    onkeydown: (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, Home: -points.length, End: points.length }[event.key];
      if (move === undefined) return;
      event.preventDefault();
      look(index + move);
    },
    onblur: () => { pointed.delete(name); redraw(); },
  },
    yTicks.map((value) => [
      h("line", { class: "grid", x1: ROOM.left, x2: width - ROOM.right, y1: y(value), y2: y(value) }),
      h("text", { class: "tick end", x: ROOM.left - 6, y: y(value) + 4 }, number(value)),
    ]),
    ticks(points[0].x, points.at(-1).x, Math.max(2, Math.floor(width / 90))).filter(Number.isInteger).map((value) =>
      h("text", { class: "tick middle", x: x(value), y: HEIGHT - 8 }, number(value))),
    marks.filter((mark) => mark.x >= points[0].x && mark.x <= points.at(-1).x).map((mark) =>
      h("g", null, h("line", { class: "incident", x1: x(mark.x), x2: x(mark.x), y1: ROOM.top, y2: HEIGHT - ROOM.bottom }), h("title", null, mark.text))),
    h("path", { class: "curve", d: points.map((point, i) => `${i ? "L" : "M"}${x(point.x).toFixed(1)} ${y(point.y).toFixed(1)}`).join("") }),
    h("line", { class: pointed.has(name) ? "pointer" : "pointer none", x1: x(at.x), x2: x(at.x), y1: ROOM.top, y2: HEIGHT - ROOM.bottom }),
    h("circle", { class: "point", cx: x(at.x), cy: y(at.y), r: 4 }));
  return h("figure", { class: "card", key: name }, title, drawing,
    h("figcaption", { "aria-live": pointed.has(name) ? "polite" : "off" }, `step ${number(at.x)}: `, h("b", null, number(at.y)), unit ? ` ${unit}` : ""));
}

/** Where the job's time went, in order. Segments are {cause, start, seconds}; `marks` are {x, text} in seconds. */
export function timeline({ segments, marks, width }) {
  const end = segments.reduce((most, segment) => Math.max(most, segment.start + segment.seconds), 0);
  const x = scale(0, end || 1, 1, width - 1);
  const [top, bottom] = [16, 52];
  return h("svg", {
    class: "chart", width, height: 76, viewBox: `0 0 ${width} 76`, role: "img",
    "aria-label": `Where ${duration(end)} went, in order of time: ${segments.length} stretches. The table below has the sums.`,
  },
    segments.map((segment) => h("rect", {
      class: `cause ${slug(segment.cause)}`, x: x(segment.start), y: top, height: bottom - top,
      width: Math.max(0.5, x(segment.start + segment.seconds) - x(segment.start)),
    }, h("title", null, `${words(segment.cause)}: ${duration(segment.seconds)}, from ${duration(segment.start)} on`))),
    marks.filter((mark) => mark.x >= 0 && mark.x <= end).map((mark) =>
      h("path", { class: "flag", d: `M${x(mark.x)} ${top - 1}l-5 -10h10z` }, h("title", null, mark.text))),
    times(end || 1, Math.max(2, Math.floor(width / 110))).map((value) =>
      h("text", { class: `tick ${value === 0 ? "" : x(value) > width - 30 ? "end" : "middle"}`, x: x(value), y: 70 }, duration(value))));
}

/** How an incident went: until it was noticed, until the next round, until the next step. */
export function course({ detectSeconds, roundSeconds, trainSeconds }) {
  const [width, height] = [120, 12];
  const ends = [["noticed", detectSeconds, "detect"], ["next round", roundSeconds, "restart"], ["next step", trainSeconds, "productive"]]
    .filter(([, seconds]) => seconds !== null);
  const x = scale(0, Math.max(...ends.map(([, seconds]) => seconds), 0.1), 0, width);
  const text = `Since the fault: ${ends.map(([what, seconds]) => `${what} after ${duration(seconds)}`).join(", ")}`;
  return h("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": text },
    ends.map(([, seconds, cause], i) => {
      const from = x(i ? ends[i - 1][1] : 0);
      return h("rect", { class: `cause of-${cause}`, x: from, y: 0, width: Math.max(0, x(seconds) - from), height });
    }),
    h("title", null, text));
}

/** Legend of the timeline and table of the causes, the largest first. */
export function causes(ledger) {
  const all = Object.entries(ledger).filter(([, seconds]) => seconds > 0).sort((a, b) => b[1] - a[1]);
  const whole = all.reduce((sum, [, seconds]) => sum + seconds, 0);
  return h("table", { class: "causes" },
    h("thead", null, h("tr", null, h("th", { scope: "col" }, "Cause"), h("th", { scope: "col", class: "figure" }, "Time"), h("th", { scope: "col", class: "figure" }, "Share"))),
    h("tbody", null, all.map(([cause, seconds]) => h("tr", { key: cause },
      h("th", { scope: "row" }, h("svg", { class: "swatch", width: 12, height: 12, "aria-hidden": "true" }, h("rect", { class: `cause ${slug(cause)}`, width: 12, height: 12, rx: 3 })), words(cause)),
      h("td", { class: "figure" }, duration(seconds)), h("td", { class: "figure" }, percent(seconds / whole))))));
}

/** The ledger's name of a cause, for people. */
export const words = (cause) => cause.replace(/([a-z])([A-Z])/g, "$1 $2").toLowerCase();
const slug = (cause) => `of-${cause.replace(/[^A-Za-z]/g, "")}`;

function scale(from, to, first, last) {
  const span = to - from || 1;
  const place = (value) => first + ((value - from) / span) * (last - first);
  place.back = (pixel) => from + ((pixel - first) / (last - first)) * span;
  return place;
}

/** Lowest and highest value of the axis, with round numbers on it. */
function range(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const spread = high - low || Math.abs(high) || 1;
  const marks = ticks(Math.max(low - spread * 0.05, low >= 0 ? 0 : -Infinity), high + spread * 0.05, 5);
  return [Math.min(low, marks[0]), Math.max(high, marks.at(-1)), marks];
}

function ticks(from, to, most) {
  const rough = (to - from) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const first = Math.ceil(from / step);
  const count = Math.floor(to / step + 1e-9) - first + 1;
  return Array.from({ length: Math.max(1, count) }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** Round times for an axis from 0 to `to` seconds. */
function times(to, most) {
  const sizes = [1, 2, 5, 10, 15, 30].flatMap((n) => [n, 60 * n, 3600 * n]).concat(86400, 172800, 432000, 864000).sort((a, b) => a - b);
  const step = sizes.find((size) => to / size <= most) ?? to / most;
  return Array.from({ length: Math.floor(to / step) + 1 }, (_, i) => i * step);
}

function nearest(points, value) {
  let best = 0;
  points.forEach((point, i) => { if (Math.abs(point.x - value) < Math.abs(points[best].x - value)) best = i; });
  return best;
}

const offset = (event) => event.clientX - event.currentTarget.getBoundingClientRect().left;
