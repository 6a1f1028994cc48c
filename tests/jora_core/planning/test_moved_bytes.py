"""Bytes that a program moves, counted by hand for a small one."""

from __future__ import annotations

import pytest

from jora_core.planning.hlo_text import parse_program
from jora_core.planning.moved_bytes import launch_bytes, moved_bytes

# A loop whose body slices an array, adds to the slice and writes the sum back; then a branch.
TEXT = """HloModule m, is_scheduled=true

%sliced (p0.1: bf16[8,16], p1.1: s32[]) -> f32[1,16] {
  %p1.1 = s32[] parameter(1)
  %p0.1 = bf16[8,16]{1,0} parameter(0)
  %wide = f32[8,16]{1,0} convert(%p0.1)
  %zero = s32[] constant(0)
  ROOT %part = f32[1,16]{1,0} dynamic-slice(%wide, %p1.1, %zero), dynamic_slice_sizes={1,16}
}

%updated (p0.2: f32[8,16], p1.2: f32[1,16], p2.2: s32[]) -> (f32[128], s32[]) {
  %p0.2 = f32[8,16]{1,0} parameter(0)
  %p1.2 = f32[1,16]{1,0} parameter(1)
  %p2.2 = s32[] parameter(2)
  %zero.2 = s32[] constant(0)
  %old = f32[1,16]{1,0} dynamic-slice(%p0.2, %p2.2, %zero.2), dynamic_slice_sizes={1,16}
  %sum = f32[1,16]{1,0} add(%old, %p1.2)
  %new = f32[8,16]{1,0} dynamic-update-slice(%p0.2, %sum, %p2.2, %zero.2)
  %flat = f32[128]{0} bitcast(%new)
  %one = s32[] constant(1)
  %next = s32[] add(%p2.2, %one)
  ROOT %both = (f32[128]{0}, s32[]) tuple(%flat, %next)
}

%body (state: (s32[], bf16[8,16], f32[8,16])) -> (s32[], bf16[8,16], f32[8,16]) {
  %state = (s32[], bf16[8,16]{1,0}, f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = bf16[8,16]{1,0} get-tuple-element(%state), index=1
  %total = f32[8,16]{1,0} get-tuple-element(%state), index=2
  %slice = f32[1,16]{1,0} fusion(%x, %i), kind=kLoop, calls=%sliced, metadata={op_name="jit(f)/(a), b=c"}
  %update = (f32[128]{0}, s32[]) fusion(%total, %slice, %i), kind=kLoop, calls=%updated
  %u0 = f32[128]{0} get-tuple-element(%update), index=0
  %u = f32[8,16]{1,0} bitcast(%u0)
  %n = s32[] get-tuple-element(%update), index=1
  ROOT %state.2 = (s32[], bf16[8,16]{1,0}, f32[8,16]{1,0}) tuple(%n, %x, /*index=2*/%u)
}

%less (a: s32[], b: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %compare = pred[] compare(%a, %b), direction=LT
}

%condition (state.3: (s32[], bf16[8,16], f32[8,16])) -> pred[] {
  %state.3 = (s32[], bf16[8,16]{1,0}, f32[8,16]{1,0}) parameter(0)
  %i.3 = s32[] get-tuple-element(%state.3), index=0
  %end = s32[] constant(8)
  ROOT %goes_on = pred[] fusion(%i.3, %end), kind=kLoop, calls=%less
}

%yes (y: f32[8,16]) -> f32[8,16] {
  %y = f32[8,16]{1,0} parameter(0)
  ROOT %copied = f32[8,16]{1,0} copy(%y)
}

%no (z: f32[8,16]) -> f32[8,16] {
  ROOT %z = f32[8,16]{1,0} parameter(0)
}

ENTRY %main (q: bf16[8,16], k: f32[8,16], c: pred[]) -> f32[8,16] {
  %q = bf16[8,16]{1,0} parameter(0), sharding={replicated}
  %k = f32[8,16]{1,0} parameter(1)
  %c = pred[] parameter(2)
  %start = s32[] constant(0)
  %row = f32[1,16]{1,0} dynamic-slice(%k, %start, %start), dynamic_slice_sizes={1,16}
  %set = f32[8,16]{1,0} dynamic-update-slice(%k, %row, %start, %start)
  %product = f32[8,8]{1,0} custom-call(%set, %set), custom_call_target="__cublas$gemm"
  %first = (s32[], bf16[8,16]{1,0}, f32[8,16]{1,0}) tuple(%start, %q, %set)
  %last = (s32[], bf16[8,16]{1,0}, f32[8,16]{1,0}) while(%first), condition=%condition, body=%body
  %found = f32[8,16]{1,0} get-tuple-element(%last), index=2
  ROOT %chosen = f32[8,16]{1,0} conditional(%c, %found, %found), branch_computations={%yes, %no}
}
"""


def test_bytes_of_each_launch() -> None:
    program = parse_program(TEXT)
    found = {name: launch_bytes(program, made) for name, made in program.named.items()}
    # A row of 16 numbers in bfloat16, its index, the row in float32.
    assert found["slice"] == 32 + 4 + 64
    # The old row, what is added, the index; the new row and the next index.
    assert found["update"] == 64 + 64 + 4 + 64 + 4
    assert found["goes_on"] == 4 + 4 + 1
    assert found["row"] == 64 + 4 + 64
    assert found["set"] == 64 + 4 + 64
    # One operand twice is one array.
    assert found["product"] == 512 + 256
    assert found["copied"] == 512 + 512
    for name in ("q", "start", "u", "n", "first", "last", "found", "chosen"):
        assert found[name] == 0


@pytest.mark.parametrize(("times", "share"), [(8, 1.0), (3, 0.25)])
def test_loops_and_branches_multiply(times: int, share: float) -> None:
    entry, body, condition, branch = 132 + 132 + 768, 100 + 200, 9, 1024
    # The branch is outside of all loops, at depth -1.
    moved = moved_bytes(parse_program(TEXT), lambda depth: (times, share if depth < 0 else 1.0))
    assert moved == entry + times * body + (times + 1) * condition + share * branch
