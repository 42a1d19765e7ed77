// Quantities and times in words.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** Bytes with three digits at most, as in 12.3 MiB. */
export function bytes(count) {
  if (count === undefined || count === null) return "–";
  let unit = 0;
  let value = count;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 100 ? 0 : 1;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

/** A share of a whole, as in 43 %. */
export function share(part, whole) {
  if (!whole) return "–";
  const percent = (100 * part) / whole;
  return `${percent > 0 && percent < 1 ? "<1" : percent.toFixed(percent < 10 && percent % 1 ? 1 : 0)} %`;
}

/** Seconds, as in 3.2 ms or 1.45 s. */
export function seconds(value) {
  if (value === undefined || value === null) return "–";
  if (value >= 100) return `${value.toFixed(0)} s`;
  if (value >= 1) return `${value.toFixed(value >= 10 ? 1 : 2)} s`;
  const milli = value * 1000;
  return `${milli.toFixed(milli >= 100 ? 0 : milli >= 10 ? 1 : 2)} ms`;
}

/** A count with groups of digits. */
export const count = (value) => (value ?? 0).toLocaleString("en");

/** `1 model`, `2 models`. */
export const counted = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** How long ago a time was, beside `now` in milliseconds: 12 s, 3 min, 2 h, 5 d. */
export function ago(time, now) {
  const passed = Math.max(0, (now - Date.parse(time)) / 1000);
  if (Number.isNaN(passed)) return "–";
  if (passed < 1.5) return "now";
  if (passed < 100) return `${Math.round(passed)} s`;
  if (passed < 6000) return `${Math.round(passed / 60)} min`;
  if (passed < 172800) return `${Math.round(passed / 3600)} h`;
  return `${Math.round(passed / 86400)} d`;
}

/** The time of day. */
export function clock(time) {
  const date = new Date(time);
  return Number.isNaN(date.getTime()) ? "–" : date.toLocaleTimeString("en-GB");
}

/** Date and time of day. */
export function moment(time) {
  const date = new Date(time);
  if (Number.isNaN(date.getTime())) return "–";
  const two = (number) => String(number).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${clock(time)}`;
}

/** The beginning of a version, which tells it from others. */
export const short = (version) => (version ? version.slice(0, 10) : "–");

/** A state as it is said. */
export const plain = (state) => (state ?? "not loaded").replaceAll("_", " ");
