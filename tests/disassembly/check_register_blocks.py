#!/usr/bin/env python3
"""Fails if an innermost loop of products keeps its sums in memory.

A compiler that spills the accumulators of a register block halves the speed and changes no result, so that no
other test notices.

    check_register_blocks.py objdump object...

x86: a loop counts if it multiplies vectors at least six times, with lanes that it broadcasts from memory. Its sums are in
memory if it stores a vector for every fourth product; a single one that has no register left does little harm.

ARM: a loop counts if it multiplies vectors at least six times. It must not touch the stack at all: 32 registers are enough for
everything that these loops need.
"""

import re
import sys

import loops

MIN_PRODUCTS = 6
MAX_INSTRUCTIONS = 300
MIN_LOOPS = 40  # tiers have 60 to 150: fewer mean that this script no longer knows a loop when it sees one

X86_BROADCAST = re.compile(r"vp?broadcast(d|ss)\s+[^%]*\((?!%rip)")
X86_STORE = re.compile(r"vmov\w+\s+%[xyz]mm\d+,[^%]*\(")


def num_products(isa, loop):
    return sum(1 for text in loop.body if isa.product.match(text))


def is_block(isa, loop):
    if len(loop.body) > MAX_INSTRUCTIONS or num_products(isa, loop) < MIN_PRODUCTS:
        return False
    return isa is loops.ARM64 or any(map(X86_BROADCAST.match, loop.body))


def is_in_memory(isa, loop):
    if isa is loops.ARM64:
        return any(map(isa.stack.match, loop.body))
    return 4 * sum(1 for text in loop.body if X86_STORE.search(text)) >= num_products(isa, loop)


def main(objdump, *objects):
    num_loops = 0
    in_memory = []
    for path in objects:
        isa, sections = loops.sections(objdump, path)
        for code in sections:
            for loop in loops.innermost_loops(isa, code):
                if not is_block(isa, loop):
                    continue
                num_loops += 1
                if is_in_memory(isa, loop):
                    in_memory.append(f"{path}: the loop at {loop.address:x} stores its sums:\n  " + "\n  ".join(loop.body))
    if in_memory:
        sys.exit(f"{len(in_memory)} of {num_loops} loops keep sums in memory\n" + in_memory[0])
    if num_loops < MIN_LOOPS:
        sys.exit(f"{num_loops} loops of products in " + ", ".join(objects) + f", expected at least {MIN_LOOPS}")
    print(f"{num_loops} loops of products keep their sums in registers")


if __name__ == "__main__":
    main(*sys.argv[1:])
