// The list of models: what the stores hold and what has a state. Only the rows in sight are in
// the document, so ten thousand names are as quick as ten.

import { at, keep, make, mark, say } from "./dom.js";
import { kvUsed } from "./stalls.js";
import { standingOf } from "./state.js";
import { ago, bytes, count, counted, plain, short } from "./words.js";

/** Names taken over from an endpoint; beyond it one searches by the whole name. */
const MOST = 20000;
/** Rows beyond the sight, so that scrolling does not outrun them. */
const AROUND = 8;
const RANK = { moving: 0, bad: 1, ready: 2, none: 3 };
const HEADS = [["Model", ""], ["Endpoint", "wide"], ["State", ""], ["Version", "wide"], ["Size", "number"], ["KV tokens", "wide number"], ["In use", "wide number"], ["Last used", "wide number"]];

export class Models {
  constructor(state, ask, open) {
    Object.assign(this, { state, ask, open });
    this.known = [];
    this.isCut = false;
    this.failure = "";
    this.listing = 0;
    this.rows = [];
    this.search = at("models-search");
    this.filter = at("models-filter");
    this.#build();
    const again = () => {
      this.scroll.scrollTop = 0;
      this.show();
    };
    this.search.addEventListener("input", again);
    this.filter.addEventListener("change", again);
    at("models-again").addEventListener("click", () => this.list());
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && this.rows.length === 0 && this.search.value.trim()) this.#openTyped();
      if (event.key === "ArrowDown" && this.rows.length) {
        event.preventDefault();
        this.#focus(0);
      }
    });
  }

  #build() {
    const table = at("models-table");
    const cells = HEADS.map(([text, kind]) => make("div", { role: "columnheader", class: kind }, text));
    this.filler = make("div", { class: "filler", role: "none" });
    this.scroll = make("div", { class: "scroll", role: "rowgroup" }, this.filler);
    table.append(make("div", { role: "rowgroup" }, make("div", { class: "row heads", role: "row", "aria-rowindex": 1 }, ...cells)), this.scroll);
    this.table = table;
    this.scroll.addEventListener("scroll", () => this.#fill(), { passive: true });
    this.scroll.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#fill()).observe(this.scroll);
  }

  /** Shows those of one kind alone, and goes there. */
  only(kind) {
    this.search.value = "";
    this.filter.value = kind;
    this.show();
    this.filter.focus();
  }

  /** Asks for the names of all models, page by page. The last one asked for counts. */
  async list() {
    const turn = (this.listing += 1);
    const found = [];
    let isCut = false;
    this.failure = "";
    try {
      for (const endpoint of this.state.endpoints()) {
        let after = null;
        let taken = 0;
        do {
          const query = new URLSearchParams({ endpoint, limit: "1000", ...(after ? { after } : {}) });
          const page = await this.ask("GET", `/admin/v1/models?${query}`);
          if (turn !== this.listing) return;
          // Containers have a list of their own: nothing of them is loaded or kept.
          for (const it of page.models) if (!it.container) found.push({ key: `${it.endpoint}/${it.target}`, endpoint: it.endpoint, target: it.target, bytes: it.bytes });
          taken += page.models.length;
          isCut ||= Boolean(page.truncated);
          after = page.next;
          this.known = found;
          this.show();
        } while (after && taken < MOST);
        isCut ||= Boolean(after);
      }
    } catch (error) {
      this.failure = `the list of models could not be read: ${error.message}`;
    }
    [this.known, this.isCut] = [found, isCut];
    this.show();
  }

  /** Chooses and sorts the rows: what moves or fails, what serves, then the rest as listed. */
  show() {
    const wanted = this.search.value.trim().toLowerCase();
    const kind = this.filter.value;
    const fits = (key) => !wanted || key.toLowerCase().includes(wanted);
    const standings = this.state.standings();
    const active = [];
    for (const standing of standings.values()) {
      if (fits(standing.key) && passes(standing, kind)) active.push([RANK[standingOf(standing)[1]], standing]);
    }
    active.sort(([a, x], [b, y]) => a - b || (x.key < y.key ? -1 : 1));
    const rows = active.map(([, standing]) => standing);
    if (!kind) {
      for (const it of this.known) if (!standings.has(it.key) && fits(it.key)) rows.push(it);
    }
    const sizes = new Map(this.known.map((it) => [it.key, it.bytes]));
    Object.assign(this, { rows, sizes });
    const many = this.state.endpoints().length > 1;
    mark(this.table, "data-endpoints", many ? "many" : "one");
    const cut = this.isCut ? "; the store holds more than is listed" : "";
    const none = rows.length ? "" : wanted ? `: Enter looks up “${this.search.value.trim()}”` : "";
    say(at("models-note"), this.failure || `${count(rows.length)} of ${counted(Math.max(this.known.length, rows.length), "model")}${cut}${none}`);
    mark(this.table, "aria-rowcount", rows.length + 1);
    this.#fill();
  }

  #height() {
    return matchMedia("(max-width: 720px)").matches ? 44 : 34;
  }

  #fill() {
    const height = this.#height();
    const total = `${this.rows.length * height}px`;
    if (this.filler.style.height !== total) this.filler.style.height = total;
    // No taller than what there is.
    const wanted = `${Math.max(height, Math.min(this.rows.length * height, 540))}px`;
    if (this.scroll.style.maxHeight !== wanted) this.scroll.style.maxHeight = wanted;
    const first = Math.max(0, Math.floor(this.scroll.scrollTop / height) - AROUND);
    const last = Math.min(this.rows.length, Math.ceil((this.scroll.scrollTop + this.scroll.clientHeight) / height) + AROUND);
    const seen = [];
    const focused = document.activeElement?.closest?.(".filler .row")?.key;
    const held = focused ? this.rows.findIndex((row) => row.key === focused) : -1;
    if (held >= 0 && held < first) seen.push([held, this.rows[held]]);
    for (let index = first; index < last; index += 1) seen.push([index, this.rows[index]]);
    if (held >= last) seen.push([held, this.rows[held]]);
    keep(this.filler, seen, ([, row]) => row.key, ([, row]) => this.#row(row), (element, [index, row]) => this.#fit(element, index, row, height));
  }

  #row(row) {
    const swatch = make("span", { class: "swatch", "aria-hidden": "true" });
    const name = make("button", { class: "plain", type: "button", title: row.target, onclick: () => this.open([row]) }, row.target);
    const state = make("span", { class: "state" });
    const cells = HEADS.map(([, kind], index) => make("div", { role: "cell", class: index === 0 ? "called" : kind }));
    cells[0].append(swatch, name);
    cells[2].append(state);
    say(cells[1], row.endpoint);
    const element = make("div", { role: "row", class: "row" }, ...cells);
    return Object.assign(element, { key: row.key, cells, swatch, state });
  }

  #fit(element, index, row, height) {
    element.style.top = `${index * height}px`;
    mark(element, "aria-rowindex", index + 2);
    const standing = row.residents ? row : null;
    const [state, tone] = standingOf(standing);
    const serves = standing?.residents[0];
    mark(element, "class", `row ${tone === "none" ? "none" : ""}`);
    mark(element.swatch, "class", `swatch ${standing ? this.state.colour(row) : ""}`);
    mark(element.state, "class", `state ${tone}`);
    say(element.state, plain(state) + (standing?.residents.some((it) => it.kept) ? ", kept" : ""));
    const kv = serves?.serves?.kv;
    const used = kv ? `${count(Math.round(kvUsed(serves) / Math.max(1, kv.token_bytes)))} / ${count(kv.now.tokens)}` : "–";
    const size = standing?.residents.length ? standing.residents.reduce((sum, it) => sum + it.share_bytes, 0) : this.sizes.get(row.key);
    const leases = standing?.residents.reduce((sum, it) => sum + it.leases, 0);
    const version = serves?.version ?? standing?.loads[0]?.version ?? standing?.failed?.version;
    const values = { 3: short(version), 4: bytes(size), 5: used, 6: leases ? count(leases) : "–", 7: serves ? ago(serves.last_used, this.state.time()) : "–" };
    for (const [cell, text] of Object.entries(values)) say(element.cells[cell], text);
    mark(element.cells[3], "class", "wide mono");
  }

  #key(event) {
    const row = event.target.closest?.(".filler .row");
    if (!row) return;
    const index = this.rows.findIndex((it) => it.key === row.key);
    const page = Math.max(1, Math.floor(this.scroll.clientHeight / this.#height()) - 1);
    const to = { ArrowDown: index + 1, ArrowUp: index - 1, PageDown: index + page, PageUp: index - page, Home: 0, End: this.rows.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (to < 0 && event.key === "ArrowUp") this.search.focus();
    else this.#focus(Math.min(this.rows.length - 1, Math.max(0, to)));
  }

  #focus(index) {
    const height = this.#height();
    const [top, bottom] = [index * height, (index + 1) * height];
    if (top < this.scroll.scrollTop) this.scroll.scrollTop = top;
    else if (bottom > this.scroll.scrollTop + this.scroll.clientHeight) this.scroll.scrollTop = bottom - this.scroll.clientHeight;
    this.#fill();
    this.filler.kept.get(this.rows[index].key)?.querySelector("button").focus({ preventScroll: true });
  }

  /** What is typed is taken for a model's name: of an endpoint where it says so. */
  #openTyped() {
    const typed = this.search.value.trim();
    const endpoints = this.state.endpoints();
    const colon = typed.indexOf(":");
    const named = colon > 0 && endpoints.includes(typed.slice(0, colon));
    const endpoint = named ? typed.slice(0, colon) : endpoints.includes("default") ? "default" : endpoints[0];
    const target = named ? typed.slice(colon + 1) : typed;
    if (endpoint) this.open([{ endpoint, target, tenant: target.includes("/") ? target.split("/")[0] : "" }]);
  }
}

function passes(standing, kind) {
  if (kind === "loaded") return standing.residents.length > 0;
  if (kind === "loading") return standing.loads.length > 0;
  if (kind === "failed") return Boolean(standing.failed);
  if (kind === "kept") return standing.residents.some((it) => it.kept);
  return true;
}
