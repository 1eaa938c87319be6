"""The one load that the kernels share."""

import triton
import triton.language as tl


@triton.jit
def load(ptr, inside, pad, WHOLE: tl.constexpr):
    """Load a tile; where `inside` is false, `pad`. WHOLE promises that it never is."""
    return tl.load(ptr) if WHOLE else tl.load(ptr, mask=inside, other=pad)
