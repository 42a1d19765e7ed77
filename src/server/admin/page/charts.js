// The last quarter of an hour in lines: what requests met.

import { at, draw, keep, make, mark, say } from "./dom.js";
import { count, seconds } from "./words.js";

const [WIDE, HIGH] = [300, 84];

/** Samples that a picture has at least: three minutes. */
const FEWEST = 36;
const LATENCY = { say: seconds, keys: ["median", "95 %"], log: true };
const say1 = (value) => (value >= 100 ? count(Math.round(value)) : value.toFixed(1));
const failed = (it) => (it.requests ?? 0) - (it.answered ?? 0) - (it.cancelled ?? 0);

/** Each: name, what is drawn (and drawn fainter), how values are said. */
const CHARTS = [
  { label: "First token", of: (it) => [it.first_token?.p50, it.first_token?.p95], ...LATENCY },
  { label: "Per token", of: (it) => [it.per_token?.p50, it.per_token?.p95], ...LATENCY },
  { label: "Queue", of: (it) => [it.queue?.p50, it.queue?.p95], ...LATENCY },
  { label: "Requests/s", of: (it, every) => [(it.requests ?? 0) / every, failed(it) / every], say: say1, keys: ["all", "failed"] },
];

export function charts(state) {
  const every = state.sampleEvery / 1000;
  const minutes = Math.round((Math.max(FEWEST, state.samples.length) * every) / 60);
  say(at("charts-note"), `last ${minutes} min, ${every} s a sample; latencies on a logarithmic scale`);
  keep(at("charts"), CHARTS, (it) => it.label, create, (element, chart) => fit(element, chart, state, every));
}

function create(chart) {
  const [first, second] = [draw("path", { class: "line" }), draw("path", { class: "line second" })];
  const area = draw("path", { class: "area" });
  const picture = draw("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none", role: "img" },
    draw("path", { class: "base", d: `M0 ${HIGH}H${WIDE}M0 1H${WIDE}` }), area, second, first);
  const [now, top, last] = [make("span", { class: "now" }), make("span"), make("span")];
  const element = make("div", { class: "chart" },
    make("div", { class: "top" }, make("h3", {}, chart.label), now), picture,
    make("div", { class: "scale" }, top, last));
  Object.assign(element, { first, second, area, picture, now, top, last });
  return element;
}

function fit(element, chart, state, every) {
  const rows = state.samples.map((sample) => chart.of(sample, every));
  const known = rows.flat().filter((value) => value > 0);
  const [low, top] = range(known, chart.log);
  const wide = Math.max(FEWEST, rows.length) - 1;
  const x = (at) => ((at + wide + 1 - rows.length) / wide) * WIDE;
  const line = (index) => path(rows.map((row, at) => (row[index] === undefined ? null : [x(at), HIGH - height(row[index], low, top) * (HIGH - 2)])));
  mark(element.first, "d", line(0).open);
  mark(element.second, "d", line(1).open);
  mark(element.area, "d", line(0).closed);
  const latest = rows.findLast((row) => row[0] !== undefined);
  const said = latest ? chart.say(latest[0]) : "–";
  const second = latest?.[1] === undefined ? "" : `${chart.keys[1]} ${chart.say(latest[1])}`;
  say(element.now, said);
  const round = (value) => chart.say(value).replace(/\.0+(?= |$)/, "");
  say(element.top, !top ? "nothing yet" : `${low ? round(low) : 0} to ${round(top)}`);
  say(element.last, second);
  mark(element.picture, "aria-label", `${chart.label}: ${chart.keys[0]} ${said}${second ? `, ${second}` : ""}${top ? `; drawn up to ${chart.say(top)}` : ""}`);
}

/** What the picture spans: from zero to a round number, or decades. */
function range(values, log) {
  if (!values.length) return [0, 0];
  const [least, most] = [Math.min(...values), Math.max(...values)];
  if (!log) return [0, [1, 2, 5, 10].map((step) => step * 10 ** Math.floor(Math.log10(most))).find((step) => step >= most * 0.999)];
  return [10 ** Math.floor(Math.log10(least)), 10 ** Math.ceil(Math.log10(most) + 1e-9)];
}

function height(value, low, top) {
  if (!top) return 0;
  return low ? Math.max(0, Math.log(Math.max(value, low) / low) / Math.log(top / low)) : value / top;
}

/** A line through the points, interrupted where one is missing, and the area below it. */
function path(points) {
  const [open, closed] = [[], []];
  let run = [];
  for (const point of [...points, null]) {
    if (point) {
      run.push(point);
      continue;
    }
    if (!run.length) continue;
    // A lonely sample is a short dash.
    const dots = run.length > 1 ? run : [[run[0][0] - 1.5, run[0][1]], [run[0][0] + 1.5, run[0][1]]];
    const line = dots.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");
    open.push(`M${line}`);
    closed.push(`M${dots[0][0].toFixed(1)} ${HIGH}L${line}L${dots.at(-1)[0].toFixed(1)} ${HIGH}Z`);
    run = [];
  }
  return { open: open.join("") || null, closed: closed.join("") || null };
}
