#!/usr/bin/env python3
"""Instructions of one attention by Sightline and by its peers (attend_as.cc), exactly, on CPUs that QEMU emulates.

    count_peers.py QEMU PLUGIN PROGRAM [TIER...]        by default all tiers

Two runs less one run is what one takes: neither what a contender prepares nor what its first run does counts. Prints a table for
each shape: millions of instructions, and the largest of the relative L2 errors, which are small or this fails.
"""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import count_instructions

# Peers are cross-built for 64-bit ARM.
CPUS = {tier: cpu for tier, (architecture, cpu) in count_instructions.CPUS.items() if architecture == "aarch64"}

SHAPES = {"self": "Self-attention, 512 tokens", "decode": "One query, 1500 keys that were there before"}

# XNNPACK has kernels for single cores and knows a core by these numbers: variant, part, revision. QEMU before 8.2 shows a program
# the host's /proc/cpuinfo, unless there is one below the folder of -L. Others than these it takes for the newest that it knows.
CPUINFO = {"cortex-a53": (0, 0xD03, 4), "cortex-a76": (4, 0xD0B, 1)}


class Refusal(Exception):
    """A contender cannot compute something, and says why."""


def contenders(listing):
    """(name, precision) of what the program lists; neither plain loops nor variants that compute as many products."""
    words = [line.split()[:2] for line in listing.splitlines()]
    return [(name, precision) for name, precision in words if name != "naive" and not precision.endswith("_rotated")]


def make_root(folder, cpu):
    """What -L shall name: the cross compiler's libraries, and what Linux says about the CPU."""
    folder = pathlib.Path(folder) / cpu
    (folder / "proc").mkdir(parents=True)
    (folder / "lib").symlink_to("/usr/aarch64-linux-gnu/lib")
    text = "processor\t: 0\n"
    if cpu in CPUINFO:
        variant, part, revision = CPUINFO[cpu]
        text += f"CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: {variant:#x}\nCPU part\t: {part:#x}\n"
        text += f"CPU revision\t: {revision}\n"
    (folder / "proc" / "cpuinfo").write_text(text, encoding="utf-8")
    return folder


def run(emulator, tier, *arguments):
    """What the program prints, and the count of the plugin if there is one."""
    result = subprocess.run([*emulator, *arguments], capture_output=True, text=True, env={**os.environ, "SIGHTLINE_TIER": tier})
    if result.returncode == 1:
        raise Refusal(result.stdout.strip())
    if result.returncode == -signal.SIGILL:
        raise Refusal("was compiled for instructions that this CPU lacks")
    if result.returncode != 0:
        sys.exit(f"{' '.join(arguments)} ({tier}): {result.stdout}{result.stderr}")
    return result.stdout, result.stderr


def count(emulator, tier, *contender_and_shape):
    """Millions of instructions, and the relative L2 error."""
    counts = []
    for times in ("1", "2"):
        out, err = run(emulator, tier, *contender_and_shape, times)
        counts.append(int(err.split()[-1]))
    return (counts[1] - counts[0]) / 1e6, float(out)


def table(title, tiers, rows):
    """rows: (name, precision) -> for each tier (millions, error), None where it is refused."""
    lines = [f"| {title} | " + " | ".join(tiers) + " | error |", "|---" * (len(tiers) + 2) + "|"]
    for contender, cells in rows.items():
        if not any(cells):
            continue
        texts = [f"{cell[0]:.{2 if cell[0] < 10 else 1}f}" if cell else "-" for cell in cells]
        error = max(cell[1] for cell in cells if cell)
        lines.append("| " + " ".join(contender) + " | " + " | ".join(texts) + f" | {error:.1g} |")
    return "\n".join(lines)


def count_all(qemu, plugin, program, tiers):
    """For each shape the rows of its table, and where there is no figure, for each reason."""
    rows = {shape: {} for shape in SHAPES}
    refusals = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, tier in enumerate(tiers):
            emulator = [qemu, "-cpu", CPUS[tier], "-L", str(make_root(folder, CPUS[tier]))]
            listing, _ = run([*emulator, program], tier)
            for contender in contenders(listing):
                for shape in SHAPES:
                    cells = rows[shape].setdefault(contender, [None] * len(tiers))
                    try:
                        cells[i] = count([*emulator, "-plugin", plugin, program], tier, *contender, shape)
                    except Refusal as refusal:
                        refusals.setdefault(f"{' '.join(contender)}: {refusal}", []).append(f"{shape} on {tier}")
    return listing, rows, refusals


def main(qemu, plugin, program, *tiers):
    tiers = tiers or tuple(CPUS)
    unknown = [tier for tier in tiers if tier not in CPUS]
    if unknown:
        sys.exit(f"no tier is called {unknown[0]}: there are {', '.join(CPUS)}")
    listing, rows, refusals = count_all(qemu, plugin, program, tiers)
    print(listing)
    for shape, title in SHAPES.items():
        print(table(title, tiers, rows[shape]) + "\n")
    for reason, where in refusals.items():
        print(f"{reason} ({', '.join(where)})")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
