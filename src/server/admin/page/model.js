// One model: how it stands, why, what was decided about it, and an operator's wishes.

import { at, keep, make, mark, say } from "./dom.js";
import { tone } from "./log.js";
import { kvUsed } from "./stalls.js";
import { standingOf } from "./state.js";
import { bytes, count, counted, moment, plain, seconds, short } from "./words.js";

/** Members of a stall that are listed. */
const LISTED = 100;
/** How soon after a decision it is asked again for the reasons. */
const ASK_AGAIN = 400;

export class Model {
  constructor(state, ask) {
    Object.assign(this, { state, ask });
    this.model = null;
    this.turn = 0;
    this.timer = 0;
    this.dialog = at("model");
    this.body = at("model-body");
    at("model-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("close", () => {
      this.model = null;
    });
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close();
    });
  }

  /** Opens one model, or the list of several. */
  open = (members) => {
    this.model = null;
    if (members.length === 1) this.#one(members[0]);
    else this.#several(members);
    if (!this.dialog.open) this.dialog.showModal();
    this.dialog.scrollTop = 0;
  };

  /** Fits what is open to the state. */
  show() {
    if (!this.model) return;
    const standing = this.state.standings().get(`${this.model.endpoint}/${this.model.target}`);
    this.#facts(standing);
    const [, kind] = standingOf(standing);
    const here = Boolean(standing?.residents.length || standing?.loads.length);
    const kept = standing?.residents.some((it) => it.kept) ?? false;
    const { load, unload, keep: keeps, release } = this.buttons;
    load.hidden = kind === "ready";
    unload.hidden = !here;
    keeps.hidden = kept;
    release.hidden = !kept && Boolean(standing?.residents.length);
    this.standing = standing;
  }

  /** A decision was made: if it is about this model, the reasons may be others. */
  decided({ endpoint, target }) {
    if (this.model?.endpoint !== endpoint || this.model?.target !== target) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#explain(), ASK_AGAIN);
  }

  #several(members) {
    say(at("model-title"), `${counted(members.length, "model")} of ${this.state.owner(members[0])}`);
    const shown = [...members].sort((a, b) => b.share_bytes - a.share_bytes).slice(0, LISTED);
    const rows = shown.map((it) => make("li", { class: "words tier" }, make("button", { class: "plain", type: "button", onclick: () => this.open([it]) }, it.target), make("span", { class: "note" }, ` ${bytes(it.share_bytes)}`)));
    this.body.replaceChildren(make("ul", { class: "members" }, ...rows));
    if (members.length > LISTED) this.body.append(make("p", { class: "note" }, `and ${count(members.length - LISTED)} more`));
  }

  #one({ endpoint, target }) {
    this.model = { endpoint, target };
    say(at("model-title"), target);
    const button = (label, act, danger) => make("button", { type: "button", class: danger ? "danger" : null, onclick: act }, label);
    this.buttons = {
      load: button("Load", () => this.#load()),
      unload: button("Unload", () => this.#unload(), true),
      keep: button("Keep", () => this.#act("keep", {}, `Keep ${target}?`, "It stays loaded whatever others need, until it is released.", "Keep")),
      release: button("Release", () => this.#act("release", {}, `Release ${target}?`, "It may be evicted again when others need its room.", "Release")),
    };
    this.facts = make("dl", { class: "facts" });
    this.why = make("p", { class: "why" });
    this.wait = make("p", { class: "note" });
    this.history = make("ol", { class: "history" });
    this.done = make("p", { class: "note", role: "status" });
    this.error = make("p", { class: "error", role: "alert" });
    this.body.replaceChildren(
      make("div", { class: "actions" }, ...Object.values(this.buttons)), this.done, this.error,
      make("h3", {}, "Why"), this.why, this.wait, make("h3", {}, "Facts"), this.facts,
      make("h3", {}, "History, the newest first"), this.history);
    this.show();
    this.#explain();
  }

  #facts(standing) {
    const rows = [["Endpoint", this.model.endpoint], ["State", plain(standingOf(standing)[0])]];
    for (const it of standing?.residents ?? []) {
      const part = (name) => bytes(it.bytes[name] ?? 0);
      rows.push([`On ${it.device}`, `${plain(it.state)}${it.kept ? ", kept" : ""}, version ${short(it.version)}, ${it.kind}`]);
      rows.push(["Takes", `${bytes(it.share_bytes)}: weights ${part("weights")}, KV ${part("kv")}, workspace ${part("workspace")}, texts ${part("host")}`]);
      if (it.shared_bytes) rows.push(["Shared", `${bytes(it.shared_bytes)} of it with others`]);
      if (it.serves) rows.push(["Serves", `context ${count(it.serves.context)} tokens, ${it.serves.dtype}${it.serves.quantize ? `, quantised to ${it.serves.quantize}` : ""}`]);
      const kv = it.serves?.kv;
      if (kv) rows.push(["KV pool", `${bytes(kvUsed(it))} in use; room for ${count(kv.now.tokens)} tokens now, ${count(kv.most.tokens)} at most`]);
      if (it.base) rows.push(["Adapts", it.base.model?.target ?? it.base.target]);
      if (it.adapters) rows.push(["Carries", counted(it.adapters, "adapter")]);
      if (it.unfit) rows.push(["Not served", `${it.unfit.version ? `version ${short(it.unfit.version)} failed` : "the newest cannot be told"} at ${moment(it.unfit.since)}: ${it.unfit.reason}`]);
      if (it.offered) rows.push(["Offered", `version ${short(it.offered)} waits for an operator’s word`]);
      rows.push(["In use by", counted(it.leases, "request")], ["Last used", moment(it.last_used)]);
    }
    for (const it of standing?.loads ?? []) {
      rows.push(["On its way", `${plain(it.state)}, version ${short(it.version)}, ${bytes(it.fetched_bytes)} of ${bytes(it.fetch_bytes)}, ${counted(it.waiters, "request")} waiting`]);
    }
    const failed = standing?.failed;
    if (failed) rows.push(["Failed", failed.message], ["Attempts", `${failed.attempts} in a row; none before ${moment(failed.retry_at)}`]);
    const items = rows.map(([label, text], index) => ({ key: `${index}-${label}`, label, text }));
    keep(this.facts, items, (it) => it.key, (it) => make("div", { class: "contents" }, make("dt", {}, it.label), make("dd")), (row, it) => say(row.lastElementChild, it.text));
  }

  async #explain() {
    const turn = (this.turn += 1);
    const { model } = this;
    if (!model) return;
    try {
      const told = await this.ask("GET", `/admin/v1/explain?${new URLSearchParams(model)}`);
      if (turn !== this.turn || this.model !== model) return;
      say(this.why, told.now);
      say(this.wait, told.ready_in_ms === null || told.ready_in_ms === undefined ? "" : `It may be ready in about ${seconds(told.ready_in_ms / 1000)}.`);
      const rows = told.decisions.toReversed().map((it) => make("li", {}, make("time", { datetime: it.time }, moment(it.time)),
        make("div", { class: `said ${tone(it)}` }, it.message + (it.times > 1 ? ` (${count(it.times)} times)` : "") + (it.device ? `, on ${it.device}` : ""))));
      this.history.replaceChildren(...(rows.length ? rows : [make("li", { class: "quiet" }, "Nothing was decided about it yet.")]));
    } catch (error) {
      if (turn === this.turn && this.model === model) say(this.why, `The reasons cannot be read: ${error.message}`);
    }
  }

  #load() {
    const { failed } = this.standing ?? {};
    const text = failed ? `It failed before: ${failed.message}` : "It is fetched if need be and loaded; others may have to leave for it.";
    const choice = failed ? "Load it although it failed" : null;
    this.#act("load", {}, `Load ${this.model.target}?`, text, "Load", choice && [choice, "force", true]);
  }

  #unload() {
    const leases = this.standing?.residents.reduce((sum, it) => sum + it.leases, 0) ?? 0;
    const text = leases ? `${counted(leases, "request")} in flight will end first.` : "The next request for it loads it again.";
    this.#act("unload", {}, `Unload ${this.model.target}?`, text, "Unload", ["Delete its files from the disk cache too", "purge", false]);
  }

  async #act(command, more, title, text, yes, choice) {
    const { model } = this;
    const chosen = await confirm(title, text, yes, choice);
    if (chosen === null || this.model !== model) return;
    say(this.error, "");
    say(this.done, `${yes}: asked the server…`);
    const body = { ...model, ...more, ...(choice ? { [choice[1]]: chosen } : {}) };
    try {
      const told = await this.ask("POST", `/admin/v1/${command}`, body);
      if (this.model === model) say(this.done, said(command, told));
    } catch (error) {
      if (this.model === model) {
        say(this.done, "");
        say(this.error, error.message);
      }
    }
  }
}

function said(command, told) {
  if (command === "load") return `Ready on ${told.device}, version ${short(told.version)}.`;
  if (command === "unload") return told.freed?.length ? "Unloaded, and its files are deleted." : "Unloaded.";
  return told.kept ? "Kept." : "Released.";
}

/** Asks whether it is meant; resolves to the choice, or `null` where it is not. */
function confirm(title, text, yes, choice) {
  const dialog = at("confirm");
  say(at("confirm-title"), title);
  say(at("confirm-text"), text);
  say(at("confirm-yes"), yes);
  at("confirm-choice").hidden = !choice;
  say(at("confirm-label"), choice?.[0] ?? "");
  at("confirm-box").checked = choice?.[2] ?? false;
  mark(at("confirm-yes"), "class", "main");
  return new Promise((resolve) => {
    const end = (answer) => () => {
      over.abort();
      if (dialog.open) dialog.close();
      resolve(answer());
    };
    const over = new AbortController();
    const { signal } = over;
    at("confirm-yes").addEventListener("click", end(() => at("confirm-box").checked), { signal });
    at("confirm-no").addEventListener("click", end(() => null), { signal });
    dialog.addEventListener("close", end(() => null), { signal });
    dialog.addEventListener("submit", (event) => event.preventDefault(), { signal });
    dialog.showModal();
    at("confirm-no").focus();
  });
}
