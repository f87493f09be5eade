"""Pickles as PyTorch and Paddle read them, written without either."""

import struct
from typing import BinaryIO


class PickleWriter:
    """Writes the instructions that weight files need; every value is spelled out again.

    Args:
        protocol: 2 for PyTorch, whose restricted reader takes no other; 3 where bytes are written.
    """

    def __init__(self, file: BinaryIO, protocol: int):
        self.file = file
        file.write(bytes([0x80, protocol]))

    def text(self, value: str) -> None:
        raw = value.encode("utf-8")
        self.file.write(b"X" + struct.pack("<I", len(raw)) + raw)

    def integer(self, value: int) -> None:
        if -(2**31) <= value < 2**31:
            self.file.write(b"J" + struct.pack("<i", value))
        else:
            raw = value.to_bytes(9, "little", signed=True)
            self.file.write(b"\x8a\x09" + raw)

    def integers(self, values: tuple[int, ...]) -> None:
        self.file.write(b"(")
        for value in values:
            self.integer(value)
        self.file.write(b"t")

    def global_(self, module: str, name: str) -> None:
        self.file.write(f"c{module}\n{name}\n".encode())

    def raw(self, instructions: bytes) -> None:
        self.file.write(instructions)
