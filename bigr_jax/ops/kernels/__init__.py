"""Pallas kernels for a TPU; each is one of the forms of an operation, and the XLA forms stay."""
