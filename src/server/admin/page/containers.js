// Containers and engines of the operator's: how each stands, what is not well first.

import { at, keep, make, mark, say } from "./dom.js";
import { counted } from "./words.js";

/** Shown at most; the rest is counted. */
const SHOWN = 20;
/** States in which nothing is to be done. */
const WELL = ["healthy", "running", "unchecked", "asleep"];
const SAID = {
  healthy: "healthy", unchecked: "not checked", running: "runs", unhealthy: "not healthy",
  left_alone: "left alone after failures", tried: "is tried again", starting: "is starting",
  down: "is down", asleep: "sleeps",
};

export function containers(state) {
  const all = Object.values(state.now?.containers ?? {});
  const bad = (it) => !WELL.includes(it.state);
  all.sort((a, b) => bad(b) - bad(a));
  at("containers-panel").hidden = !all.length;
  const unwell = all.filter(bad).length;
  const more = all.length > SHOWN ? `${all.length - SHOWN} more` : "";
  say(at("containers-note"), [unwell ? `${unwell} not well` : "", more].filter(Boolean).join(", "));
  const key = (it) => `${it.endpoint}/${it.name}@${it.device}`;
  keep(at("containers"), all.slice(0, SHOWN), key, row, fit);
}

function row(it) {
  const [status, facts, failure] = [make("span", { class: "note" }), make("p", { class: "note" }), make("p", { class: "note" })];
  const top = make("div", { class: "top" }, make("strong", {}, `${it.endpoint}:${it.name}`), status);
  return Object.assign(make("li", {}, top, facts, failure), { status, facts, failure });
}

function fit(element, it) {
  mark(element.status, "class", WELL.includes(it.state) ? "note" : "note warn");
  say(element.status, SAID[it.state] ?? it.state);
  const facts = [it.address, `${it.in_flight} of ${counted(it.max_in_flight, "request")} under way`];
  if (it.device) facts.push(`on ${it.device}`);
  if (it.models !== undefined) facts.push(`${counted(it.models, "model")} in it`);
  if (it.pid) facts.push(`process ${it.pid}, started again ${counted(it.restarts, "time")}`);
  say(element.facts, facts.filter(Boolean).join(", "));
  say(element.failure, it.failure ? `Failed last at ${it.failed_at}: ${it.failure}` : "");
}
