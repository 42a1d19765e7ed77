// Loads under way with their stages, and what lies below the devices: the host's memory, the disk.

import { at, keep, make, mark, say } from "./dom.js";
import { bytes, counted, share, short } from "./words.js";

/** Loads shown; the rest is counted. */
const SHOWN = 12;
/** Stages in order, by the states that belong to them. */
const STAGES = [["queued", "fetching", "arriving"], ["waiting_for_room", "waiting_to_load"], ["loading"]];
const SAID = {
  queued: "waits to be fetched", fetching: "is fetched", arriving: "is fetched and read",
  waiting_for_room: "waits for room", waiting_to_load: "waits until others have left", loading: "is loaded onto the device",
};

export function loads(state, open) {
  const all = state.loads();
  say(at("loads-note"), all.length > SHOWN ? `${all.length - SHOWN} more` : "");
  const shown = all.slice(0, SHOWN);
  const items = shown.length ? shown : [null];
  const key = (load) => (load ? `${load.endpoint}/${load.target}@${load.version}@${load.device}` : "none");
  keep(at("loads"), items, key, (load) => (load ? row(load, state, open) : make("li", { class: "quiet" }, "Nothing is being loaded.")), (element, load) => load && fit(element, load));
}

function row(load, state, open) {
  const name = make("button", { class: "plain", type: "button", onclick: () => open([load]) }, load.target);
  const bars = STAGES.map(() => make("span", {}, make("i")));
  const track = make("div", { class: "track", role: "progressbar", "aria-label": `Load of ${load.target}`, "aria-valuemin": 0, "aria-valuemax": 100 }, ...bars);
  const top = make("div", { class: "top" }, make("span", { class: `swatch ${state.colour(load)}`, "aria-hidden": "true" }), name, make("span", { class: "note mono" }, short(load.version)));
  const element = make("li", {}, top, track, make("p", { class: "note" }));
  Object.assign(element, { bars, track });
  return element;
}

function fit(element, load) {
  const stage = STAGES.findIndex((states) => states.includes(load.state));
  const fetched = load.fetch_bytes ? Math.min(1, load.fetched_bytes / load.fetch_bytes) : Number(stage > 0);
  element.bars.forEach((bar, index) => {
    const filled = index < stage ? 1 : index > stage ? 0 : index === 0 ? fetched : null;
    mark(bar, "class", index === stage ? `now${filled === null || load.state === "queued" ? " blind" : ""}` : null);
    bar.firstElementChild.style.width = filled === null || (index === stage && load.state === "queued") ? "" : `${100 * filled}%`;
  });
  // Two thirds for what is most of the time: the fetch.
  mark(element.track, "aria-valuenow", Math.round(stage === 0 ? 66 * fetched : stage === 1 ? 66 : 80));
  const waiters = load.waiters ? `, ${counted(load.waiters, "request")} waiting` : "";
  const amount = stage === 0 && load.fetch_bytes ? `, ${bytes(load.fetched_bytes)} of ${bytes(load.fetch_bytes)} (${share(load.fetched_bytes, load.fetch_bytes)})` : "";
  const where = load.device ? ` on ${load.device}` : "";
  const text = `${SAID[load.state] ?? load.state}${amount}${load.replica ? ", a replica" : ""}${where}${waiters}`;
  mark(element.track, "aria-valuetext", text);
  say(element.lastElementChild, text);
}

/** The host's memory and the disk. */
export function tiers(state) {
  const now = state.now ?? {};
  const rows = [];
  const { host, disk, memory } = now;
  if (host) rows.push(["Copies in the host's memory", host.charged_bytes, host.budget_bytes, counted(Object.keys(host.copies ?? {}).length, "copy").replace("copys", "copies"), host.reserved_bytes]);
  if (disk) rows.push(["Disk cache", disk.used_bytes, disk.budget_bytes, `${counted(disk.artefacts, "artefact")}${disk.partial_bytes ? `, ${bytes(disk.partial_bytes)} arriving` : ""}`, disk.partial_bytes]);
  if (memory?.available_bytes) rows.push(["This process", memory.witness_bytes, memory.witness_bytes + memory.available_bytes, `ledger expects ${bytes(memory.expected_bytes)}`, 0]);
  keep(at("tiers"), rows, ([label]) => label, tier, (element, [, used, whole, note, second]) => {
    say(element.amount, `${bytes(used)} of ${bytes(whole)}`);
    say(element.note, note);
    const [first, more] = element.bars;
    first.style.width = `${Math.min(100, (100 * used) / Math.max(1, whole))}%`;
    mark(first, "class", used > 0.97 * whole ? "warn" : null);
    more.style.width = `${Math.min(100, (100 * second) / Math.max(1, whole))}%`;
  });
}

function tier([label]) {
  const bars = [make("i"), make("i", { class: "second" })];
  const [amount, note] = [make("span"), make("p", { class: "note" })];
  const element = make("div", { class: "tier" }, make("div", { class: "words" }, make("span", {}, label), amount), make("div", { class: "meter" }, ...bars), note);
  Object.assign(element, { bars, amount, note });
  return element;
}
