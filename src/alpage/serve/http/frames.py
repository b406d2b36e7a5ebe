"""Frames: messages on a stream socket, each behind its length.

Whoever reads believes no length: memory follows what has come, and what is too long ends the talk.
"""

import socket
import struct
from typing import Final, final

MAX_FRAME_BYTES: Final = 2**30
_LENGTH: Final = struct.Struct("<I")
_PART_BYTES: Final = 2**20


@final
class BadFrame(Exception):
    """A message that is too long to be sent, or to be one."""


def send_frame(to: socket.socket, data: bytes) -> None:
    """Send a message.

    Raises:
        BadFrame: it is too long; nothing was sent.
        OSError: the other end is gone.
    """
    if len(data) > MAX_FRAME_BYTES:
        raise BadFrame(f"{len(data)} bytes; {MAX_FRAME_BYTES} may be sent at a time")
    to.sendall(_LENGTH.pack(len(data)) + data)


def receive_frame(of: socket.socket) -> bytes | None:
    """Wait for a message; None: the other end is gone, though it be in the middle of one.

    Raises:
        BadFrame: its length is none.
    """
    head = _receive(of, _LENGTH.size)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > MAX_FRAME_BYTES:
        raise BadFrame(f"{length} bytes are announced; {MAX_FRAME_BYTES} may be sent at a time")
    return _receive(of, length)


def _receive(of: socket.socket, length: int) -> bytes | None:
    data = bytearray()
    while len(data) < length:
        try:
            part = of.recv(min(length - len(data), _PART_BYTES))
        except OSError:
            return None
        if not part:
            return None
        data += part
    return bytes(data)
