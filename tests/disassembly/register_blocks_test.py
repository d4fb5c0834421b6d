#!/usr/bin/env python3
"""Tests of stack.py and check_register_blocks.py, on listings written by hand."""

import unittest
from unittest import mock

import check_register_blocks
import loops
import stack

PRODUCTS_64 = ["fmla v0.4s, v1.4s, v2.s[0]"] * 6
PRODUCTS_32 = ["vfma.f32 q0, q1, q2"] * 8


def code_of(*texts):
    """Instructions as they follow each other, four bytes each; {3} is the address of the fourth."""
    addresses = [f"{4 * i:x}" for i in range(len(texts))]
    listing = "".join(f"  {address}:\t{text.format(*addresses)}\n" for address, text in zip(addresses, texts))
    return loops.instructions(listing)


def loop_of(before, body, products=PRODUCTS_64, jump="b.ne"):
    """A function that prepares something and multiplies in a loop."""
    return code_of(*before, *products, *body, f"{jump} {{{len(before)}}}", "ret")


def touches_stack(isa, *texts):
    """Which instructions do, by their numbers."""
    return sorted(address // 4 for address in stack.accesses(isa, code_of(*texts)))


def verdicts(isa, code):
    return [bad for _, bad, _ in check_register_blocks.check(isa, code)]


class Stack64(unittest.TestCase):
    def test_stack_pointer(self):
        self.assertEqual(touches_stack(loops.ARM64, "str q0, [sp, #16]", "ldr q0, [x0, #16]", "prfm pldl1keep, [sp]"), [0])

    def test_frame_pointer(self):
        self.assertEqual(touches_stack(loops.ARM64, "stp x29, x30, [sp, #-96]!", "mov x29, sp", "ldr q0, [x29, #32]"), [0, 2])
        self.assertEqual(touches_stack(loops.ARM64, "add x29, sp, #0x10", "stur q0, [x29, #-0x20]"), [1])

    def test_a_frame_pointer_that_is_none(self):
        self.assertEqual(touches_stack(loops.ARM64, "ldr x29, [x0]", "ldr q0, [x29, #32]"), [])
        self.assertEqual(touches_stack(loops.ARM64, "mov x29, sp", "mov w29, w1", "ldr q0, [x29]"), [])

    def test_other_bases(self):
        self.assertEqual(touches_stack(loops.ARM64, "add x8, sp, #0x1, lsl #12", "add x9, x8, #0x40", "ld1 {{v0.4s}}, [x9]", "ldr q1, [x8, x2]"), [2])

    def test_a_pointer_along_an_array(self):
        self.assertEqual(touches_stack(loops.ARM64, "add x8, sp, #0x40", "ldr q0, [x8], #16", "cbnz x1, {1}"), [])
        self.assertEqual(touches_stack(loops.ARM64, "add x8, sp, #0x40", "ldr q0, [x8]", "add x8, x8, #0x10", "cbnz x1, {1}"), [])

    def test_all_ways_have_to_lead_to_the_stack(self):
        self.assertEqual(touches_stack(loops.ARM64, "add x8, sp, #0x40", "cbz x0, {3}", "mov x8, x1", "ldr q0, [x8]"), [])
        self.assertEqual(touches_stack(loops.ARM64, "add x8, sp, #0x40", "cbz x0, {3}", "mov x9, x1", "ldr q0, [x8]"), [3])

    def test_calls(self):
        self.assertEqual(touches_stack(loops.ARM64, "add x8, sp, #8", "add x19, sp, #8", "bl 1000 <f>", "ldr q0, [x8]", "ldr q0, [x19]"), [4])

    def test_what_follows_a_return_is_another_function(self):
        self.assertEqual(touches_stack(loops.ARM64, "mov x29, sp", "ret", "ldr q0, [x29]", "ldr q0, [sp]"), [3])

    def test_a_store_changes_no_register(self):
        self.assertEqual(touches_stack(loops.ARM64, "add x8, sp, #8", "str x8, [x0]", "ldp x0, x1, [x8]", "ldp x0, x8, [x1]", "ldr q0, [x8]"), [2])


class Stack32(unittest.TestCase):
    def test_stack_pointer(self):
        self.assertEqual(touches_stack(loops.ARM32, "vstr d16, [sp, #16]", "vld1.64 {{d16, d17}}, [sp:64]", "vst1.64 {{d16-d17}}, [sp :64]", "vldr d0, [r0]"),
                         [0, 1, 2])

    def test_frame_pointers(self):
        self.assertEqual(touches_stack(loops.ARM32, "push {{r4, r7, lr}}", "add r7, sp, #4", "vstr d16, [r7, #-40]"), [2])
        self.assertEqual(touches_stack(loops.ARM32, "add fp, sp, #4", "vstr d16, [r11, #-40]\t@ 0x28", "pop {{r4, fp, pc}}", "vldr d0, [fp]"), [1])

    def test_other_bases(self):
        self.assertEqual(touches_stack(loops.ARM32, "add.w r3, sp, #256", "adds r3, #8", "vld1.64 {{d16, d17}}, [r3 :128]", "vldr d0, [r4]"), [2])
        self.assertEqual(touches_stack(loops.ARM32, "add r3, sp, #8", "vld1.32 {{d16-d17}}, [r3]!", "vldr d0, [r3]"), [1])

    def test_several_registers(self):
        self.assertEqual(touches_stack(loops.ARM32, "add r3, sp, #8", "vldmia r3, {{d16, d17}}", "vstmia r3, {{d16, d17}}", "vldmia r3!, {{d16-d17}}", "vldr d0, [r3]",
                                       "ldmia.w sp, {{r0, r1}}"),
                         [1, 2, 3, 5])

    def test_returns(self):
        for text in ["bx lr", "pop {{r4, pc}}", "b.w 1000 <f>"]:
            self.assertEqual(touches_stack(loops.ARM32, "mov r7, sp", text, "vldr d0, [r7]"), [], text)
        self.assertEqual(touches_stack(loops.ARM32, "mov r7, sp", "blt 1000 <f>", "bl 1000 <f>", "vldr d0, [r7]"), [3])


class Blocks(unittest.TestCase):
    def test_registers(self):
        self.assertEqual(verdicts(loops.ARM64, loop_of(["mov x29, sp"], ["ldr q1, [x0], #16"])), [False])

    def test_every_way_to_the_stack(self):
        for before, spill in [("nop", "str q0, [sp, #16]"), ("mov x29, sp", "str q0, [x29, #16]"), ("add x9, sp, #64", "str q0, [x9]")]:
            self.assertEqual(verdicts(loops.ARM64, loop_of([before], [spill])), [True], spill)

    def test_a_long_loop_is_no_exception(self):
        self.assertEqual(verdicts(loops.ARM64, loop_of([], ["nop"] * 1000 + ["ldr q0, [sp]"])), [True])

    def test_few_products_are_no_block(self):
        self.assertEqual(verdicts(loops.ARM64, loop_of([], ["ldr q0, [sp]"], products=PRODUCTS_64[:5])), [])

    def test_32_bits(self):
        one_sum = ["vstr d0, [r7]", "vstr d1, [r7, #8]"]
        self.assertEqual(verdicts(loops.ARM32, loop_of(["mov r7, sp"], one_sum, PRODUCTS_32, "bne")), [False])
        self.assertEqual(verdicts(loops.ARM32, loop_of(["mov r7, sp"], [*one_sum, "vst1.64 {{d2-d3}}, [sp :64]"], PRODUCTS_32, "bne")), [True])
        self.assertEqual(verdicts(loops.ARM32, loop_of(["mov r7, sp"], [*one_sum, "vstmia r7, {{d2, d3}}"], PRODUCTS_32, "bne")), [True])
        self.assertEqual(verdicts(loops.ARM32, loop_of(["mov r7, r0"], one_sum * 2, PRODUCTS_32, "bne")), [False])

    def test_products_of_32_bits(self):
        for text in ["vmla.f32 q9, q8, d0[0]", "vmlal.s16 q0, d2, d3", "vmull.s16 q0, d2, d3", "vfma.f32 q0, q1, q2"]:
            self.assertTrue(loops.ARM32.product.match(text), text)
        self.assertFalse(loops.ARM32.product.match("vmla.f32 s15, s13, s14"))

    def test_missing_loops(self):
        def check(num_loops):
            with mock.patch.object(loops, "sections", lambda objdump, path: (loops.ARM64, [loop_of([], [])] * num_loops)):
                check_register_blocks.main("objdump", "neon", "a.o")

        enough = check_register_blocks.MIN_LOOPS["neon"]
        check(enough)
        with self.assertRaisesRegex(SystemExit, "expected at least"):
            check(enough - 1)


if __name__ == "__main__":
    unittest.main()
