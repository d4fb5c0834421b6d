"""The loops of a compiled kernel, read from its disassembly; see check_register_blocks.py and bench/model_arm/.

A loop is known by what its instructions are, never by an address or a symbol, so that it is found in what any compiler makes
of the source. GNU's and LLVM's objdump are understood.
"""

import re
import subprocess
from typing import NamedTuple


class Isa(NamedTuple):
    jump: re.Pattern  # whose group is the target
    always: re.Pattern  # a jump without a condition
    call: re.Pattern
    leaves: re.Pattern  # calls and returns
    product: re.Pattern  # multiplies vectors
    lost_in_calls: tuple = ()  # registers, of those that may hold an address; for stack.py


X86 = Isa(
    jump=re.compile(r"j\w+\s+(?:0x)?([0-9a-f]+)"),
    always=re.compile(r"jmp"),
    call=re.compile(r"call"),
    leaves=re.compile(r"ret|call"),
    product=re.compile(r"(?:\{vex\}\s+)?(?:vpdpbusd|vpdpwssd|vfmadd\d+ps|vpmaddubsw|vpmaddwd)"),
)
ARM64 = Isa(
    jump=re.compile(r"(?:b|b\.\w+|cbn?z|tbn?z)\s+(?:\w+,\s*)?(?:#\w+,\s*)?(?:0x)?([0-9a-f]+)(?:\s|$)"),
    always=re.compile(r"b\s"),
    call=re.compile(r"blr?\s"),
    leaves=re.compile(r"(?:ret|br|blr?)\b"),
    product=re.compile(r"(?:[su]|su|us)dot|(?:[su]|us)mmla|bf(?:dot|mmla|mlal[bt])|fmla|fmlal2?|[su]ml[as]l2?|[su]mull2?"),
    lost_in_calls=(*(f"x{i}" for i in range(19)), "x30"),
)
# ARM and Thumb.
CONDITION = r"(?:eq|ne|cs|hs|cc|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le)"
ARM32 = Isa(
    jump=re.compile(rf"(?:b{CONDITION}?(?:\.[nw])?|cbn?z)\s+(?:\w+,\s*)?(?:0x)?([0-9a-f]+)(?:\s|$)"),
    always=re.compile(r"b(?:\.[nw])?\s"),
    call=re.compile(rf"blx?{CONDITION}?\s"),
    leaves=re.compile(rf"(?:blx?|bx){CONDITION}?\s|tb[bh]\s|(?:pop|ldm).*\bpc\b|(?:mov|add|ldr)\S*\s+pc,"),
    product=re.compile(r"v(?:fma|fms|mla|mls|mull|mlal|mlsl)\.\w+\s+q"),
    lost_in_calls=("r0", "r1", "r2", "r3", "r12", "r14"),
)


class Loop(NamedTuple):
    address: int
    addresses: list  # of its instructions
    body: list  # their texts, with the jump at the end
    after: list  # and of what follows: what is made of the loop's sums


def sections(objdump, path):
    """The instruction set, and for each section (address, text) of its instructions in order."""
    listing = subprocess.run([objdump, "-d", "--no-show-raw-insn", path], check=True, capture_output=True, text=True)
    head = listing.stdout[:1000]
    isa = ARM64 if "aarch64" in head else ARM32 if re.search("format elf32-littlearm", head) else X86
    return isa, list(filter(None, map(instructions, listing.stdout.split("\nDisassembly of section"))))


def instructions(section):
    matches = re.finditer(r"^\s*([0-9a-f]+):\s+(.*)$", section, re.MULTILINE)
    return [(int(match[1], 16), " ".join(match[2].split())) for match in matches]


def jumps(isa, code):
    """Of each instruction that jumps, by their numbers, which one to; None if that is elsewhere."""
    index_of = {address: i for i, (address, _) in enumerate(code)}
    return {i: index_of.get(int(jump[1], 16)) for i, (_, text) in enumerate(code) if (jump := isa.jump.match(text))}


def innermost_loops(isa, code):
    """A backward jump over instructions without another jump or call."""
    target_of = jumps(isa, code)
    begin_of_run = 0  # the first instruction behind the last jump
    for i, (_, text) in enumerate(code):
        if i in target_of:
            begin = target_of[i]
            if begin is not None and begin_of_run <= begin < i:
                addresses, body = map(list, zip(*code[begin:i + 1]))
                yield Loop(code[begin][0], addresses, body, straight_on(isa, code, target_of, i + 1))
        if i in target_of or isa.leaves.match(text):
            begin_of_run = i + 1


def straight_on(isa, code, target_of, i):
    """The instructions from the i-th on, as they run if jumps ahead are not taken, to the next one back."""
    texts = []
    seen = set()
    while i < len(code) and i not in seen and not isa.leaves.match(code[i][1]):
        seen.add(i)
        text = code[i][1]
        if i not in target_of:
            texts.append(text)
            i += 1
        elif isa.always.match(text):
            if target_of[i] is None:
                break
            i = target_of[i]
        elif target_of[i] is not None and target_of[i] <= i:
            break
        else:
            i += 1
    return texts
