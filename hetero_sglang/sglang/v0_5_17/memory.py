"""server_args.py, `_handle_gpu_memory_settings`."""

BY_MEMORY: tuple[tuple[int, int, int], ...] = (
    (20 << 10, 2048, 8),
    (35 << 10, 2048, 24),
    (60 << 10, 4096, 32),
    (160 << 10, 8192, 256),
)
LARGEST = (16384, 512)
MANY_RANKS = {24: 80, 32: 160, 256: 512}
