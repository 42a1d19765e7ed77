// Server-sent events over fetch, which can show a key, as EventSource cannot.

/** Silence after which a stream is taken for dead, as a multiple of its pulse. */
const DEAD_AFTER = 15;
const FIRST_WAIT = 400;
const LONGEST_WAIT = 5000;

/** Reads a stream of events for ever: connects, reads, and connects again. */
export class Stream {
  /** `on` has: `event(name, data)`, `state(state, detail)`, `headers()`. */
  constructor(path, on) {
    this.path = path;
    this.on = on;
    this.beat = 1000;
    this.last = null;
    this.wait = FIRST_WAIT;
    this.heard = 0;
    this.timer = 0;
    this.aborter = null;
    setInterval(() => this.#watch(), 1000);
    addEventListener("online", () => this.#soon(0));
  }

  /** Connects now, whatever was before. */
  connect() {
    clearTimeout(this.timer);
    this.aborter?.abort();
    this.aborter = new AbortController();
    this.#read(this.aborter);
  }

  /** How long nothing was heard, in milliseconds. */
  silence() {
    return this.heard ? performance.now() - this.heard : 0;
  }

  async #read(aborter) {
    const headers = { accept: "text/event-stream", ...this.on.headers() };
    if (this.last) headers["last-event-id"] = this.last;
    try {
      const answer = await fetch(this.path, { headers, signal: aborter.signal, cache: "no-store" });
      if (answer.status === 401) return this.on.state("key", await refusal(answer));
      if (!answer.ok) throw new Error(await refusal(answer));
      this.heard = performance.now();
      await this.#frames(answer.body, aborter);
      this.#lost(aborter, "the stream has ended");
    } catch (error) {
      this.#lost(aborter, error.message);
    }
  }

  async #frames(body, aborter) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done || aborter !== this.aborter) return;
      this.heard = performance.now();
      rest += value;
      const end = rest.lastIndexOf("\n\n");
      if (end < 0) continue;
      for (const frame of rest.slice(0, end).split("\n\n")) this.#frame(frame);
      rest = rest.slice(end + 2);
    }
  }

  #frame(text) {
    let event = "message";
    const data = [];
    for (const line of text.split("\n")) {
      const colon = line.indexOf(":");
      if (colon < 1) continue;
      const value = line.slice(colon + 1).replace(/^ /, "");
      const name = line.slice(0, colon);
      if (name === "event") event = value;
      else if (name === "id") this.last = value;
      else if (name === "data") data.push(value);
    }
    if (!data.length) return;
    if (event === "state") {
      this.wait = FIRST_WAIT;
      this.on.state("live");
    }
    this.on.event(event, JSON.parse(data.join("\n")));
  }

  #lost(aborter, why) {
    if (aborter !== this.aborter) return;
    this.on.state("lost", why);
    this.#soon(this.wait * (0.75 + Math.random() / 2));
    this.wait = Math.min(this.wait * 1.8, LONGEST_WAIT);
  }

  #soon(wait) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.connect(), wait);
  }

  /** A connection whose other end is gone without a word is given up. */
  #watch() {
    if (this.heard && this.silence() > DEAD_AFTER * this.beat) {
      this.heard = 0;
      this.#lost(this.aborter, "nothing was heard");
      this.connect();
    }
  }
}

/** What a refusal says. */
export async function refusal(answer) {
  try {
    const told = await answer.json();
    return told.error?.message ?? `status ${answer.status}`;
  } catch {
    return `status ${answer.status}`;
  }
}
