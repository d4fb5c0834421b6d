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
    leaves: re.Pattern  # calls and returns
    product: re.Pattern  # multiplies vectors
    stack: re.Pattern  # moves something from or to the stack


X86 = Isa(
    jump=re.compile(r"j\w+\s+(?:0x)?([0-9a-f]+)"),
    always=re.compile(r"jmp"),
    leaves=re.compile(r"ret|call"),
    product=re.compile(r"(?:\{vex\}\s+)?(?:vpdpbusd|vpdpwssd|vfmadd\d+ps|vpmaddubsw|vpmaddwd)"),
    stack=re.compile(r".*[-0-9a-fx]*\(%r[sb]p"),
)
ARM64 = Isa(
    jump=re.compile(r"(?:b|b\.\w+|cbn?z|tbn?z)\s+(?:\w+,\s*)?(?:#\w+,\s*)?(?:0x)?([0-9a-f]+)(?:\s|$)"),
    always=re.compile(r"b\s"),
    leaves=re.compile(r"(?:ret|br|blr?)\b"),
    product=re.compile(r"(?:[su]|su|us)dot|(?:[su]|us)mmla|bf(?:dot|mmla|mlal[bt])|fmla|fmlal2?|[su]ml[as]l2?|[su]mull2?"),
    stack=re.compile(r"(?:ldu?r|stu?r|ldp|stp|ld1|st1)\w*\s.*\[sp"),
)


class Loop(NamedTuple):
    address: int
    body: list  # the text of its instructions, with the jump at the end
    after: list  # and of what follows: what is made of the loop's sums


def sections(objdump, path):
    """The instruction set, and for each section (address, text) of its instructions in order."""
    listing = subprocess.run([objdump, "-d", "--no-show-raw-insn", path], check=True, capture_output=True, text=True)
    isa = ARM64 if "aarch64" in listing.stdout[:1000] else X86
    return isa, [instructions(section) for section in listing.stdout.split("\nDisassembly of section")]


def instructions(section):
    matches = re.finditer(r"^\s*([0-9a-f]+):\s+(.*)$", section, re.MULTILINE)
    return [(int(match[1], 16), match[2].strip()) for match in matches]


def innermost_loops(isa, code):
    """A backward jump over instructions without another jump or call."""
    index_of = {address: i for i, (address, _) in enumerate(code)}
    target_of = {}
    for i, (_, text) in enumerate(code):
        jump = isa.jump.match(text)
        if jump:
            target_of[i] = index_of.get(int(jump[1], 16))
    begin_of_run = 0  # the first instruction behind the last jump
    for i, (_, text) in enumerate(code):
        if i in target_of:
            begin = target_of[i]
            if begin is not None and begin_of_run <= begin < i:
                body = [text for _, text in code[begin:i + 1]]
                yield Loop(code[begin][0], body, straight_on(isa, code, target_of, i + 1))
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
