"""Small kernels to read: `my_*.py` and `bad_kernels.py` for `--kernel`, `dequant_gemv` for `bench.emulate`."""
