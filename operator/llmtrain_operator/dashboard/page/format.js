// Figures and times for people.

/** A number with as many digits as tell something; a dash if there is none. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  return Number.isInteger(value) ? value.toLocaleString("en") : Number(value.toPrecision(4)).toString();
}

/** Seconds in at most two units: 0s, 0.4s, 12s, 3m12s, 5h07m, 3d04h. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "–";
  if (seconds === 0) return "0s";
  if (seconds < 9.95) return `${Math.max(0, seconds).toFixed(1)}s`;
  const whole = Math.round(seconds);
  const two = (value) => String(value).padStart(2, "0");
  const [days, hours, minutes] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60];
  if (days) return `${days}d${two(hours)}h`;
  if (hours) return `${hours}h${two(minutes)}m`;
  return minutes ? `${minutes}m${two(whole % 60)}s` : `${whole}s`;
}

/** How long ago `time` (seconds since 1970) was. */
export function age(time) {
  const seconds = Math.max(0, Date.now() / 1000 - time);
  return seconds < 10 ? `${Math.floor(seconds)}s` : duration(seconds);
}

/** A share as a percentage. */
export const percent = (share) => `${(100 * share).toFixed(1)}%`;

/** The time of day of an RFC 3339 time, with the date if it is another day's. */
export function clock(text) {
  const time = new Date(text);
  if (Number.isNaN(time.getTime())) return text;
  const day = time.toDateString() === new Date().toDateString() ? "" : `${time.toLocaleDateString("sv")} `; // YYYY-MM-DD
  return day + time.toTimeString().slice(0, 8);
}

/** Steps done, of how many if that is known. */
export function steps(row) {
  if (row.maxSteps) return `${number(row.step)}/${number(row.maxSteps)}`;
  return row.step ? number(row.step) : "";
}
