#!/usr/bin/env python3
"""Fails if an innermost loop of products keeps its sums in memory.

A compiler that spills the accumulators of a register block halves the speed and changes no result, so that no
other test notices.

    check_register_blocks.py OBJDUMP TIER OBJECT...

A loop counts if it multiplies vectors at least six times; on x86 with lanes that it broadcasts from memory. Its sums are in memory
if it stores a vector of 128 bits or more for every fourth product; a single one that has no register left does little harm.
On 32-bit ARM only what is stored on the stack is looked at: spills, of which 16 registers make a few in many loops.
On 64-bit ARM a loop must not touch a fixed place of the stack at all: 32 registers are enough for everything that these loops need.
"""

import re
import sys

import loops
import stack

MIN_PRODUCTS = 6
# Nine tenths of what the compiler that makes fewer makes of them: fewer mean that this script no longer knows a loop when it sees one.
MIN_LOOPS = {"avx2": 124, "avx2_vnni": 60, "avx2_vnni_evex": 60, "avx512": 137, "avx512_vnni": 94, "avx512_bf16": 83,
             "neon": 160, "neon_dot": 72, "neon_i8mm": 140, "neon32": 90}

X86_BROADCAST = re.compile(r"vp?broadcast(d|ss)\s+[^%]*\((?!%rip)")
X86_STORE = re.compile(r"vmov\w+\s+%[xyz]mm\d+,[^%]*\(")
ARM32_STORE = re.compile(r"v(?:str|st1|stm)\S*\s+\{?([^\[]*)")


def num_products(isa, body):
    return sum(1 for text in body if isa.product.match(text))


def is_block(isa, body):
    return num_products(isa, body) >= MIN_PRODUCTS and (isa is not loops.X86 or any(map(X86_BROADCAST.match, body)))


def vectors_stored(isa, body, on_stack):
    """Of 128 bits or more; Clang and GCC store those of 32-bit ARM in halves as well."""
    if isa is loops.X86:
        return sum(1 for text in body if X86_STORE.search(text))
    halves = 0
    for store in filter(None, map(ARM32_STORE.match, on_stack)):
        ends = re.findall(r"d(\d+)", store[1])
        halves += int(ends[1]) - int(ends[0]) + 1 if "-" in store[1] else len(ends)
    return halves / 2


def is_in_memory(isa, body, on_stack):
    if isa is loops.ARM64:
        return bool(on_stack)
    return 4 * vectors_stored(isa, body, on_stack) >= num_products(isa, body)


def check(isa, code):
    """Of a section: each loop that counts, whether it keeps its sums in memory, and what of it touches the stack."""
    touching = stack.accesses(isa, code) if isa is not loops.X86 else set()
    for loop in loops.innermost_loops(isa, code):
        if is_block(isa, loop.body):
            on_stack = [text for address, text in zip(loop.addresses, loop.body) if address in touching]
            yield loop, is_in_memory(isa, loop.body, on_stack), on_stack


def main(objdump, tier, *objects):
    found = []
    for path in objects:
        isa, sections = loops.sections(objdump, path)
        found += [one for code in sections for one in check(isa, code)]
    in_memory = [loop for loop, bad, _ in found if bad]
    if in_memory:
        first = in_memory[0]
        sys.exit(f"{len(in_memory)} of {len(found)} loops keep sums in memory; the one at {first.address:x}:\n  " + "\n  ".join(first.body))
    if len(found) < MIN_LOOPS[tier]:
        sys.exit(f"{len(found)} loops of products in " + ", ".join(objects) + f", expected at least {MIN_LOOPS[tier]}")
    spilling = sum(1 for _, _, on_stack in found if on_stack)
    print(f"{len(found)} loops of products keep their sums in registers" + (f"; {spilling} have something else on the stack" if spilling else ""))


if __name__ == "__main__":
    if len(sys.argv) < 4 or sys.argv[2] not in MIN_LOOPS:
        print(f"usage: check_register_blocks.py OBJDUMP TIER OBJECT..., TIER one of {', '.join(MIN_LOOPS)}", file=sys.stderr)
        sys.exit(2)
    main(*sys.argv[1:])
