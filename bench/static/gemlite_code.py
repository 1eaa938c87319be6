"""gemlite's kernels, compiled for a board that is not here: what gemlite itself would launch on it.

gemlite asks the driver for the board when it is imported, so this pretends that there is one, in a process
of its own. Then gemlite is called as on a GPU: it chooses the kernel by batch and bits, and the tile from the
configurations that it ships for the board and the shape. In place of launching, Triton compiles what its
launcher would. Of 8-bit weights gemlite ships tiles for 8-bit x only; those are taken for 16-bit x too, for
which it would time some instead. Where it ships none at all there is no count.

    python -m bench.static.gemlite_code '{"board": "H100", "capability": 90, "sms": 132, "cells": [...]}'

prints JSON: for each cell {"format", "activation", "batch"} what `Gemlite` holds, or a sentence.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.static.compile import WARP_LANES, read_kernel
from bench.static.peer_code import Counted, count_code

ROOT = Path(__file__).resolve().parent.parent.parent
N = K = 4096  # the shape that most boards have configurations for
STAGES = 2  # of GEMV_REVSPLITK, written one after the other
TYPE_OF_8_BIT_X = 4  # gemlite's number of INT8, in the keys of its configurations
TYPES_OF_16_BIT_X = (1,)  # of fp16; it gives bf16 the same
MATCHED = "GEMV_SPLITK"
SHOWN = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "num_warps", "num_stages")


@dataclass(frozen=True)
class Gemlite:
    """One kernel that gemlite would launch: its name, its tile in words, and the counts."""

    kernel: str
    tile: str
    counted: Counted


class _LaunchedError(Exception):
    """Ends a call of gemlite where it would have launched; holds its tiles, and what compiles one."""

    def __init__(self, tiles: list[Any], compile_one: Any) -> None:
        super().__init__()
        self.tiles, self.compile_one = tiles, compile_one


def count_gemlite(
    board: str, capability: int, sms: int, cells: Sequence[dict[str, Any]]
) -> list[Gemlite | str]:
    """The kernels of these cells ("format", "activation", "batch"), or a sentence for each that has none.

    Args:
        board: its name, by which gemlite looks for configurations.
        capability: compute capability times ten.
        sms: multiprocessors.
        cells: what is multiplied.
    """
    request = json.dumps({"board": board, "capability": capability, "sms": sms, "cells": [*cells]})
    with tempfile.TemporaryDirectory() as folder:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        done = subprocess.run(
            [sys.executable, "-m", __name__, request],
            cwd=ROOT,
            env={**environment, "TRITON_CACHE_DIR": folder},
            capture_output=True,
            text=True,
        )
    try:
        answers = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return [f"gemlite could not be compiled here: {last}"] * len(cells)
    return [
        a if isinstance(a, str) else Gemlite(a["kernel"], a["tile"], Counted(**a["counted"]))
        for a in answers
    ]


def pretend(board: str, capability: int, sms: int) -> None:
    """Make torch and Triton say that this board is here; for a process that ends soon."""
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    properties = SimpleNamespace(name=board, multi_processor_count=sms)
    target = GPUTarget("cuda", capability, WARP_LANES)
    torch.cuda.get_device_capability = lambda *_: divmod(capability, 10)
    torch.cuda.get_device_properties = lambda *_: properties  # type: ignore[assignment]
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: target,
            get_current_device=lambda: 0,
            get_current_stream=lambda *_: 0,
        )
    )


def _stop_at_launch() -> None:
    """From now on an autotuned kernel raises `_LaunchedError`."""
    from triton.runtime.autotuner import Autotuner

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        self.nargs = dict(zip(self.arg_names, args, strict=False))

        def compile_one(tile: Any) -> Any:
            return self.fn.run(*args, grid=grid, warmup=True, **options, **tile.all_kwargs())

        raise _LaunchedError(self.prune_configs(options), compile_one)

    Autotuner.run = run


def _share_tiles(known: dict[str, dict[str, Any]]) -> None:
    """Let 8-bit weights with 16-bit x have the tiles of those with 8-bit x."""
    tiles = known.get(MATCHED, {})
    for key, tile in list(tiles.items()):
        *shape, kind = ast.literal_eval(key)
        if kind // 100 == TYPE_OF_8_BIT_X:
            for of_x in TYPES_OF_16_BIT_X:
                tiles.setdefault(str((*shape, 100 * of_x + kind % 100)), tile)


def _count(cell: dict[str, Any], capability: int) -> Gemlite | str:
    """One cell, from weights that are all zeros: only shapes and types matter."""
    import numpy as np
    import torch

    from kernels.formats import find_format
    from kernels.packing import Weights
    from kernels.peers import gemlite

    stored = find_format(cell["format"])
    per_group = N, stored.groups(K)
    zeros = np.zeros(per_group, np.uint8) if stored.zero_point else None
    codes, scales = np.zeros((N, K), np.uint8), np.ones(per_group, np.float32)
    tensors = gemlite.pack(Weights(stored, cell["activation"], codes, scales, zeros))
    x = torch.zeros(cell["batch"], K, dtype=gemlite.DTYPES[cell["activation"]])
    try:
        gemlite.bind(tensors, x, x)()
    except _LaunchedError as launched:
        if len(launched.tiles) > 1:
            return f"gemlite ships no tile for it and would time {len(launched.tiles)} on the board"
        [tile] = launched.tiles
        return _counted(tile.all_kwargs(), launched.compile_one(tile), capability)
    raise TypeError("gemlite launched no autotuned kernel")


def _counted(tile: dict[str, Any], binary: Any, capability: int) -> Gemlite:
    """A program has a tile per pass, and its lanes share it; without a loop all passes are in the code."""
    compiled, name = read_kernel(binary, capability), binary.metadata.name
    lanes = WARP_LANES * tile["num_warps"]
    pass_weights = tile["BLOCK_SIZE_N"] * tile["BLOCK_SIZE_K"] // lanes
    counted = count_code(compiled.sass, pass_weights)
    if not counted.looped:
        passes = K // (tile["SPLIT_K"] * tile["BLOCK_SIZE_K"]) if "SPLIT_K" in tile else STAGES
        counted = count_code(compiled.sass, passes * pass_weights)
    return Gemlite(name, " ".join(f"{n}={tile[n]}" for n in SHOWN if n in tile), counted)


def main(text: str) -> None:
    """Answers one request on stdout; whatever others print goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.loads(text)
    pretend(request["board"], request["capability"], request["sms"])
    import gemlite.core

    _share_tiles(gemlite.core.GEMLITE_TRITON_CONFIG_CACHE)
    _stop_at_launch()
    answers = [_count(cell, request["capability"]) for cell in request["cells"]]
    json.dump([a if isinstance(a, str) else asdict(a) for a in answers], out)
    out.close()


if __name__ == "__main__":
    main(sys.argv[1])
