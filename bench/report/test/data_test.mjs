// What the report reads and computes, and what it says to input that is wrong.

import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';

import { counterpart, geomean, labelsOf, median, report, sweepsOf } from '../compare.mjs';
import { InputError, parseName, parseShape, readBenchmark } from '../data.mjs';
import { embedJson } from '../page.mjs';
import {
  FEATURES,
  FEATURE_NUMBERS,
  MAX_SPREAD,
  bitsOf,
  isNoisy,
  isShare,
  kindOf,
  parseOp,
} from '../shared.mjs';
import { makeFile, makeQuickFile } from './fixtures.mjs';

const NAME = 'self_causal/gpt2/i8/b1.h12.kv12.d64.q1024.k1024/tier:avx2/threads:1';

function read(benchmarks, context = {}) {
  return readBenchmark(JSON.stringify({ context, benchmarks }), 'a.json');
}

function entry(name, time, more = {}) {
  return {
    name: `${name}_median`,
    run_name: name,
    run_type: 'aggregate',
    aggregate_name: 'median',
    cpu_time: time,
    real_time: time / 2,
    time_unit: 'us',
    ...more,
  };
}

const onlyView = (files) => report(files).files[0].views[0];

describe('names', () => {
  it('are taken apart', () => {
    const shape = {
      text: 'b1.h12.kv12.d64.q1024.k1024',
      b: 1,
      h: 12,
      kv: 12,
      d: 64,
      dv: 64,
      q: 1024,
      k: 1024,
      beams: 1,
    };
    assert.deepEqual(parseName(NAME), {
      contender: 'sightline',
      op: 'self_causal',
      model: 'gpt2',
      precision: 'i8',
      shape,
      tier: 'avx2',
      threads: 1,
    });
    assert.equal(parseName(`peer:ggml/${NAME}`).contender, 'ggml');
  });
  it('hold features behind the op, and their numbers in the shape', () => {
    const name = NAME.replace('self_causal', 'self_causal_block_mask_softcap');
    const { op, shape } = parseName(name.replace('.k1024', '.k1024.block64.cap50'));
    assert.equal(op, 'self_causal_block_mask_softcap');
    assert.deepEqual([shape.block, shape.cap], [64, 50]);
    assert.deepEqual(parseOp(op), { base: 'self_causal', features: ['block_mask', 'softcap'] });
    assert.deepEqual(parseOp('self'), { base: 'self', features: [] });
    assert.deepEqual(parseOp('fork_append'), { base: 'fork', features: ['append'] });
    assert.deepEqual(['reorder_append', 'map_full', 'append'].map(isShare), [
      true,
      true,
      false,
    ]);
    assert.deepEqual(['self_t5', 'decode_self_pages', 'append', 'fork'].map(kindOf), [
      'prefill',
      'decode',
      'store',
      'store',
    ]);
  });
  it('know the features that the benchmark knows', () => {
    const header = readFileSync(new URL('../../case.h', import.meta.url), 'utf8');
    const known = [...header.matchAll(/^ {4}\{"(\w+)", (?:nullptr|"(\w+)"), &Features/gm)];
    assert.deepEqual(
      known.map(([, word]) => word),
      FEATURES,
    );
    assert.deepEqual(
      known.map(([, , label]) => label).filter(Boolean),
      Object.keys(FEATURE_NUMBERS),
    );
  });
  it('of other benchmarks are no names', () => {
    for (const name of [
      '',
      'BM_Copy/8',
      NAME.replace('self_causal', 'softmax'),
      NAME.replace('self_causal', 'self_causal_softmax'),
      NAME.replace('.k1024', ''),
      NAME.replace('/threads:1', ''),
      `${NAME}/real_time`,
    ]) {
      assert.equal(parseName(name), null, name);
    }
  });
  it('hold shapes with extras', () => {
    assert.deepEqual(parseShape('b2.h32.kv8.d64.q1.k9.dv128.beams5'), {
      text: 'b2.h32.kv8.d64.q1.k9.dv128.beams5',
      b: 2,
      h: 32,
      kv: 8,
      d: 64,
      dv: 128,
      q: 1,
      k: 9,
      beams: 5,
    });
    assert.equal(parseShape('b1.h12.d64.q1.k1').kv, 12);
    assert.equal(parseShape('1.2.3'), null);
  });
});

describe('rows', () => {
  it('take CPU time for one thread and wall time for more', () => {
    const rows = read([entry(NAME, 10), entry(NAME.replace('threads:1', 'threads:2'), 10)]).rows;
    assert.ok(Math.abs(rows[0].time - 10e-6) < 1e-12);
    assert.ok(Math.abs(rows[1].time - 5e-6) < 1e-12);
  });
  it('say how they compare with the row without features', () => {
    const [row] = read([entry(NAME, 1, { time_ratio: 0.0625, pair_ratio: 1.0312 })]).rows;
    assert.deepEqual(row.notes, ['0.06 of the plain time, 1.03 for each visible pair']);
  });
  it('survive missing, null, negative and textual counters', () => {
    const [row] = read([
      entry(NAME, -1, { ops: null, roof: 'much', rel_l2: undefined, spread: '' }),
    ]).rows;
    assert.deepEqual(
      [row.time, row.rate, row.roof, row.error, row.spread, row.kvBytes],
      [null, null, null, null, null, null],
    );
  });
  it('survive the bare NaN and Infinity of Google Benchmark, outside of strings only', () => {
    const text = `{"context": {"cpu": "NaN \\" -inf"}, "benchmarks": [
      {"run_name": "${NAME}", "cpu_time": 5, "time_unit": "us", "ops": NaN, "roof": -Infinity}]}`;
    const file = readBenchmark(text, 'a.json');
    assert.equal(file.context.cpu, 'NaN " -inf');
    assert.deepEqual([file.rows[0].rate, file.rows[0].roof], [null, null]);
  });
  it('keep their notes, apart from the spread that a counter says too', () => {
    const [row] = read([
      entry(NAME, 1, { label: 'without its relative bias; spread 4.1 %', spread: 0.041 }),
    ]).rows;
    assert.deepEqual(row.notes, ['without its relative bias']);
    assert.deepEqual(read([entry(NAME, 1, { label: 'spread 4.1 %' })]).rows[0].notes, [
      'spread 4.1 %',
    ]);
  });
  it('say why they failed', () => {
    const failedOf = (more) => read([entry(NAME, 1, more)]).rows[0].failed;
    assert.equal(failedOf({ error_occurred: true, error_message: 'wrong' }), 'wrong');
    assert.equal(failedOf({ error_occurred: true }), 'no reason given');
    assert.equal(failedOf({}), null);
  });
  it('are noisy if their median is not known well', () => {
    assert.deepEqual(
      [null, 0.01, MAX_SPREAD, 0.04].map((spread) => isNoisy({ spread })),
      [false, false, false, true],
    );
    const rows = [0.02, 0.05].map((spread, i) =>
      entry(NAME.replace('gpt2', `gpt${i}`), 1, { spread, roof: 0.5 }),
    );
    assert.equal(onlyView([read(rows)]).reached[0].noisy, 1);
  });
});

describe('the context', () => {
  it('gives roofs, bandwidth and contenders', () => {
    const file = read([], {
      'roof:avx2/fp32_fma': '1.17e11',
      'roof:avx2/int8_dot': 'none',
      'roof_unit:avx2/i8': 'int8_dot',
      'roof_unit:avx2/f32': 'fp32_fma',
      'read_bandwidth:avx2/DRAM/1000': '2e10',
      'read_bandwidth:avx2/L1/10': '2e11',
      'read_bandwidth:scalar/L1/10': '4e10',
      'read_bandwidth:scalar/L2/100': 'none',
      governor: 'powersave',
      build: 'Debug',
      sightline: '0.2',
      'sightline/f32/tensors': 'all f32',
      'peer:ggml/absent': 'not found',
      'peer:naive/f32/not_timed': '',
      'roof_drift:avx2': '-0.2',
    });
    assert.deepEqual(file.roofs, { avx2: { fp32_fma: 1.17e11 } });
    assert.deepEqual(file.units, { avx2: { i8: 'int8_dot', f32: 'fp32_fma' } });
    assert.deepEqual(file.bandwidth, {
      avx2: [
        { level: 'L1', bytes: 10, rate: 2e11 },
        { level: 'DRAM', bytes: 1000, rate: 2e10 },
      ],
      scalar: [{ level: 'L1', bytes: 10, rate: 4e10 }],
    });
    assert.deepEqual([file.context.governor, file.context.build], ['powersave', 'Debug']);
    assert.deepEqual(file.drift, { avx2: -0.2 });
    assert.deepEqual(file.contenders.find((one) => one.name === 'ggml').absent, 'not found');
    assert.equal(
      file.contenders.find((one) => one.name === 'sightline').offers.f32.tensors,
      'all f32',
    );
    assert.equal(file.contenders.find((one) => one.name === 'naive').offers.f32.notTimed, '');
  });
  it('says what was not measured, and why', () => {
    const file = read([], {
      'not_measured:xnnpack f16: shape b1.h8: no, not here': 'cross self',
      'not_measured:xnnpack f16': 'self',
    });
    assert.deepEqual(
      file.contenders.map(({ name, notMeasured }) => [name, notMeasured]),
      [
        [
          'xnnpack',
          [{ precision: 'f16', ops: ['cross', 'self'], reason: 'shape b1.h8: no, not here' }],
        ],
      ],
    );
  });
});

describe('pairing', () => {
  it('sets a precision against the same, else one as wide', () => {
    assert.equal(counterpart('f16', ['f32', 'f16', 'i8']), 'f16');
    assert.equal(counterpart('bf16', ['f32', 'f16', 'i8']), 'f16');
    assert.equal(counterpart('bf16', ['i16', 'f16']), 'f16');
    assert.equal(counterpart('i16', ['f16', 'i16']), 'i16');
    assert.equal(counterpart('q8_0', ['f32', 'f16', 'i8']), 'i8');
    assert.equal(counterpart('f16', ['f32', 'i8']), null);
    assert.equal(counterpart('odd', ['f32', 'odder']), null);
    assert.equal(bitsOf('q4_0'), 4);
  });

  const peer = (op, time, more) =>
    entry(
      `peer:ggml/${NAME.replace('self_causal', op).replace('i8', 'q8_0').replace('avx2', 'own')}`,
      time,
      more,
    );
  const ours = (op, time, more) => entry(NAME.replace('self_causal', op), time, more);

  it('divides the time of the peer by ours', () => {
    const view = onlyView([
      read([ours('self', 10, { rel_l2: 0.1 }), peer('self', 25, { rel_l2: 0.2 })]),
    ]);
    assert.ok(Math.abs(view.pairs[0].ratio - 2.5) < 1e-9);
    assert.equal(view.pairs[0].against, 'i8');
    assert.deepEqual(view.pairs[0].errors, [0.1, 0.2]);
  });
  it('summarises with the geometric mean, and counts what was lost', () => {
    const view = onlyView([
      read([
        ours('self', 10),
        peer('self', 40),
        ours('cross', 10),
        peer('cross', 2.5),
        ours('decode_self', 10),
        peer('decode_self', 20),
        ours('self_causal', 10),
        { ...peer('self_causal', 1), error_occurred: true, error_message: 'wrong output' },
      ]),
    ]);
    const [line] = view.summary;
    assert.ok(Math.abs(line.prefill.geomean - 1) < 1e-9);
    assert.deepEqual([line.prefill.count, line.prefill.lost, line.failed], [2, 1, 1]);
    assert.ok(Math.abs(line.decode.geomean - 2) < 1e-9);
  });
  it('leaves sweeps out of means', () => {
    const sweep = (row) => ({ ...row, run_name: row.run_name.replace('gpt2', 'sweep_d64') });
    const view = onlyView([
      read([
        ours('self', 10, { roof: 0.5 }),
        sweep(ours('self', 10, { roof: 0.9 })),
        sweep(peer('self', 90)),
      ]),
    ]);
    assert.deepEqual(view.summary, []);
    assert.equal(view.reached[0].prefill.median, 0.5);
    assert.equal(view.pairs.length, 1);
  });
  it('copes with a peer alone, and with rows without a time', () => {
    const alone = onlyView([read([peer('self', 10)])]);
    assert.equal(alone.pairs[0].ratio, null);
    assert.equal(alone.pairs[0].against, null);
    assert.equal(onlyView([read([ours('self', null), peer('self', 10)])]).pairs[0].ratio, null);
  });
});

describe('statistics', () => {
  it('are what their names say', () => {
    assert.equal(geomean([]), null);
    assert.ok(Math.abs(geomean([2, 0.5, 8]) - 2) < 1e-12);
    assert.equal(median([]), null);
    assert.equal(median([3, 1, 2]), 2);
    assert.equal(median([4, 1, 2, 3]), 2.5);
  });
});

describe('roofs', () => {
  const context = {
    tier: 'avx2',
    'roof:avx2/fp32_fma': '100',
    'roof:avx2/int8_dot': '150',
    'roof:avx512/fp32_fma': '200',
    'roof:avx512/int8_dot': '800',
    'roof_unit:avx2/i8': 'fp32_fma',
    'roof_unit:avx512/q8_0': 'int8_dot',
    'read_bandwidth:avx2/L1/10': '70',
    'read_bandwidth:avx512/L1/10': '90',
  };
  const ours = (more) => entry(NAME, 1, { ops: 60, roof: 0.5, ...more });
  const peer = entry(`peer:ggml/${NAME.replace('i8', 'q8_0').replace('avx2', 'own')}`, 1);

  it('are of the unit that the file names, of peers at the best tier', () => {
    const view = onlyView([read([ours(), peer], context)]);
    assert.deepEqual(view.roofs, [
      { peers: false, precision: 'i8', tier: 'avx2', unit: 'fp32_fma', rate: 100 },
      { peers: true, precision: 'q8_0', tier: 'avx512', unit: 'int8_dot', rate: 800 },
    ]);
    assert.deepEqual(view.bandwidth, [{ level: 'L1', bytes: 10, rate: 70 }]);
  });
  it('are what rows were divided by where the file has none, or none of so many threads', () => {
    const [roof] = onlyView([read([ours()], { 'roof_unit:avx2/i8': 'int8_dot' })]).roofs;
    assert.deepEqual([roof.unit, roof.rate], ['int8_dot', 120]);
    const view = onlyView([read([ours()], { ...context, threads: '2' })]);
    assert.deepEqual([view.roofs[0].unit, view.roofs[0].rate], ['fp32_fma', 120]);
    assert.deepEqual(view.bandwidth, []);
    assert.deepEqual(onlyView([read([ours({ ops: null })], {})]).roofs, []);
  });
});

describe('sweeps', () => {
  const caseOf = (op, model, text) => {
    const shape = parseShape(text);
    const kind = /^decode/.test(op) ? 'decode' : 'prefill';
    return { op, model, shape, kind, sweep: model.startsWith('sweep_') };
  };
  const found = (...cases) =>
    sweepsOf(cases).map(({ op, model, over, cases: indices }) => [op, model, over, indices]);

  it('are what has three lengths or more and is no model', () => {
    const lengths = (model, count) =>
      [64, 128, 256, 512]
        .slice(0, count)
        .map((n) => caseOf('self', model, `b1.h8.d64.q${n}.k${n}`));
    assert.deepEqual(found(...lengths('sweep_a', 3)), [['self', 'sweep_a', 'k', [0, 1, 2]]]);
    assert.deepEqual(found(...lengths('sweep_a', 2)), []);
    assert.deepEqual(found(...lengths('bert', 4)), []);
  });
  it('go on with fewer heads, but not with another dimension, grouping or number of beams', () => {
    const at = (heads, k, more = '') =>
      caseOf('self', 'sweep_a', `b1.h${heads}.kv${heads}.d64.q${k}.k${k}${more}`);
    assert.equal(found(at(8, 1), at(8, 2), at(1, 3)).length, 1);
    assert.equal(found(at(8, 1), at(8, 2), at(8, 3, '.dv128')).length, 0);
    const decode = (text) => caseOf('decode_self', 'sweep_a', text);
    const two = ['b1.h8.d64.q1.k1', 'b1.h8.d64.q1.k2'].map(decode);
    assert.equal(found(...two, decode('b1.h8.d64.q1.k3')).length, 1);
    assert.equal(found(...two, decode('b1.h1.d64.q1.k3')).length, 0);
    assert.equal(found(...two, decode('b1.h8.kv2.d64.q1.k3')).length, 0);
    assert.equal(found(...two, decode('b1.h8.d64.q1.k3.beams5')).length, 0);
  });
  it('of cross-attention are over keys or over queries', () => {
    const cross = (q, k) => caseOf('cross', 'sweep_a', `b1.h8.d64.q${q}.k${k}`);
    assert.deepEqual(found(cross(64, 1), cross(64, 2), cross(64, 3), cross(1, 2), cross(2, 2)), [
      ['cross', 'sweep_a', 'k', [0, 1, 2]],
      ['cross', 'sweep_a', 'q', [1, 3, 4]],
    ]);
  });
  it('are there for every operation', () => {
    const view = onlyView([readBenchmark(JSON.stringify(makeFile('server')), 's.json')]);
    assert.deepEqual(
      view.sweeps.map(({ op, shape }) => `${op} ${shape.d}`),
      [64, 128].flatMap((d) =>
        ['self', 'self_causal', 'cross', 'decode_self', 'decode_cross', 'prepare', 'append'].map(
          (op) => `${op} ${d}`,
        ),
      ),
    );
  });
});

describe('several files', () => {
  const file = (key, more) => readBenchmark(JSON.stringify(makeFile(key, more)), `${key}.json`);
  it('are compared where they have the same rows', () => {
    const { across } = report([file('server'), file('board')]);
    assert.equal(across.length, 1);
    assert.equal(across[0].columns.length, 2);
    assert.ok(across[0].rows.every((row) => row.runs.length === 2));
    assert.deepEqual(
      across[0].means.map((mean) => mean.kind),
      [...Array(6).fill('prefill'), ...Array(6).fill('decode')],
    );
    assert.ok(across[0].means.every((mean) => mean.rate > 0));
  });
  it('have no comparison without common rows', () => {
    const rows = (op) => read([entry(NAME.replace('self_causal', op), 1)]);
    assert.deepEqual(report([rows('self'), rows('cross')]).across, []);
    assert.deepEqual(report([rows('self')]).across, []);
  });
  it('are told apart by what differs', () => {
    const of = (name, context) => readBenchmark(JSON.stringify({ context, benchmarks: [] }), name);
    assert.deepEqual(
      labelsOf([of('a.json', { cpu: 'X', tier: 't' }), of('b.json', { cpu: 'Y' })]),
      ['X', 'Y'],
    );
    assert.deepEqual(
      labelsOf([of('a.json', { cpu: 'X', tier: 's' }), of('b.json', { cpu: 'X', tier: 't' })]),
      ['s · X', 't · X'],
    );
    assert.deepEqual(
      labelsOf([
        of('a.json', { cpu: 'X', tier: 't' }),
        of('b.json', { cpu: 'X', tier: 't', threads: '2' }),
      ]),
      ['threads 1 · X', 'threads 2 · X'],
    );
    const twin = { cpu: 'X', tier: 't' };
    assert.deepEqual(
      labelsOf([
        of('a.json', { ...twin, date: '2026-01-01' }),
        of('b.json', { ...twin, date: '2026-01-02' }),
      ]),
      ['a.json · X', 'b.json · X'],
    );
    assert.deepEqual(labelsOf([of('a', twin), of('b', twin), of('c', { ...twin, tier: 's' })]), [
      'a · X',
      'b · X',
      'c · X',
    ]);
  });
  it('give a view for each tier and number of threads, the first tier first', () => {
    const { views } = report([file('server', { threads: [1, 4], tiers: ['avx2', 'avx512_vnni'] })])
      .files[0];
    assert.deepEqual(
      views.map((view) => `${view.tier} ${view.threads}`),
      ['avx512_vnni 1', 'avx512_vnni 4', 'avx2 1', 'avx2 4'],
    );
    assert.ok(views.every((view) => view.pairs.length));
  });
  it('may be quick ones or hold no rows', () => {
    const quick = onlyView([readBenchmark(JSON.stringify(makeQuickFile('server')), 'q.json')]);
    assert.equal(quick.cases.length, 7);
    assert.deepEqual(quick.summary, []);
    assert.deepEqual(report([read([])]).files[0].views, []);
  });
});

describe('input that is none', () => {
  it('is named', () => {
    for (const text of [
      '',
      'no',
      '[]',
      'null',
      '{}',
      '{"context": {}}',
      '{"context": 3, "benchmarks": []}',
      '{"context": {}, "benchmarks": {}}',
      '{"context": {}, "benchmarks": [{"name": "BM_Copy/8"}]}',
    ]) {
      assert.throws(
        () => readBenchmark(text, 'x.json'),
        (error) => error instanceof InputError && error.message.startsWith('x.json: '),
        text,
      );
    }
  });
  it('is left out where other rows are fine', () => {
    const file = read([entry(NAME, 1), entry('BM_Copy/8', 1), null]);
    assert.deepEqual([file.rows.length, file.strangers], [1, ['BM_Copy/8']]);
  });
});

describe('the data in the page', () => {
  it('cannot end its script', () => {
    const embedded = embedJson({ name: '</script><!--\u2028', x: 0.1234567891 });
    assert.ok(!/[<\u2028]/.test(embedded));
    assert.deepEqual(JSON.parse(embedded), { name: '</script><!--\u2028', x: 0.123457 });
  });
});

describe('the command', () => {
  const script = fileURLToPath(new URL('../report.mjs', import.meta.url));
  const run = (...words) => spawnSync(process.execPath, [script, ...words], { encoding: 'utf8' });
  let folder;
  before(() => {
    folder = mkdtempSync(path.join(tmpdir(), 'sightline-report-'));
  });
  after(() => rmSync(folder, { recursive: true }));

  it('says what is wrong with its arguments, and fails', () => {
    const good = path.join(folder, 'good.json');
    writeFileSync(good, JSON.stringify(makeQuickFile('server')));
    const bad = path.join(folder, 'bad.json');
    writeFileSync(bad, 'not json');
    const out = path.join(folder, 'out.html');
    for (const [words, says] of [
      [[], 'no file'],
      [['-o', out], 'no file'],
      [[good], '-o is missing'],
      [[good, '-o'], '-o needs'],
      [[good, '--fast', '-o', out], '--fast'],
      [[path.join(folder, 'none.json'), '-o', out], 'none.json: there is no such file'],
      [[folder, '-o', out], `${folder}: cannot be read`],
      [[bad, '-o', out], `${bad}: not JSON`],
      [[good, bad, '-o', out], `${bad}: not JSON`],
      [[good, '-o', good], 'would overwrite'],
      [[good, '-o', path.join(folder, 'no', 'where.html')], 'cannot be written'],
    ]) {
      const { status, stderr } = run(...words);
      assert.equal(status, 1, words.join(' '));
      assert.ok(stderr.includes(says), `${words.join(' ')}: ${stderr}`);
      assert.ok(!stderr.includes('    at '), stderr);
    }
  });
  it('writes a page that asks nothing of a network', () => {
    const good = path.join(folder, 'a.json');
    const out = path.join(folder, 'a.html');
    writeFileSync(good, JSON.stringify(makeQuickFile('server')));
    execFileSync(process.execPath, [script, good, '-o', out], { stdio: 'ignore' });
    const page = readFileSync(out, 'utf8');
    assert.match(page, /default-src 'none'/);
    assert.doesNotMatch(page, /<(?:script|img|link)[^>]+(?:src|href)="(?!data:)/);
    assert.doesNotMatch(page, /\{\{\w+\}\}/);
    assert.ok(!page.includes(folder));
  });
});
