// Decisions as they are made, the newest first.

import { at, keep, make, mark, say } from "./dom.js";
import { clock, count } from "./words.js";

/** Rows in the document: more are not read. */
const ROWS = 80;
const LEAVES = new Set(["draining", "discarded", "died", "withdrawn", "abandoned", "deleted"]);
const FAILS = new Set(["failed", "died", "refused", "unfit"]);
const ARRIVES = new Set(["ready", "revived", "demoted", "unloaded"]);

export class Log {
  constructor(open) {
    this.open = open;
    this.frozen = null;
    this.filter = at("log-filter");
    this.pause = at("log-pause");
    this.numbers = new WeakMap();
    this.number = 0;
  }

  /** Calls `again` when what is to be shown is another. */
  listen(state, again) {
    this.filter.addEventListener("change", again);
    this.pause.addEventListener("click", () => {
      this.frozen = this.frozen ? null : [...state.decisions];
      mark(this.pause, "aria-pressed", String(Boolean(this.frozen)));
      say(this.pause, this.frozen ? "Go on" : "Pause");
      again();
    });
  }

  show(state) {
    const wanted = this.filter.value;
    const rows = [];
    const source = this.frozen ?? state.decisions;
    for (let index = source.length - 1; index >= 0 && rows.length < ROWS; index -= 1) {
      if (passes(source[index], wanted)) rows.push(source[index]);
    }
    const shown = rows.length ? rows : [null];
    keep(at("log"), shown, (it) => (it ? this.#key(it) : "none"), (it) => (it ? this.#row(it) : make("li", { class: "quiet" }, "No decisions yet.")), () => {});
    mark(at("log"), "aria-label", `Latest decisions, the newest first${state.missed ? `; ${count(state.missed)} were missed` : ""}`);
  }

  #key(decision) {
    if (!this.numbers.has(decision)) this.numbers.set(decision, (this.number += 1));
    return this.numbers.get(decision);
  }

  #row(decision) {
    const name = make("button", { class: "plain", type: "button", onclick: () => this.open([decision]) }, decision.target);
    const times = decision.times > 1 ? ` (${count(decision.times)} times)` : "";
    return make("li", {}, make("time", { datetime: decision.time }, clock(decision.time)),
      make("div", {}, name, make("div", { class: `said ${tone(decision)}` }, decision.message + times)));
  }
}

/** How a decision is coloured; its words say the same. */
export function tone({ action }) {
  if (FAILS.has(action)) return "bad";
  if (LEAVES.has(action)) return "leaves";
  return action === "ready" ? "good" : "";
}

function passes({ action }, wanted) {
  if (wanted === "departures") return LEAVES.has(action);
  if (wanted === "failures") return FAILS.has(action);
  if (wanted === "moves") return LEAVES.has(action) || ARRIVES.has(action);
  return true;
}
