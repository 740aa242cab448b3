"""How much of a device's memory `faulty` deals with. Standard library only."""

WIDTH = 1 << 18  # floats: 1 MiB a row
ROWS = 512  # of a large batch
SPARE = 160 << 20  # bytes that are left of the device's memory, less than those rows take
PIECES = (1 << 30, 1 << 24)  # bytes: what the rest is taken in, from large to small
