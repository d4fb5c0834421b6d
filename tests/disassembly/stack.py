"""Which instructions of a compiled function on ARM load from or store to a fixed place of the stack: what a spill looks like.

Compilers reach the stack through sp, through a frame pointer (x29, r7, r11) and, where frames are large, through any register
that they have added a constant to sp in. So registers are followed from instruction to instruction, over jumps as well: a
register's value is known if it is sp plus a constant, and the same one, on all ways that lead there. A pointer that walks along
an array on the stack is unknown from its loop on, as it should be: reading an array is no spill.

A value is (anchor, offset): the place where sp was last set to something that is not followed, and the bytes from there.
"""

import re

import loops

NAMES = {"fp": "r11", "ip": "r12", "sl": "r10", "sb": "r9", "lr": "r14"}  # GNU's for 32 bits
WRITES_NO_REGISTER = re.compile(r"st|vst|vldm|push|vpush|cm[pn]|ccm|tst|teq|cbn?z|tbn?z|prfm|pld|b\b|b\.|nop")
WRITES_TWO = re.compile(r"ldp|ldxp|ldrd|[us]m[lu]+al?l?\b|vmov\s+r\d+,\s*r\d+|vmov\s+\w+,\s*\w+,\s*d")
CONSTANT = re.compile(r"(add|sub|mov)[sw]?(?:\.[nw])?\s")
FETCHES = re.compile(r"prfm|pld")


def operands(text):
    """Of an instruction without its comment: registers, constants, [addresses] and {lists}."""
    text = re.sub(r"\s*(//|@|;|<).*", "", text)
    return re.findall(r"\{[^}]*\}|\[[^\]]*\]!?|[^\s,\[\]{}][^,\[\]{}]*", text.partition(" ")[2])


def register(name):
    """As it is followed: w0 is part of x0."""
    name = NAMES.get(name, name)
    return re.sub(r"^w(?=\d)", "x", name)


def address_of(text):
    """The base of an address, and what is added to it, of an instruction that has one."""
    match = re.search(r"\[(\w+)(?:\s*:\w+)?(?:,\s*([^\]]*))?\]", text) or re.match(r"v?(?:ld|st)m\S*\s+(\w+)()!?, \{", text)
    return (register(match[1]), match[2] or "") if match else (None, "")


def constant(text):
    return int(text.lstrip("#"), 0) if re.fullmatch(r"#-?(0x)?[0-9a-f]+", text) else None


def sum_of(text, values):
    """What an instruction puts into its first operand, if that is sp and a constant."""
    if not CONSTANT.match(text):
        return None
    _, *rest = parts = operands(text)
    if len(rest) == 1 and constant(rest[0]) is not None:  # add sp, #8
        rest = parts
    if not rest or register(rest[0]) not in values:
        return None
    anchor, offset = values[register(rest[0])]
    if len(rest) == 1:
        return anchor, offset
    by = constant(rest[1])
    if by is None or text.startswith("mov"):
        return None
    if len(rest) == 3:
        if not rest[2].startswith("lsl #"):
            return None
        by <<= constant(rest[2][4:])
    return anchor, offset + (-by if text.startswith("sub") else by)


def written_back(text, values):
    """The base that an instruction advances, and its value afterwards."""
    base, index = address_of(text)
    advances = re.search(r"(?:\](!|, )|\w(!), \{)(.*)", text)
    if not advances:
        return None, None
    by = constant(index) if advances[1] == "!" else constant(advances[3])
    if by is None or base not in values:
        return base, None
    anchor, offset = values[base]
    return base, (anchor, offset + by)


def run(isa, i, text, values):
    """Changes `values` to those after the i-th instruction."""
    result = sum_of(text, values)
    base, advanced = written_back(text, values)
    written = []
    if isa.call.match(text):
        written = isa.lost_in_calls
    elif not WRITES_NO_REGISTER.match(text):
        written = operands(text)[:2 if WRITES_TWO.match(text) else 1]
        if text.startswith(("pop", "ldm")):
            written = re.findall(r"\w+", text.partition("{")[2])
    for name in map(register, [*written, *([base] if base else [])]):
        values.pop(name, None)
    if result:
        values[register(operands(text)[0])] = result
    if base and advanced:
        values[base] = advanced
    if "sp" not in values or re.match("v?(push|pop)", text):
        values["sp"] = (i, 0)


def meet(block, values, others):
    """What two ways agree on."""
    both = {name: value for name, value in values.items() if others.get(name) == value}
    both.setdefault("sp", (("way", block), 0))
    return both


def accesses(isa, code):
    """The addresses of the instructions of a section that load from or store to a fixed place of the stack."""
    target_of = loops.jumps(isa, code)

    def goes_on(i):
        """Whether the instruction behind the i-th may be the next."""
        text = code[i][1]
        return not isa.always.match(text) and (isa.call.match(text) or not isa.leaves.match(text))

    ends = [i for i, (_, text) in enumerate(code[:-1]) if i in target_of or isa.leaves.match(text)]
    targets = {target for target in target_of.values() if target is not None}
    begins = sorted({0, *(i + 1 for i in ends), *targets})
    end_of = dict(zip(begins, [*begins[1:], len(code)]))
    # Where nothing is known to lead to, a function begins, or a case of a switch.
    entry = {i: {"sp": (i, 0)} for i in begins if i not in targets and not (i > 0 and goes_on(i - 1))}
    waiting = list(entry)
    while waiting:
        begin = waiting.pop()
        values = dict(entry[begin])
        for i in range(begin, end_of[begin]):
            run(isa, i, code[i][1], values)
        last = end_of[begin] - 1
        for following in {target_of.get(last), last + 1 if goes_on(last) else None} & end_of.keys():
            known = meet(following, entry[following], values) if following in entry else dict(values)
            if known != entry.get(following):
                entry[following] = known
                waiting.append(following)

    found = set()
    for begin in begins:
        values = dict(entry.get(begin, {"sp": (begin, 0)}))
        for i in range(begin, end_of[begin]):
            address, text = code[i]
            base, index = address_of(text)
            if base in values and not FETCHES.match(text) and (base == "sp" or index == "" or constant(index) is not None):
                found.add(address)
            run(isa, i, text, values)
    return found
