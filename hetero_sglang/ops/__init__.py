"""The few operations of a step. `reference` (torch: the truth, and the CPU) and `triton` have the same ones."""
