// What the server told: the state, samples and decisions, and what follows from them.

/** Decisions that are remembered here. */
const DECISIONS = 500;
const TENANT_COLOURS = 10;

/** Changes a state by a merge patch (RFC 7396). Names come from strangers: no prototype. */
export function patch(state, change) {
  if (change === null || typeof change !== "object" || Array.isArray(change)) return change;
  const known = state !== null && typeof state === "object" && !Array.isArray(state);
  const made = known ? state : Object.create(null);
  for (const [name, value] of Object.entries(change)) {
    if (value === null) delete made[name];
    else made[name] = patch(made[name], value);
  }
  return made;
}

export class State {
  constructor() {
    this.now = null;
    this.start = null;
    this.build = null;
    this.samples = [];
    this.mostSamples = 180;
    this.sampleEvery = 5000;
    this.decisions = [];
    this.missed = 0;
    this.restarts = 0;
    /** When the server's clock and ours were read together, so that ages are its own. */
    this.skew = 0;
    this.tenants = new Map();
  }

  /** Takes an event of the stream. */
  take(event, data) {
    if (event === "state") this.#begin(data);
    else if (event === "change") this.now = patch(this.now, data);
    else if (event === "sample") this.#sample(data);
    else if (event === "decision") this.#decide(data);
    else if (event === "missed") this.missed += data;
    if ((event === "state" || event === "change") && this.now?.time) this.skew = Date.parse(this.now.time) - Date.now();
  }

  #begin({ start, state, samples }) {
    if (this.start !== null && this.start !== start) {
      this.restarts += 1;
      this.decisions = [];
    }
    this.start = start;
    this.now = patch(null, state);
    this.build ??= state.build;
    this.samples = samples.samples;
    this.mostSamples = samples.most;
    this.sampleEvery = samples.every_ms;
  }

  #sample(sample) {
    this.samples.push(sample);
    if (this.samples.length > this.mostSamples) this.samples.shift();
  }

  #decide(decision) {
    const last = this.decisions.at(-1);
    // The same decision again counts on.
    const again = last && decision.times > 1 && last.message === decision.message
      && last.target === decision.target && last.endpoint === decision.endpoint;
    if (again) this.decisions.pop();
    this.decisions.push(decision);
    if (this.decisions.length > DECISIONS) this.decisions.shift();
  }

  /** The server's time, in milliseconds. */
  time() {
    return Date.now() + this.skew;
  }

  devices() {
    return Object.values(this.now?.devices ?? {});
  }

  residents() {
    return this.devices().flatMap((device) => Object.values(device.residents ?? {}));
  }

  loads() {
    return Object.values(this.now?.loads ?? {});
  }

  failed() {
    return Object.values(this.now?.failed ?? {});
  }

  endpoints() {
    return this.now?.endpoints ?? [];
  }

  /** Whose a model is, as it is shown. */
  owner(model) {
    return model.tenant || model.endpoint;
  }

  /** The class that gives an owner's colour: the same for as long as the page is open. */
  colour(model) {
    const owner = this.owner(model);
    if (!this.tenants.has(owner)) this.tenants.set(owner, this.tenants.size % TENANT_COLOURS);
    return `t${this.tenants.get(owner)}`;
  }

  /** Models by what they stand like: `endpoint/target` to residents, loads and failure. */
  standings() {
    const found = new Map();
    const of = (model) => {
      const key = `${model.endpoint}/${model.target}`;
      let standing = found.get(key);
      if (!standing) {
        standing = { key, endpoint: model.endpoint, target: model.target, tenant: model.tenant, residents: [], loads: [], failed: null };
        found.set(key, standing);
      }
      return standing;
    };
    for (const device of this.devices()) {
      for (const resident of Object.values(device.residents ?? {})) of(resident).residents.push({ ...resident, device: device.id });
    }
    for (const load of this.loads()) of(load).loads.push(load);
    for (const failed of this.failed()) of(failed).failed = failed;
    return found;
  }
}

/** The state of a model in one word, and its class. */
export function standingOf(standing) {
  const serves = standing?.residents.find((it) => it.state === "ready");
  if (standing?.loads.length && !serves) return [standing.loads[0].state, "moving"];
  if (serves) return ["ready", "ready"];
  if (standing?.residents.length) return [standing.residents[0].state, "moving"];
  if (standing?.failed) return [standing.failed.state, "bad"];
  return [null, "none"];
}
