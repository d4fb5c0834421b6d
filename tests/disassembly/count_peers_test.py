#!/usr/bin/env python3
"""Tests of bench/model_arm/count_peers.py with a function in place of QEMU."""

import contextlib
import functools
import io
import pathlib
import signal
import subprocess
import sys
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bench" / "model_arm"))
import count_peers  # noqa: E402

LISTING = "sightline f32 1.0\nsightline i8_rotated 1.0\nnaive f32 1\nother f16 2\nold f32 3\n"


def emulate(command, env, listing, **_):
    """Setting up takes 1000 million instructions, an attention of self 40 for each letter of the tier's name, of decode 1. The
    core without fp16 refuses it, "old" needs a better one, "wrong" is that."""

    def result(out, status=0, err=""):
        return subprocess.CompletedProcess(command, status, out, err)

    _, _, cpu, _, root, *words = command
    cpuinfo = pathlib.Path(root, "proc", "cpuinfo").read_text(encoding="utf-8")
    old_core = cpu == "cortex-a53"
    assert old_core == ("part\t: 0xd03" in cpuinfo), cpuinfo
    if words == ["program"]:
        return result(listing)
    assert words[:3] == ["-plugin", "plugin", "program"], words
    name, precision, shape, times = words[3:]
    if name == "wrong":
        return result("0.9\nis too much\n", status=2)
    if old_core and name == "old":
        return result("", status=-signal.SIGILL)
    if old_core and precision == "f16":
        return result("no fp16\n", status=1)
    letters = len(env["SIGHTLINE_TIER"])
    error, each = {"self": (f"{10 - letters}e-07", 40 * letters), "decode": ("2.1e-3", 1)}[shape]
    return result(error + "\n", err=f"{1000000000 + 1000000 * each * int(times)}\n")


class CountPeersTest(unittest.TestCase):
    def lines(self, *tiers, listing=LISTING):
        out = io.StringIO()
        with mock.patch("subprocess.run", functools.partial(emulate, listing=listing)), contextlib.redirect_stdout(out):
            count_peers.main("qemu", "plugin", "program", *tiers)
        return out.getvalue().splitlines()

    def test_tables(self):
        lines = self.lines()
        self.assertIn("other f16 2", lines)  # which version was counted
        self.assertIn("| Self-attention, 512 tokens | neon | neon_dot | neon_i8mm | error |", lines)
        self.assertIn("| sightline f32 | 160.0 | 320.0 | 360.0 | 6e-07 |", lines)
        self.assertIn("| sightline f32 | 1.00 | 1.00 | 1.00 | 0.002 |", lines)
        self.assertIn("| other f16 | - | 320.0 | 360.0 | 2e-07 |", lines)
        self.assertIn("| old f32 | - | 320.0 | 360.0 | 2e-07 |", lines)
        self.assertIn("other f16: no fp16 (self on neon, decode on neon)", lines)
        self.assertIn("old f32: was compiled for instructions that this CPU lacks (self on neon, decode on neon)", lines)
        self.assertFalse([line for line in lines if line.startswith(("| naive", "| sightline i8_rotated"))])

    def test_one_tier(self):
        lines = self.lines("neon")
        self.assertIn("| sightline f32 | 160.0 | 6e-07 |", lines)
        self.assertFalse([line for line in lines if line.startswith("| other")])  # no figure at all

    def test_a_wrong_result_is_an_error(self):
        with self.assertRaisesRegex(SystemExit, r"wrong f32 self 1 \(neon\): 0.9\nis too much"):
            self.lines(listing=LISTING + "wrong f32 1\n")

    def test_an_unknown_tier_is_an_error(self):
        with self.assertRaisesRegex(SystemExit, "no tier is called sve"):
            self.lines("sve")


if __name__ == "__main__":
    unittest.main()
