"""Small kernels with their problems, to read and to try `bench.emulate` on."""
