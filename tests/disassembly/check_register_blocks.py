#!/usr/bin/env python3
"""Fails if an innermost loop of products keeps its sums in memory.

A compiler that spills the accumulators of a register block halves the speed and changes no result, so that no
other test notices.

    check_register_blocks.py objdump object...

An innermost loop is a backward jump over instructions without another jump; it counts if it multiplies vectors
at least six times, with lanes that it broadcasts from memory. Its sums are in memory if it stores a vector to the
stack for every fourth product; a single one that has no register left does little harm.
"""

import re
import subprocess
import sys

MIN_PRODUCTS = 6
MAX_INSTRUCTIONS = 200

PRODUCT = re.compile(r"vpdpbusd|vpdpwssd|vfmadd\d+ps|vpmaddubsw")
BROADCAST = re.compile(r"vp?broadcast(d|ss)\s+[^%]*\((?!%rip)")
JUMP = re.compile(r"j\w+\s+(?:0x)?([0-9a-f]+)")  # GNU's and LLVM's objdump
SPILL = re.compile(r"vmov\w+\s+%[xyz]mm\d+,[^,]*\(%r[sb]p")


def instructions(objdump, path):
    """(address, text) of every instruction, in order."""
    listing = subprocess.run([objdump, "-d", "--no-show-raw-insn", path], check=True, capture_output=True, text=True)
    for line in listing.stdout.splitlines():
        match = re.match(r"\s*([0-9a-f]+):\s+(.*)", line)
        if match:
            yield int(match[1], 16), match[2]


def product_loops(code):
    """Address, text and number of products of each innermost loop of products."""
    index_of = {address: i for i, (address, _) in enumerate(code)}
    for end, (_, text) in enumerate(code):
        jump = JUMP.match(text)
        begin = index_of.get(int(jump[1], 16)) if jump else None
        if begin is None or not 0 < end - begin <= MAX_INSTRUCTIONS:
            continue
        body = [text for _, text in code[begin:end]]
        if any(map(JUMP.match, body)) or not any(map(BROADCAST.match, body)):
            continue
        num_products = sum(1 for text in body if PRODUCT.search(text))
        if num_products >= MIN_PRODUCTS:
            yield code[begin][0], body, num_products


def main(objdump, *objects):
    num_loops = 0
    spilling = []
    for path in objects:
        for address, body, num_products in product_loops(list(instructions(objdump, path))):
            num_loops += 1
            if 4 * sum(1 for text in body if SPILL.search(text)) >= num_products:
                spilling.append(f"{path}: the loop at {address:x} stores to the stack:\n  " + "\n  ".join(body))
    if num_loops == 0:
        sys.exit("No loops of products in " + ", ".join(objects))
    if spilling:
        sys.exit(f"{len(spilling)} of {num_loops} loops keep sums in memory\n" + spilling[0])
    print(f"{num_loops} loops of products keep most of their sums in registers")


if __name__ == "__main__":
    main(*sys.argv[1:])
