"""What a chip can hold and move, and the time that a program takes at least on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax

from bigr_jax.ops import flops

GIB = 1 << 30


class Chip(NamedTuple):
    """What a jax device is made of.

    memory     bytes that a program may take of it
    bandwidth  of that memory, bytes per second
    links      to other chips, all together, bytes per second in one direction
    """

    memory: float
    bandwidth: float
    links: float


# Bandwidths from Google's Cloud TPU architecture pages, where links are given for both directions,
# and from NVIDIA's data sheets (NVLink). A TPU's memory is what its compiler lets a program have,
# a little less than what the pages say. Longer names come before their beginnings.
CHIPS: Mapping[str, Chip] = {
    "TPU v4": Chip(31.75 * GIB, 1228e9, 300e9),
    "TPU v5 lite": Chip(15.75 * GIB, 819e9, 200e9),
    "TPU v5e": Chip(15.75 * GIB, 819e9, 200e9),
    "TPU v5": Chip(95.74 * GIB, 2765e9, 600e9),
    "TPU v6": Chip(31.25 * GIB, 1640e9, 400e9),
    "H100": Chip(80e9, 3350e9, 450e9),
    "H200": Chip(141e9, 4800e9, 450e9),
}


class Bound(NamedTuple):
    """Seconds that a program takes at least: of arithmetic, of memory, and of the links between
    chips; useful is the arithmetic that the method asks for, what remat repeats left out.
    """

    arithmetic: float
    memory: float
    links: float
    useful: float

    @property
    def seconds(self) -> float:
        """Seconds at least, if all three go on at once."""
        return max(self.arithmetic, self.memory, self.links)

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation at most, in [0, 1]."""
        return self.useful / self.seconds if self.seconds else 0.0

    @property
    def limit(self) -> str:
        """What it waits for: "arithmetic", "memory" or "links"."""
        return max(("arithmetic", "memory", "links"), key=lambda name: getattr(self, name))


def chip_of(device: jax.Device) -> Chip | None:
    """Returns what a device is made of, None where it is not in the table."""
    return next((chip for name, chip in CHIPS.items() if name in device.device_kind), None)


def bound(
    device: jax.Device, operations: float, useful: float, traffic: float, moved: float
) -> Bound | None:
    """Returns the least time of a program on one device, None where the device is not in the table.

    operations, useful  FLOPs of this device, all and without what remat repeats
    traffic             bytes to and from its memory
    moved               bytes that it sends to others
    """
    chip, peak = chip_of(device), None
    if chip is not None:
        peak = flops.peak_flops(device)
    if chip is None or peak is None:
        return None
    return Bound(operations / peak, traffic / chip.bandwidth, moved / chip.links, useful / peak)
