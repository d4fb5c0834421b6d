// What the report reads and computes, and what it says to input that is wrong.

import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';

import { bitsOf, counterpart, geomean, labelsOf, median, report, roofsOf } from '../compare.mjs';
import { InputError, parseName, parseShape, readBenchmark } from '../data.mjs';
import { embedJson } from '../page.mjs';
import { makeFile, makeQuickFile } from './fixtures.mjs';

const NAME = 'self_causal/gpt2/i8/b1.h12.kv12.d64.q1024.k1024/tier:avx2/threads:1';

function read(benchmarks, context = {}) {
  return readBenchmark(JSON.stringify({ context, benchmarks }), 'a.json');
}

function entry(name, time, more = {}) {
  return {
    name,
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
    assert.equal(parseName(`${NAME}/real_time`).threads, 1);
  });
  it('of other benchmarks are no names', () => {
    for (const name of [
      '',
      'BM_Copy/8',
      NAME.replace('self_causal', 'softmax'),
      NAME.replace('.k1024', ''),
      NAME.replace('/threads:1', ''),
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
  it('are the medians, else the middle repetition', () => {
    const all = [
      { ...entry(`${NAME}_mean`, 99), run_name: NAME, aggregate_name: 'mean' },
      { ...entry(`${NAME}_median`, 20), run_name: NAME },
    ];
    assert.equal(read(all).rows.length, 1);
    assert.ok(Math.abs(read(all).rows[0].time - 20e-6) < 1e-12);
    const runs = [30, 10, 20].map((time) => ({
      name: NAME,
      run_type: 'iteration',
      cpu_time: time,
      time_unit: 'us',
    }));
    assert.ok(Math.abs(read(runs).rows[0].time - 20e-6) < 1e-12);
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
      {"name": "${NAME}", "cpu_time": 5, "time_unit": "us", "ops": NaN, "roof": -Infinity}]}`;
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
    assert.equal(
      read([{ name: NAME, error_occurred: true, error_message: 'wrong' }]).rows[0].failed,
      'wrong',
    );
    assert.equal(
      read([{ name: NAME, skipped: true, skip_message: 'too large' }]).rows[0].failed,
      'too large',
    );
    assert.equal(read([{ name: NAME, error_occurred: true }]).rows[0].failed, 'no reason given');
  });
});

describe('the context', () => {
  it('gives roofs, bandwidth and contenders', () => {
    const file = read([], {
      'roof:avx2/fp32_fma': '1.17e11',
      'roof:avx2/int8_dot': 'none',
      'read_bandwidth:DRAM/1000': '2e10',
      'read_bandwidth:L1/10': '2e11',
      sightline: '0.2',
      'sightline/f32/tensors': 'all f32',
      'peer:ggml/absent': 'not found',
      'peer:naive/f32/not_timed': '',
      'roof_drift:avx2': '-0.2',
    });
    assert.deepEqual(file.roofs, { avx2: { fp32_fma: 1.17e11 } });
    assert.deepEqual(
      file.bandwidth.map((point) => point.level),
      ['L1', 'DRAM'],
    );
    assert.deepEqual(file.drift, { avx2: -0.2 });
    assert.deepEqual(file.contenders.find((one) => one.name === 'ggml').absent, 'not found');
    assert.equal(
      file.contenders.find((one) => one.name === 'sightline').offers.f32.tensors,
      'all f32',
    );
    assert.equal(file.contenders.find((one) => one.name === 'naive').offers.f32.notTimed, '');
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
    const sweep = (row) => ({ ...row, name: row.name.replace('gpt2', 'sweep_d64') });
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
  it('find the roof that a row was measured against', () => {
    const units = { fp32_fma: 100, int16_dot: 200 };
    const cases = (rate, roof) => [
      { kind: 'prefill', runs: [{ contender: 'sightline', precision: 'i8', rate, roof }] },
    ];
    assert.deepEqual(roofsOf(units, cases(150, 0.75), ['i8']), [
      { precision: 'i8', unit: 'int16_dot', rate: 200 },
    ]);
    assert.deepEqual(roofsOf(units, cases(75, 0.75), ['i8']), [
      { precision: 'i8', unit: 'fp32_fma', rate: 100 },
    ]);
    assert.deepEqual(roofsOf(units, cases(300, 0.75), ['i8'], { threads: 2 }), [
      { precision: 'i8', unit: 'int16_dot', rate: 400 },
    ]);
    assert.deepEqual(roofsOf(units, cases(150, 0.75), ['i8'], { threads: 2, measuredThreads: 2 }), [
      { precision: 'i8', unit: 'int16_dot', rate: 200 },
    ]);
    assert.deepEqual(roofsOf({}, cases(null, null), ['i8']), []);
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
      ['X, s', 'X, t'],
    );
    assert.deepEqual(
      labelsOf([
        of('a.json', { cpu: 'X', tier: 't' }),
        of('b.json', { cpu: 'X', tier: 't', threads: '2' }),
      ]),
      ['X, threads 1', 'X, threads 2'],
    );
    assert.deepEqual(labelsOf([of('a.json', { cpu: 'X' }), of('b.json', { cpu: 'X' })]), [
      'X, a.json',
      'X, b.json',
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
