"""Shared memory: who wrote and who reads which byte, and what stands between them."""

import numpy as np

from ptx.problems import Problems
from ptx.registers import Array
from ptx.source import UnknownError

GROUP = 4  # warps of a group, which multiplies together
GROUPS_BIT = 16  # readers: below, a bit for each warp, from here on one for each group that multiplies


class Shared:
    """Its bytes, and what is known of each: a phase lasts from one barrier of all warps to the next.

    Threads go in step, so a race shows by what no barrier orders, and not by wrong numbers. What a matrix instruction
    of a group (wgmma) reads, it reads through another way, the asynchronous proxy: what a warp wrote must be fenced,
    and what another group wrote must be fenced by it before a barrier (PTX ISA, "Async proxy", "fence.proxy").
    """

    def __init__(self, size: int, problems: Problems) -> None:
        self.problems = problems
        self.bytes = np.full(size, 0xFF, np.uint8)  # no numbers, in every dtype
        self.phase = 1
        self.readers = np.zeros(size, np.uint32)  # bits of those of this phase
        self.writers = np.zeros(size, np.uint32)
        self.last_writer = np.full(size, -1)
        self.fenced = np.zeros(size, np.int64)  # phase of the first fence since the last write; 0: none
        self.arriving = np.zeros(size, bool)  # by copies that were not waited for
        self.multiplied = np.zeros(size, np.int16)  # products not waited for that read it
        self.copies: list[list[Array]] = [[]]  # places by commit group, the last one open
        self.products: list[list[tuple[Array, int]]] = [[]]  # places and the group that multiplies

    def read(self, at: Array, warps: Array) -> Array:
        """Bytes at places (accesses, bytes), each access by a warp."""
        self._check(at)
        bits = (1 << warps.astype(np.uint32))[:, None]
        self.problems.note("shared memory is read after another warp's write, without a barrier",
                           unless=not (self.writers[at] & ~bits).any())  # fmt: skip
        np.bitwise_or.at(self.readers, at, bits)
        return self.bytes[at]

    def write(self, at: Array, data: Array, warps: Array, *, arriving: bool = False) -> None:
        """Write bytes to places (accesses, bytes), each access by a warp; `arriving` for a copy under way."""
        self._check_inside(at)
        note, own = self.problems.note, (1 << warps.astype(np.uint32))[:, None]
        # A product that was waited for is done for the whole group that took it ("wgmma.commit_group").
        others = ~(own | 1 << (GROUPS_BIT + warps.astype(np.uint32) // GROUP)[:, None])
        note("shared memory is written while another warp may read it", unless=not (self.readers[at] & others).any())
        note("shared memory is written while a product may read it", unless=not self.multiplied[at].any())
        note("shared memory is written while a copy arrives there", unless=not self.arriving[at].any())
        twice = (self.writers[at] & others != 0) & (self.bytes[at] != data)
        self.bytes[at] = data
        note("different numbers are written to one place", unless=not (twice.any() or (self.bytes[at] != data).any()))
        np.bitwise_or.at(self.writers, at, own)
        self.last_writer[at] = warps[:, None]
        # A copy (cp.async) needs no fence, only a barrier once it is waited for.
        self.fenced[at] = self.phase if arriving else 0
        self.arriving[at] = arriving
        if arriving:
            self.copies[-1].append(at)

    def multiply(self, at: Array, group: int) -> Array:
        """Bytes that a group's product reads, from now until it is waited for."""
        self._check(at)
        note = self.problems.note
        note("a product reads what was written since the last barrier", unless=not self.writers[at].any())
        note("a product reads what was not fenced", unless=bool(self.fenced[at].all()))
        foreign = self.last_writer[at] // GROUP != group
        late = foreign & (self.fenced[at] >= self.phase)
        note("a product reads what another group fenced, without a barrier in between", unless=not late.any())
        places = np.unique(at)
        self.multiplied[places] += 1
        self.products[-1].append((places, group))
        return self.bytes[at]

    def barrier(self) -> None:
        """All warps have come here."""
        self.phase += 1
        self.readers[:] = 0
        self.writers[:] = 0

    def fence(self) -> None:
        """Every thread orders what it wrote before what products read from now on."""
        self.fenced[self.fenced == 0] = self.phase

    def wait_for_copies(self, under_way: int) -> None:
        """Wait for all but so many of the last groups of copies."""
        while len(self.copies) > under_way + 1:
            for at in self.copies.pop(0):
                self.arriving[at] = False
                # To other warps it is as if they were written now.
                np.bitwise_or.at(self.writers, at, (1 << self.last_writer[at]).astype(np.uint32))

    def wait_for_products(self, under_way: int) -> None:
        """Wait for all but so many of the last groups of products."""
        while len(self.products) > under_way + 1:
            for places, group in self.products.pop(0):
                self.multiplied[places] -= 1
                # Other groups have not waited for it.
                self.readers[places] |= np.uint32(1 << GROUPS_BIT + group)

    def _check(self, at: Array) -> None:
        self._check_inside(at)
        self.problems.note("shared memory that nobody wrote is read", unless=bool((self.last_writer[at] >= 0).all()))
        self.problems.note("shared memory is read before a copy has arrived", unless=not self.arriving[at].any())

    def _check_inside(self, at: Array) -> None:
        if at.size and not 0 <= at.min() <= at.max() < self.bytes.size:
            raise UnknownError(f"shared memory has {self.bytes.size} bytes, and {at.min()} to {at.max()} are wanted")
