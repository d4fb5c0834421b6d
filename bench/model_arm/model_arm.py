#!/usr/bin/env python3
"""What the loops of the ARM tiers should take on ARM's cores, by LLVM's models of them: for machines without such a core.

    model_arm.py NAME=OBJECT...                         for example neon_dot/clang=…/tier.cc.o
    model_arm.py --find OBJDUMP NAME=OBJECT...          only finds the loops
    model_arm.py --tiers                                the tiers whose loops it knows

OBJECT is what kernels/tier.cc was compiled to for a tier; what stands before the slash is the tier's name. `./run model-arm`
builds them and calls this.

It fails if K·Q or P·V takes more than what MUST allows on the cores that it names. For each kind of loop that a tier has to have
(EXPECTED) all loops of the object that look so are fed to llvm-mca, and the slowest counts. They are found by their instructions; that one is missing is an error. The table says

    cycles   for 16 scores (16 queries with one key) of 64 dimensions and 64 channels
    roof     the part of them that the products alone would take, at the rate of llvm-mca for such products without anything else
    bound    what is busiest, by the model, or latency if nothing is

llvm-mca takes every load for a hit of L1 and every branch for foreseen.
"""

import collections
import functools
import json
import pathlib
import re
import subprocess
import sys
from typing import Callable, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "disassembly"))
import loops  # noqa: E402

# Cores, and what LLVM 19 has no model for but is close to: N1 is a Cortex-A76, V1 a Cortex-X1, and N2's model is what LLVM has
# for X2, A710 and A715. Its own cortex-a76 and cortex-x1 are the Cortex-A57, of which half is wrong for them; they are not asked.
# apple-m1 is the Cyclone of 2013, whose three pipes are less than an M1 has; apple-m2 is the same.
CORES = ["cortex-a55", "neoverse-n1", "neoverse-n2", "neoverse-v1", "neoverse-v2", "apple-m1"]
# Of a tier that some of these lack: LLVM would model its instructions there all the same.
CORES_WITH = {"neon_i8mm": ["cortex-a510", "neoverse-n2", "neoverse-v1", "neoverse-v2", "apple-m2"]}
ITERATIONS = 200

# The part of the roof that prefill's products have to reach, by the instruction that makes them, on the cores that stand for those
# they were written for. Other products have none: few rows wait for memory.
MUST = {("fmla", "neoverse-n1"): 0.85, ("sdot", "neoverse-n1"): 0.85, ("udot", "neoverse-n1"): 0.85, ("smlal", "neoverse-n1"): 0.85,
        ("smmla", "neoverse-v2"): 0.80, ("usmmla", "neoverse-v2"): 0.80, ("bfmmla", "neoverse-v2"): 0.80}

DIMS = 64
TILE_KEYS = 128
SCORES = 16

# Multiplications of one instruction on 128-bit vectors; those that widen have operands of 64.
MULTIPLICATIONS = {
    r"[su]dot\s": 16, r"(su|us)dot\s": 16, r"[su]mmla\s|usmmla\s": 32, r"bfmmla\s": 16, r"bfdot\s": 8,
    r"fmla\s.*\.8h": 8, r"fmla\s": 4, r"fmlal2?\s": 4, r"[su]ml[as]l2?\s.*\.4s": 4, r"[su]mull2?\s.*\.4s": 4, r"[su]ml[as]l2?\s.*\.8h": 8,
    r"[su]mull2?\s.*\.8h": 8,
}


def multiplications(text):
    return next((count for pattern, count in MULTIPLICATIONS.items() if re.match(pattern, text)), 0)


# ---- Kinds of loops


class Kind(NamedTuple):
    name: str
    looks: Callable  # whether a loop looks so, of the counts of its body and of what follows
    times: Callable  # how often it runs for SCORES scores, of the texts of what is modelled
    product: str = ""  # of which its roof is made; none for what multiplies no matrices
    follows: bool = False  # what follows the loop is modelled, not its body
    is_decode: bool = False


def counts_of(texts):
    """How often each instruction occurs; "sdot[]" are those by lane, "str q" stores of vectors."""
    counts = collections.Counter()
    for text in texts:
        name = text.split()[0]
        counts[name] += 1
        if re.search(r"\.\d*[sbh]\[\d+\]$", text) and not name.startswith(("mov", "ins", "dup", "ld", "st")):
            counts[name + "[]"] += 1
        if re.match(r"st(u?r|p)\s", text):
            counts["str q"] += len(re.findall(r"\bq\d+", text.split("[")[0]))
    return counts


def has(counts, *names):
    return all(counts[name] for name in names)


def by_products(texts):
    return SCORES * DIMS / sum(map(multiplications, texts))


def by_stores(scores):
    """The code stores a vector for so many scores."""
    return lambda texts: SCORES / scores / counts_of(texts)["str q"]


# Blocks of independent products, from which a core's roof is read.
F32 = "fmla v{}.4s, v30.4s, v31.s[1]"
SDOT = "sdot v{}.4s, v30.16b, v31.4b[1]"
UDOT = "udot v{}.4s, v30.16b, v31.4b[1]"
SMLAL = "smlal v{}.4s, v30.4h, v15.h[1]"
SMMLA = "smmla v{}.4s, v30.16b, v31.16b"
USMMLA = "usmmla v{}.4s, v30.16b, v31.16b"
BFMMLA = "bfmmla v{}.4s, v30.8h, v31.8h"
BFDOT = "bfdot v{}.4s, v30.8h, v31.8h"
MIN_BLOCK = 8  # products by lane, or of two rows with two, in a step


def is_block(counts, *products):
    return any(counts[product + "[]"] >= MIN_BLOCK for product in products) and not counts["prfm"]


def is_matrix_block(counts, product):
    return counts[product] >= MIN_BLOCK


# Prefill: a block of products, what becomes of its sums, softmax.


def f32_kinds():
    return [
        Kind("f32: K·Q, P·V", lambda loop, after: is_block(loop, "fmla"), by_products, F32),
        Kind("f32: scores", lambda loop, after: is_block(loop, "fmla") and after["fmaxnm"] >= MIN_BLOCK and not hides(after), by_stores(4), follows=True),
        Kind("f32: softmax", lambda loop, after: loop["str q"] and loop["fmla"] == 5 * loop["str q"] and has(loop, "fmax", "shl", "fmul") and loop["fadd"] > 2,
             by_stores(4)),
        Kind("f32: O", lambda loop, after: is_block(loop, "fmla") and after["fmla"] >= MIN_BLOCK and not after["fmaxnm"],
             of_output(by="fmla"), follows=True),
    ]


def int8_kinds(qk, qk_roof, pv, pv_roof, name="i8"):
    """qk, pv: whether the counts of a loop are those of such products."""
    return [
        Kind(f"{name}: K·Q", lambda loop, after: qk(loop), by_products, qk_roof),
        Kind(f"{name}: scores", lambda loop, after: qk(loop) and in_fixed_point(after), of_words, follows=True),
        Kind(f"{name}: softmax", lambda loop, after: loop["sqsub"] and loop["sqsub"] in (loop["tbl"], loop["sqrdmulh"] / 2), of_differences),
        Kind(f"{name}: P·V", lambda loop, after: pv(loop), by_products, pv_roof),
        Kind(f"{name}: O", lambda loop, after: pv(loop) and after["fmla"] >= MIN_BLOCK and after["fmul"] >= MIN_BLOCK, of_output(by="fmla"), follows=True),
    ]


def bf16_kinds():
    return [
        Kind("bf16: K·Q, P·V", lambda loop, after: is_matrix_block(loop, "bfmmla"), by_products, BFMMLA),
        Kind("bf16: P", lambda loop, after: is_matrix_block(loop, "bfmmla") and after["umax"] >= MIN_BLOCK and not hides(after), of_distances, follows=True),
        Kind("bf16: O", lambda loop, after: is_matrix_block(loop, "bfmmla") and after["fmla"] >= MIN_BLOCK and not after["sqrdmulh"],
             of_output(by="fmla"), follows=True),
    ]


def hides(counts):
    return counts["cmtst"] or counts["cmeq"]


def in_fixed_point(counts):
    """Scores that are neither hidden nor steep."""
    return counts["sqrdmulh"] >= MIN_BLOCK and counts["smax"] and not counts["smin"] and not hides(counts)


def widens(counts, sign):
    """Bytes to words: u or s. GNU's objdump has other names than LLVM's."""
    return counts[sign + "shll2"] or counts[sign + "xtl2"]


def of_words(texts):
    """Two rounding multiplications for eight scores."""
    return SCORES / 8 * 2 / counts_of(texts)["sqrdmulh"]


def of_differences(texts):
    """One for eight scores."""
    return SCORES / 8 / counts_of(texts)["sqsub"]


def of_distances(texts):
    """A vector of scores from the reference has a lower bound."""
    return SCORES / 4 / counts_of(texts)["umax"]


def of_output(by):
    """`by` occurs once for four rows of a channel and a tile of keys."""
    return lambda texts: SCORES * DIMS / (4 * TILE_KEYS) / counts_of(texts)[by]


# Decode reads ahead, which nothing else does. Few rows wait for memory; six for arithmetic, if for anything.


def decode_kind(name, product, roof):
    return Kind(name, lambda loop, after: loop["prfm"] and loop[product] >= 20 and not loop[product + "[]"], by_products, roof, is_decode=True)


# What the objects of a tier have to have.
EXPECTED = {
    "neon": f32_kinds() + int8_kinds(lambda loop: is_block(loop, "smlal") and widens(loop, "u"), SMLAL,
                             lambda loop: is_block(loop, "smlal") and widens(loop, "s"), SMLAL)
    + [decode_kind("f32: decode, 6 rows", "fmla", F32)],
    "neon_dot": int8_kinds(lambda loop: is_block(loop, "sdot"), SDOT, lambda loop: is_block(loop, "udot"), UDOT)
    + [Kind("i8_fine: K·Q", lambda loop, after: is_block(loop, "smlal"), by_products, SMLAL),
       decode_kind("i8: decode K·Q, 6 rows", "sdot", SDOT), decode_kind("i8: decode P·V, 6 rows", "udot", UDOT)],
    # K·Q of i8_fine and mixed16 is that of i8, four times over: smmla of the parts of 16-bit integers.
    "neon_i8mm": int8_kinds(lambda loop: is_matrix_block(loop, "smmla"), SMMLA, lambda loop: is_matrix_block(loop, "usmmla"), USMMLA)
    + bf16_kinds()
    + [decode_kind("i8: decode K·Q, 6 rows", "sdot", SDOT), decode_kind("i8: decode P·V, 6 rows", "udot", UDOT),
       decode_kind("bf16: decode, 5 rows", "bfdot", BFDOT)],
}

# Rows that together are prefill of a precision.
WHOLE = {"i8": ["i8: K·Q", "i8: scores", "i8: softmax", "i8: P·V", "i8: O"],
         "f32": ["f32: K·Q, P·V", "f32: K·Q, P·V", "f32: scores", "f32: softmax", "f32: O"],
         "bf16": ["bf16: K·Q, P·V", "bf16: K·Q, P·V", "bf16: P", "bf16: O"]}


# ---- llvm-mca


class Model(NamedTuple):
    cycles: float  # of one run
    bound: str


def runnable(text):
    """An instruction as llvm-mca takes it: without the places of a program that is not there."""
    text = re.sub(r"\s*(//.*|<.*)", "", text)
    if re.match(r"(b|b\.\w+|cbn?z|tbn?z)\s", text):
        return re.sub(r"(0x)?[0-9a-f]+$", "8", text)
    store = re.match(r"(st\S+\s.*\[(\w+)\]), #(\w+)$", text)
    if store:  # llvm-mca lets the address wait for the data, which no core does
        return f"{store[1]}\nadd {store[2]}, {store[2]}, #{store[3]}"
    return re.sub(r"^(adrp?\s+\w+,).*", r"\1 0", text)


@functools.lru_cache(maxsize=None)
def model(core, texts):
    command = ["llvm-mca-19", "-mtriple=aarch64-linux-gnu", "-mcpu=" + core, "-mattr=+v8.2a,+dotprod,+fullfp16,+i8mm,+bf16",
               f"-iterations={ITERATIONS}", "--json"]
    run = subprocess.run(command, input="\n".join(map(runnable, texts)) + "\n", capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(run.stderr)
    region = json.loads(run.stdout)
    return read_model(region["TargetInfo"], region["CodeRegions"][0])


def read_model(target, region):
    summary = region["SummaryView"]
    cycles = summary["TotalCycles"] / ITERATIONS
    pressure = collections.Counter()
    num_instructions = len(region["Instructions"])
    for use in region["ResourcePressureView"]["ResourcePressureInfo"]:
        if use["InstructionIndex"] == num_instructions:  # of all together
            pressure[target["Resources"][use["ResourceIndex"]]] += use["ResourceUsage"]
    busiest = {"dispatch": summary["TotaluOps"] / ITERATIONS / summary["DispatchWidth"], **pressure}
    bound = max(busiest, key=busiest.get)
    name = re.sub(r"(CortexA55|CortexA510|N1|N2|V1|V2|Cy)Unit", "", bound)
    return Model(cycles, name if busiest[bound] > 0.9 * cycles else "latency")


@functools.lru_cache(maxsize=None)
def roof(core, product):
    """Multiplications a cycle of products that depend on nothing but their own sums."""
    # Sums for a latency of five cycles and four pipes.
    texts = tuple(product.format(i) for i in range(24))
    return sum(map(multiplications, texts)) / model(core, texts).cycles


class Row(NamedTuple):
    num_loops: int
    cycles: float  # for SCORES scores
    fraction: float  # of the roof; 0 if it has none
    bound: str


def row_of(core, kind, found):
    slowest = None
    for loop in found:
        texts = tuple(loop.after if kind.follows else loop.body)
        one = model(core, texts)
        cycles = one.cycles * kind.times(texts)
        if slowest is None or cycles > slowest.cycles:
            slowest = Row(len(found), cycles, SCORES * DIMS / roof(core, kind.product) / cycles if kind.product else 0, one.bound)
    return slowest


def find_loops(tier, objdump, path):
    """For each kind that the tier has to have, the loops that look so."""
    isa, sections = loops.sections(objdump, path)
    if isa is not loops.ARM64:
        sys.exit(f"{path}: not for 64-bit ARM")
    candidates = [(loop, counts_of(loop.body), counts_of(loop.after)) for code in sections for loop in loops.innermost_loops(isa, code)]
    found = {kind: [loop for loop, body, after in candidates if kind.looks(body, after)] for kind in EXPECTED[tier]}
    # Query tiles with fewer vectors have smaller blocks, which a long prefill meets once: of blocks the largest count.
    for kind, same in found.items():
        if kind.product or kind.follows:
            sizes = [sum(map(multiplications, loop.body)) for loop in same]
            found[kind] = [loop for loop, size in zip(same, sizes) if size == max(sizes)]
        if not found[kind]:
            sys.exit(f"{path}: no loop of the kind \"{kind.name}\", which tier {tier} has to have")
    return found


def least(kind, core):
    """The part of the roof that a kind of loop has to reach on a core; 0 if it has none."""
    return 0 if kind.is_decode or not kind.product else MUST.get((kind.product.split()[0], core), 0)


def check(name, cores, rows):
    """What is wrong with the rows of a table, by kinds of loops, one for each core."""
    return [f"{name}, {kind.name}: {100 * row.fraction:.1f} % of the roof on {core}, must be {100 * least(kind, core):.0f} % or more"
            for kind, row_of_core in rows.items() for core, row in zip(cores, row_of_core) if row.fraction < least(kind, core)]


def print_table(name, found):
    """Returns what is too slow."""
    cores = CORES_WITH.get(name.split("/")[0], CORES)
    print(f"\n{name}, cycles for {SCORES} scores at {DIMS} dimensions (part of the roof), bound by\n")
    print("| | loops | " + " | ".join(cores) + " |")
    print("|---|---|" + "---|" * len(cores))
    rows_of_kinds = {kind: [row_of(core, kind, same) for core in cores] for kind, same in found.items()}
    rows = {kind.name: row for kind, row in rows_of_kinds.items()}
    for kind, row in rows.items():
        cells = [f"{r.cycles:.1f}" + (f" ({100 * r.fraction:.0f} %)" if r.fraction else "") + f" {r.bound}" for r in row]
        print(f"| {kind} | {row[0].num_loops} | " + " | ".join(cells) + " |")
    for whole, parts in WHOLE.items():
        if not all(part in rows for part in parts):
            continue
        cells = []
        for i in range(len(cores)):
            cycles = sum(rows[part][i].cycles for part in parts)
            products = sum(rows[part][i].fraction * rows[part][i].cycles for part in parts)
            cells.append(f"{cycles:.1f} ({100 * products / cycles:.0f} %)")
        print(f"| **{whole}, all of these** | | " + " | ".join(cells) + " |")
    return check(name, cores, rows_of_kinds)


def split(argument):
    """The name, the tier and the path of an object."""
    name, separator, path = argument.partition("=")
    tier = name.split("/")[0]
    if not separator or tier not in EXPECTED:
        usage(f"{argument}: not NAME=OBJECT with a tier of {', '.join(EXPECTED)}")
    return name, tier, path


def usage(complaint):
    print(f"{complaint}\n{__doc__}", file=sys.stderr)
    sys.exit(2)


def main(*arguments):
    options = [argument for argument in arguments if argument.startswith("-")]
    if list(arguments) == ["--tiers"]:
        print(*EXPECTED)
    elif options == ["--find"] and arguments[0] == "--find":
        if len(arguments) < 3:
            usage("--find: which objects?")
        for name, tier, path in map(split, arguments[2:]):
            for kind, same in find_loops(tier, arguments[1], path).items():
                print(f"{name}: {len(same)} x {kind.name}")
    elif options or not arguments:
        usage("Which objects?" if not arguments else f"{' '.join(arguments)}: not understood")
    else:
        too_slow = []
        for name, tier, path in list(map(split, arguments)):
            too_slow += print_table(name, find_loops(tier, "llvm-objdump-19", path))
        if too_slow:
            sys.exit("\n" + "\n".join(too_slow))


if __name__ == "__main__":
    main(*sys.argv[1:])
