"""Evidence without a GPU: compile kernels ahead of time and read their machine code."""
