"""Published figures of TPU chips, for plans made without one."""

from __future__ import annotations

from typing import NamedTuple

from irl_jax.errors import UserError

GIB = 2**30


class Chip(NamedTuple):
    """One chip.

    memory: bytes that XLA gives to programs, a little less than published. libtpu 0.0.52 names this figure if a program doesn't fit.
    flops: peak bfloat16 operations per second. bandwidth: of main memory, bytes per second. ici: bytes per second, sent one way over all
    links to other chips of the slice together (half of the published bidirectional figure). dcn: bytes per second per chip to other slices.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    ici: float
    dcn: float


# Sources: the specification tables at https://cloud.google.com/tpu/docs/v5e, .../v6e and .../v5p, read in 2025: peak bf16 compute per
# chip (197, 918, 459 TFLOPs), HBM capacity (16, 32, 95 GB) and bandwidth (819, 1600, 2765 GB/s), interconnect (1600 and 3200 Gbit/s one
# way; 1200 GB/s both ways), data centre network (6.4 and 25.6 Tbit/s per pod of 256; 50 Gbit/s per chip).
CHIPS = {
    "v5e": Chip("v5e", 15.75 * GIB, 197e12, 819e9, 200e9, 6.4e12 / 8 / 256),
    "v6e": Chip("v6e", 31.24 * GIB, 918e12, 1600e9, 400e9, 25.6e12 / 8 / 256),
    "v5p": Chip("v5p", 95.73 * GIB, 459e12, 2765e9, 600e9, 50e9 / 8),
}
EXAMPLES = "v5e:4x4 (16 chips), v5e:16x16 (256), v6e:8x8 (64), v5p:2x4x4 (32, sold as v5p-64)"


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as "v5e:4x4".

    Raises:
        UserError: the chip is not in the table.
    """
    name = topology.split(":")[0]
    if name not in CHIPS:
        raise UserError(f"--topology={topology}: unknown chip '{name}'; write CHIP:SHAPE, such as {EXAMPLES}")
    return CHIPS[name]
