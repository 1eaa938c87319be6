"""A kernel that can be imported once: a file that is there afterwards forbids it."""

import os
from dataclasses import replace
from pathlib import Path

from bench.examples import my_kernel

marker = Path(os.environ["DEQUANT_TEST_MARKER"])
if marker.exists():
    raise RuntimeError("once is enough")
marker.touch()
kernel = replace(my_kernel.kernel, implementation="once")
