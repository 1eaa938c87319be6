"""Small PTX modules for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.static.ptx import Report, launch


def module(body: str, pointers: int, block: int, variables: str = "") -> str:
    """A kernel named `k` whose parameters are all pointers.

    The body finds them in %d0, %d1, ...; the thread's index in the grid in %i, within its block in
    %t, and registers %p, %h (16 bits), %r (32 bits) and %q (64 bits).

    Args:
        body: instructions.
        pointers: parameters.
        block: threads per CTA.
        variables: declarations before the kernel.
    """
    parameters = ", ".join(f".param .u64 a{i}" for i in range(pointers))
    loads = " ".join(f"ld.param.u64 %d{i}, [a{i}];" for i in range(pointers))
    return f"""
.version 8.0
.target sm_90
.address_size 64
{variables}
.visible .entry k({parameters})
{{
.reg .pred %p<16>;
.reg .b16 %h<32>;
.reg .b32 %r<64>, %i, %t, %cta;
.reg .b64 %q<32>, %d<8>;
{loads}
mov.u32 %t, %tid.x;
mov.u32 %cta, %ctaid.x;
mad.lo.u32 %i, %cta, {block}, %t;
{body}
ret;
}}
"""


def at(index: int, size: int, pointer: int) -> str:
    """Leaves in %q{index} the address of this thread's item of `size` bytes in a buffer."""
    return f"mul.wide.u32 %q{index}, %i, {size}; add.s64 %q{index}, %q{index}, %d{pointer};"


def run(
    body: str,
    buffers: Sequence[np.ndarray],
    block: int,
    grid: int = 1,
    variables: str = "",
    **options: Any,
) -> Report:
    """Launch a body on buffers, which it changes."""
    text = module(body, len(buffers), block, variables)
    return launch(text, "k", grid, block, list(buffers), **options)
