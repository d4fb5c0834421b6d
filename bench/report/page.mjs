// Puts the page together: template, style, libraries, our scripts and the data, all in one string
// that needs no network.

import { existsSync, readFileSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { InputError } from './data.mjs';

const here = path.dirname(fileURLToPath(import.meta.url));

// In this order: Plot looks for d3.
const LIBRARIES = [
  'd3/dist/d3.min.js',
  '@observablehq/plot/dist/plot.umd.min.js',
  'sortable-tablesort/dist/sortable.min.js',
];
// Later ones use earlier ones; together they are one function.
const SCRIPTS = ['../shared.mjs', 'format.js', 'dom.js', 'charts.js', 'tables.js', 'main.js'];
// Packages whose code the bundles above contain. d3 only uses the rest of what it depends on in
// command-line programs.
const ALSO_INSIDE = [
  '@observablehq/plot',
  'd3',
  'delaunator',
  'internmap',
  'interval-tree-1d',
  'binary-search-bounds',
  'isoformat',
  'robust-predicates',
  'sortable-tablesort',
];

// Where `npm ci` has put the packages of package.json.
export function modulesFolder() {
  return process.env.SIGHTLINE_REPORT_MODULES || path.join(here, 'node_modules');
}

function readModule(file) {
  const full = path.join(modulesFolder(), file);
  try {
    return readFileSync(full, 'utf8');
  } catch {
    throw new InputError(
      `${full} is missing: run \`npm ci\` in ${here}, ` +
        'or set SIGHTLINE_REPORT_MODULES to the folder of the packages',
    );
  }
}

// [{ packages: ['d3-array 3.2.4', …], text }]: packages with the very same licence text share an
// entry.
function licences() {
  const folder = modulesFolder();
  const d3 = readdirSync(folder).filter((name) => name.startsWith('d3-'));
  const byText = new Map();
  for (const name of [...ALSO_INSIDE, ...d3].sort()) {
    const { version } = JSON.parse(readModule(`${name}/package.json`));
    const file = ['LICENSE', 'LICENSE.md', 'LICENSE.txt'].find((candidate) =>
      existsSync(path.join(folder, name, candidate)),
    );
    const text = readModule(`${name}/${file ?? 'LICENSE'}`).trim();
    if (!byText.has(text)) byText.set(text, []);
    byText.get(text).push(`${name} ${version}`);
  }
  return [...byText].map(([text, packages]) => ({ packages, text }));
}

// No end tag and no comment inside a script, whatever names the data holds. Six digits are more
// than any clock gives.
export function embedJson(value) {
  const short = (_, item) =>
    typeof item === 'number' && !Number.isInteger(item) ? Number(item.toPrecision(6)) : item;
  return JSON.stringify(value, short)
    .replace(/</g, '\\u003c')
    .replace(/\u2028/g, '\\u2028')
    .replace(/\u2029/g, '\\u2029');
}

const embedScript = (code) => code.replace(/<\/(script)/gi, '<\\/$1').replace(/<!--/g, '<\\!--');

export function makePage(data) {
  const ours = (name) => readFileSync(path.join(here, 'page', name), 'utf8');
  const scripts = SCRIPTS.map((name) => ours(name).replace(/^export /gm, '')).join('\n');
  const parts = {
    style: ours('style.css'),
    libraries: LIBRARIES.map((file) => `<script>${embedScript(readModule(file))}</script>`).join(
      '\n',
    ),
    data: embedJson({ ...data, licences: licences() }),
    script: embedScript(`(() => {\n'use strict';\n${scripts}\n})();`),
  };
  return ours('template.html').replace(/\{\{(\w+)\}\}/g, (_, part) => parts[part]);
}
