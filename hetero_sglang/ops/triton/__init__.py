"""The operations as kernels that wait for nothing and run in CUDA graphs."""
