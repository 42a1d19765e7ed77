// The page: reads the stream, and shows what it tells, at most five times a second.

import { charts } from "./charts.js";
import { containers } from "./containers.js";
import { at, keep, make, mark, say } from "./dom.js";
import { houses } from "./house.js";
import { loads, tiers } from "./loads.js";
import { Log } from "./log.js";
import { Model } from "./model.js";
import { Models } from "./models.js";
import { State } from "./state.js";
import { Stream, refusal } from "./stream.js";
import { bytes, clock, count, counted, share } from "./words.js";

/** Between two pictures, in milliseconds. */
const PAUSE = 200;
/** Silence after which what is shown is called old, in beats. */
const STALE_AFTER = 10;
const TENANTS = 12;

const state = new State();
const link = { state: "connecting", why: "" };
/** The operator's key. Nowhere but here. */
let key = null;
const dismissed = new Set();
let shownRestarts = 0;

const headers = () => (key ? { authorization: `Bearer ${key}` } : {});

/** Asks the admin port; throws what it refuses with. */
async function ask(method, path, body) {
  const request = { method, headers: headers(), cache: "no-store" };
  if (body) {
    request.headers["content-type"] = "application/json";
    request.body = JSON.stringify(body);
  }
  const answer = await fetch(path, request);
  if (answer.status === 401) askKey(await refusal(answer));
  if (!answer.ok) throw new Error(answer.status === 401 ? "a key is needed" : await refusal(answer));
  return answer.json();
}

const model = new Model(state, ask);
const models = new Models(state, ask, model.open);
const log = new Log(model.open);

const stream = new Stream("/admin/v1/live", {
  headers,
  event(name, data) {
    const { start, endpoints } = { start: state.start, endpoints: String(state.endpoints()) };
    state.take(name, data);
    if (name === "state") stream.beat = data.beat_ms;
    if (name === "decision") model.decided(data);
    if (start !== state.start || endpoints !== String(state.endpoints())) models.list();
    later();
  },
  state(now, why) {
    Object.assign(link, { state: now, why: why ?? "" });
    if (now === "key") askKey(why);
    later();
  },
});

let drawn = 0;
let waits = false;
/** Draws soon: many events are one picture. */
function later() {
  if (waits) return;
  waits = true;
  setTimeout(() => requestAnimationFrame(paint), Math.max(0, PAUSE - (performance.now() - drawn)));
}

function paint() {
  waits = false;
  drawn = performance.now();
  connection();
  banners();
  if (!state.now) return;
  figures();
  houses(at("houses"), state, model.open);
  tenants();
  loads(state, model.open);
  containers(state);
  tiers(state);
  charts(state);
  log.show(state);
  models.show();
  model.show();
}

function connection() {
  const old = link.state === "live" && stream.silence() > STALE_AFTER * stream.beat;
  const shown = old ? "stale" : link.state;
  const words = { live: "Live", stale: "Silent", lost: "Disconnected", key: "Key needed", connecting: "Connecting" };
  mark(at("link"), "class", `link ${shown}`);
  say(at("link-text"), words[shown]);
  say(at("build"), state.now?.build ? `version ${state.now.build}, ${counted(state.endpoints().length, "endpoint")}` : "");
  at("key-button").hidden = !(key || link.state === "key");
  mark(at("main"), "aria-busy", String(!state.now));
  return shown;
}

function banners() {
  const found = [];
  const shown = connection();
  // No ages: who listens to this page would be told each second.
  const age = state.now ? `; what is shown is of ${clock(state.now.time)}` : "";
  if (shown === "lost") found.push({ key: "lost", bad: true, title: "Disconnected", text: `${link.why}${age}. Trying again.`, act: ["Try now", () => stream.connect()] });
  if (shown === "stale") found.push({ key: "stale", title: "Nothing new", text: `The server is silent${age}.` });
  if (shown === "key") found.push({ key: "key", title: "A key is needed", text: link.why, act: ["Enter a key", () => askKey("")] });
  if (state.now?.unready && shown === "live") found.push({ key: "unready", title: "Not ready", text: state.now.unready });
  if (state.build && state.now?.build !== state.build) found.push({ key: "build", title: "The server was updated", text: `It is ${state.now.build} now, this page is of ${state.build}.`, act: ["Load again", () => location.reload()] });
  if (state.restarts > shownRestarts) found.push({ key: "restart", title: "The server was started anew", text: "Its history begins there.", act: ["Dismiss", () => { shownRestarts = state.restarts; later(); }] });
  found.push(...failures());
  for (const device of state.devices()) if (device.over_bytes > 0) found.push({ key: `over-${device.id}`, title: `${device.id} is over its budget`, text: `by ${bytes(device.over_bytes)}: models leave until it is met.` });
  keep(at("banners"), found, (it) => it.key, banner, (element, it) => {
    mark(element, "class", `banner ${it.bad ? "bad" : ""}`);
    say(element.heading, it.title);
    say(element.what, it.text);
    element.act = it.act;
  });
}

/** Models that failed, unless they were dismissed as they are. */
function failures() {
  const failed = state.failed().filter((it) => !dismissed.has(mine(it)));
  if (!failed.length) return [];
  const latest = failed.reduce((a, b) => (a.retry_at > b.retry_at ? a : b));
  const others = failed.length > 1 ? ` (and ${counted(failed.length - 1, "more")})`.replace("mores", "more") : "";
  const title = failed.length === 1 ? "A load failed" : `${failed.length} models fail`;
  return [{ key: "failed", bad: true, title, text: `${latest.target}: ${latest.message}${others}`, act: ["Show", () => (failed.length === 1 ? model.open([latest]) : models.only("failed"))], dismiss: () => { for (const it of failed) dismissed.add(mine(it)); later(); } }];
}

const mine = (it) => `${it.endpoint}/${it.target}@${it.attempts}@${it.message}`;

function banner(it) {
  const [heading, what] = [make("strong"), make("span", { class: "what" })];
  const element = make("p", { class: "banner", role: it.bad ? "alert" : null }, heading, what);
  if (it.act) element.append(make("button", { type: "button", onclick: () => element.act[1]() }, it.act[0]));
  if (it.dismiss) element.append(make("button", { type: "button", onclick: () => it.dismiss() }, "Dismiss"));
  return Object.assign(element, { heading, what });
}

function figures() {
  const devices = state.devices();
  const sum = (of) => devices.reduce((total, device) => total + of(device), 0);
  const taken = sum((it) => it.charged_bytes + it.reserved_bytes);
  const budget = sum((it) => it.budget_bytes);
  const lately = (name) => state.samples.reduce((total, sample) => total + (sample[name] ?? 0), 0);
  const last = state.samples.at(-1) ?? {};
  const totals = { requests: 0, hits: 0, grants: 0, evictions: 0, ...last.totals };
  const residents = state.residents();
  const leaving = residents.filter((it) => it.state !== "ready").length;
  const all = state.loads();
  const regret = !last.regret_requests || (last.regret_lower === undefined && last.regret_upper === undefined) ? "–" : bounds(last.regret_lower, last.regret_upper);
  const rows = [
    ["Memory", share(taken, budget), `${bytes(taken)} of ${bytes(budget)}`],
    ["Models loaded", count(residents.length), `${leaving ? `${count(leaving)} leaving, ` : ""}${count(models.known.length)} known`],
    ["On their way", count(all.length), `${counted(state.now.waiters ?? 0, "request")} waiting`],
    ["Requests per second", ((last.requests ?? 0) / (state.sampleEvery / 1000)).toFixed(1), `${count(totals.requests)} since the start`],
    ["Hit ratio", share(lately("hits"), lately("grants")), `${share(totals.hits, totals.grants)} since the start`],
    ["Regret", regret, last.regret_requests ? `over ${counted(Math.round(last.regret_requests), "request")}` : "no requests yet"],
    ["Evictions", count(lately("evictions")), `15 min; ${count(totals.evictions)} in all`],
    ["Disk cache", state.now.disk ? share(state.now.disk.used_bytes, state.now.disk.budget_bytes) : "–", state.now.disk ? `${bytes(state.now.disk.used_bytes)}, ${counted(state.now.disk.artefacts, "artefact")}` : "no store"],
  ];
  keep(at("figures"), rows, ([name]) => name, ([name]) => make("div", {}, make("dt", {}, name), make("dd"), make("dd", { class: "note" })), (element, [, value, note]) => {
    say(element.children[1], value);
    say(element.children[2], note);
  });
}

function bounds(lower, upper) {
  const said = (value) => (value === undefined ? "?" : value.toFixed(2));
  return said(lower) === said(upper) ? said(lower) : `${said(lower)}–${said(upper)}`;
}

function tenants() {
  const present = new Set([...state.residents(), ...state.loads()].map((it) => state.owner(it)));
  const all = [...state.tenants].filter(([name]) => present.has(name));
  const shown = all.slice(0, TENANTS);
  if (all.length > shown.length) shown.push([`and ${count(all.length - shown.length)} more`, null]);
  keep(at("tenants"), shown, ([name]) => name, ([name, colour]) => make("li", {}, colour === null ? "" : make("span", { class: `swatch t${colour}`, "aria-hidden": "true" }), name), () => {});
}

function askKey(why) {
  say(at("key-error"), key ? why : "");
  if (!at("key").open) at("key").showModal();
}

at("key-form").addEventListener("submit", () => {
  key = at("key-text").value.trim() || null;
  at("key-text").value = "";
  stream.connect();
});
at("key-button").addEventListener("click", () => askKey(""));
at("theme").addEventListener("change", ({ target }) => theme(target.value));

function theme(wanted) {
  mark(document.documentElement, "data-theme", wanted || null);
  try {
    localStorage.setItem("theme", wanted);
  } catch {
    // Where nothing may be stored it is chosen anew each time.
  }
}

try {
  at("theme").value = localStorage.getItem("theme") ?? "";
  theme(at("theme").value);
} catch {
  // As above.
}

log.listen(state, later);
// Ages grow, and silence is noticed, without events.
setInterval(later, 1000);
stream.connect();
