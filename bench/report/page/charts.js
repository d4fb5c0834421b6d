// Charts: who looks how, and the frame around a plot. A chart is drawn for the width that its frame
// has, and again when that width changes.

// A contender keeps its colour and its mark over the whole page; a precision keeps its dashes. The
// colours are told apart with the common kinds of colour blindness, and never carry anything alone.
const PEER_MARKS = {
  naive: 'times',
  xnnpack: 'square',
  onednn: 'triangle',
  onednn_graph: 'diamond',
  ggml: 'star',
  onnxruntime: 'wye',
};
const PEER_ORDER = Object.keys(PEER_MARKS);
const SPARE_MARKS = ['cross', 'plus', 'asterisk', 'hexagon'];
const DASHES = { 32: null, 16: '7 3', 8: '2.5 2.5' };

let peersSeen = []; // in their order, over all files

function orderPeers(names) {
  const rank = (name) => (PEER_ORDER.includes(name) ? PEER_ORDER.indexOf(name) : PEER_ORDER.length);
  peersSeen = [...new Set(names)]
    .filter((name) => name !== 'sightline')
    .sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1));
}

const shadeOf = (precision) =>
  /^bf16/.test(precision)
    ? 'bf16'
    : ({ 32: 'f32', 16: 'f16', 8: 'i8' }[bitsOf(precision)] ?? 'f32');

function styleOf(contender, precision) {
  const dash = /^bf16/.test(precision) ? '9 3 2 3' : (DASHES[bitsOf(precision)] ?? null);
  if (contender === 'sightline')
    return { color: `var(--ours-${shadeOf(precision)})`, symbol: 'circle', dash, ours: true };
  const spare = peersSeen.filter((name) => !PEER_ORDER.includes(name)).indexOf(contender);
  return PEER_ORDER.includes(contender)
    ? { color: `var(--peer-${contender})`, symbol: PEER_MARKS[contender], dash }
    : {
        color: 'var(--peer-other)',
        symbol: SPARE_MARKS[Math.max(spare, 0) % SPARE_MARKS.length],
        dash,
      };
}

const SYMBOLS = {
  circle: d3.symbolCircle,
  times: d3.symbolTimes,
  square: d3.symbolSquare,
  triangle: d3.symbolTriangle,
  diamond: d3.symbolDiamond,
  star: d3.symbolStar,
  wye: d3.symbolWye,
  cross: d3.symbolCross,
  plus: d3.symbolPlus,
  asterisk: d3.symbolAsterisk,
};
const strokeOnly = (symbol) => ['times', 'plus', 'asterisk'].includes(symbol);

// A piece of line with its mark, as in the chart.
function swatch(style, withLine = true) {
  const svg = d3
    .create('svg')
    .attr('width', withLine ? 30 : 14)
    .attr('height', 12)
    .attr('aria-hidden', 'true')
    .attr('class', 'swatch');
  if (withLine) {
    svg
      .append('line')
      .attr('x2', 30)
      .attr('y1', 6)
      .attr('y2', 6)
      .attr('stroke-width', style.ours ? 2.5 : 1.6)
      .attr('stroke-dasharray', style.dash)
      .style('stroke', style.color);
  }
  const bare = strokeOnly(style.symbol);
  svg
    .append('path')
    .attr('transform', `translate(${withLine ? 15 : 7},6)`)
    .attr('d', d3.symbol(SYMBOLS[style.symbol] ?? d3.symbolCircle, 38)())
    .style('fill', bare ? 'none' : style.color)
    .style('stroke', bare ? style.color : 'none')
    .attr('stroke-width', 1.6);
  return svg.node();
}

function legend(series, withLine = true) {
  return el(
    'ul.legend',
    {},
    series.map((one) => el('li', {}, swatch(one.style, withLine), one.label)),
  );
}

const frames = new Set();

// draw(width) -> the SVG. `label` is what a screen reader says of the picture.
function chart(title, label, series, draw, withLine = true) {
  const plot = el('div.plot');
  const figure = el(
    'figure.chart',
    {},
    el('figcaption', {}, title),
    legend(series, withLine),
    plot,
  );
  frames.add({ plot, draw, label, width: 0 });
  return figure;
}

function drawCharts() {
  for (const frame of frames) {
    const width = Math.floor(frame.plot.clientWidth);
    if (!width || width === frame.width) continue;
    frame.width = width;
    try {
      const svg = frame.draw(width);
      svg.setAttribute('role', 'img');
      svg.setAttribute('aria-label', frame.label);
      frame.plot.replaceChildren(svg);
    } catch (error) {
      // one chart that fails must not take the others along
      console.error(error);
      frame.plot.replaceChildren(
        el('p.empty', {}, `This chart could not be drawn. ${frame.label}`),
      );
    }
  }
}

function forgetCharts() {
  for (const frame of frames) if (!frame.plot.isConnected) frames.delete(frame);
}

const TIP = { lineHeight: 1.35, stroke: 'var(--soft)' };
const FONT = { fontSize: '12px', fontFamily: 'inherit', overflow: 'visible', background: 'none' };

function lineMarks(series) {
  return series.flatMap(({ points, style }) => [
    Plot.line(points, {
      x: 'x',
      y: 'y',
      stroke: style.color,
      strokeWidth: style.ours ? 2.5 : 1.5,
      strokeDasharray: style.dash,
      sort: 'x',
    }),
    dotMark(points, style, style.ours ? 3.6 : 3.4),
  ]);
}

function dotMark(points, style, r, opacity = 1) {
  const bare = strokeOnly(style.symbol);
  return Plot.dot(points, {
    x: 'x',
    y: 'y',
    r,
    symbol: style.symbol,
    opacity,
    fill: bare ? 'none' : style.color,
    stroke: bare ? style.color : 'none',
    strokeWidth: 1.6,
  });
}

function tipMark(series) {
  return Plot.tip(
    series.flatMap(({ points }) => points),
    Plot.pointer({ ...TIP, x: 'x', y: 'y', title: 'title', maxRadius: 30 }),
  );
}

// Ticks of a logarithmic axis: 1, 2, 5, 10, … or, where that would be too many, powers of ten.
function decadeTicks(low, high, most = 7) {
  const powers = d3.range(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)) + 1);
  const within = (ticks) => ticks.filter((tick) => tick >= low && tick <= high);
  const fine = within(
    powers.flatMap((power) => [1, 2, 5].map((first) => Number(`${first}e${power}`))),
  );
  return fine.length <= most ? fine : within(powers.map((power) => Number(`1e${power}`)));
}

const plain = (value) =>
  value < 1e-3
    ? scientific(value)
    : String(value).replace(/\B(?=(\d{3})+$)/g, value < 1 ? '' : NARROW);

// The y axis of a logarithmic chart with some air around the values. Given text, Plot does not
// leave labels out.
function logY(values, label) {
  const [low, high] = d3.extent(values);
  const domain = [low / 1.3, high * 1.3];
  const ticks = decadeTicks(...domain);
  return {
    scale: { type: 'log', domain, axis: null },
    marks: [
      Plot.gridY(ticks),
      Plot.axisY(ticks, { text: plain, tickSize: 0, label: `↑ ${label}` }),
    ],
  };
}

const lengthTick = (value) =>
  value >= 1024 && value % 1024 === 0 ? `${value / 1024}k` : String(value);

// Powers of two that cover the values, thinned out to what fits.
function lengthTicks(values, width) {
  const [low, high] = d3.extent(values);
  const from = Math.ceil(Math.log2(low));
  const to = Math.floor(Math.log2(high));
  const step = Math.max(1, Math.ceil((to - from + 1) / Math.max(2, (width - 80) / 42)));
  return d3.range(from, to + 1, step).map((power) => 2 ** power);
}

// The axis of lengths that every chart over length has.
const lengthAxis = (points, over, width) => ({
  type: 'log',
  base: 2,
  label: `${over} →`,
  ticks: lengthTicks(
    points.map((p) => p.x),
    width,
  ),
  tickFormat: lengthTick,
});

// Labels at their lines' ends, pushed apart so that they can be read.
function spreadLabels(labels, gap) {
  const sorted = [...labels].sort((a, b) => a.y - b.y);
  for (let i = 1; i < sorted.length; ++i)
    sorted[i].y = Math.max(sorted[i].y, sorted[i - 1].y + gap);
  return sorted;
}

// Operations per second over length. The distance to the roof is what matters, so the axis is
// linear and starts at zero. roofs: [{ name, rate }].
function throughputChart(title, series, roofs, { over = 'length, tokens', endLabels = false }) {
  const points = series.flatMap((one) => one.points);
  const top =
    d3.max([...points.map((point) => point.y), ...roofs.map((roof) => roof.rate / 1e9)]) * 1.1;
  const label =
    `${title}. Line chart of GOP/s over ${over}: ` +
    series
      .map((one) => `${one.label} reaches ${digits(d3.max(one.points, (p) => p.y))}`)
      .concat(roofs.map((roof) => `the ${roof.name} roof is ${giga(roof.rate)}`))
      .join(', ') +
    '.';
  return chart(title, label, series, (width) => {
    const height = Math.min(340, Math.max(230, width * 0.6));
    const unit = (height - 60) / top; // pixels for one GOP/s
    const ends = spreadLabels(
      series.map((one) => {
        const last = d3.greatest(one.points, (point) => point.x);
        return { x: last.x, y: last.y, label: one.short ?? one.label, color: one.style.color };
      }),
      13 / unit,
    );
    return Plot.plot({
      width,
      height,
      marginTop: 24,
      marginRight: endLabels ? 40 : 14,
      marginBottom: 36,
      style: FONT,
      x: lengthAxis(points, over, width),
      y: { domain: [0, top], label: '↑ GOP/s', grid: true, ticks: 6 },
      marks: [
        Plot.ruleY([0], { strokeOpacity: 0.4 }),
        Plot.ruleY(roofs, {
          y: (roof) => roof.rate / 1e9,
          stroke: 'var(--roof)',
          strokeWidth: 1.8,
          strokeDasharray: '1 3.5',
          strokeLinecap: 'round',
        }),
        ...lineMarks(series),
        Plot.text(roofs, {
          y: (roof) => roof.rate / 1e9,
          text: (roof) => `${roof.name} roof ${giga(roof.rate)}`,
          frameAnchor: 'right',
          textAnchor: 'end',
          dx: -2,
          lineAnchor: 'bottom',
          dy: -4,
          fill: 'var(--roof)',
          fontWeight: 600,
          stroke: 'var(--paper)',
          strokeWidth: 4,
        }),
        endLabels
          ? Plot.text(ends, {
              x: 'x',
              y: 'y',
              text: 'label',
              dx: 10,
              textAnchor: 'start',
              fill: (d) => d.color,
              fontWeight: 600,
            })
          : null,
        tipMark(series),
      ],
    });
  });
}

// Elements that are stored per second, over keys. Points have the roof that their own row was
// divided by; it differs with the length, and between precisions.
function storeChart(title, series) {
  const points = series.flatMap((one) => one.points);
  const roofs = series.map((one) => ({
    color: one.style.color,
    points: one.points.filter((point) => point.roof),
  }));
  const named = d3.greatest(
    roofs.map((roof) => d3.least(roof.points, (point) => point.x)).filter(Boolean),
    (point) => point.roof,
  );
  const label =
    `${title}. Line chart of Gelements/s over keys: ` +
    series
      .map(
        (one) =>
          `${one.label} between ${d3
            .extent(one.points, (p) => p.y)
            .map(digits)
            .join(' and ')}`,
      )
      .join(', ') +
    '.';
  const y = logY(
    points.flatMap((point) => [point.y, point.roof]).filter((value) => value > 0),
    'Gelements/s',
  );
  return chart(title, label, series, (width) =>
    Plot.plot({
      width,
      height: Math.min(340, Math.max(230, width * 0.6)),
      marginTop: 26,
      marginRight: 18,
      marginBottom: 36,
      style: FONT,
      x: lengthAxis(points, 'keys', width),
      y: y.scale,
      marks: [
        ...y.marks,
        ...roofs.map((roof) =>
          Plot.line(roof.points, {
            x: 'x',
            y: 'roof',
            stroke: roof.color,
            strokeWidth: 1.8,
            strokeDasharray: '1 3.5',
            strokeLinecap: 'round',
            sort: 'x',
          }),
        ),
        named
          ? Plot.text(['bandwidth roofs'], {
              x: () => named.x,
              y: () => named.roof,
              dy: -11,
              textAnchor: 'start',
              fill: 'var(--roof)',
              fontWeight: 600,
              stroke: 'var(--paper)',
              strokeWidth: 4,
            })
          : null,
        ...lineMarks(series),
        tipMark(series),
      ],
    }),
  );
}

// GB/s over the bytes that are read, below the bandwidth that was measured at such footprints.
function bandwidthChart(title, series, bandwidth) {
  const points = series.flatMap((one) => one.points);
  const xs = points.map((point) => point.x);
  const [low, high] = d3.extent([...xs, ...bandwidth.map((point) => point.bytes)]);
  const roof = bandwidth.map((point) => ({
    x: point.bytes,
    y: point.rate / 1e9,
    level: point.level,
  }));
  const curve = roof.length
    ? [{ x: low, y: roof[0].y }, ...roof, { x: high, y: roof[roof.length - 1].y }]
    : [];
  const label =
    `${title}. Scatter of GB/s over bytes of K and V: ` +
    series
      .map(
        (one) =>
          `${one.label} between ${d3
            .extent(one.points, (p) => p.y)
            .map(digits)
            .join(' and ')}`,
      )
      .concat(roof.map((point) => `${point.level} gives ${digits(point.y)}`))
      .join(', ') +
    '.';
  const y = logY(
    [...points, ...roof].map((point) => point.y),
    'GB/s',
  );
  return chart(
    title,
    label,
    series,
    (width) =>
      Plot.plot({
        width,
        height: Math.min(320, Math.max(240, width * 0.7)),
        marginTop: 26,
        marginRight: 18,
        marginBottom: 36,
        style: FONT,
        x: {
          type: 'log',
          base: 2,
          domain: [low / 1.5, high * 1.5],
          label: 'K and V read →',
          ticks: byteTicks(low, high, width),
          tickFormat: bytes,
        },
        y: y.scale,
        marks: [
          ...y.marks,
          Plot.line(curve, {
            x: 'x',
            y: 'y',
            stroke: 'var(--roof)',
            strokeWidth: 1.5,
            strokeDasharray: '1 3',
            strokeLinecap: 'round',
          }),
          Plot.dot(roof, { x: 'x', y: 'y', r: 2.5, stroke: 'var(--roof)', fill: 'var(--paper)' }),
          Plot.text(roof, {
            x: 'x',
            y: 'y',
            text: 'level',
            dy: -9,
            fill: 'var(--roof)',
            fontWeight: 600,
            stroke: 'var(--paper)',
            strokeWidth: 4,
          }),
          ...series.map((one) => dotMark(one.points, one.style, one.style.ours ? 3.8 : 3.4, 0.9)),
          tipMark(series),
        ],
      }),
    false,
  );
}

function byteTicks(low, high, width) {
  const from = Math.ceil(Math.log2(low) / 2) * 2;
  const to = Math.floor(Math.log2(high));
  const step = 2 * Math.max(1, Math.ceil((to - from + 1) / 2 / Math.max(2, (width - 80) / 62)));
  return d3.range(from, to + 1, step).map((power) => 2 ** power);
}

function latencyChart(title, series) {
  const points = series.flatMap((one) => one.points);
  const label =
    `${title}. Line chart of microseconds over keys: ` +
    series
      .map(
        (one) =>
          `${one.label} from ${d3
            .extent(one.points, (p) => p.y)
            .map(digits)
            .join(' to ')}`,
      )
      .join(', ') +
    '.';
  const y = logY(
    points.map((point) => point.y),
    'µs per step',
  );
  return chart(title, label, series, (width) =>
    Plot.plot({
      width,
      height: Math.min(320, Math.max(240, width * 0.7)),
      marginTop: 26,
      marginRight: 14,
      marginBottom: 36,
      marginLeft: 52,
      style: FONT,
      x: lengthAxis(points, 'keys', width),
      y: y.scale,
      marks: [...y.marks, ...lineMarks(series), tipMark(series)],
    }),
  );
}

// Error against speed, with a label where the middle of each cloud is.
function errorChart(title, series) {
  const points = series.flatMap((one) => one.points);
  const middles = series.map((one) => ({
    x: d3.median(one.points, (p) => p.x),
    y: d3.median(one.points, (p) => p.y),
    top: d3.max(one.points, (p) => p.y),
    text: one.label.replace('Sightline ', ''),
    style: one.style,
  }));
  const label =
    `${title}. Scatter of GOP/s over relative error, medians: ` +
    series
      .map((one, i) => `${one.label} ${digits(middles[i].y)} at ${scientific(middles[i].x)}`)
      .join(', ') +
    '.';
  const y = logY(
    points.map((point) => point.y),
    'GOP/s',
  );
  return chart(
    title,
    label,
    series,
    (width) => {
      const [low, high] = d3.extent(points, (p) => p.x);
      const powers = d3
        .range(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)) + 1)
        .map((power) => 10 ** power);
      return Plot.plot({
        width,
        height: Math.min(400, Math.max(280, width * 0.75)),
        marginTop: 26,
        marginRight: 18,
        marginBottom: 36,
        style: FONT,
        x: {
          type: 'log',
          domain: [powers[0], powers[powers.length - 1]],
          label: '← relative error, to the left is better',
          labelAnchor: 'left',
          labelArrow: 'none',
          grid: true,
          ticks: powers,
          tickFormat: (x) => `10${superscript(Math.round(Math.log10(x)))}`,
        },
        y: y.scale,
        marks: [
          ...y.marks,
          ...series.map((one) => dotMark(one.points, one.style, one.style.ours ? 3.6 : 3.2, 0.65)),
          Plot.text(
            middles.filter((d) => d.style.ours),
            {
              x: 'x',
              y: 'top',
              text: 'text',
              dy: -13,
              fill: (d) => d.style.color,
              fontWeight: 700,
              stroke: 'var(--paper)',
              strokeWidth: 5,
              fontSize: 13,
            },
          ),
          tipMark(series),
        ],
      });
    },
    false,
  );
}

// One dot for each row: how many times as long the peer took. To the left of 1 the peer is faster.
function ratioChart(title, groups) {
  const points = groups.flatMap((group) =>
    group.points.map((point) => ({ ...point, row: group.label })),
  );
  const label =
    `${title}. Dots of peer time divided by Sightline time on a logarithmic axis, geometric means: ` +
    groups.map((group) => `${group.label} ${times(group.mean)}`).join(', ') +
    '.';
  return chart(title, label, [], (width) => {
    const narrow = width < 480;
    const left = Math.min(
      narrow ? 108 : 190,
      14 + 6.6 * d3.max(groups, (group) => (narrow ? group.short : group.label).length),
    );
    const [low, high] = d3.extent([...points.map((p) => p.x), 0.8, 1.6]);
    const ticks = ratioTicks(low, high, width - left - 54);
    const nameOf = new Map(
      groups.map((group) => [group.label, narrow ? group.short : group.label]),
    );
    return Plot.plot({
      width,
      height: 58 + 46 * groups.length,
      marginTop: 30,
      marginBottom: 28,
      marginLeft: left,
      marginRight: 54,
      style: FONT,
      x: { type: 'log', domain: [low / 1.08, high * 1.08], label: null, axis: null },
      fy: { domain: groups.map((group) => group.label), axis: null, padding: 0 },
      marks: [
        low < 1
          ? Plot.rect([{ x1: low / 1.08, x2: 1 }], {
              x1: 'x1',
              x2: 'x2',
              fill: 'var(--lose)',
              fillOpacity: 0.07,
            })
          : null,
        Plot.gridX({ ticks }),
        Plot.ruleX([1], { stroke: 'currentColor', strokeOpacity: 0.7 }),
        Plot.axisX(ticks, { text: (x) => `${x}×`, label: null, tickSize: 0 }),
        Plot.text(groups, {
          fy: 'label',
          text: (d) => nameOf.get(d.label),
          frameAnchor: 'left',
          dx: -10,
          textAnchor: 'end',
        }),
        Plot.dot(
          points,
          Plot.dodgeY({
            fy: 'row',
            x: 'x',
            anchor: 'middle',
            r: 3.2,
            fill: (d) => d.color,
            fillOpacity: 0.75,
            stroke: 'var(--paper)',
            strokeWidth: 0.6,
          }),
        ),
        Plot.tickX(groups, {
          fy: 'label',
          x: 'mean',
          stroke: 'currentColor',
          strokeWidth: 2.5,
          insetTop: 5,
          insetBottom: 5,
        }),
        Plot.text(groups, {
          fy: 'label',
          text: (d) => times(d.mean),
          frameAnchor: 'right',
          dx: 48,
          textAnchor: 'end',
          fontWeight: 700,
          fontSize: 13,
        }),
        Plot.text(['← peer faster'], {
          x: () => 1,
          frameAnchor: 'top',
          fy: () => groups[0].label,
          dy: -14,
          dx: -6,
          textAnchor: 'end',
          fill: 'var(--lose)',
          fontWeight: 600,
        }),
        Plot.text(['Sightline faster →'], {
          x: () => 1,
          frameAnchor: 'top',
          fy: () => groups[0].label,
          dy: -14,
          dx: 6,
          textAnchor: 'start',
          fill: 'var(--ours-i8)',
          fontWeight: 600,
        }),
        Plot.tip(
          points,
          Plot.pointer({ ...TIP, fy: 'row', x: 'x', title: 'title', maxRadius: 24 }),
        ),
      ],
    });
  });
}

function ratioTicks(low, high, width) {
  const all = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].filter(
    (tick) => tick >= low / 1.08 && tick <= high * 1.08,
  );
  return width > 34 * all.length ? all : all.filter((tick) => Math.log10(tick) % 1 === 0);
}

// The same work in every file: one bar for each, from zero.
function machinesChart(title, unit, bars, count) {
  const said = bars.map((bar) => `${bar.precision}, ${bar.name}: ${digits(bar.value)}`);
  const label = `${title}. Bars of ${unit}: ${said.join(', ')}.`;
  return chart(`${title}, geometric mean over ${plural(count, 'row')}`, label, [], (width) => {
    const names = [...new Set(bars.map((bar) => bar.name))];
    const left = Math.min(width * 0.4, 14 + 6.6 * d3.max(names, (name) => name.length));
    const fits = Math.max(6, Math.floor((left - 14) / 6.3));
    const cut = (name) => (name.length > fits ? `${name.slice(0, fits - 1)}…` : name);
    return Plot.plot({
      width,
      height: 46 + [...new Set(bars.map((bar) => bar.precision))].length * (names.length * 24 + 12),
      marginTop: 8,
      marginLeft: left,
      marginRight: 44,
      marginBottom: 36,
      style: FONT,
      x: {
        label: `${unit} →`,
        grid: true,
        ticks: 5,
        nice: true,
        domain: [0, d3.max(bars, (bar) => bar.value) * 1.14],
      },
      y: { domain: names, label: null, tickFormat: cut, tickSize: 0, padding: 0.2 },
      fy: {
        domain: [...new Set(bars.map((bar) => bar.precision))],
        label: null,
        padding: 0.12,
        axis: 'right',
        tickSize: 0,
      },
      marks: [
        Plot.barX(bars, {
          fy: 'precision',
          y: 'name',
          x: 'value',
          fill: (bar) => `var(--ours-${shadeOf(bar.precision)})`,
          rx: 2,
        }),
        Plot.text(bars, {
          fy: 'precision',
          y: 'name',
          x: 'value',
          text: (bar) => digits(bar.value),
          dx: 5,
          textAnchor: 'start',
          stroke: 'var(--paper)',
          strokeWidth: 4,
          fill: 'currentColor',
        }),
        Plot.ruleX([0]),
      ],
    });
  });
}
