"""Device memory and pinned host memory, each in mappings of this process. Standard library only.

A device address is no address of this process: who reads it without a copy crashes, as on hardware. Addresses are
never given again, so that use after free is always seen.
"""

import ctypes
import mmap
from dataclasses import dataclass, field
from typing import Any

from saji_twin import fault, misuse, visible

GARBAGE = 0xA5  # uninitialised memory is not zero
ALIGNED = 512  # cudaMalloc aligns to at least 256 bytes (CUDA C++ Programming Guide, Device Memory Accesses)
FILLED = 64 * 2**20  # larger pieces are left as the system gives them


class OutOfMemory(Exception):
    """The device has not so much left."""


@dataclass(eq=False)
class Piece:
    """One allocation: where it begins for the program, its bytes, its device (None: pinned host memory)."""

    start: int
    size: int
    device: int | None
    mapping: mmap.mmap = field(repr=False)
    freed: bool = False

    def host(self, address: int) -> int:
        """The address in this process that an address in this piece stands for."""
        begin = ctypes.addressof(ctypes.c_char.from_buffer(self.mapping))
        return begin + address - self.start

    @property
    def place(self) -> str:
        return "pinned memory" if self.device is None else f"memory of device {self.device}"


_pieces: list[Piece] = []
_next = 0x7D00_0000_0000_00  # above what a process of Linux may map: 47 bits
_allocated = 0


def allocate(size: int, device: int) -> int:
    """Device memory; raises OutOfMemory where the device or a planted fault refuses."""
    global _next, _allocated
    limit = fault("allocations")
    if size > free_of(device) or (limit is not None and _allocated >= limit):
        raise OutOfMemory
    _allocated += 1
    mapping = _mapping(size)
    piece = Piece(_next, size, device, mapping)
    _next += -(-size // ALIGNED) * ALIGNED + ALIGNED  # with a gap, so that running over the end is seen
    _pieces.append(piece)
    return piece.start


def pin(size: int) -> int:
    """Pinned host memory."""
    mapping = _mapping(size)
    piece = Piece(0, size, None, mapping)
    piece.start = piece.host(0)
    _pieces.append(piece)
    return piece.start


def release(address: int, pinned: bool) -> None:
    """Free what `allocate` or `pin` gave; anything else is called by its name."""
    what = "cudaFreeHost" if pinned else "cudaFree"
    piece = next((piece for piece in reversed(_pieces) if piece.start == address), None)
    if piece is None:
        misuse(f"{what}({address:#x}): that is no allocation of {'cudaHostAlloc' if pinned else 'cudaMalloc'}")
    if piece.freed:
        misuse(f"{what}({address:#x}): freed before")
    if (piece.device is None) != pinned:
        misuse(f"{what}({address:#x}): that is {piece.place}")
    piece.freed = True
    if pinned:  # others may still look at it: kept, and spoilt
        ctypes.memset(piece.host(piece.start), GARBAGE, piece.size)
    else:
        piece.mapping.close()


def find(address: int, size: int, what: str) -> Piece | None:
    """The piece that holds `size` bytes at an address; None where it is memory that CUDA does not know."""
    for piece in reversed(_pieces):
        if piece.start <= address < piece.start + max(piece.size, 1):
            if piece.freed:
                misuse(f"{what}: {address:#x} is {piece.place} that was freed")
            if address + size > piece.start + piece.size:
                misuse(f"{what}: {size} bytes at {address:#x} run over the end of {piece.place}")
            return piece
    if address >= 0x7D00_0000_0000_00 or address <= 0:
        misuse(f"{what}: {address:#x} is no address")
    return None


def device_bytes(address: int, size: int, what: str, device: int | None = None) -> int:
    """Where `size` bytes of device memory stand in this process; anything but device memory is misuse."""
    piece = find(address, size, what)
    if piece is None or piece.device is None:
        misuse(f"{what}: {address:#x} is host memory, device memory is wanted")
    if device is not None and piece.device != device:
        misuse(f"{what}: {address:#x} is {piece.place}, the work is on device {device}")
    return piece.host(address)


def held(device: int) -> int:
    """Bytes that this process has of a device."""
    return sum(piece.size for piece in _pieces if piece.device == device and not piece.freed)


def held_by_uuid(uuid: str) -> int:
    """The same by the device's name in NVML."""
    return sum(held(number) for number, gpu in enumerate(visible()) if gpu.uuid == uuid)


def free_of(device: int) -> int:
    """Bytes that are left."""
    return visible()[device].memory_mib * 2**20 - held(device)


def live() -> list[Any]:
    """What was not freed, for tests of what `close` frees."""
    return [piece for piece in _pieces if not piece.freed]


def _mapping(size: int) -> mmap.mmap:
    mapping = mmap.mmap(-1, max(size, 1))
    if size <= FILLED:
        mapping.write(bytes([GARBAGE]) * size)
    return mapping
