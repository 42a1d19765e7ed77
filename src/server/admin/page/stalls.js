// How a device's bytes are laid out: stalls side by side, each as wide as what it takes. Numbers
// only; `house` draws them.

/** Smaller stalls are drawn together, as shares of the whole circle's arc. */
const SLIVER = 1 / 320;

const of = (footprint, part) => footprint?.[part] ?? 0;

/** What of a resident's KV bytes its sequences hold. */
export function kvUsed(resident) {
  const kv = resident.serves?.kv;
  return kv ? Math.min(kv.used.tokens * kv.token_bytes, of(resident.bytes, "kv")) : 0;
}

/** A resident's parts, scaled to its share where it holds some of them with others. */
function parts(resident) {
  const all = ["weights", "kv", "workspace", "host"].reduce((sum, part) => sum + of(resident.bytes, part), 0);
  const scale = all ? resident.share_bytes / all : 0;
  const used = kvUsed(resident);
  return {
    weights: of(resident.bytes, "weights") * scale,
    rest: (of(resident.bytes, "workspace") + of(resident.bytes, "host")) * scale,
    used: used * scale,
    free: (of(resident.bytes, "kv") - used) * scale,
  };
}

/** Residents in the order of the stalls: by owner, adapters behind their base. */
function order(state, residents) {
  const home = (it) => (it.base ? `${it.base.model?.endpoint ?? it.base.endpoint}/${it.base.model?.target ?? it.base.target}` : `${it.endpoint}/${it.target}`);
  const keyed = residents.map((it) => [`${state.owner(it)}\u0000${home(it)}\u0000${it.base ? 1 : 0}\u0000${it.target}`, it]);
  return keyed.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)).map(([, it]) => it);
}

/**
 * The stalls of a device, in bytes, and what they add up to. Each has `kind` (`models`, `load`,
 * `other`, `free`, `foreign`), `bytes`, and of models `members`, `parts` and `colour`.
 */
export function layout(state, device) {
  const residents = order(state, Object.values(device.residents ?? {}));
  const loads = state.loads().filter((load) => load.device === device.id && load.reserved_bytes > 0);
  const budget = device.budget_bytes;
  const taken = device.charged_bytes + device.reserved_bytes;
  const foreign = Math.max(0, (device.configured_bytes ?? budget) - budget);
  const free = Math.max(0, budget - taken);
  const whole = Math.max(1, taken + free + foreign);
  const stalls = [];
  const sums = { weights: 0, rest: 0, used: 0, free: 0, adapters: 0 };
  for (const resident of residents) {
    const split = parts(resident);
    if (resident.base) sums.adapters += resident.share_bytes;
    else for (const part of Object.keys(split)) sums[part] += split[part];
    place(stalls, state, resident, split, whole);
  }
  const shown = residents.reduce((sum, it) => sum + it.share_bytes, 0);
  const other = Math.max(0, device.charged_bytes - shown);
  if (other / whole > 1e-4) stalls.push({ kind: "other", bytes: other });
  let left = device.reserved_bytes;
  for (const load of loads) {
    const bytes = Math.min(left, load.reserved_bytes);
    left -= bytes;
    if (bytes > 0) stalls.push({ kind: "load", bytes, load, colour: state.colour(load) });
  }
  if (left > 0) stalls.push({ kind: "load", bytes: left });
  if (free > 0) stalls.push({ kind: "free", bytes: free });
  if (foreign > 0) stalls.push({ kind: "foreign", bytes: foreign });
  return { stalls, sums, whole, budget, taken, free, foreign, residents: residents.length };
}

/** Adds a resident: a stall of its own, or one more of a stall of small ones. */
function place(stalls, state, resident, split, whole) {
  const colour = state.colour(resident);
  const adapter = Boolean(resident.base);
  const leaving = resident.state !== "ready";
  const last = stalls.at(-1);
  const small = resident.share_bytes / whole < SLIVER;
  const joins = small && last?.small && last.bytes / whole < SLIVER && last.colour === colour && last.adapter === adapter && last.leaving === leaving;
  if (!joins) {
    stalls.push({ kind: "models", bytes: 0, members: [], parts: { weights: 0, rest: 0, used: 0, free: 0 }, colour, adapter, leaving, small, leases: 0, kept: 0 });
  }
  const stall = stalls.at(-1);
  stall.bytes += resident.share_bytes;
  stall.members.push(resident);
  stall.leases += resident.leases;
  stall.kept += resident.kept ? 1 : 0;
  for (const part of Object.keys(split)) stall.parts[part] += split[part];
}
