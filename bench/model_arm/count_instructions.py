#!/usr/bin/env python3
"""Instructions of attentions (attend.cc) on each ARM tier and in each precision, exactly, under QEMU.

    count_instructions.py PLUGIN FILE ATTEND ATTEND32              compares with the figures of FILE: more than 2 % apart is an error
    count_instructions.py PLUGIN FILE ATTEND ATTEND32 --write      writes them

ATTEND is the program for 64-bit ARM, ATTEND32 that for 32-bit ARM.
Lines of FILE: shape, tier, precision, millions of instructions. Two runs less one run is what one takes.
"""

import concurrent.futures
import itertools
import os
import subprocess
import sys

# Tier: architecture, CPU.
CPUS = {"neon": ("aarch64", "cortex-a53"), "neon_dot": ("aarch64", "cortex-a76"), "neon_i8mm": ("aarch64", "max,sve=off"),
        "neon32": ("arm", "cortex-a7")}
LIBRARIES = {"aarch64": "/usr/aarch64-linux-gnu", "arm": "/usr/arm-linux-gnueabihf"}
SHAPES = ["self", "decode"]
PRECISIONS = ["f32", "f16", "i8", "i8_fine", "bf16", "mixed16"]
TOLERANCE = 0.02


def count(plugin, programs, shape, tier, precision, times):
    architecture, cpu = CPUS[tier]
    command = [f"qemu-{architecture}", "-cpu", cpu, "-L", LIBRARIES[architecture], "-plugin", plugin, programs[architecture],
               shape, precision, str(times)]
    run = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "SIGHTLINE_TIER": tier})
    return int(run.stderr.split()[-1])


def read(path):
    with open(path, encoding="utf-8") as file:
        return {tuple(line.split()[:-1]): float(line.split()[-1]) for line in file if line.strip()}


def millions(plugin, programs, shape, tier, precision):
    once, twice = (count(plugin, programs, shape, tier, precision, times) for times in (1, 2))
    return (twice - once) / 1e6


def main(plugin, path, aarch64, arm, write):
    programs = {"aarch64": aarch64, "arm": arm}
    expected = {} if write else read(path)
    rows = list(itertools.product(SHAPES, CPUS, PRECISIONS))
    lines, failures = [], []
    # Beside each other: what is counted does not depend on how long it takes.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        counts = pool.map(lambda row: millions(plugin, programs, *row), rows)
        for row, counted in zip(rows, counts):
            lines.append(f"{' '.join(row)} {counted:.3f}")
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
