"""The few operations that a step is made of: `base` has the contract, `reference` torch's, `triton` the kernels."""
