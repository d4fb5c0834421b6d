// What the command and the page both need. page.mjs puts it into the page without its exports.

// The benchmark repeats a row until the 95 % confidence interval of its median is no wider than
// this fraction of the median, or its time is over. Then the row is noisy.
export const MAX_SPREAD = 0.03;
export const isNoisy = (run) => run.spread > MAX_SPREAD;

export const PREFILL = ['self', 'self_causal', 'cross'];
export const DECODE = ['decode_self', 'decode_cross'];
export const STORE = ['prepare', 'append'];
export const kindOf = (op) =>
  PREFILL.includes(op) ? 'prefill' : DECODE.includes(op) ? 'decode' : 'store';

// "q8_0" -> 8, or null.
export function bitsOf(precision) {
  const match = /\d+/.exec(precision);
  return match ? Number(match[0]) : null;
}
