"""Frames: what comes out is what went in, and no length is believed."""

import resource
import socket
import struct
import threading

import pytest

from alpage.serve.http import frames
from alpage.serve.http.frames import MAX_FRAME_BYTES, BadFrame, receive_frame, send_frame


@pytest.fixture
def ends():
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_messages_arrive_whole_and_in_order(ends):
    messages = [b"", b"a", bytes(3 * 2**20), b"b" * 4, b""]

    def send():
        for message in messages:
            send_frame(ends[0], message)
        ends[0].close()

    sender = threading.Thread(target=send)
    sender.start()
    assert [receive_frame(ends[1]) for _ in messages] == messages
    assert receive_frame(ends[1]) is None
    sender.join()


@pytest.mark.parametrize("sent", [b"", b"\1", b"\5\0\0\0abc"])
def test_half_a_message_is_none(ends, sent):
    ends[0].sendall(sent)
    ends[0].close()
    assert receive_frame(ends[1]) is None


def test_length_that_is_none_is_refused(ends):
    ends[0].sendall(struct.pack("<I", MAX_FRAME_BYTES + 1))
    with pytest.raises(BadFrame):
        receive_frame(ends[1])


def test_length_alone_takes_no_memory(ends):
    ends[0].sendall(struct.pack("<I", MAX_FRAME_BYTES) + b"abc")
    ends[0].close()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert receive_frame(ends[1]) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 2**10


def test_what_is_too_long_is_not_sent(ends, monkeypatch):
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 8)
    with pytest.raises(BadFrame):
        send_frame(ends[0], b"123456789")
    send_frame(ends[0], b"12345678")
    assert receive_frame(ends[1]) == b"12345678"
