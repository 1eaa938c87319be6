"""The machine code behind a launch: of the Triton kernels that it runs, as they were compiled for this board.

    [(binary, arguments)] = launched(launch)
    read_kernel(binary, capability).sass

What the launcher specializes on (multiples of 16, tuned tiles) is in it; ahead of time nobody can know that of
a kernel of somebody else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Launched = tuple[Any, Mapping[str, object]]


def launched(launch: Callable[[], object]) -> list[Launched]:
    """Runs a launch: what Triton launches in it, in order.

    Args:
        launch: of a kernel that has run before, so that nothing is tuned any more.

    Returns:
        Triton's compiled kernels, each with the arguments that it was given by name.
    """
    from triton.runtime.jit import JITFunction

    found: list[Launched] = []
    run = JITFunction.run

    def recorded(self: Any, *values: Any, **named: Any) -> Any:
        binary = run(self, *values, **named)
        found.append((binary, named))
        return binary

    JITFunction.run = recorded
    try:
        launch()
    finally:
        JITFunction.run = run
    return found
