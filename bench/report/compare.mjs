// What the page shows, computed from files that data.mjs has read:
//
//   report(files) -> { files: [{ …, views: [view] }], across: [comparison] }
//
// A view is one file at one tier and one number of threads: its cases, each with everybody who ran
// it, the pairs that are fair to compare, their summary, and what is to be drawn over length. A
// comparison sets Sightline's rows in several files side by side.

import { bitsOf, isNoisy, kindOf } from './shared.mjs';

// Sweeps answer how speed depends on length. They are nobody's model, so no mean counts them.
const isSweep = (model) => model.startsWith('sweep_');

// The precision of ours that a peer's is compared with, or null: the same one, else one that is as
// wide; among those, floating point with floating point. Never a narrower one: that we are faster
// in int8 says nothing about their fp16.
export function counterpart(theirs, ours) {
  if (ours.includes(theirs)) return theirs;
  const same = ours.filter(
    (precision) => bitsOf(precision) !== null && bitsOf(precision) === bitsOf(theirs),
  );
  const isFloat = (precision) => /^(f|bf)\d/.test(precision);
  return same.find((precision) => isFloat(precision) === isFloat(theirs)) ?? same[0] ?? null;
}

export function median(values) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

// The mean for ratios: twice as fast here and half as fast there is 1, whichever way round the
// ratio is taken.
export function geomean(values) {
  if (!values.length) return null;
  return Math.exp(values.reduce((sum, value) => sum + Math.log(value), 0) / values.length);
}

const unique = (values) => [...new Set(values)];
const known = (values) => values.filter((value) => value !== null && value !== undefined);

function rangeOf(values) {
  if (!values.length) return null;
  return {
    count: values.length,
    median: median(values),
    min: Math.min(...values),
    max: Math.max(...values),
  };
}

// Rows of one operation on one shape of one model, whoever ran them.
function casesOf(rows) {
  const cases = new Map();
  for (const row of rows) {
    const key = `${row.op}/${row.model}/${row.shape.text}`;
    if (!cases.has(key)) {
      const { op, model, shape } = row;
      cases.set(key, { key, op, model, shape, kind: kindOf(op), sweep: isSweep(model), runs: [] });
    }
    const { contender, precision, time, rate, roof, kvBytes, error, spread, notes, failed } = row;
    cases
      .get(key)
      .runs.push({ contender, precision, time, rate, roof, kvBytes, error, spread, notes, failed });
  }
  return [...cases.values()];
}

// Every peer's run beside Sightline's run of the same case. `ratio` is how many times as long the
// peer takes, null if one of the two has no valid time. A peer whose output was wrong has none
// either. It `loses` for us if it is below 1 as shown, with two decimals.
function pairsOf(cases, precisions) {
  const pairs = [];
  cases.forEach((item, index) => {
    for (const theirs of item.runs) {
      if (theirs.contender === 'sightline') continue;
      const against = counterpart(theirs.precision, precisions);
      const ours = item.runs.find(
        (run) => run.contender === 'sightline' && run.precision === against,
      );
      const valid = ours && !ours.failed && !theirs.failed && ours.time && theirs.time;
      const ratio = valid ? theirs.time / ours.time : null;
      pairs.push({
        case: index,
        peer: theirs.contender,
        precision: theirs.precision,
        against,
        ratio,
        loses: ratio !== null && Math.round(ratio * 100) < 100,
        failed: theirs.failed,
        errors: ours ? [ours.error, theirs.error] : null,
      });
    }
  });
  return pairs;
}

function summarise(pairs) {
  const ratios = known(pairs.map((pair) => pair.ratio));
  if (!ratios.length) return null;
  return {
    ...rangeOf(ratios),
    geomean: geomean(ratios),
    lost: pairs.filter((pair) => pair.loses).length,
  };
}

// One line for each precision of each peer, over the rows of models.
function summaryOf(cases, pairs) {
  const counted = pairs.filter((pair) => !cases[pair.case].sweep);
  const groups = new Map();
  for (const pair of counted) {
    const key = `${pair.peer}/${pair.precision}`;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(pair);
  }
  return [...groups.values()].map((group) => {
    const of = (kind) => group.filter((pair) => cases[pair.case].kind === kind);
    const compared = group.filter(
      (pair) => pair.ratio !== null && cases[pair.case].kind !== 'store',
    );
    const errors = compared.filter((pair) => pair.errors && known(pair.errors).length === 2);
    return {
      peer: group[0].peer,
      precision: group[0].precision,
      against: group[0].against,
      prefill: summarise(of('prefill')),
      decode: summarise(of('decode')),
      failed: group.filter((pair) => pair.failed).length,
      ourError: median(errors.map((pair) => pair.errors[0])),
      theirError: median(errors.map((pair) => pair.errors[1])),
    };
  });
}

// How far up to the roof each precision of Sightline gets on the rows of models.
function reachedOf(cases, precisions) {
  return precisions.map((precision) => {
    const runs = (kind) =>
      cases
        .filter((item) => !item.sweep && (kind === null || item.kind === kind))
        .flatMap((item) => item.runs)
        .filter(
          (run) => run.contender === 'sightline' && run.precision === precision && !run.failed,
        );
    return {
      precision,
      prefill: rangeOf(known(runs('prefill').map((run) => run.roof))),
      decode: rangeOf(known(runs('decode').map((run) => run.roof))),
      error: rangeOf(known(runs(null).map((run) => run.error))),
      noisy: runs(null).filter(isNoisy).length,
    };
  });
}

// The tier that peers are held against: the one whose units reach furthest.
function bestTierOf(roofs) {
  const reach = (tier) => Math.max(...Object.values(roofs[tier]));
  return Object.keys(roofs).sort((a, b) => reach(b) - reach(a))[0] ?? null;
}

// The arithmetic roof of each precision: [{ peers, precision, tier, unit, rate }], Sightline's at
// the view's tier, peers' at the best one. Where the file does not have it for so many threads, it
// is what the rows were divided by.
function roofsOf(file, tier, threads, cases) {
  const runs = cases.filter((item) => item.kind === 'prefill').flatMap((item) => item.runs);
  return [false, true].flatMap((peers) => {
    const at = (peers && bestTierOf(file.roofs)) || tier;
    const measured = threads === (file.context.threads ?? 1) ? file.roofs[at] : null;
    const group = runs.filter((run) => (run.contender !== 'sightline') === peers);
    return unique(group.map((run) => run.precision)).flatMap((precision) => {
      const unit = file.units[at]?.[precision] ?? null;
      const divisors = group
        .filter((run) => run.precision === precision && run.rate && run.roof)
        .map((run) => run.rate / run.roof);
      const rate = measured?.[unit] ?? median(divisors);
      return rate ? [{ peers, precision, tier: at, unit, rate }] : [];
    });
  });
}

// What is drawn over length: cases of one operation that differ in nothing but their length,
// wherever a sweep has at least three lengths: [{ op, kind, model, shape, over, cases }], the shape
// being that of the first case. Rates may be joined where a sweep goes on with fewer heads; the
// times of decoding may not.
export function sweepsOf(cases) {
  const groups = new Map();
  cases.forEach((item, index) => {
    if (!item.sweep) return;
    const { op, kind, model, shape } = item;
    for (const over of op === 'cross' ? ['k', 'q'] : ['k']) {
      const other = op === 'cross' ? shape[over === 'k' ? 'q' : 'k'] : null;
      const heads = kind === 'decode' ? shape.h : null;
      const { d, dv, b, beams } = shape;
      const key = [op, model, over, other, heads, shape.h / shape.kv, d, dv, b, beams].join();
      if (!groups.has(key)) groups.set(key, { op, kind, model, shape, over, cases: [] });
      groups.get(key).cases.push(index);
    }
  });
  return [...groups.values()].filter(
    (group) => unique(group.cases.map((index) => cases[index].shape[group.over])).length >= 3,
  );
}

function makeView(file, tier, threads) {
  const rows = file.rows.filter(
    (row) => row.threads === threads && (row.contender !== 'sightline' || row.tier === tier),
  );
  const cases = casesOf(rows);
  const precisions = unique(
    rows.filter((row) => row.contender === 'sightline').map((row) => row.precision),
  ).sort((a, b) => (bitsOf(b) ?? 0) - (bitsOf(a) ?? 0));
  const pairs = pairsOf(cases, precisions);
  return {
    tier,
    threads,
    precisions,
    cases,
    pairs,
    summary: summaryOf(cases, pairs),
    reached: reachedOf(cases, precisions),
    sweeps: sweepsOf(cases),
    roofs: roofsOf(file, tier, threads, cases),
    bandwidth: (threads === (file.context.threads ?? 1) && file.bandwidth[tier]) || [],
  };
}

// The tier that the CPU would be used with first, then the others.
function makeViews(file) {
  const own = file.rows.filter((row) => row.contender === 'sightline');
  const first = file.context.tier;
  const tiers = unique(own.map((row) => row.tier)).sort((a, b) => (b === first) - (a === first));
  const threads = unique(file.rows.map((row) => row.threads)).sort((a, b) => a - b);
  return (tiers.length ? tiers : [first ?? 'unknown']).flatMap((tier) =>
    threads
      .filter(
        (count) => !tiers.length || own.some((row) => row.tier === tier && row.threads === count),
      )
      .map((count) => makeView(file, tier, count)),
  );
}

// A short name for each file: its CPU. Files of one CPU are told apart by tier or threads if that is
// where they differ, else by their names. That comes first, for the end may be cut off.
export function labelsOf(files) {
  const cpu = (file) => file.context.cpu ?? file.name;
  const facts = [
    (file) => file.context.tier,
    (file) => `threads ${file.context.threads ?? 1}`,
    (file) => file.name,
  ];
  return files.map((file) => {
    const twins = files.filter((other) => cpu(other) === cpu(file));
    if (twins.length === 1) return cpu(file);
    const tells = facts.slice(0, -1).find((fact) => {
      const values = twins.map(fact);
      return values.every(Boolean) && unique(values).length === twins.length;
    });
    return `${(tells ?? facts.at(-1))(file)} · ${cpu(file)}`;
  });
}

// Sightline's rows that at least two files have, for each number of threads; each file with its
// first tier.
function makeAcross(files) {
  const counts = unique(files.flatMap((file) => file.views.map((view) => view.threads))).sort(
    (a, b) => a - b,
  );
  return counts.flatMap((threads) => {
    const columns = files
      .map((file, index) => ({
        file: index,
        view: file.views.find((view) => view.threads === threads),
      }))
      .filter((column) => column.view?.precisions.length);
    if (columns.length < 2) return [];
    const rows = new Map();
    columns.forEach(({ view }, column) => {
      for (const item of view.cases) {
        for (const run of item.runs) {
          if (run.contender !== 'sightline' || run.failed || !run.time) continue;
          const { op, model, shape, kind, sweep } = item;
          const key = `${item.key}/${run.precision}`;
          if (!rows.has(key)) {
            rows.set(key, {
              op,
              model,
              shape,
              kind,
              sweep,
              precision: run.precision,
              runs: columns.map(() => null),
            });
          }
          rows.get(key).runs[column] = run;
        }
      }
    });
    const shared = [...rows.values()].filter((row) => known(row.runs).length > 1);
    if (!shared.length) return [];
    return [
      {
        threads,
        columns: columns.map(({ file, view }) => ({ file, tier: view.tier })),
        rows: shared,
        means: meansOf(shared),
      },
    ];
  });
}

// Geometric means over the rows of models that all files have: the same work for every CPU.
function meansOf(rows) {
  const means = [];
  const complete = rows.filter((row) => !row.sweep && row.runs.every(Boolean));
  for (const kind of ['prefill', 'decode']) {
    for (const precision of unique(complete.map((row) => row.precision))) {
      const group = complete.filter(
        (row) =>
          row.kind === kind && row.precision === precision && row.runs.every((run) => run.rate),
      );
      if (!group.length) continue;
      group[0].runs.forEach((_, column) => {
        means.push({
          kind,
          precision,
          column,
          count: group.length,
          rate: geomean(group.map((row) => row.runs[column].rate)),
        });
      });
    }
  }
  return means;
}

export function report(files) {
  const labels = labelsOf(files);
  const shown = files.map(({ rows, units, strangers, ...file }, index) => ({
    ...file,
    label: labels[index],
    rowCount: rows.length,
    strangers: strangers.slice(0, 5),
    strangerCount: strangers.length,
    views: makeViews({ ...file, rows, units }),
  }));
  return { files: shown, across: makeAcross(shown) };
}
