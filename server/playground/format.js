// Figures as people read them.

/** The shortest of B, KiB, MiB and GiB. */
export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${significant(count)} ${units[unit]}`;
}

/** Seconds, or milliseconds of a short time. */
export function seconds(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
}

export const percent = (share) => `${Math.round(share * 100)}\u00a0%`;

export const whole = (count) => Math.round(count).toLocaleString("en");

/** Tokens a second. */
export const rate = (value) => `${significant(value)} tokens/s`;

function significant(value) {
  return value >= 100 ? whole(value) : value.toPrecision(value >= 1 ? 3 : 2).replace(/\.0+$/, "");
}
