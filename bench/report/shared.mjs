// What the command and the page both need. page.mjs puts it into the page without its exports.

// The benchmark repeats a row until the 95 % confidence interval of its median is no wider than
// this fraction of the median, or its time is over. Then the row is noisy.
export const MAX_SPREAD = 0.03;
export const isNoisy = (run) => run.spread > MAX_SPREAD;

export const PREFILL = ['self', 'self_causal', 'cross'];
export const DECODE = ['decode_self', 'decode_cross'];
export const STORE = ['prepare', 'append'];
// Pass K and V on without a copy: shown with stores, but nothing is written, and there is no roof.
export const SHARE = ['fork', 'reorder', 'map'];
// What may stand behind an op, as in "self_causal_window_softcap": masks, score modifications,
// further outputs and places of K and V (kFeatureWords in bench/case.h), and what a number of
// theirs is called in shapes.
export const FEATURES = [
  'window',
  'prefix',
  'padding',
  'mask',
  'block_mask',
  'ragged',
  'parts',
  'softcap',
  'bias',
  't5',
  'alibi',
  'sinks',
  'lse',
  'weights',
  'mass',
  'prepared',
  'segments',
  'pages',
  'continuous',
  'append',
  'full',
];
export const FEATURE_NUMBERS = {
  w: (n) => `window ${n}`,
  p: (n) => `prefix ${n}`,
  pad: (n) => `padding ${n} %`,
  block: (n) => `blocks of ${n}`,
  cap: (n) => `softcap ${n}`,
  buckets: (n) => `${n} buckets`,
  of: (n) => `weights of ${n} heads`,
  seg: (n) => `${n} ${n === 1 ? 'segment' : 'segments'}`,
  page: (n) => `pages of ${n}`,
};

const OP = new RegExp(
  `^(${[...PREFILL, ...DECODE, ...STORE, ...SHARE].sort((a, b) => b.length - a.length).join('|')})` +
    `((?:_(?:${FEATURES.join('|')}))*)$`,
);

// "self_causal_block_mask" -> { base: 'self_causal', features: ['block_mask'] }, or null.
export function parseOp(op) {
  const match = OP.exec(op);
  if (!match) return null;
  const features = match[2].match(new RegExp(`(?<=_)(?:${FEATURES.join('|')})(?=_|$)`, 'g'));
  return { base: match[1], features: features ?? [] };
}
export function kindOf(op) {
  const base = parseOp(op)?.base;
  return PREFILL.includes(base) ? 'prefill' : DECODE.includes(base) ? 'decode' : 'store';
}
export const isShare = (op) => SHARE.includes(parseOp(op)?.base);

// "q8_0" -> 8, or null.
export function bitsOf(precision) {
  const match = /\d+/.exec(precision);
  return match ? Number(match[0]) : null;
}
