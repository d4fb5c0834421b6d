#!/usr/bin/env python3
"""Instructions of one attention (attend.cc) on each ARM tier and in each precision, exactly, under QEMU.

    count_instructions.py QEMU PLUGIN ATTEND FILE              compares with the figures of FILE: more than 2 % apart is an error
    count_instructions.py QEMU PLUGIN ATTEND FILE --write      writes them

Lines of FILE: tier, precision, millions of instructions. Two runs less one run is what one takes.
"""

import concurrent.futures
import itertools
import os
import subprocess
import sys

CPUS = {"neon": "cortex-a53", "neon_dot": "cortex-a76", "neon_i8mm": "max,sve=off"}
PRECISIONS = ["f32", "f16", "i8", "i8_fine", "bf16", "mixed16"]
TOLERANCE = 0.02


def count(qemu, plugin, attend, tier, precision, times):
    command = [qemu, "-cpu", CPUS[tier], "-L", "/usr/aarch64-linux-gnu", "-plugin", plugin, attend, precision, str(times)]
    run = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "SIGHTLINE_TIER": tier})
    return int(run.stderr.split()[-1])


def read(path):
    with open(path, encoding="utf-8") as file:
        return {tuple(line.split()[:2]): float(line.split()[2]) for line in file if line.strip()}


def millions(qemu, plugin, attend, tier, precision):
    once, twice = (count(qemu, plugin, attend, tier, precision, times) for times in (1, 2))
    return (twice - once) / 1e6


def main(qemu, plugin, attend, path, write):
    expected = {} if write else read(path)
    rows = list(itertools.product(CPUS, PRECISIONS))
    lines, failures = [], []
    # Beside each other: what is counted does not depend on how long it takes.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        counts = pool.map(lambda row: millions(qemu, plugin, attend, *row), rows)
        for row, counted in zip(rows, counts):
            lines.append(f"{' '.join(row)} {counted:.2f}")
            print(lines[-1], flush=True)
            was = expected.get(row)
            if not write and (was is None or abs(counted / was - 1) > TOLERANCE):
                failures.append(f"{lines[-1]}: " + (f"not in {path}" if was is None else f"was {was}"))
    if write:
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    files, options = sys.argv[1:5], sys.argv[5:]
    if len(files) < 4 or any(file.startswith("-") for file in files) or options not in ([], ["--write"]):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    main(*files, write=bool(options))
