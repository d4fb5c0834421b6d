// Invented files of the benchmark, for tests of the report: the right shape and plausible sizes,
// but nobody's figures.
//
//   node test/fixtures.mjs FOLDER     writes them to a folder, to look at a page by hand

import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

// Numbers in [-1, 1) that are the same in every run.
function noise(text) {
  let hash = 2166136261;
  for (const c of text) hash = Math.imul(hash ^ c.charCodeAt(0), 16777619);
  hash ^= hash >>> 15;
  hash = Math.imul(hash, 2246822519);
  return ((hash ^ (hash >>> 13)) >>> 0) / 2 ** 31 - 1;
}

export const MACHINES = {
  server: {
    cpu: 'Example Server CPU 3.6 GHz',
    os: 'Linux 6.1',
    compiler: 'Clang 19.1.7',
    tier: 'avx512_vnni',
    pinned: '3',
    roofs: { fp32_fma: 117e9, int8_dot: 468e9, int16_dot: 234e9, bf16_dot: 236e9 },
    bandwidth: [
      ['L1', 24576, 210e9],
      ['L2', 393216, 115e9],
      ['L3', 12582912, 95e9],
      ['DRAM', 268435456, 28e9],
    ],
    caches: [
      [1, 'Data', 32768],
      [1, 'Instruction', 32768],
      [2, 'Unified', 524288],
      [3, 'Unified', 16777216],
    ],
    peers: {
      naive: { version: 'this compiler', f32: [0.03, 2e-7] },
      xnnpack: { version: '2024-11-08', f32: [0.72, 3e-7], f16: [0.58, 9e-4] },
      onednn: { version: '3.7.2', f32: [0.76, 2e-7], bf16: [0.62, 3.5e-3], i8: [0.5, 1.9e-1] },
      onednn_graph: { version: '3.7.2', f32: [0.7, 2e-7], bf16: [0.55, 3.6e-3] },
      ggml: { version: '0.27', f16: [0.26, 4e-4], q8_0: [0.019, 9.5e-3] },
      onnxruntime: { version: '1.23.2', f32: [0.66, 3e-7] },
    },
    refusals: {
      onednn_graph: { ops: ['decode_cross', 'decode_self'], why: 'its graph has one length' },
      onnxruntime: { ops: ['decode_cross'], why: 'it has no beams: every one has its own memory' },
    },
    absent: {},
  },
  board: {
    cpu: 'Example Board CPU 2.4 GHz',
    os: 'Linux 6.6',
    compiler: 'GCC 12.2.0',
    tier: 'neon_dot',
    pinned: '2',
    roofs: { fp32_fma: 38e9, int8_dot: 153e9 },
    bandwidth: [
      ['L1', 49152, 70e9],
      ['L2', 393216, 42e9],
      ['L3', 1572864, 21e9],
      ['DRAM', 134217728, 9e9],
    ],
    caches: [
      [1, 'Data', 65536],
      [2, 'Unified', 524288],
      [3, 'Unified', 2097152],
    ],
    peers: {
      naive: { version: 'this compiler', f32: [0.04, 2e-7] },
      xnnpack: { version: '2024-11-08', f32: [0.8, 3e-7], f16: [1.3, 2e-3] },
    },
    absent: {
      onednn: 'not built in: not for this architecture',
      ggml: 'not built in: CMake found no ggml',
      onnxruntime: 'not built in: CMake found no ONNX Runtime',
    },
  },
};

const OURS = { f32: [0.88, 2.5e-7, 4], f16: [0.86, 3e-4, 2], i8: [0.78, 1.3e-2, 1] };
const UNIT = {
  f32: 'fp32_fma',
  f16: 'fp32_fma',
  bf16: 'bf16_dot',
  i8: 'int8_dot',
  q8_0: 'int8_dot',
};
const unitOf = (machine, precision) =>
  UNIT[precision] in machine.roofs ? UNIT[precision] : 'fp32_fma';
const BYTES = { f32: 4, f16: 2, bf16: 2, i8: 1, q8_0: 1.0625 };

const prefill = (op, model, h, d, q, k = q, note = '') => ({ op, model, h, kv: h, d, q, k, note });
const sweepHeads = (length) => (length > 4096 ? 1 : 8);
const lengths = (first, last) =>
  Array.from({ length: Math.log2(last / first) + 1 }, (_, i) => first * 2 ** i);

export function sweepCases() {
  const every = (step, all) => all.filter((_, i) => i % step === 0);
  return [64, 128].flatMap((d) => {
    const sweep = (op, q, k, heads = 8) => prefill(op, `sweep_d${d}`, heads, d, q, k);
    return [
      ...['self', 'self_causal'].flatMap((op) =>
        lengths(64, 32768).map((n) => sweep(op, n, n, sweepHeads(n))),
      ),
      ...every(2, lengths(64, 16384)).map((k) => sweep('cross', 64, k)),
      ...every(2, lengths(512, 131072)).map((k) => sweep('decode_self', 1, k)),
      ...every(2, lengths(512, 32768)).map((k) => ({ ...sweep('decode_cross', 1, k), beams: 5 })),
      ...every(2, lengths(64, 16384)).map((k) => sweep('prepare', 1, k)),
      ...every(4, lengths(64, 16384)).map((k) => sweep('append', 1, k)),
    ];
  });
}

export function modelCases() {
  const decode = (op, model, h, d, k, beams = 1, kv = h) => ({
    op,
    model,
    h,
    kv,
    d,
    q: 1,
    k,
    beams,
    note: '',
  });
  return [
    prefill('self', 'bert_base', 12, 64, 128),
    prefill('self', 'bert_base', 12, 64, 512),
    prefill('self_causal', 'gpt2', 12, 64, 256),
    prefill('self_causal', 'gpt2', 12, 64, 1024),
    decode('decode_self', 'gpt2', 12, 64, 1024),
    { ...prefill('self_causal_window', 'gemma3_1b_local', 4, 256, 2048), kv: 1, window: 512 },
    prefill('self', 't5_base', 12, 64, 512, 512, 'without its relative bias'),
    prefill('cross', 't5_base', 12, 64, 128, 512),
    decode('decode_cross', 't5_base', 12, 64, 512, 4),
    prefill('prepare', 't5_base', 12, 64, 1, 512),
    prefill('append', 't5_base', 12, 64, 1, 64),
    prefill('self', 'whisper_base', 8, 64, 1500),
    prefill('cross', 'whisper_base', 8, 64, 448, 1500),
    decode('decode_self', 'whisper_base', 8, 64, 448),
    decode('decode_cross', 'whisper_base', 8, 64, 1500),
    decode('decode_cross', 'whisper_base', 8, 64, 1500, 5),
    prefill('prepare', 'whisper_base', 8, 64, 1, 1500),
    { ...prefill('self_causal', 'llama32_1b', 32, 64, 512), kv: 8 },
    { ...prefill('self_causal', 'llama32_1b', 32, 64, 2048), kv: 8 },
    decode('decode_self', 'llama32_1b', 32, 64, 2048, 1, 8),
    decode('decode_self', 'llama32_1b', 32, 64, 32768, 1, 8),
    { ...prefill('append', 'llama32_1b', 32, 64, 1, 2048), kv: 8 },
  ];
}

// Peers are held against the machine's own tier, the best one. Another reads as fast, but
// multiplies at half the speed.
const scaleOf = (machine, tier) => (tier === machine.tier || tier === 'own' ? 1 : 0.5);

function bandwidthAt(machine, bytes) {
  return (machine.bandwidth.find(([, size]) => size * 1.4 >= bytes) ?? machine.bandwidth.at(-1))[2];
}

function row(machine, item, contender, precision, [speed, error], tier, threads) {
  const shape =
    `b1.h${item.h}.kv${item.kv}.d${item.d}.q${item.q}.k${item.k}` +
    (item.beams > 1 ? `.beams${item.beams}` : '') +
    (item.window ? `.w${item.window}` : '');
  const id = `${item.op}/${item.model}/${precision}/${shape}/tier:${tier}/threads:${threads}`;
  const name = contender === 'sightline' ? id : `peer:${contender}/${id}`;
  const wobble = noise(name);
  const causal = item.op === 'self_causal' ? (item.q + 1) / (2 * item.q) : 1;
  const beams = item.beams ?? 1;
  const kvBytes = 2 * item.kv * item.k * item.d * BYTES[precision];
  const peak = machine.roofs[unitOf(machine, precision)] * scaleOf(machine, tier);
  const stored = item.op === 'prepare' || item.op === 'append';
  const counters = {
    kv_bytes: kvBytes,
    rel_l2: error * (1 + 0.3 * wobble),
    spread: Math.abs(noise(`${name}?`)) ** 6 * 0.06,
  };
  let time;
  if (stored) {
    const elements = 2 * item.kv * item.d * (item.op === 'append' ? 1 : item.k);
    counters.kv_bytes = elements * BYTES[precision];
    const traffic = elements * (4 + BYTES[precision]);
    const peak = (bandwidthAt(machine, traffic) / traffic) * elements;
    counters.ops = Math.min(4e9, 0.7 * peak) * (1 + 0.2 * wobble);
    time = elements / counters.ops;
    counters.roof = counters.ops / peak;
  } else if (item.op.startsWith('decode')) {
    const reached =
      Math.min(0.97, speed * (contender === 'sightline' ? 1 : 0.4)) *
      (1 + 0.08 * wobble) *
      (beams > 1 ? 0.7 : 1);
    time = kvBytes / (bandwidthAt(machine, kvBytes) * reached);
    counters.ops = (4 * beams * item.h * item.k * item.d) / time;
    counters.roof = reached;
  } else {
    const warm = (item.q / (item.q + 40)) * (causal < 1 ? item.q / (item.q + 60) : 1);
    counters.ops =
      peak *
      speed *
      warm *
      (1 + 0.04 * wobble) *
      (contender === 'onednn' && item.k > 1024 ? 0.7 : 1);
    counters.ops *= contender !== 'sightline' && causal < 1 ? 0.6 : 1;
    time = (4 * item.h * item.q * item.k * item.d * causal) / counters.ops;
    counters.roof = counters.ops / peak;
  }
  const shared = threads ** 0.95;
  const spread = counters.spread > 0.03 ? `spread ${(counters.spread * 100).toFixed(1)} %` : '';
  return {
    name: `${name}_median`,
    run_name: name,
    run_type: 'aggregate',
    aggregate_name: 'median',
    repetitions: 9,
    threads: 1,
    iterations: 9,
    time_unit: 'us',
    real_time: (time * 1e6) / shared,
    cpu_time: time * 1e6,
    label: [item.note, spread].filter(Boolean).join('; '),
    ...counters,
    ops: counters.ops * shared,
  };
}

// One whole file, as an object.
export function makeFile(
  key,
  {
    cases = [...modelCases(), ...sweepCases()],
    peers = true,
    threads = [1],
    tiers = [MACHINES[key].tier],
  } = {},
) {
  const machine = MACHINES[key];
  const context = {
    date: '2026-11-20T14:05:31+00:00',
    host_name: 'host',
    executable: '/somewhere/bench',
    num_cpus: 8,
    mhz_per_cpu: 3600,
    cpu_scaling_enabled: false,
    caches: machine.caches.map(([level, type, size]) => ({ type, level, size, num_sharing: 1 })),
    load_avg: [0.1, 0.1, 0.1],
    library_version: 'v1.9.1',
    library_build_type: 'release',
    json_schema_version: 1,
    cpu: machine.cpu,
    os: machine.os,
    compiler: machine.compiler,
    build: 'Release',
    governor: 'performance',
    sightline: '0.2.0',
    tier: machine.tier,
    threads: String(threads[0]),
    pinned_cpus: machine.pinned,
  };
  for (const tier of new Set([...tiers, ...(peers ? [machine.tier] : [])])) {
    for (const [unit, rate] of Object.entries(machine.roofs))
      context[`roof:${tier}/${unit}`] = String(rate * scaleOf(machine, tier));
    for (const [level, size, rate] of machine.bandwidth)
      context[`read_bandwidth:${tier}/${level}/${size}`] = String(rate);
    context[`roof_drift:${tier}`] = '-0.004';
    for (const precision of tiers.includes(tier) ? Object.keys(OURS) : [])
      context[`roof_unit:${tier}/${precision}`] = unitOf(machine, precision);
  }
  for (const precision of Object.keys(OURS)) {
    context[`sightline/${precision}/tensors`] =
      `Q and O f32, K and V packed as ${precision}, head-major`;
    context[`sightline/${precision}/not_timed`] =
      'packing of K and V for cross-attention and decoding';
  }
  const benchmarks = [];
  for (const count of threads) {
    for (const tier of tiers) {
      for (const item of cases) {
        for (const [precision, figures] of Object.entries(OURS))
          benchmarks.push(row(machine, item, 'sightline', precision, figures, tier, count));
      }
    }
    for (const [peer, { version, ...precisions }] of Object.entries(peers ? machine.peers : {})) {
      context[`peer:${peer}/version`] = version;
      for (const [precision, figures] of Object.entries(precisions)) {
        context[`peer:${peer}/${precision}/tensors`] =
          `Q, K, V and O ${precision}, head-major, the layout that it likes best`;
        context[`peer:${peer}/${precision}/not_timed`] = 'making the layout and the operator';
        context[`roof_unit:${machine.tier}/${precision}`] = unitOf(machine, precision);
        const refusal = machine.refusals?.[peer];
        if (refusal)
          context[`not_measured:${peer} ${precision}: ${refusal.why}`] = refusal.ops.join(' ');
        for (const item of cases) {
          if (item.op === 'prepare' || item.op === 'append' || (peer === 'naive' && item.k > 4096))
            continue;
          if (refusal?.ops.includes(item.op)) continue;
          const made = row(machine, item, peer, precision, figures, 'own', count);
          benchmarks.push(
            peer === 'onednn' && precision === 'i8' && item.model === 'llama32_1b' && item.q > 1
              ? {
                  name: made.name,
                  run_name: made.run_name,
                  run_type: 'aggregate',
                  aggregate_name: 'median',
                  error_occurred: true,
                  error_message: 'wrong output: relative error 0.41 > 0.25',
                }
              : made,
          );
        }
      }
    }
  }
  if (peers)
    for (const [peer, why] of Object.entries(machine.absent)) context[`peer:${peer}/absent`] = why;
  return { context, benchmarks };
}

// The first rows of each operation and precision, as --quick makes them.
export function makeQuickFile(key) {
  const seen = new Set();
  return makeFile(key, {
    peers: false,
    cases: modelCases().filter(({ op, window }) => !window && !seen.has(op) && seen.add(op)),
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url) && process.argv[2]) {
  const folder = process.argv[2];
  mkdirSync(folder, { recursive: true });
  for (const key of Object.keys(MACHINES))
    writeFileSync(path.join(folder, `${key}.json`), JSON.stringify(makeFile(key)));
}
