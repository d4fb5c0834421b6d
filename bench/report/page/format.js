// Numbers, units and names as the page shows them.

const NARROW = '\u202f'; // the space between digits, and before a unit

// Three digits, or four before the point: 0.12, 1.23, 12.3, 123, 1 235, 12 350.
function digits(value) {
  const size = Math.abs(value);
  if (size >= 99.95)
    return String(size < 1000 ? Math.round(value) : Number(value.toPrecision(4))).replace(
      /\B(?=(\d{3})+$)/g,
      NARROW,
    );
  if (size >= 9.995) return value.toFixed(1);
  if (size >= 0.9995) return value.toFixed(2);
  if (size === 0) return '0';
  return size >= 0.001 ? String(Number(value.toPrecision(2))) : scientific(value);
}

function superscript(number) {
  return String(number).replace(/./g, (c) => (c === '-' ? '⁻' : '⁰¹²³⁴⁵⁶⁷⁸⁹'[c]));
}

// 1.3·10⁻²
function scientific(value) {
  if (value === 0) return '0';
  const [mantissa, exponent] = value.toExponential(1).split('e');
  return `${mantissa}·10${superscript(Number(exponent))}`;
}

const micros = (seconds) => digits(seconds * 1e6);
const giga = (value) => digits(value / 1e9);
const percent = (fraction) => `${Math.round(fraction * 100)}`;
const times = (ratio) =>
  `${ratio >= 99.95 ? Math.round(ratio) : ratio >= 9.995 ? ratio.toFixed(1) : ratio.toFixed(2)}×`;

function bytes(count) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let power = 0;
  while (count >= 1024 && power < units.length - 1) {
    count /= 1024;
    ++power;
  }
  return `${Number(count.toPrecision(3))}${NARROW}${units[power]}`;
}

const seconds = (time) =>
  time >= 1
    ? `${digits(time)}${NARROW}s`
    : time >= 1e-3
      ? `${digits(time * 1e3)}${NARROW}ms`
      : `${digits(time * 1e6)}${NARROW}µs`;

const CONTENDER_NAMES = {
  sightline: 'Sightline',
  naive: 'naive loops',
  xnnpack: 'XNNPACK',
  onednn: 'oneDNN',
  onednn_graph: 'oneDNN Graph',
  ggml: 'ggml',
  onnxruntime: 'ONNX Runtime',
};
const contenderName = (name) =>
  Object.hasOwn(CONTENDER_NAMES, name) ? CONTENDER_NAMES[name] : name;

const OP_NAMES = {
  self: 'self-attention',
  self_causal: 'causal self-attention',
  cross: 'cross-attention',
  decode_self: 'decode, self-attention',
  decode_cross: 'decode, cross-attention',
  prepare: 'prepare',
  append: 'append',
  fork: 'fork',
  reorder: 'reorder',
  map: 'map',
};
const OP_SHORT = {
  self: 'self',
  self_causal: 'causal self',
  cross: 'cross',
  decode_self: 'decode self',
  decode_cross: 'decode cross',
  prepare: 'prepare',
  append: 'append',
  fork: 'fork',
  reorder: 'reorder',
  map: 'map',
};

const UNIT_NAMES = {
  fp32_fma: 'fp32 FMA',
  int8_dot: 'int8 dot',
  int16_dot: 'int16 dot',
  bf16_dot: 'bf16 dot',
};
const unitName = (unit) =>
  Object.hasOwn(UNIT_NAMES, unit ?? '') ? UNIT_NAMES[unit] : (unit ?? 'roof');

function headsText(shape) {
  const heads = shape.h === shape.kv ? `${shape.h}` : `${shape.h}/${shape.kv}`;
  return `${heads} × ${shape.d}${shape.dv === shape.d ? '' : `/${shape.dv}`}`;
}

// What a curve over length holds fixed.
function sweepText({ op, kind, over, shape }) {
  const sharing = shape.h / shape.kv;
  const other = over === 'k' ? 'q' : 'k';
  return [
    kind === 'decode'
      ? headsText(shape)
      : `head dimension ${shape.d}${shape.dv === shape.d ? '' : `/${shape.dv}`}`,
    kind !== 'decode' && sharing !== 1 && `${sharing} query heads for each key head`,
    op === 'cross' && `${other} ${shape[other]}`,
    shape.beams > 1 && `${shape.beams} beams`,
    shape.b > 1 && `batch ${shape.b}`,
  ]
    .filter(Boolean)
    .join(', ');
}

function lengthText(op, shape) {
  const isOne = kindOf(op) === 'store' && shape.q === 1;
  const parts = isOne ? [`k ${shape.k}`] : [`q ${shape.q}`, `k ${shape.k}`];
  if (shape.beams > 1) parts.push(`${shape.beams} beams`);
  if (shape.b > 1) parts.push(`batch ${shape.b}`);
  for (const [key, text] of Object.entries(FEATURE_NUMBERS))
    if (key in shape) parts.push(text(shape[key]));
  return parts.join(', ');
}

// "causal self, block mask"
function opShort(op) {
  const parsed = parseOp(op);
  if (!parsed) return op;
  return [OP_SHORT[parsed.base], ...parsed.features.map((name) => name.replace('_', ' '))].join(', ');
}
const caseText = ({ op, shape }) => `${opShort(op)}, ${lengthText(op, shape)}`;
const rateUnit = (kind) => (kind === 'store' ? 'Gelements/s' : 'GOP/s');
const spreadText = (run) => `${(run.spread * 100).toFixed(1)}${NARROW}%`;
const plural = (count, word) => `${count} ${word}${count === 1 ? '' : 's'}`;
const capital = (text) => text[0].toUpperCase() + text.slice(1);
