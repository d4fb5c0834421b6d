#!/usr/bin/env python3
"""Instructions of one attention (attend.cc) on each ARM tier and in each precision, exactly, under QEMU.

    count_instructions.py QEMU PLUGIN ATTEND FILE              compares with the figures of FILE: more than 2 % apart is an error
    count_instructions.py QEMU PLUGIN ATTEND FILE --write      writes them

Lines of FILE: tier, precision, millions of instructions. Two runs less one run is what one takes.
"""

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


def main(qemu, plugin, attend, path, *options):
    expected = {}
    if not options:
        with open(path, encoding="utf-8") as file:
            expected = {tuple(line.split()[:2]): float(line.split()[2]) for line in file if line.strip()}
    lines, failures = [], []
    for tier in CPUS:
        for precision in PRECISIONS:
            once, twice = (count(qemu, plugin, attend, tier, precision, times) for times in (1, 2))
            millions = (twice - once) / 1e6
            lines.append(f"{tier} {precision} {millions:.2f}")
            print(lines[-1], flush=True)
            if not options and abs(millions / expected[tier, precision] - 1) > TOLERANCE:
                failures.append(f"{lines[-1]}: was {expected[tier, precision]}")
    if options:
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main(*sys.argv[1:])
