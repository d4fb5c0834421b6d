#!/usr/bin/env python3
"""Tests of loops.py and of bench/model_arm/, on listings written by hand."""

import contextlib
import io
import pathlib
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

import loops

MODEL_ARM = pathlib.Path(__file__).resolve().parents[2] / "bench" / "model_arm"
sys.path.insert(0, str(MODEL_ARM))
import model_arm  # noqa: E402

# As llvm-objdump prints: an outer loop at 0, an inner one at 8 with two products, and what becomes of its sums behind a jump.
LISTING = """
       0: mov\tx3, x1
       4: cbz\tx1, 0x30 <f+0x30>
       8: ldr\tq1, [x0], #0x10
       c: sdot\tv2.4s, v1.16b, v0.4b[1]
      10: sdot\tv3.4s, v1.16b, v0.4b[2]
      14: subs\tx3, x3, #0x1
      18: b.ne\t0x8 <f+0x8>
      1c: b\t0x28 <f+0x28>
      20: udf\t#0x0
      24: ret
      28: smax\tv2.8h, v2.8h, v3.8h
      2c: tbnz\tw4, #0x3, 0x38 <f+0x38>
      30: str\tq2, [x2]
      34: cbnz\tx5, 0x0 <f>
      38: ret
"""
# The same loop as GNU's objdump prints it, and one that keeps a sum on the stack.
GNU_LISTING = """
   8:\tldr\tq1, [x0], #16
   c:\tsdot\tv2.4s, v1.16b, v0.4b[1]
  10:\tsdot\tv3.4s, v1.16b, v0.4b[2]
  14:\tsubs\tx3, x3, #0x1
  18:\tb.ne\t8 <f+0x8>  // b.any
  1c:\tldr\tq0, [sp, #16]
  20:\tfmla\tv0.4s, v1.4s, v2.s[0]
  24:\tstr\tq0, [sp, #16]
  28:\tcbnz\tx3, 1c <f+0x1c>
"""


def loops_of(listing):
    return list(loops.innermost_loops(loops.ARM64, loops.instructions(listing)))


class Loops(unittest.TestCase):
    def test_only_innermost_loops(self):
        found = loops_of(LISTING)
        self.assertEqual([loop.address for loop in found], [8])
        self.assertEqual([text.split()[0] for text in found[0].body], ["ldr", "sdot", "sdot", "subs", "b.ne"])

    def test_what_follows_passes_jumps_ahead(self):
        self.assertEqual([text.split()[0] for text in loops_of(LISTING)[0].after], ["smax", "str"])

    def test_gnu_listing(self):
        self.assertEqual([loop.address for loop in loops_of(GNU_LISTING)], [8, 0x1C])

    def test_products_encoded_in_vex(self):
        ((_, text),) = loops.instructions("  0:\t{vex} vpdpbusd %ymm14,%ymm15,%ymm4\n")
        self.assertTrue(loops.X86.product.match(text))

    def test_a_jump_to_itself_ends(self):
        self.assertEqual([loop.after for loop in loops_of("  0:\tnop\n  4:\tb.ne\t0\n  8:\tb\t8\n")], [[]])


class Model(unittest.TestCase):
    def test_counts(self):
        counts = model_arm.counts_of(["sdot\tv2.4s, v1.16b, v0.4b[1]", "sdot v2.4s, v1.16b, v0.16b", "mov v0.s[1], v1.s[0]",
                                      "stp\tq0, q1, [x0]", "str\tx0, [x1]", "smlal2 v3.4s, v1.8h, v2.h[7]"])
        self.assertEqual((counts["sdot"], counts["sdot[]"], counts["mov[]"], counts["str q"], counts["smlal2[]"]), (2, 1, 0, 2, 1))

    def test_multiplications(self):
        for text, count in {"sdot v2.4s, v1.16b, v0.4b[1]": 16, "smmla v2.4s, v1.16b, v0.16b": 32, "fmla v2.4s, v1.4s, v0.s[1]": 4,
                            "smlal2 v2.4s, v1.8h, v0.h[1]": 4, "bfmmla v2.4s, v1.8h, v0.8h": 16, "fmul v2.4s, v1.4s, v0.4s": 0}.items():
            self.assertEqual(model_arm.multiplications(text), count, text)

    def test_runnable(self):
        self.assertEqual(model_arm.runnable("b.ne\t0x8 <f+0x8>"), "b.ne\t8")
        self.assertEqual(model_arm.runnable("adrp\tx1, 0x1000 <f>"), "adrp\tx1, 0")
        self.assertEqual(model_arm.runnable("str\tq5, [x9], #0x20"), "str\tq5, [x9]\nadd x9, x9, #0x20")

    def test_cycles_for_scores(self):
        # 16 dot products make 64 scores of 4 dimensions: 16 times that is 64 of 64, of which 16 are a quarter.
        self.assertEqual(model_arm.by_products(["sdot v2.4s, v1.16b, v0.4b[1]"] * 16), 4)

    def test_bound(self):
        def region(cycles, use):
            return {"SummaryView": {"TotalCycles": cycles * model_arm.ITERATIONS, "TotaluOps": 8 * model_arm.ITERATIONS, "DispatchWidth": 4},
                    "Instructions": [None, None],
                    "ResourcePressureView": {"ResourcePressureInfo": [
                        {"InstructionIndex": 1, "ResourceIndex": 1, "ResourceUsage": 100},
                        {"InstructionIndex": 2, "ResourceIndex": 0, "ResourceUsage": 1},
                        {"InstructionIndex": 2, "ResourceIndex": 1, "ResourceUsage": use}]}}
        target = {"Resources": ["N1UnitL", "N1UnitV0"]}
        self.assertEqual(model_arm.read_model(target, region(8, 8)), (8, "V0"))
        self.assertEqual(model_arm.read_model(target, region(2, 1)), (2, "dispatch"))
        self.assertEqual(model_arm.read_model(target, region(20, 8)), (20, "latency"))

    def test_a_missing_loop_is_an_error(self):
        with mock.patch.object(loops, "sections", lambda objdump, path: (loops.ARM64, [loops.instructions(LISTING)])):
            with self.assertRaisesRegex(SystemExit, "no loop of the kind"):
                model_arm.find_loops("neon_dot", "objdump", "a.o")


class Musts(unittest.TestCase):
    """On a core that takes half a cycle for whatever it is told."""

    def run_model(self, kind_name, num_others):
        """What model_arm.py says of an object of neon_dot with one loop, of 24 sdot and other instructions."""
        (kind,) = (kind for kind in model_arm.EXPECTED["neon_dot"] if kind.name == kind_name)
        body = ["sdot v2.4s, v1.16b, v0.4b[1]"] * 24 + ["add x0, x0, x1"] * num_others
        loop = loops.Loop(0, [], body, [])
        model_arm.roof.cache_clear()
        with mock.patch.object(model_arm, "model", lambda core, texts: model_arm.Model(len(texts) / 2, "V0")), \
                mock.patch.object(model_arm, "find_loops", lambda tier, objdump, path: {kind: [loop]}), \
                contextlib.redirect_stdout(io.StringIO()):
            model_arm.main("neon_dot/gcc=a.o")

    def tearDown(self):
        model_arm.roof.cache_clear()

    def test_a_loop_that_is_fast_enough(self):
        self.run_model("i8: K·Q", 4)  # 24 of 28 are 86 %

    def test_a_loop_made_slower(self):
        with self.assertRaisesRegex(SystemExit, r"neon_dot/gcc, i8: K·Q: 82.8 % of the roof on neoverse-n1, must be 85 % or more"):
            self.run_model("i8: K·Q", 5)

    def test_decode_may_be_slower(self):
        self.run_model("i8: decode K·Q, 6 rows", 24)

    def test_every_must_is_asked_of_a_loop(self):
        asked = {(kind.product.split()[0], core)
                 for tier, kinds in model_arm.EXPECTED.items() for kind in kinds if kind.product
                 for core in model_arm.CORES_WITH.get(tier, model_arm.CORES) if model_arm.least(kind, core)}
        self.assertEqual(asked, set(model_arm.MUST))


class Arguments(unittest.TestCase):
    def exit_code(self, program, *arguments):
        return subprocess.run([sys.executable, MODEL_ARM / program, *arguments], capture_output=True).returncode

    def test_model_arm(self):
        for arguments in [[], ["--find"], ["--find", "objdump"], ["--fnid", "objdump", "neon=a.o"], ["a.o"], ["sve=a.o"], ["neon=a.o", "--find"], ["--tiers", "x"]]:
            self.assertEqual(self.exit_code("model_arm.py", *arguments), 2, arguments)
        self.assertEqual(self.exit_code("model_arm.py", "--tiers"), 0)

    def test_count_instructions(self):
        with tempfile.TemporaryDirectory() as folder:
            counts = pathlib.Path(folder, "counts.txt")
            counts.write_text("neon f32 1.0\n")
            for options in [["--wrtie"], ["--count"], ["x"], ["--write", "x"], ["--write", "--write"], [""]]:
                self.assertEqual(self.exit_code("count_instructions.py", "plugin.so", counts, "attend", "attend32", *options), 2, options)
            self.assertEqual(self.exit_code("count_instructions.py", "plugin.so", counts, "attend"), 2)
            self.assertEqual(self.exit_code("count_instructions.py", "plugin.so", counts, "--write", "attend32"), 2)
            self.assertEqual(counts.read_text(), "neon f32 1.0\n")


if __name__ == "__main__":
    unittest.main()
