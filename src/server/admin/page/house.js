// A device as a roundhouse: its stalls around a turntable, the room of each in proportion to its
// bytes. Within a stall what it holds lies in rings, again by area: weights at the rim, then
// workspace and texts, then the KV pool towards the turntable.

import { draw, keep, make, mark, say } from "./dom.js";
import { layout } from "./stalls.js";
import { bytes, counted, plain, share, short } from "./words.js";

const [CX, CY, RIM, HUB] = [390, 338, 290, 116];
const FROM = 188;
const SPAN = 196;
/** Stalls at least this wide, in degrees, are named. */
const NAMED = { one: 3.6, many: 8 };
const LETTERS = { one: 25, many: 15 };

const KINDS = [
  ["weights", "Weights"], ["rest", "Workspace, texts"], ["used", "KV in use"], ["free", "KV free"],
  ["adapters", "Adapters"], ["reserved", "Reserved for loads"], ["foreign", "Used by others"], ["room", "Free"],
];

const radian = (degrees) => (degrees * Math.PI) / 180;
const spot = (radius, degrees) => `${(CX + radius * Math.cos(radian(degrees))).toFixed(2)} ${(CY - radius * Math.sin(radian(degrees))).toFixed(2)}`;
/** The radius within which this share of a stall's area lies, from the hub. */
const ring = (part) => Math.sqrt(HUB * HUB + part * (RIM * RIM - HUB * HUB));

/** A part of a ring between two angles, the first the larger. */
function sector(inner, outer, from, to) {
  const wide = from - to > 180 ? 1 : 0;
  return `M${spot(inner, from)}L${spot(outer, from)}A${outer} ${outer} 0 ${wide} 1 ${spot(outer, to)}L${spot(inner, to)}A${inner} ${inner} 0 ${wide} 0 ${spot(inner, from)}Z`;
}

/** Fits the houses to the state. `open` is called with the members of a stall that is clicked. */
export function houses(parent, state, open) {
  const many = state.devices().length > 2;
  mark(parent, "class", many ? "houses many" : "houses");
  keep(parent, state.devices(), (device) => device.id, (device) => house(device), (element, device) => {
    const plan = layout(state, device);
    const key = outline(plan) + many;
    if (element.outline !== key) {
      element.outline = key;
      element.scale = many ? "many" : "one";
      paint(element, device, plan, open, state);
    }
    legend(element, device, plan);
  });
}

function house(device) {
  const id = `hatch-${device.id.replaceAll(/[^a-z0-9]/gi, "-")}`;
  const picture = draw("svg", { viewBox: "0 0 780 392", role: "img" });
  picture.append(patterns(id));
  const stalls = draw("g");
  picture.append(stalls);
  const element = make("div", { class: "house" }, picture, make("dl", { class: "legend" }));
  Object.assign(element, { picture, stalls, hatch: id });
  return element;
}

function patterns(id) {
  const line = (name, angle, width) => draw("pattern", { id: `${id}-${name}`, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: `rotate(${angle})` },
    draw("line", { x1: 0, y1: 0, x2: 0, y2: 6, class: "weave line", "stroke-width": width }));
  return draw("defs", {}, line("adapter", 45, 2.4), line("load", -45, 3), line("foreign", 20, 1.2));
}

/** What the picture depends on: the same outline is the same picture. */
function outline({ stalls, whole }) {
  const round = (value) => Math.round((value / whole) * 4000);
  return stalls.map((stall) => {
    const parts = stall.parts ? Object.values(stall.parts).map(round) : [stall.load?.fetched_bytes && Math.round((60 * stall.load.fetched_bytes) / stall.load.fetch_bytes)];
    return [stall.kind, round(stall.bytes), stall.colour, stall.leaving, stall.leases > 0, stall.kept > 0, stall.members?.length === 1 ? stall.members[0].target : stall.members?.length, ...parts].join();
  }).join("|") + whole;
}

function paint(element, device, plan, open, state) {
  const scale = SPAN / plan.whole;
  const drawn = [draw("path", { class: "floor", d: sector(HUB, RIM, FROM, FROM - SPAN) })];
  let angle = FROM;
  for (const stall of plan.stalls) {
    const to = angle - stall.bytes * scale;
    drawn.push(stallOf(element, stall, angle, to, open, state));
    angle = to;
  }
  drawn.push(...marks(plan, scale), table(device, plan));
  element.stalls.replaceChildren(...drawn);
}

function stallOf({ hatch, scale }, stall, from, to, open, state) {
  const group = draw("g", { class: `stall ${stall.colour ?? ""}` });
  const whole = sector(HUB, RIM, from, to);
  const called = label(stall);
  if (stall.kind === "models") models(group, hatch, stall, from, to);
  else if (stall.kind === "load") load(group, hatch, stall, from, to);
  else if (stall.kind === "foreign") group.append(draw("path", { class: "foreign", d: whole }), draw("path", { d: whole, fill: `url(#${hatch}-foreign)`, class: "weave" }));
  else if (stall.kind === "other") group.append(draw("path", { class: "foreign", d: whole }));
  else return rails(from, to);
  if (from - to > 0.5) group.append(draw("path", { class: from - to > 1.5 ? "gap" : "gap thin", d: whole }));
  if (called && from - to >= NAMED[scale]) group.append(name(called, (from + to) / 2, LETTERS[scale]));
  group.append(draw("title", {}, told(stall, state)));
  const members = stall.members ?? (stall.load ? [stall.load] : []);
  if (members.length) group.addEventListener("click", () => open(members));
  return group;
}

function models(group, hatch, stall, from, to) {
  const { parts } = stall;
  const rings = [["kv-free", parts.free], ["kv-used", parts.used], ["rest", parts.rest], ["weights", parts.weights]];
  let within = 0;
  const inner = draw("g", { class: stall.leaving ? "leaving" : "" });
  for (const [part, size] of rings) {
    if (size <= 0) continue;
    const next = Math.min(1, within + size / stall.bytes);
    inner.append(draw("path", { class: `part ${part}`, d: sector(ring(within), ring(next), from, to) }));
    within = next;
  }
  if (stall.adapter) inner.append(draw("path", { d: sector(HUB, RIM, from, to), fill: `url(#${hatch}-adapter)`, class: "weave" }));
  group.append(inner);
  if (stall.leases > 0) group.append(draw("path", { class: "busy", d: sector(RIM + 3, RIM + 6, from, to) }));
  if (stall.kept > 0) group.append(draw("path", { class: "kept", d: sector(HUB - 6, HUB - 2, from, to) }));
}

function load(group, hatch, stall, from, to) {
  const whole = sector(HUB, RIM, from, to);
  group.append(draw("path", { class: "reserved", d: whole }));
  const arrived = stall.load?.fetch_bytes ? Math.min(1, stall.load.fetched_bytes / stall.load.fetch_bytes) : 0;
  if (arrived > 0) group.append(draw("path", { class: "arrived", d: sector(HUB, ring(arrived), from, to) }));
  group.append(draw("path", { d: whole, fill: `url(#${hatch}-load)`, class: "weave" }));
}

/** Empty stalls have only their rails. */
function rails(from, to) {
  const group = draw("g");
  for (let angle = Math.floor(from / 4) * 4; angle > to; angle -= 4) {
    if (angle < from - 1) group.append(draw("path", { class: "rail", d: `M${spot(HUB + 8, angle)}L${spot(RIM - 8, angle)}` }));
  }
  return group;
}

/** What a stall is called: its model, or how many. */
function label({ members, load }) {
  if (members) return members.length === 1 ? members[0].target : counted(members.length, "model");
  return load?.target;
}

/** Written along the stall, upright on both sides. */
function name(text, angle, most) {
  const left = angle > 90;
  const radius = RIM - 9;
  const letters = [...text];
  const cut = letters.length > most ? `…${letters.slice(1 - most).join("")}` : text;
  return draw("text", {
    class: "name", "text-anchor": left ? "start" : "end", "dominant-baseline": "central",
    transform: `translate(${spot(radius, angle)}) rotate(${left ? 180 - angle : -angle})`,
  }, cut);
}

/** Quarters of the budget around the rim, and the budget where it is exceeded. */
function marks({ whole, budget, taken }, scale) {
  const found = [];
  for (const quarter of [0, 1, 2, 3, 4]) {
    const value = (budget * quarter) / 4;
    const angle = FROM - value * scale;
    found.push(draw("path", { class: "rail", d: `M${spot(RIM + 8, angle)}L${spot(RIM + 13, angle)}` }));
    const side = Math.cos(radian(angle));
    found.push(draw("text", { class: "tick", "text-anchor": side < -0.2 ? "end" : side > 0.2 ? "start" : "middle", transform: `translate(${spot(RIM + 19, angle)})`, dy: quarter % 4 === 0 ? 4 : 0 }, quarter === 0 ? "0" : bytes(value)));
  }
  if (taken > budget && whole > budget) found.push(draw("path", { class: "limit", d: `M${spot(HUB - 8, FROM - budget * scale)}L${spot(RIM + 14, FROM - budget * scale)}` }));
  return found;
}

function table(device, { taken, budget, residents }) {
  const over = taken > budget;
  return draw("g", { "text-anchor": "middle" },
    draw("text", { class: "small", x: CX, y: CY - 62 }, device.id),
    draw("text", { class: over ? "big over" : "big", x: CX, y: CY - 18 }, share(taken, budget)),
    draw("text", { class: "small", x: CX, y: CY + 8 }, over ? `${bytes(taken - budget)} over` : `${bytes(taken)} of ${bytes(budget)}`),
    draw("text", { class: "small extra", x: CX, y: CY + 29 }, counted(residents, "model")));
}

function told(stall, state) {
  if (stall.kind === "load") return stall.load ? `${stall.load.target}: ${plain(stall.load.state)}, ${bytes(stall.bytes)} reserved` : `${bytes(stall.bytes)} reserved for loads`;
  if (stall.kind === "foreign") return `${bytes(stall.bytes)} used by others on this machine`;
  if (stall.kind === "other") return `${bytes(stall.bytes)} that loads under way count on`;
  const parts = `weights ${bytes(stall.parts.weights)}, KV ${bytes(stall.parts.used)} in use and ${bytes(stall.parts.free)} free`;
  if (stall.members.length > 1) return `${counted(stall.members.length, "small model")} of ${state.owner(stall.members[0])}, ${bytes(stall.bytes)}: ${parts}`;
  const [it] = stall.members;
  const uses = it.leases ? `, ${counted(it.leases, "request")}` : "";
  return `${it.target} ${short(it.version)}: ${plain(it.state)}${it.kept ? ", kept" : ""}${uses}, ${bytes(stall.bytes)}: ${parts}`;
}

function legend(element, device, plan) {
  const { sums } = plan;
  const values = { ...sums, reserved: device.reserved_bytes, foreign: plan.foreign, room: plan.free };
  const shown = KINDS.filter(([kind]) => values[kind] > 0 || kind === "room");
  keep(element.lastElementChild, shown, ([kind]) => kind, ([kind, label]) => entry(element.hatch, kind, label), (row, [kind]) => say(row.lastElementChild, bytes(values[kind])));
  const parts = shown.map(([kind, label]) => `${label.toLowerCase()} ${bytes(values[kind])}`);
  mark(element.picture, "aria-label", `Device ${device.id}: ${share(plan.taken, plan.budget)} of ${bytes(plan.budget)} taken by ${counted(plan.residents, "model")}; ${parts.join(", ")}`);
}

function entry(hatch, kind, label) {
  const classes = { weights: "part weights", rest: "part rest", used: "part kv-used", free: "part kv-free", adapters: "part weights", reserved: "reserved", foreign: "foreign", room: "floor" };
  const weaves = { adapters: "adapter", reserved: "load", foreign: "foreign" };
  const picture = draw("svg", { viewBox: "0 0 13 13", class: "t0", "aria-hidden": "true" }, draw("rect", { width: 13, height: 13, class: classes[kind] }));
  if (weaves[kind]) picture.append(draw("rect", { width: 13, height: 13, fill: `url(#${hatch}-${weaves[kind]})` }));
  return make("div", {}, make("dt", {}, picture, ` ${label}`), make("dd"));
}
