// Opens pages in headless Chromium and looks at what a person would see: charts with marks, tables
// that sort, both colour schemes, a phone's width and paper; and that nothing is said on the
// console and nothing asked of a network. Skipped where Chromium or playwright-core is missing.
// SIGHTLINE_REPORT_SHOTS=FOLDER keeps pictures to look at.

import assert from 'node:assert/strict';
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, it } from 'node:test';
import { pathToFileURL } from 'node:url';

import { report } from '../compare.mjs';
import { readBenchmark } from '../data.mjs';
import { makePage, modulesFolder } from '../page.mjs';
import { makeFile, makeQuickFile } from './fixtures.mjs';

function findChromium() {
  const isProgram = (file) => {
    try {
      accessSync(file, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  };
  return (process.env.PATH ?? '')
    .split(path.delimiter)
    .flatMap((folder) =>
      ['chromium', 'chromium-browser', 'google-chrome'].map((name) => path.join(folder, name)),
    )
    .find(isProgram);
}

const chromium = findChromium();
const driver = path.join(modulesFolder(), 'playwright-core');
const skip = !chromium
  ? 'Chromium is not installed'
  : !existsSync(driver)
    ? 'playwright-core is not installed'
    : false;
const shots = process.env.SIGHTLINE_REPORT_SHOTS;

const pageOf = (...files) =>
  makePage(report(files.map((file, i) => readBenchmark(JSON.stringify(file), `file${i}.json`))));

describe('the page', { skip }, () => {
  let browser;
  let folder;
  const complaints = [];

  before(async () => {
    folder = mkdtempSync(path.join(tmpdir(), 'sightline-page-'));
    if (shots) mkdirSync(shots, { recursive: true });
    const { chromium: launcher } = createRequire(path.join(driver, 'package.json'))(driver);
    browser = await launcher.launch({
      executablePath: chromium,
      args: [
        '--no-sandbox',
        '--disable-gpu',
        '--disable-quic',
        '--no-first-run',
        '--disable-background-networking',
        '--disable-component-update',
        '--disable-sync',
      ],
    });
  });
  after(async () => {
    await browser?.close();
    if (folder) rmSync(folder, { recursive: true });
  });

  async function open(name, html, options = {}) {
    const file = path.join(folder, `${name}.html`);
    writeFileSync(file, html);
    const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, ...options });
    page.setDefaultTimeout(15000);
    complaints.length = 0;
    page.on('console', (message) => complaints.push(`console: ${message.text()}`));
    page.on('pageerror', (error) => complaints.push(`exception: ${error.stack}`));
    page.on('request', (request) => {
      if (!/^(file|data):/.test(request.url())) complaints.push(`request: ${request.url()}`);
    });
    await page.goto(pathToFileURL(file).href);
    return page;
  }

  async function finish(page, picture) {
    if (shots && picture)
      await page.screenshot({ path: path.join(shots, `${picture}.png`), fullPage: true });
    await page.close();
    assert.deepEqual(complaints, []);
  }

  // [{ label, marks, broken }] of all charts.
  const charts = (page) =>
    page.$$eval('.plot', (plots) =>
      plots.map((plot) => {
        const svg = plot.querySelector('svg[role=img]');
        const marks = svg
          ? svg.querySelectorAll(
              'g[aria-label=dot] > *, g[aria-label=line] > *, g[aria-label=bar] > *',
            ).length
          : 0;
        return {
          label: svg?.getAttribute('aria-label') ?? '',
          marks,
          broken: /NaN|undefined|Infinity/.test(plot.innerHTML),
        };
      }),
    );

  const column = (page, caption, index) =>
    page.$$eval(
      'table',
      (tables, [start, i]) => {
        const table = tables.find((one) => one.caption.textContent.startsWith(start));
        return [...table.tBodies[0].rows].map((row) => row.cells[i].dataset.sort);
      },
      [caption, index],
    );

  const full = () => pageOf(makeFile('server'), makeFile('board'));

  it('has its charts, with marks and descriptions', async () => {
    const page = await open('full', full());
    const all = await charts(page);
    // 2 ratios, 2 means; 3 operations at 2 head dimensions with 4 panels each, 2 with one; decode:
    // 2 × 3 of bandwidth, 2 operations at 2 head dimensions with 3 panels of time; 2 of error.
    assert.equal(all.length, 2 + 2 + 3 * 2 * 4 + 2 * 2 + 6 + 2 * 2 * 3 + 2);
    for (const { label, marks, broken } of all) {
      assert.ok(marks > 0, `no marks: ${label}`);
      assert.ok(label.length > 30, label);
      assert.ok(!broken, label);
    }
    const roofed = (text) =>
      page.$$eval(
        '#throughput svg[role=img]',
        (plots, pattern) => plots.filter((svg) => svg.textContent.match(pattern)).length,
        text,
      );
    assert.equal(await roofed('roof \\d'), 24);
    assert.equal(await roofed('Gelements/s.*bandwidth roofs'), 4);
    const headings = await page.$$eval('#throughput h3', (all) => all.map((h) => h.textContent));
    assert.deepEqual(headings, [
      'Self-attention',
      'Causal self-attention',
      'Cross-attention',
      'Prepare',
      'Append',
    ]);
    await finish(page, 'light');
  });

  it('tells the figures of the mark that is pointed at', async () => {
    const page = await open('full', full());
    const dots = page.locator('#throughput .plot').first().locator('g[aria-label=dot]').last();
    await dots.locator('> *').nth(4).hover();
    const tip = page.locator('#throughput .plot').first().locator('g[aria-label=tip] text');
    await tip.waitFor();
    assert.match(await tip.textContent(), /Sightline i8.*sweep_d64, q 1024.*GOP\/s/s);
    if (shots) await page.screenshot({ path: path.join(shots, 'tip.png') });
    await finish(page);
  });

  it('has its tables, each with a caption and headings', async () => {
    const page = await open('full', full());
    const captions = await page.$$eval('table caption', (all) => all.map((one) => one.textContent));
    for (const start of [
      'Time of each peer',
      'Measured peaks',
      'Time of Sightline in each file',
      'bert_base',
      'gpt2',
      'whisper_base',
      'llama32_1b',
      'sweep_d64',
      'Storing',
    ]) {
      assert.ok(
        captions.some((caption) => caption.startsWith(start)),
        start,
      );
    }
    assert.equal(
      await page.$$eval(
        'table',
        (tables) =>
          tables.filter((table) => !table.caption || !table.querySelector('thead th[scope=col]'))
            .length,
      ),
      0,
    );
    const text = await page.innerText('body');
    assert.match(text, /▾.0\.\d\d×/); // a peer that is faster
    assert.match(text, /✕ not timed/);
    assert.match(text, /wrong output: relative error 0\.41/);
    assert.match(text, /spread \d\.\d.%/);
    assert.doesNotMatch(text, /±/);
    assert.match(text, /without its relative bias/);
    assert.match(text, /causal self, window\s+q 2048, k 2048, window 512/);
    const contenders = await page.innerText('#contenders');
    assert.match(contenders, /Not measured\s+f32, decode cross, decode self: its graph has one/);
    assert.match(contenders, /Not measured\s+f32, decode cross: it has no beams: every one has/);
    assert.doesNotMatch(text, /\bNaN\b|undefined|\[object|Infinity/);
    await finish(page);
  });

  it('sorts a table by click and by key', async () => {
    const page = await open('full', full());
    const heading = page
      .locator('table', { has: page.locator('caption', { hasText: 'whisper_base' }) })
      .locator('thead th')
      .nth(2);
    const sorted = (values, sign) =>
      values.every((value, i) => i === 0 || sign * (Number(value) - Number(values[i - 1])) >= 0);
    const settled = (direction) =>
      page.waitForFunction(
        ([sign]) => {
          const table = [...document.querySelectorAll('table')].find((one) =>
            one.caption.textContent.startsWith('whisper_base'),
          );
          const times = [...table.tBodies[0].rows].map((row) => Number(row.cells[2].dataset.sort));
          return times.every((time, i) => i === 0 || sign * (time - times[i - 1]) >= 0);
        },
        [direction],
      );
    assert.ok(!sorted(await column(page, 'whisper_base', 2), 1));
    await heading.click();
    await settled(1);
    assert.equal(await heading.getAttribute('aria-sort'), 'ascending');
    await heading.focus();
    await page.keyboard.press('Enter');
    await settled(-1);
    assert.equal(await heading.getAttribute('aria-sort'), 'descending');
    // What is missing comes last, whichever the order.
    await page
      .locator('table', { has: page.locator('caption', { hasText: 'whisper_base' }) })
      .locator('thead th')
      .nth(7)
      .click();
    await page.waitForTimeout(50);
    const peers = await column(page, 'whisper_base', 7);
    assert.ok(
      peers.includes('') && peers.indexOf('') > peers.findLastIndex((value) => value !== ''),
      peers.join(),
    );
    await finish(page);
  });

  it('follows the colour scheme, and the choice of one', async () => {
    const paper = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const line = (page) =>
      page.$eval('#throughput g[aria-label=line] path', (path) => getComputedStyle(path).stroke);
    const light = await open('full', full());
    const [lightPaper, lightLine] = [await paper(light), await line(light)];
    await light.close();
    const dark = await open('full', full(), { colorScheme: 'dark' });
    assert.notEqual(await paper(dark), lightPaper);
    assert.notEqual(await line(dark), lightLine);
    if (shots) await dark.screenshot({ path: path.join(shots, 'dark.png'), fullPage: true });
    await dark.getByRole('button', { name: 'Light' }).click();
    assert.equal(await paper(dark), lightPaper);
    assert.equal(await line(dark), lightLine);
    await dark.reload();
    assert.equal(await paper(dark), lightPaper);
    await dark.getByRole('button', { name: 'Auto' }).click();
    assert.notEqual(await paper(dark), lightPaper);
    await finish(dark);
  });

  it('fits a phone, and draws its charts anew for the width', async () => {
    const page = await open('full', full(), { viewport: { width: 390, height: 844 } });
    const fits = () =>
      page.evaluate(() => document.documentElement.scrollWidth <= window.innerWidth);
    assert.ok(await fits());
    assert.ok((await charts(page)).every(({ marks, broken }) => marks > 0 && !broken));
    const before = await page.$eval('#throughput svg[role=img]', (svg) =>
      Number(svg.getAttribute('width')),
    );
    if (shots) await page.screenshot({ path: path.join(shots, 'phone.png'), fullPage: true });
    await page.setViewportSize({ width: 844, height: 390 });
    await page.waitForFunction(
      (width) =>
        Number(document.querySelector('#throughput svg[role=img]').getAttribute('width')) !== width,
      before,
    );
    assert.ok(await fits());
    await finish(page);
  });

  it('prints in light colours, with nothing cut off', async () => {
    const page = await open('full', full(), {
      colorScheme: 'dark',
      viewport: { width: 1030, height: 700 },
    });
    await page.emulateMedia({ media: 'print' });
    assert.equal(
      await page.evaluate(() => getComputedStyle(document.body).backgroundColor),
      'rgb(255, 255, 255)',
    );
    assert.equal(await page.isVisible('nav'), false);
    const cut = await page.$$eval('.table-box', (boxes) =>
      boxes
        .filter(
          (box) =>
            box.scrollHeight > box.clientHeight + 1 ||
            box.querySelector('table').offsetWidth > document.documentElement.clientWidth,
        )
        .map((box) => box.getAttribute('aria-label')),
    );
    assert.deepEqual(cut, []);
    if (shots)
      await page.pdf({
        path: path.join(shots, 'print.pdf'),
        preferCSSPageSize: true,
        printBackground: true,
      });
    await finish(page);
  });

  it('shows another CPU when it is chosen', async () => {
    const page = await open('full', full());
    assert.match(await page.innerText('.what'), /Server/);
    await page.getByLabel('CPU or file').selectOption('1');
    assert.match(await page.innerText('.what'), /Board/);
    assert.ok((await charts(page)).every(({ marks, broken }) => marks > 0 && !broken));
    const contenders = await page.innerText('#contenders');
    assert.match(contenders, /Absent: not built in: not for this architecture/);
    assert.match(contenders, /Absent: not built in: CMake found no ONNX Runtime/);
    await finish(page);
  });

  it('shows several tiers and numbers of threads', async () => {
    const page = await open(
      'views',
      pageOf(makeFile('server', { tiers: ['avx2', 'avx512_vnni'], threads: [1, 4] })),
    );
    assert.match(await page.innerText('.what'), /avx512_vnni, 1 thread$/);
    await page.getByLabel('Tier and threads').selectOption('3');
    assert.match(await page.innerText('.what'), /avx2, 4 threads$/);
    assert.ok((await charts(page)).every(({ marks, broken }) => marks > 0 && !broken));
    // Peers chose the instructions of the best tier, and its roof is drawn too.
    await page.getByLabel('Tier and threads').selectOption('2');
    const labels = (await charts(page))
      .map(({ label }) => label)
      .filter((label) => /GOP/.test(label));
    const with32 = labels.find((label) => label.startsWith('32-bit, head dimension 64'));
    assert.match(with32, /the fp32 FMA roof is 58.5, the fp32 FMA \(avx512_vnni\) roof is 117/);
    const tiers = await page.$$eval('#roofs tbody td:nth-child(2)', (all) =>
      all.map((cell) => cell.textContent),
    );
    assert.deepEqual(tiers, ['avx2', 'avx512_vnni']);
    await finish(page, 'tiers');
  });

  it('tells files of one machine apart by their names', async () => {
    const page = await open(
      'twins',
      pageOf(makeFile('server', { peers: false }), makeFile('server')),
    );
    const across = await page.innerText('#across');
    assert.match(across, /^Across CPUs and files/);
    assert.doesNotMatch(across, /each CPU/);
    const headings = await page.$$eval('#across thead th', (all) =>
      all.map((th) => th.textContent),
    );
    assert.deepEqual(headings.slice(3, 5), [
      'file0.json · Example Server CPU 3.6 GHz, µs',
      'file1.json · Example Server CPU 3.6 GHz, µs',
    ]);
    const bars = await page.$$eval('#across svg[role=img]', (all) =>
      all.map((svg) => svg.textContent),
    );
    assert.equal(bars.length, 2);
    for (const text of bars) assert.match(text, /file0\.json.*file1\.json/);
    const options = await page.$$eval('select option', (all) => all.map((one) => one.textContent));
    assert.match(options.join(), /file0\.json.*file1\.json/);
    assert.match(await page.innerText('#roofs'), /file0\.json[^]*file1\.json/);
    await finish(page, 'twins');
  });

  it('warns of a build, a governor and a drift that spoil figures', async () => {
    const file = makeQuickFile('server');
    Object.assign(file.context, {
      build: 'Debug',
      governor: 'powersave',
      'roof_drift:avx512_vnni': '-0.12',
    });
    const page = await open('warnings', pageOf(file));
    const warnings = await page.$$eval('.warning', (all) => all.map((one) => one.textContent));
    assert.equal(warnings.length, 3);
    assert.match(warnings[0], /built as Debug, not as Release/);
    assert.match(warnings[1], /governor was “powersave”/);
    assert.match(warnings[2], /tier avx512_vnni was down by 12 %/);
    assert.match(await page.innerText('.machines'), /Debug build.*governor powersave/);
    await finish(page);
    const quiet = await open('quiet', pageOf(makeQuickFile('server')));
    assert.equal(await quiet.$$eval('.warning', (all) => all.length), 0);
    assert.doesNotMatch(await quiet.innerText('.machines'), /Release|performance/);
    await finish(quiet);
  });

  it('holds six peers at 1280 pixels', async () => {
    const page = await open('six', pageOf(makeFile('server')));
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= window.innerWidth));
    const wide = await page.$$eval('#models .table-box', (boxes) =>
      boxes.map((box) => ({
        columns: box.querySelectorAll('thead th').length,
        inside: box.getBoundingClientRect().right <= window.innerWidth,
        hidden: box.scrollWidth - box.clientWidth,
        // a heading or a ratio that runs into its neighbour
        clash: [...box.querySelectorAll('th, td')].some(
          (cell) => cell.scrollWidth > cell.clientWidth + 1,
        ),
      })),
    );
    assert.ok(wide.every(({ columns, inside, clash }) => columns >= 12 && inside && !clash));
    await finish(page, 'six');
  });

  const damaged = makeFile('server');
  damaged.benchmarks.forEach((row, i) => {
    for (const [j, key] of ['ops', 'roof', 'rel_l2', 'kv_bytes', 'spread', 'cpu_time'].entries()) {
      if (i % 7 === j) row[key] = [null, 'x', 0, -1][i % 4];
    }
  });
  const hostile = makeQuickFile('server');
  hostile.context.cpu =
    '</script><script>console.error("out")</script><img src=x onerror=alert(1)>';
  hostile.context['peer:<b>x/version'] = '{{script}} $& $1';
  for (const row of hostile.benchmarks)
    row.run_name = row.run_name.replace(/(gpt2|bert_base)/, '<img src=x onerror=alert(1)>');
  const bare = {
    context: {},
    benchmarks: makeQuickFile('board').benchmarks.map(({ run_name, cpu_time, time_unit }) => ({
      run_name,
      cpu_time,
      time_unit,
    })),
  };
  const peersOnly = makeFile('server');
  peersOnly.benchmarks = peersOnly.benchmarks.filter((row) => row.name.startsWith('peer:'));

  for (const [name, files, says] of [
    ['a quick run', [makeQuickFile('server')], /no length sweeps here/],
    [
      'two quick runs',
      [makeQuickFile('server'), makeQuickFile('board')],
      /geometric mean over 3 rows/,
    ],
    ['no peers', [makeFile('server', { peers: false })], /has no peers/],
    ['no rows', [{ context: {}, benchmarks: [] }], /holds no rows/],
    [
      'one of two without rows',
      [{ context: { cpu: 'Empty' }, benchmarks: [] }, makeQuickFile('board')],
      /holds no rows/,
    ],
    [
      'nothing in common',
      [makeFile('server', { cases: [] }), makeQuickFile('board')],
      /no row of Sightline in common/,
    ],
    ['damaged counters', [damaged], /Model by model/],
    ['hostile names', [hostile], /<\/script><script>/],
    ['neither context nor counters', [bare], /Model by model/],
    ['peers alone', [peersOnly], /no rows of Sightline/],
    [
      'rows with other names',
      [
        {
          ...makeQuickFile('server'),
          benchmarks: [...makeQuickFile('server').benchmarks, { name: 'BM_Copy/8' }],
        },
      ],
      /1 row with another kind of name/,
    ],
  ]) {
    it(`copes with ${name}`, async () => {
      const page = await open('odd', pageOf(...files));
      const text = await page.innerText('body');
      assert.match(text, says);
      assert.doesNotMatch(text, /\bNaN\b|undefined|\[object|Infinity/);
      for (const { label, marks, broken } of await charts(page))
        assert.ok(marks > 0 && !broken, label);
      assert.equal(await page.$$eval('#report img, #report script', (all) => all.length), 0);
      await finish(page);
    });
  }
});
