// The tables: which columns each has.

// Marks a row whose median is not known well.
function noise(run) {
  if (!isNoisy(run)) return null;
  return el(
    'span.noisy',
    {
      title:
        `The median is known only to within an interval of ${spreadText(run)} of it ` +
        `(95${NARROW}% confidence): do not compare it with anything as close as that.`,
    },
    `spread ${spreadText(run)}`,
  );
}

function notesOf(run) {
  return run.notes.length ? el('span.note', {}, run.notes.join('; ')) : null;
}

const failedMark = (run) => el('span.lose', { title: run.failed }, '✕ not timed');

const TIME_COLUMN = {
  title: 'Time',
  unit: 'µs',
  cell: ({ run }) =>
    run.failed
      ? { node: failedMark(run), sort: '' }
      : { node: [run.time ? micros(run.time) : '–', noise(run)], sort: run.time ?? '' },
};

function rateOf(item, run) {
  return item.kind === 'decode'
    ? run.kvBytes && run.time
      ? run.kvBytes / run.time
      : null
    : run.rate;
}

function operationCell(item) {
  return {
    node: [opShort(item.op), el('span.sub', {}, lengthText(item.op, item.shape))],
    sort: `${item.op} ${String(item.shape.k).padStart(9, '0')}`,
  };
}

// What one peer did where Sightline ran at one precision: the ratio first, what it ran at and its
// error below.
function peerCell(view, caseIndex, precision, peer) {
  const item = view.cases[caseIndex];
  const pairs = view.pairs.filter(
    (pair) => pair.case === caseIndex && pair.peer === peer && pair.against === precision,
  );
  if (!pairs.length) return { node: null, sort: '' };
  const parts = pairs.map((pair) => {
    const run = item.runs.find((one) => one.contender === peer && one.precision === pair.precision);
    const detail = [pair.precision, run.error === null ? null : scientific(run.error)]
      .filter(Boolean)
      .join(', ');
    let head;
    if (pair.failed) head = failedMark(run);
    else if (pair.ratio === null) head = el('span.none', {}, 'no time');
    else if (pair.loses)
      head = el(
        'span.lose',
        { title: `${contenderName(peer)} is faster here` },
        `▾${NARROW}${times(pair.ratio)}`,
      );
    else head = el('span.win', {}, times(pair.ratio));
    return el(
      'div.pair',
      { title: run.time ? `${contenderName(peer)} ${pair.precision}: ${seconds(run.time)}` : null },
      head,
      el('span.sub', {}, detail),
      noise(run),
    );
  });
  const ratios = pairs.map((pair) => pair.ratio).filter((ratio) => ratio !== null);
  return { node: parts, sort: ratios.length ? Math.min(...ratios) : '' };
}

function modelTable(view, model, cases, peers) {
  const lines = cases.flatMap((item) =>
    item.runs
      .filter((run) => run.contender === 'sightline')
      .map((run) => ({ item, run, index: view.cases.indexOf(item) })),
  );
  const shapes = [...new Set(cases.map((item) => headsText(item.shape)))];
  const decodes = cases.some((item) => item.kind === 'decode');
  const columns = [
    {
      title: 'Operation',
      text: true,
      cell: ({ item, run }) => {
        const made = operationCell(item);
        return { node: [made.node, notesOf(run)], sort: made.sort };
      },
    },
    { title: 'Precision', text: true, cell: ({ run }) => run.precision },
    TIME_COLUMN,
    { title: 'Speed', unit: 'GOP/s', cell: ({ run }) => numeric(run.rate, giga) },
    decodes && {
      title: 'K, V read',
      unit: 'GB/s',
      cell: ({ item, run }) => numeric(item.kind === 'decode' ? rateOf(item, run) : null, giga),
    },
    {
      title: 'Of roof',
      unit: '%',
      hint: 'Prefill: of the arithmetic peak; decode: of the read bandwidth at this footprint',
      cell: ({ run }) => numeric(run.roof, percent),
    },
    {
      title: 'Error',
      hint: 'Relative L2 error against double precision',
      cell: ({ run }) => numeric(run.error, scientific),
    },
    ...peers.map((peer) => ({
      title: contenderName(peer),
      hint: `Time of ${contenderName(peer)} divided by time of Sightline`,
      cell: ({ run, index }) => peerCell(view, index, run.precision, peer),
    })),
  ].filter(Boolean);
  return table(
    [el('strong', {}, model), ` ${shapes.join(' and ')}`].reduce(
      (span, part) => (span.append(part), span),
      el('span'),
    ),
    columns,
    lines,
    { tall: cases[0].sweep },
  );
}

function summaryTable(view) {
  const range = (part) => numeric(part, () => `${times(part.min)} to ${times(part.max)}`);
  const mean = (part) => {
    if (!part) return { node: null, sort: '' };
    const losing = Math.round(part.geomean * 100) < 100;
    return {
      node: el(
        losing ? 'span.lose' : 'span.win',
        {},
        (losing ? `▾${NARROW}` : '') + times(part.geomean),
      ),
      sort: part.geomean,
    };
  };
  const slower = (part) => numeric(part, () => `${part.lost} of ${part.count}`);
  const fix = (cell, value) => ({ node: cell.node, sort: value ?? '' });
  const some = (kind) => view.summary.some((line) => line[kind]);
  const kinds = ['prefill', 'decode'].filter(some);
  const columns = [
    {
      title: 'Peer',
      text: true,
      cell: (line) => [
        swatch(styleOf(line.peer, line.precision), false),
        `\u00a0${contenderName(line.peer)}`,
      ],
    },
    { title: 'Its precision', text: true, cell: (line) => line.precision },
    { title: 'Against Sightline’s', text: true, cell: (line) => line.against ?? 'none as wide' },
    ...kinds.flatMap((kind) => [
      {
        title: `${kind === 'prefill' ? 'Prefill' : 'Decode'}, mean`,
        cell: (line) => mean(line[kind]),
      },
      { title: 'worst to best', cell: (line) => fix(range(line[kind]), line[kind]?.min) },
      {
        title: 'peer faster in',
        cell: (line) => fix(slower(line[kind]), line[kind] && line[kind].lost / line[kind].count),
      },
    ]),
    {
      title: 'Error, Sightline',
      hint: 'Median relative L2 error over the rows compared',
      cell: (line) => numeric(line.ourError, scientific),
    },
    {
      title: 'Error, peer',
      hint: 'Median relative L2 error over the rows compared',
      cell: (line) => numeric(line.theirError, scientific),
    },
    view.summary.some((line) => line.failed) && {
      title: 'Not timed',
      hint: 'Rows whose output was wrong, or which the peer could not run',
      cell: (line) => numeric(line.failed || null, String),
    },
  ].filter(Boolean);
  return table(
    'Time of each peer divided by the time of Sightline: geometric means over the rows of models',
    columns,
    view.summary,
  );
}

const UNIT_ORDER = ['fp32_fma', 'int8_dot', 'int16_dot', 'bf16_dot'];
const LEVELS = ['L1', 'L2', 'L3', 'DRAM'];

function roofsTable(files) {
  const lines = files.flatMap((file) => {
    const tiers = [...new Set([...Object.keys(file.roofs), ...Object.keys(file.bandwidth)])];
    return (tiers.length ? tiers : [file.context.tier ?? '–']).map((tier) => ({
      file,
      tier,
      units: file.roofs[tier] ?? {},
    }));
  });
  const units = [
    ...UNIT_ORDER,
    ...new Set(
      lines.flatMap((line) => Object.keys(line.units)).filter((unit) => !UNIT_ORDER.includes(unit)),
    ),
  ];
  const columns = [
    { title: 'CPU', text: true, cell: (line) => line.file.label },
    { title: 'Tier', text: true, cell: (line) => line.tier },
    files.some((file) => file.context.threads > 1) && {
      title: 'Threads',
      cell: (line) => numeric(line.file.context.threads ?? 1, String),
    },
    ...units.map((unit) => ({
      title: unitName(unit),
      unit: 'GOP/s',
      cell: (line) => numeric(line.units[unit], giga),
    })),
    ...LEVELS.map((level) => ({
      title: `read ${level}`,
      unit: 'GB/s',
      cell: (line) => {
        const point = line.file.bandwidth[line.tier]?.find((one) => one.level === level);
        return point
          ? {
              node: el('span', { title: `at ${bytes(point.bytes)}` }, giga(point.rate)),
              sort: point.rate,
            }
          : { node: null, sort: '' };
      },
    })),
  ].filter(Boolean);
  return table('Measured peaks', columns, lines);
}

function storeTable(view) {
  const lines = view.cases
    .filter((item) => item.kind === 'store')
    .flatMap((item) => item.runs.map((run) => ({ item, run })))
    .sort((a, b) => a.item.sweep - b.item.sweep);
  if (!lines.length) return null;
  const several = new Set(lines.map(({ run }) => run.contender)).size > 1;
  const columns = [
    {
      title: 'Model',
      text: true,
      cell: ({ item, run }) => [
        item.model,
        el('span.sub', {}, headsText(item.shape)),
        notesOf(run),
      ],
    },
    { title: 'Operation', text: true, cell: ({ item }) => operationCell(item) },
    several && { title: 'By', text: true, cell: ({ run }) => contenderName(run.contender) },
    { title: 'Precision', text: true, cell: ({ run }) => run.precision },
    TIME_COLUMN,
    {
      title: 'Elements',
      unit: '10⁹/s',
      cell: ({ item, run }) => numeric(isShare(item.op) ? null : run.rate, giga),
    },
    {
      title: 'Written',
      unit: 'GB/s',
      cell: ({ item, run }) =>
        numeric(
          run.kvBytes && run.time && !isShare(item.op) ? run.kvBytes / run.time : null,
          giga,
        ),
    },
    {
      title: 'Of roof',
      unit: '%',
      hint: 'Of the read bandwidth at this footprint',
      cell: ({ run }) => numeric(run.roof, percent),
    },
    {
      title: 'Error',
      hint: 'Relative L2 error of an attention over what was stored',
      cell: ({ run }) => numeric(run.error, scientific),
    },
  ].filter(Boolean);
  return table('Storing K and V', columns, lines, { tall: lines.length > 30 });
}

function acrossTable(comparison, files) {
  const [first] = comparison.columns;
  const columns = [
    {
      title: 'Model',
      text: true,
      cell: (row) => [row.model, el('span.sub', {}, headsText(row.shape))],
    },
    { title: 'Operation', text: true, cell: (row) => operationCell(row) },
    { title: 'Precision', text: true, cell: (row) => row.precision },
    ...comparison.columns.map(({ file }, column) => ({
      title: files[file].label,
      unit: 'µs',
      cell: (row) => {
        const run = row.runs[column];
        if (!run) return { node: null, sort: '' };
        const roof =
          run.roof === null ? null : el('span.sub', {}, `${percent(run.roof)}${NARROW}% of roof`);
        return { node: [micros(run.time), noise(run), roof], sort: run.time };
      },
    })),
    ...comparison.columns.slice(1).map(({ file }, index) => ({
      title:
        comparison.columns.length > 2
          ? `${files[file].label}, against the first`
          : 'Against the first',
      hint: `Time in ${files[file].label} divided by time in ${files[first.file].label}`,
      cell: (row) =>
        numeric(
          row.runs[0] && row.runs[index + 1] ? row.runs[index + 1].time / row.runs[0].time : null,
          times,
        ),
    })),
  ];
  const models = comparison.rows.filter((row) => !row.sweep);
  return table(
    'Time of Sightline in each file',
    columns,
    models.length ? models : comparison.rows,
    {
      tall: true,
    },
  );
}
