"""A module of kernels that nobody gets to see: what it needs is not installed."""

import no_such_module

kernel = no_such_module.kernel
