// The page from top to bottom. What depends on the chosen file, tier and threads is drawn anew when
// the choice changes.

const data = JSON.parse(document.getElementById('data').textContent);
const { files, across, licences } = data;
orderPeers(files.flatMap((file) => file.contenders.map((contender) => contender.name)));
document.title += ': ' + files.map((file) => file.label).join(', ');
const choice = {
  file: Math.max(
    0,
    files.findIndex((file) => file.rowCount),
  ),
  view: 0,
};

const CLASSES = [
  { title: '32-bit', has: (precision) => bitsOf(precision) === 32 },
  { title: '16-bit', has: (precision) => bitsOf(precision) === 16 },
  { title: '8-bit', has: (precision) => bitsOf(precision) === 8 },
  { title: 'other precisions', has: (precision) => ![32, 16, 8].includes(bitsOf(precision)) },
];

const clockRank = (name) => (name === 'sightline' ? -1 : peersSeen.indexOf(name));

// [{ contender, precision, label, style, points }] of some cases, Sightline first. point(item, run)
// may be null.
function seriesOf(cases, accepts, point) {
  const series = new Map();
  for (const item of cases) {
    for (const run of item.runs) {
      if (run.failed || !run.time || !accepts(run)) continue;
      const made = point(item, run);
      if (!made || !(made.x > 0) || !(made.y > 0)) continue;
      const key = `${run.contender}/${run.precision}`;
      if (!series.has(key)) {
        const { contender, precision } = run;
        series.set(key, {
          contender,
          precision,
          label: `${contenderName(contender)} ${precision}`,
          short: precision,
          style: styleOf(contender, precision),
          points: [],
        });
      }
      const { label } = series.get(key);
      const noisy = isNoisy(run) ? `\nspread ${spreadText(run)}` : '';
      const roof = run.roof === null ? '' : `, ${percent(run.roof)} % of roof`;
      series.get(key).points.push({
        ...made,
        title:
          `${label}\n${item.model}, ${lengthText(item.op, item.shape)}\n` +
          `${seconds(run.time)}${run.rate ? `, ${giga(run.rate)} ${rateUnit(item.kind)}` : ''}` +
          `${roof}${run.error === null ? '' : `\nerror ${scientific(run.error)}`}${noisy}`,
      });
    }
  }
  return [...series.values()].sort(
    (a, b) =>
      clockRank(a.contender) - clockRank(b.contender) || bitsOf(b.precision) - bitsOf(a.precision),
  );
}

const caches = (file) =>
  file.context.caches.map((cache) => `L${cache.level} ${bytes(cache.size)}`).join(', ');

function header() {
  const themes = [
    ['auto', 'Auto'],
    ['light', 'Light'],
    ['dark', 'Dark'],
  ];
  const buttons = themes.map(([theme, title]) =>
    el(
      'button',
      {
        type: 'button',
        'aria-pressed': String(theme === currentTheme()),
        'data-theme-choice': theme,
        onclick: () => setTheme(theme),
      },
      title,
    ),
  );
  return el(
    'header.top',
    {},
    el(
      'div.title',
      {},
      el('h1', {}, 'Sightline benchmark'),
      el('div.themes', { role: 'group', 'aria-label': 'Colours' }, buttons),
    ),
    el(
      'ul.machines',
      {},
      files.map((file) => {
        const { context } = file;
        const facts = [
          context.tier && `tier ${context.tier}`,
          context.sightline && `Sightline ${context.sightline}`,
          context.compiler,
          context.build && context.build !== 'Release' && `${context.build} build`,
          context.os,
          context.date && context.date.replace('T', ' ').slice(0, 16),
          context.threads > 1 && plural(context.threads, 'thread'),
          context.pinned && `pinned to CPU ${context.pinned}`,
          context.governor && context.governor !== 'performance' && `governor ${context.governor}`,
          caches(file),
          `${plural(file.rowCount, 'row')} in ${file.name}`,
        ].filter(Boolean);
        return el(
          'li',
          {},
          el('strong', {}, context.cpu ?? 'unnamed CPU'),
          el('span', {}, facts.join(' · ')),
        );
      }),
    ),
  );
}

function currentTheme() {
  return document.documentElement.dataset.theme ?? 'auto';
}

function setTheme(theme) {
  if (theme === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  for (const button of document.querySelectorAll('[data-theme-choice]')) {
    button.setAttribute('aria-pressed', String(button.dataset.themeChoice === theme));
  }
  try {
    localStorage.setItem('sightline-theme', theme);
  } catch {
    // Pages opened from a disk may have no storage; the choice then lasts as long as the page.
  }
}

// A roof that moved further than this fraction says that the CPU was not the same all the time.
const MAX_DRIFT = 0.05;

function warnings(file) {
  const list = [];
  if (!file.rowCount) list.push(`${file.name} holds no rows: there is nothing to show for it.`);
  if (file.strangerCount)
    list.push(
      `${file.name}: ${plural(file.strangerCount, 'row')} with another kind of name left out, ` +
        `such as “${file.strangers[0]}”.`,
    );
  const { build, governor } = file.context;
  if (build !== null && build !== 'Release')
    list.push(
      `${file.label}: the benchmark was built as ${build || 'no type at all'}, not as Release: ` +
        'its times say little.',
    );
  if (governor && governor !== 'performance')
    list.push(
      `${file.label}: the CPU’s frequency governor was “${governor}”; “performance” gives ` +
        'steadier times.',
    );
  for (const [tier, drift] of Object.entries(file.drift)) {
    if (Math.abs(drift) > MAX_DRIFT) {
      list.push(
        `${file.label}: at the end of the run the fp32 roof of tier ${tier} was ` +
          `${drift > 0 ? 'up' : 'down'} by ${percent(Math.abs(drift))} %. ` +
          'The CPU changed its speed or had other work, so take fractions of a roof with care.',
      );
    }
  }
  return list.map((text) => el('p.warning', { role: 'note' }, text));
}

// Only what there is a choice of.
function chooser() {
  const select = (title, options, selected, change) =>
    options.length < 2
      ? null
      : el(
          'label',
          {},
          title,
          ' ',
          el(
            'select',
            { 'aria-label': title, onchange: (event) => change(Number(event.target.value)) },
            options.map((text, i) => el('option', { value: i, selected: i === selected }, text)),
          ),
        );
  const { views } = files[choice.file];
  const parts = [
    select(
      'CPU or file',
      files.map((file) => file.label),
      choice.file,
      (index) => show({ file: index, view: 0 }),
    ),
    select(
      'Tier and threads',
      views.map((view) => `${view.tier}, ${plural(view.threads, 'thread')}`),
      choice.view,
      (index) => show({ ...choice, view: index }),
    ),
  ].filter(Boolean);
  return parts.length
    ? el('div.chooser', { role: 'group', 'aria-label': 'What the sections below show' }, parts)
    : null;
}

function reachedCards(view) {
  return el(
    'div.cards',
    {},
    view.reached.map((line) => {
      const unit = view.roofs.find(
        (roof) => !roof.peers && roof.precision === line.precision,
      )?.unit;
      const part = (title, range, roof) =>
        range &&
        el(
          'div.figure',
          {},
          el('span.big', {}, percent(range.median), el('small', {}, `${NARROW}%`)),
          el('span.of', {}, `of the ${roof} in ${title}`),
          el(
            'span.sub',
            {},
            range.count > 1
              ? `median of ${plural(range.count, 'row')}, ${percent(range.min)} to ${percent(range.max)} %`
              : 'one row',
          ),
        );
      const parts = [
        part('prefill', line.prefill, `${unit ? unitName(unit) : 'arithmetic'} peak`),
        part('decode', line.decode, 'read bandwidth'),
      ].filter(Boolean);
      return el(
        'article.card',
        { style: `--accent: var(--ours-${shadeOf(line.precision)})` },
        el('h3', {}, `Sightline ${line.precision}`),
        parts.length
          ? el('div.figures', {}, parts)
          : el('p.sub', {}, 'no row of a model with a roof'),
        el(
          'p.sub',
          {},
          line.error
            ? `error ${scientific(line.error.median)}` +
                (line.error.count > 1 ? `, median; at most ${scientific(line.error.max)}` : '')
            : 'error not measured',
          line.noisy
            ? ` · ${plural(line.noisy, 'row')} with a spread of more than ${percent(MAX_SPREAD)} %`
            : '',
        ),
      );
    }),
  );
}

function ratioCharts(view) {
  return ['prefill', 'decode'].map((kind) => {
    const groups = view.summary
      .filter((line) => line[kind])
      .map((line) => {
        const style = styleOf(line.peer, line.precision);
        const pairs = view.pairs.filter((pair) => {
          const item = view.cases[pair.case];
          return (
            pair.peer === line.peer &&
            pair.precision === line.precision &&
            pair.ratio !== null &&
            item.kind === kind &&
            !item.sweep
          );
        });
        return {
          label: `${contenderName(line.peer)} ${line.precision} : ${line.against}`,
          short: `${contenderName(line.peer)} ${line.precision}`
            .replace('ONNX Runtime', 'ORT')
            .replace('naive loops', 'naive'),
          mean: line[kind].geomean,
          points: pairs.map((pair) => {
            const item = view.cases[pair.case];
            return {
              x: pair.ratio,
              color: style.color,
              title: `${times(pair.ratio)}  ${item.model}\n${caseText(item)}`,
            };
          }),
        };
      });
    if (!groups.length) return null;
    return ratioChart(
      `${kind === 'prefill' ? 'Prefill' : 'Decode'}: peer time ÷ Sightline time`,
      groups,
    );
  });
}

function summarySection(file, view) {
  const absent = file.contenders.filter((contender) => contender.absent);
  const peers = view.summary.length
    ? [
        el(
          'p.intro',
          {},
          'Below, every dot is one row of a model: how many times as long a peer takes as ' +
            'Sightline. The bar is the geometric mean; left of 1 the peer is faster. A peer is ' +
            'only set against numbers of the same width: “oneDNN bf16 : f16” is oneDNN in bf16 ' +
            'against Sightline in f16.',
        ),
        el('div.grid', {}, ratioCharts(view)),
        summaryTable(view),
      ]
    : [
        el(
          'p.empty',
          {},
          file.contenders.some((contender) => contender.name !== 'sightline' && !contender.absent)
            ? 'No row of a model was measured with a peer as well.'
            : 'This file has no peers: run the benchmark with --peers to compare.',
        ),
      ];
  return section(
    'summary',
    'At a glance',
    'How much of what this CPU can do at all Sightline reaches: of the arithmetic in prefill, ' +
      'of the read bandwidth in decode. The rows of models count here, noisy ones included, ' +
      'but not the length sweeps.',
    reachedCards(view),
    peers,
    absent.length
      ? el(
          'p.sub',
          {},
          'Not in this run: ',
          absent.map((one) => `${contenderName(one.name)} (${one.absent})`).join(', '),
          '.',
        )
      : null,
  );
}

function roofsSection() {
  return section(
    'roofs',
    'CPUs and their roofs',
    'What each CPU can do at most, measured in the same run as everything else: ' +
      'multiplications and additions of each kind on registers alone (two operations for each ' +
      'multiply-add), and reading memory at footprints that fit one cache level. A dash means ' +
      'that the tier has no such instruction, or that it was not measured.',
    roofsTable(files),
  );
}

// The roofs of some series: those that are all but the same are one line, and one of another tier
// (peers choose their instructions themselves) says so.
function roofLines(view, series) {
  const lines = [];
  for (const { peers, precision, tier, unit, rate } of view.roofs) {
    if (!series.some((one) => one.precision === precision && !one.style.ours === peers)) continue;
    const near = lines.find((line) => Math.abs(line.rate / rate - 1) < 0.05);
    if (!near) {
      const name = unitName(unit) + (tier === view.tier ? '' : ` (${tier})`);
      lines.push({ rate, names: [name], units: [unit] });
    } else if (!near.units.includes(unit)) {
      near.names.push(unitName(unit));
      near.units.push(unit);
    }
  }
  return lines.map(({ rate, names }) => ({ rate, name: names.join(', ') }));
}

// [{ …sweep, cases, text }] of one operation; text names what a curve holds fixed, and the sweep
// where two hold the same.
function sweepsIn(view, op) {
  const mine = view.sweeps
    .filter((sweep) => sweep.op === op)
    .map((sweep) => ({
      ...sweep,
      cases: sweep.cases.map((index) => view.cases[index]),
      text: sweepText(sweep),
    }));
  return mine.map((sweep) => {
    const twins = mine.filter((other) => other.text === sweep.text);
    return twins.length > 1 ? { ...sweep, text: `${sweep.text}, ${sweep.model}` } : sweep;
  });
}

function throughputCharts(view, { op, cases, over, text }) {
  const point = (item, run) => ({ x: item.shape[over], y: run.rate / 1e9 });
  const axis = op !== 'cross' ? 'length, tokens' : over === 'k' ? 'keys' : 'queries';
  const draw = (title, series, options) =>
    throughputChart(`${title}, ${text}`, series, roofLines(view, series), {
      over: axis,
      ...options,
    });
  const own = seriesOf(cases, (run) => run.contender === 'sightline', point);
  const all = own.length > 1 ? draw('Sightline alone', own, { endLabels: true }) : null;
  const classes = CLASSES.map((kind) => {
    const series = seriesOf(cases, (run) => kind.has(run.precision), point);
    const repeats = own.length > 1 && series.every((one) => one.style.ours);
    return series.length && !repeats ? draw(kind.title, series) : null;
  });
  return [all, ...classes].filter(Boolean);
}

function storeCharts({ op, cases, over, text }) {
  const series = seriesOf(
    cases,
    () => true,
    (item, run) => ({
      x: item.shape[over],
      y: run.rate / 1e9,
      roof: run.roof && run.rate / run.roof / 1e9,
    }),
  );
  return series.length ? [storeChart(`${capital(opShort(op))}, ${text}`, series)] : [];
}

function throughputSection(view) {
  const ops = [...PREFILL, ...STORE].map((op) => {
    const panels = sweepsIn(view, op)
      .map((sweep) => (kindOf(op) === 'store' ? storeCharts(sweep) : throughputCharts(view, sweep)))
      .filter((charts) => charts.length);
    if (!panels.length) return null;
    const grids = panels.every((charts) => charts.length === 1) ? [panels.flat()] : panels;
    return [el('h3', {}, capital(OP_NAMES[op])), grids.map((charts) => el('div.grid', {}, charts))];
  });
  return section(
    'throughput',
    'Speed over length',
    'The length sweeps; those of decoding are below. Dotted lines are roofs: what the ' +
      'multiplications alone would allow, and in preparing and appending, the memory. Causal ' +
      'attention counts the half that is not masked, and the diagonal. The sweep has fewer heads at great ' +
      'lengths, so compare rates, not times. A peer chooses its instructions itself and may know ' +
      'some that Sightline’s tier does not have. Point at a mark for its figures.',
    ops.some(Boolean)
      ? ops
      : el(
          'p.empty',
          {},
          'There are no length sweeps here: run the benchmark without --quick and without a ' +
            'filter that leaves them out.',
        ),
  );
}

function decodeSection(view) {
  const decode = view.cases.filter((item) => item.kind === 'decode');
  const bandwidth = DECODE.map((op) => {
    const charts = CLASSES.map((kind) => {
      const series = seriesOf(
        decode.filter((item) => item.op === op),
        (run) => kind.has(run.precision),
        (item, run) => ({ x: run.kvBytes, y: run.kvBytes / run.time / 1e9 }),
      );
      return series.length
        ? bandwidthChart(`${kind.title}, ${opShort(op)}`, series, view.bandwidth)
        : null;
    }).filter(Boolean);
    return charts.length
      ? [el('h3', {}, `${capital(OP_NAMES[op])}: bandwidth`), el('div.grid.three', {}, charts)]
      : null;
  });
  const latency = DECODE.flatMap((op) => sweepsIn(view, op)).map(({ op, cases, over, text }) => {
    const charts = CLASSES.map((kind) => {
      const series = seriesOf(
        cases,
        (run) => kind.has(run.precision),
        (item, run) => ({ x: item.shape[over], y: run.time * 1e6 }),
      );
      return series.length ? latencyChart(`${kind.title}, ${text}`, series) : null;
    }).filter(Boolean);
    return charts.length
      ? [
          el('h3', {}, `${capital(OP_NAMES[op])}: time of a step, ${text}`),
          el('div.grid.three', {}, charts),
        ]
      : null;
  });
  return section(
    'decode',
    'Decoding',
    'One query at a time (or one for each beam) reads all of K and V, so the roof is the read ' +
      'bandwidth at that footprint: the rings are where it was measured. The time of a step for ' +
      'each model is in the tables further down. Heads are written query heads / key heads × ' +
      'head dimension.',
    decode.length ? [bandwidth, latency] : el('p.empty', {}, 'There are no decode rows here.'),
  );
}

function errorSection(view) {
  const charts = ['prefill', 'decode']
    .map((kind) => {
      const cases = view.cases.filter((item) => item.kind === kind);
      const models = cases.filter((item) => !item.sweep);
      const series = seriesOf(
        models.length ? models : cases,
        (run) => run.error > 0 && run.rate,
        (_, run) => ({ x: run.error, y: run.rate / 1e9 }),
      );
      return series.length ? errorChart(kind === 'prefill' ? 'Prefill' : 'Decode', series) : null;
    })
    .filter(Boolean);
  return section(
    'error',
    'Error against speed',
    'Up and to the left is better. The error is the relative L2 norm of the difference to ' +
      'attention in double precision, on the same inputs. Each mark is a row of a model; the ' +
      'names stand above Sightline’s.',
    charts.length ? el('div.grid', {}, charts) : el('p.empty', {}, 'No row here has an error.'),
  );
}

const ACROSS = 'Across CPUs and files';

function acrossSection() {
  if (files.length < 2) return null;
  if (!across.length)
    return section('across', ACROSS, 'These files have no row of Sightline in common.');
  return section(
    'across',
    ACROSS,
    'Sightline on the same work in each file, with the best tier that the file has. Files of one ' +
      'CPU are told apart by what differs, or by their names. The bars are geometric means over ' +
      'the rows of models that all files have.',
    across.map((comparison) => {
      const name = (column) => files[comparison.columns[column].file].label;
      const charts = ['prefill', 'decode']
        .map((kind) => {
          const means = comparison.means.filter((mean) => mean.kind === kind);
          if (!means.length) return null;
          const bars = means.map((mean) => ({
            precision: mean.precision,
            name: name(mean.column),
            value: mean.rate / 1e9,
          }));
          return machinesChart(
            kind === 'prefill' ? 'Prefill' : 'Decode',
            'GOP/s',
            bars,
            d3.max(means, (mean) => mean.count),
          );
        })
        .filter(Boolean);
      return [
        across.length > 1 ? el('h3', {}, plural(comparison.threads, 'thread')) : null,
        charts.length ? el('div.grid', {}, charts) : null,
        acrossTable(comparison, files),
      ];
    }),
  );
}

function modelsSection(view) {
  const peers = peersSeen.filter((peer) => view.pairs.some((pair) => pair.peer === peer));
  const cases = view.cases.filter(
    (item) => item.kind !== 'store' && item.runs.some((run) => run.contender === 'sightline'),
  );
  const sweepsLast = [...cases].sort((a, b) => a.sweep - b.sweep);
  const models = [...new Set(sweepsLast.map((item) => item.model))];
  const lost = view.cases.flatMap((item) =>
    item.runs
      .filter((run) => run.failed)
      .map(
        (run) =>
          `${contenderName(run.contender)} ${run.precision}, ${item.model} ${caseText(item)}: ` +
          run.failed,
      ),
  );
  const lonely = view.pairs
    .filter((pair) => pair.against === null)
    .map((pair) => `${contenderName(pair.peer)} ${pair.precision}`);
  return section(
    'models',
    'Model by model',
    [
      'One line for each operation and precision of Sightline. A peer’s column says how many ' +
        'times as long it takes, what it ran at and its error; where a peer is faster the figure ' +
        'is marked ▾. A click on a heading sorts, another click turns the order round.',
      '“Spread” marks a row whose median is known only to within an interval of more than ' +
        `${percent(MAX_SPREAD)} % of it (95 % confidence); a note in italics says what a model ` +
        'has and the benchmark leaves out, for everybody.',
    ],
    models.length
      ? models.map((model) =>
          modelTable(
            view,
            model,
            cases.filter((item) => item.model === model),
            peers,
          ),
        )
      : el('p.empty', {}, 'There are no rows of Sightline here.'),
    lonely.length
      ? el(
          'p.sub',
          {},
          'Compared with nothing, as Sightline has no precision of that width here: ' +
            `${[...new Set(lonely)].join(', ')}.`,
        )
      : null,
    lost.length
      ? el(
          'details',
          { open: true },
          el('summary', {}, `Not timed: ${plural(lost.length, 'row')}`),
          el(
            'ul.plain',
            {},
            lost.map((text) => el('li', {}, text)),
          ),
        )
      : null,
  );
}

function storeSection(view) {
  return section(
    'stores',
    'Preparing, appending and sharing',
    'What comes before attention: packing (and quantising) an encoder’s K and V once, adding q ' +
      'tokens to a cache that holds k, and passing K and V on: forks and beam search copy ' +
      'nothing but what is written to afterwards, and mapping a file reads nothing of K and V ' +
      'unless it is verified (full).',
    storeTable(view) ?? el('p.empty', {}, 'There are no such rows here.'),
  );
}

function contendersSection(file) {
  const sorted = [...file.contenders].sort((a, b) => clockRank(a.name) - clockRank(b.name));
  return section(
    'contenders',
    'Who ran, and what their times hold',
    'Everybody got the same numbers, in the layout each likes best, and was checked against ' +
      'double precision before being timed. What was done outside of the time is said here.',
    el(
      'div.cards',
      {},
      sorted.map((one) => {
        const precisions = Object.entries(one.offers);
        const style = one.name === 'sightline' ? 'var(--ours-i8)' : styleOf(one.name, 'f32').color;
        return el(
          `article.card${one.absent ? '.absent' : ''}`,
          { style: `--accent: ${style}` },
          el(
            'h3',
            {},
            contenderName(one.name),
            one.version ? el('span.version', {}, ` ${one.version}`) : null,
          ),
          one.absent ? el('p', {}, `Absent: ${one.absent}`) : null,
          precisions.length
            ? el(
                'dl',
                {},
                precisions.map(([precision, offer]) => [
                  el('dt', {}, precision),
                  el(
                    'dd',
                    {},
                    offer.tensors ?? 'no description',
                    el('span.sub', {}, `Not timed: ${offer.notTimed || 'nothing'}`),
                  ),
                ]),
              )
            : null,
          one.notMeasured.length
            ? [
                el('h4', {}, 'Not measured'),
                el(
                  'ul.plain',
                  {},
                  one.notMeasured.map(({ precision, ops, reason }) =>
                    el('li', {}, `${precision}, ${ops.map(opShort).join(', ')}: ${reason}`),
                  ),
                ),
              ]
            : null,
        );
      }),
    ),
  );
}

function footer() {
  return el(
    'footer',
    {},
    el(
      'p',
      {},
      'Times are medians: of CPU time for one thread, of wall time for more. G is 10⁹, KiB is ' +
        '1024 bytes.',
    ),
    el(
      'details',
      {},
      el('summary', {}, 'Software inside this page, and its licences'),
      licences.map(({ packages, text }) =>
        el('div.licence', {}, el('p', {}, packages.join(', ')), el('pre', {}, text)),
      ),
    ),
  );
}

const SECTIONS = [
  ['summary', 'At a glance'],
  ['roofs', 'Roofs'],
  ['across', 'Across'],
  ['throughput', 'Speed over length'],
  ['decode', 'Decoding'],
  ['error', 'Error'],
  ['models', 'Models'],
  ['stores', 'Stores'],
  ['contenders', 'Contenders'],
];

function show(next) {
  Object.assign(choice, next);
  const file = files[choice.file];
  const view = file.views[choice.view];
  const parts = view
    ? {
        summary: summarySection(file, view),
        roofs: roofsSection(),
        across: acrossSection(),
        throughput: throughputSection(view),
        decode: decodeSection(view),
        error: errorSection(view),
        models: modelsSection(view),
        stores: storeSection(view),
        contenders: contendersSection(file),
      }
    : { roofs: roofsSection(), contenders: contendersSection(file) };
  const present = SECTIONS.filter(([id]) => parts[id]);
  const what =
    view &&
    el(
      'p.what',
      {},
      el('strong', {}, file.label),
      `, tier ${view.tier}, ${plural(view.threads, 'thread')}`,
    );
  document.getElementById('report').replaceChildren(
    header(),
    ...files.flatMap(warnings),
    el(
      'nav',
      { 'aria-label': 'Sections' },
      el(
        'div.bar',
        {},
        el(
          'ul',
          {},
          present.map(([id, title]) => el('li', {}, el('a', { href: `#${id}` }, title))),
        ),
        chooser(),
      ),
    ),
    el(
      'main',
      {},
      what,
      present.map(([id]) => parts[id]),
    ),
    footer(),
  );
  forgetCharts();
  drawCharts();
}

try {
  const saved = localStorage.getItem('sightline-theme');
  if (saved === 'light' || saved === 'dark') document.documentElement.dataset.theme = saved;
} catch {
  // As above.
}

// Headings that sort can be reached and pressed with the keyboard too.
document.addEventListener('keydown', (event) => {
  if (
    (event.key === 'Enter' || event.key === ' ') &&
    event.target.matches?.('table.sortable thead th')
  ) {
    event.preventDefault();
    event.target.click();
  }
});

let waiting = 0;
window.addEventListener('resize', () => {
  clearTimeout(waiting);
  waiting = setTimeout(drawCharts, 150);
});
show({});
