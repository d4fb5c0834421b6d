#!/usr/bin/env python3
"""Fails if an innermost loop of products keeps its sums in memory.

A compiler that spills the accumulators of a register block halves the speed and changes no result, so that no
other test notices.

    check_register_blocks.py objdump object...
    check_register_blocks.py --print INSTRUCTION objdump object...     the largest loop with it, for llvm-mca

An innermost loop is a backward jump over instructions without another jump; it counts if it multiplies vectors
at least six times, with lanes that it broadcasts (from memory on x86), or two rows with two. Its sums are in memory if
it stores a vector for every fourth product; a single one that has no register left does little harm.
"""

import re
import subprocess
import sys

MIN_PRODUCTS = 6
MAX_INSTRUCTIONS = 200
MIN_LOOPS = 40  # tiers have 60 to 150: fewer mean that this script no longer knows a loop when it sees one

# x86, then ARM.
PRODUCT = re.compile(r"vpdpbusd|vpdpwssd|vfmadd\d+ps|vpmaddubsw|vpmaddwd|(?:us|s|bf)mmla|(?:s|u|bf)dot|fmla|smull|smlal")
BROADCAST = re.compile(r"vp?broadcast(d|ss)\s+[^%]*\((?!%rip)|(?:ld1r|dup|.*(?:mmla|v\d+\.(?:s|4b|2h)\[))")
JUMP = re.compile(r"(?:j\w+|b(?:\.\w+)?|cbn?z\s+\w+,|tbn?z\s+\w+, #\w+,)\s+(?:0x)?([0-9a-f]+)")  # GNU's and LLVM's objdump
STORE = re.compile(r"vmov\w+\s+%[xyz]mm\d+,[^%]*\(|st[rp]\s+q")


def sections(objdump, path):
    """For each section (address, text) of its instructions, in order."""
    listing = subprocess.run([objdump, "-d", "--no-show-raw-insn", path], check=True, capture_output=True, text=True)
    for section in listing.stdout.split("\nDisassembly of section"):
        matches = re.finditer(r"^\s*([0-9a-f]+):\s+(.*)$", section, re.MULTILINE)
        yield [(int(match[1], 16), match[2]) for match in matches]


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


def print_largest(instruction, objdump, *objects):
    loops = [body for path in objects for code in sections(objdump, path) for _, body, _ in product_loops(code)]
    body = max(loops, key=lambda body: sum(1 for text in body if text.startswith(instruction)))
    print("\n".join(body))


def main(objdump, *objects):
    num_loops = 0
    in_memory = []
    for path in objects:
        for code in sections(objdump, path):
            for address, body, num_products in product_loops(code):
                num_loops += 1
                if 4 * sum(1 for text in body if STORE.search(text)) >= num_products:
                    in_memory.append(f"{path}: the loop at {address:x} stores its sums:\n  " + "\n  ".join(body))
    if in_memory:
        sys.exit(f"{len(in_memory)} of {num_loops} loops keep sums in memory\n" + in_memory[0])
    if num_loops < MIN_LOOPS:
        sys.exit(f"{num_loops} loops of products in " + ", ".join(objects) + f", expected at least {MIN_LOOPS}")
    print(f"{num_loops} loops of products keep most of their sums in registers")


if __name__ == "__main__":
    if sys.argv[1] == "--print":
        print_largest(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
