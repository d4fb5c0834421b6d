#!/usr/bin/env node
// node report.mjs A.json B.json … -o report.html
//
// Makes one page, which needs no network to be looked at, out of files that `./run bench --json
// FILE` wrote; best one for each CPU. The packages of package.json are expected in node_modules
// beside this file, or in the folder that SIGHTLINE_REPORT_MODULES names.

import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { report } from './compare.mjs';
import { InputError, readBenchmark } from './data.mjs';
import { makePage } from './page.mjs';

const USAGE = 'usage: report A.json [B.json …] -o report.html';

function parseArguments(words) {
  const inputs = [];
  let output = null;
  for (let i = 0; i < words.length; ++i) {
    const word = words[i];
    if (word === '-h' || word === '--help') return { help: true };
    if (word === '-o' || word === '--output') {
      output = words[++i];
      if (!output) throw new InputError(`${word} needs the name of a file\n${USAGE}`);
    } else if (word.startsWith('-')) {
      throw new InputError(`there is no option ${word}\n${USAGE}`);
    } else {
      inputs.push(word);
    }
  }
  if (!inputs.length) throw new InputError(`no file of the benchmark is given\n${USAGE}`);
  if (!output) throw new InputError(`-o is missing\n${USAGE}`);
  const clash = inputs.find((input) => path.resolve(input) === path.resolve(output));
  if (clash) throw new InputError(`${clash}: -o would overwrite this input`);
  return { inputs, output };
}

function readInput(file) {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    throw new InputError(
      error.code === 'ENOENT'
        ? `${file}: there is no such file`
        : `${file}: cannot be read (${error.code})`,
    );
  }
}

// Files are called by their names alone: the page is for others, whom our folders do not concern.
function shortNames(inputs) {
  const names = inputs.map((input) => path.basename(input));
  return names.map((name, i) =>
    names.indexOf(name) === names.lastIndexOf(name) ? name : `${name} (${i + 1})`,
  );
}

function main(words) {
  const { help, inputs, output } = parseArguments(words);
  if (help) {
    console.log(USAGE);
    return;
  }
  const names = shortNames(inputs);
  const files = inputs.map((input, i) => {
    const text = readInput(input);
    try {
      return readBenchmark(text, names[i]);
    } catch (error) {
      if (error instanceof InputError) error.message = input + error.message.slice(names[i].length);
      throw error;
    }
  });
  files.forEach((file, i) => {
    if (!file.rows.length) console.error(`report: ${inputs[i]}: holds no rows`);
    if (file.strangers.length) {
      console.error(
        `report: ${inputs[i]}: ${file.strangers.length} rows left out, such as "${file.strangers[0]}"`,
      );
    }
  });
  const page = makePage(report(files));
  try {
    writeFileSync(output, page);
  } catch (error) {
    throw new InputError(`${output}: cannot be written (${error.code})`);
  }
  const count = files.reduce((sum, file) => sum + file.rows.length, 0);
  console.error(`report: ${output}, ${count} rows of ${files.length} file(s)`);
}

try {
  main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof InputError)) throw error;
  console.error(`report: ${error.message}`);
  process.exitCode = 1;
}
