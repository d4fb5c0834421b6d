// Reads one JSON file of the benchmark into plain data:
//
//   readBenchmark(text, 'phone.json')
//     -> { name, context, roofs, units, bandwidth, drift, contenders, rows, strangers }
//
// Whatever a file may lack becomes null or an empty list here, so that nobody further on meets NaN,
// undefined or a counter that is text. Only what is not a benchmark file at all is an InputError.

import { parseOp } from './shared.mjs';

// Said to the user as it is, without a stack.
export class InputError extends Error {}

const NAME =
  /^(?:peer:([^/]+)\/)?([^/]+)\/([^/]+)\/([^/]+)\/([^/]+)\/tier:([^/]+)\/threads:(\d+)$/;

// "[peer:NAME/]op/model/precision/shape/tier:T/threads:N", or null.
export function parseName(name) {
  const match = NAME.exec(name);
  if (!match || !parseOp(match[2])) return null;
  const [, peer, op, model, precision, shapeText, tier, threads] = match;
  const shape = parseShape(shapeText);
  return (
    shape && {
      contender: peer ?? 'sightline',
      op,
      model,
      precision,
      shape,
      tier,
      threads: Number(threads),
    }
  );
}

// "b1.h12.kv12.d64.q1024.k1024[.dv128][.beams5]" and features' numbers, or null.
export function parseShape(text) {
  const shape = { text };
  for (const part of text.split('.')) {
    const match = /^([a-z]+)(\d+)$/.exec(part);
    if (!match) return null;
    shape[match[1]] = Number(match[2]);
  }
  for (const key of ['b', 'h', 'd', 'q', 'k']) if (!(key in shape)) return null;
  return { kv: shape.h, dv: shape.d, beams: 1, ...shape };
}

// A number, or null: counters may be missing, null, NaN or text.
function number(value) {
  if (value === null || value === undefined || value === '' || typeof value === 'boolean')
    return null;
  const result = Number(value);
  return Number.isFinite(result) ? result : null;
}

function positive(value) {
  const result = number(value);
  return result !== null && result > 0 ? result : null;
}

// Google Benchmark prints NaN and Infinity bare, which JSON does not know. Strings are stepped
// over.
function parseJson(text) {
  const bare = /"(?:[^"\\]|\\.)*"|-?\b(?:NaN|nan|Infinity|inf)\b/g;
  return JSON.parse(
    text.replace(/^\uFEFF/, '').replace(bare, (token) => (token[0] === '"' ? token : 'null')),
  );
}

const SECONDS = { ns: 1e-9, us: 1e-6, ms: 1e-3, s: 1 };

function readRow(entry, id) {
  const unit = SECONDS[entry.time_unit ?? 'ns'];
  // Wall time is what counts once threads share the work; CPU time adds theirs up.
  const time = positive(id.threads > 1 ? entry.real_time : entry.cpu_time);
  const notes = String(entry.label ?? '')
    .split(';')
    .map((note) => note.trim());
  const spread = number(entry.spread);
  const [timeRatio, pairRatio] = [positive(entry.time_ratio), positive(entry.pair_ratio)];
  if (timeRatio && pairRatio) {
    notes.push(
      `${timeRatio.toFixed(2)} of the plain time, ${pairRatio.toFixed(2)} for each visible pair`,
    );
  }
  return {
    ...id,
    time: time !== null && unit ? time * unit : null,
    rate: positive(entry.ops),
    roof: positive(entry.roof),
    kvBytes: positive(entry.kv_bytes),
    error: number(entry.rel_l2),
    spread,
    notes: notes.filter((note) => note && !(spread !== null && note.startsWith('spread'))),
    failed: entry.error_occurred ? String(entry.error_message || 'no reason given') : null,
  };
}

// [[tier, rest, number]] of the keys "prefix:tier/rest", those without a positive number left out.
function figuresOf(context, prefix) {
  return Object.entries(context)
    .map(([key, value]) => [/^([^:]+):([^/]+)\/(.+)$/.exec(key), positive(value)])
    .filter(([match, value]) => match?.[1] === prefix && value)
    .map(([match, value]) => [match[2], match[3], value]);
}

// Operations per second: { avx2: { int8_dot: … } }
function readRoofs(context) {
  const roofs = {};
  for (const [tier, unit, rate] of figuresOf(context, 'roof')) (roofs[tier] ??= {})[unit] = rate;
  return roofs;
}

// Which of a tier's units the rows of a precision are divided by: { avx2: { i8: 'int8_dot' } }
function readUnits(context) {
  const units = {};
  for (const [key, value] of Object.entries(context)) {
    const match = /^roof_unit:([^/]+)\/(.+)$/.exec(key);
    if (match && value) (units[match[1]] ??= {})[match[2]] = String(value);
  }
  return units;
}

// { avx2: [{ level: 'L1', bytes, rate }, …] }, small footprints first.
function readBandwidth(context) {
  const bandwidth = {};
  for (const [tier, rest, rate] of figuresOf(context, 'read_bandwidth')) {
    const match = /^([^/]+)\/(\d+)$/.exec(rest);
    if (match) (bandwidth[tier] ??= []).push({ level: match[1], bytes: Number(match[2]), rate });
  }
  for (const points of Object.values(bandwidth)) points.sort((a, b) => a.bytes - b.bytes);
  return bandwidth;
}

// By which fraction a tier's fp32 roof had moved at the end of the run: { avx2: -0.01 }
function readDrift(context) {
  const drift = {};
  for (const [key, value] of Object.entries(context)) {
    if (key.startsWith('roof_drift:') && number(value) !== null)
      drift[key.slice('roof_drift:'.length)] = number(value);
  }
  return drift;
}

// What each contender says of itself, those that only have rows included.
function readContenders(context, rows) {
  const all = new Map();
  const get = (name) => {
    if (!all.has(name))
      all.set(name, { name, version: null, absent: null, offers: {}, notMeasured: [] });
    return all.get(name);
  };
  const offer = (name, precision) =>
    (get(name).offers[precision] ??= { tensors: null, notTimed: null });
  if (context.sightline) get('sightline').version = String(context.sightline);
  for (const [key, value] of Object.entries(context)) {
    const missing = /^not_measured:(\S+) (\S+): (.*)$/s.exec(key);
    if (missing) {
      const [, name, precision, reason] = missing;
      get(name).notMeasured.push({ precision, ops: String(value).split(' '), reason });
      continue;
    }
    const match = /^(?:peer:([^/]+)|(sightline))\/(.+)$/.exec(key);
    if (!match) continue;
    const name = match[1] ?? match[2];
    const [field, detail] = match[3].split('/');
    if (field === 'version') get(name).version = String(value);
    else if (field === 'absent') get(name).absent = String(value) || 'no reason given';
    else if (detail === 'tensors') offer(name, field).tensors = String(value);
    else if (detail === 'not_timed') offer(name, field).notTimed = String(value);
  }
  for (const row of rows) offer(row.contender, row.precision);
  return [...all.values()];
}

export function readBenchmark(text, name) {
  let json;
  try {
    json = parseJson(text);
  } catch (error) {
    throw new InputError(`${name}: not JSON: ${error.message}`);
  }
  if (
    !json ||
    typeof json.context !== 'object' ||
    !json.context ||
    !Array.isArray(json.benchmarks)
  ) {
    throw new InputError(
      `${name}: not a file of the benchmark: it has no "context" and "benchmarks"`,
    );
  }
  const rows = [];
  const strangers = [];
  for (const entry of json.benchmarks) {
    if (!entry || typeof entry !== 'object') continue;
    const rowName = String(entry.run_name ?? entry.name);
    const id = parseName(rowName);
    if (id) rows.push(readRow(entry, id));
    else strangers.push(rowName);
  }
  if (strangers.length && !rows.length) {
    throw new InputError(
      `${name}: no row has a name of the form op/model/precision/shape/tier:T/threads:N, ` +
        `the first is "${strangers[0]}"`,
    );
  }
  const { context } = json;
  const textOf = (key) =>
    context[key] === undefined || context[key] === null ? null : String(context[key]);
  return {
    name,
    context: {
      cpu: textOf('cpu'),
      os: textOf('os'),
      compiler: textOf('compiler'),
      build: textOf('build'),
      governor: textOf('governor'),
      sightline: textOf('sightline'),
      tier: textOf('tier'),
      date: textOf('date'),
      pinned: textOf('pinned_cpus'),
      threads: positive(context.threads),
      cpus: number(context.num_cpus),
      mhz: number(context.mhz_per_cpu),
      caches: (Array.isArray(context.caches) ? context.caches : [])
        .map((cache) => ({
          level: number(cache?.level),
          type: String(cache?.type ?? ''),
          size: number(cache?.size),
        }))
        .filter((cache) => cache.level && cache.size && cache.type !== 'Instruction'),
    },
    roofs: readRoofs(context),
    units: readUnits(context),
    bandwidth: readBandwidth(context),
    drift: readDrift(context),
    contenders: readContenders(context, rows),
    rows,
    strangers,
  };
}
