"""Engine stub: a program that answers as an engine's process does, and fails as it is told."""

import os
import socket
import sys
import time

from alpage.errors import Unsupported
from alpage.serve.http.engine_messages import (
    Accepted,
    Beat,
    Broken,
    Note,
    Ready,
    Take,
    decode_begin,
    decode_command,
    encode,
)
from alpage.serve.http.frames import receive_frame, send_frame
from alpage.serve.http.reports import Report
from alpage.serve.http.tallies import Counts
from alpage.serve.intake import Limits
from alpage.serve.kv_memory import KvUsage

LIMITS = Limits(
    max_model_len=10,
    max_num_seqs=2,
    num_pages=4,
    page_size=16,
    vocab_size=9,
    eos_ids=frozenset(),
)
REPORT = Report(
    counts=Counts(),
    num_running=0,
    num_waiting=0,
    num_preemptions=0,
    num_swap_preemptions=0,
    num_pages=4,
    usage=KvUsage(num_held_pages=0, num_table_entries=0, num_filled_slots=0, num_held_slots=0),
)


def main() -> None:
    """Do what the name of the model says."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    begin = decode_begin(receive_frame(channel))
    match begin.model:
        case "dies at once":
            os._exit(3)
        case "is broken":
            error = Unsupported(field="device", value="x", limit="is none", remedy="Choose")
            send_frame(channel, encode(Broken.of(error)))
        case "does not listen":
            send_frame(channel, encode(Ready(LIMITS, REPORT)))
            time.sleep(60)
        case mood:
            send_frame(channel, encode(Note("loading")))
            send_frame(channel, encode(Ready(LIMITS, REPORT)))
            while (data := receive_frame(channel)) is not None:
                hear(mood, channel, decode_command(data))


def hear(mood: str, channel: socket.socket, command: object) -> None:
    """Answer a ticket in the mood that it is in."""
    assert isinstance(command, Take)
    send_frame(channel, encode(Accepted(command.ticket)))
    match mood:
        case "dies without a step":
            os._exit(4)
        case "dies after a step":
            send_frame(channel, encode(Beat()))
            os._exit(5)
        case "makes no sense":
            send_frame(channel, encode(Beat()))
            send_frame(channel, b"\xc1")
        case "lies about lengths":
            send_frame(channel, encode(Beat()))
            channel.sendall(b"\xff\xff\xff\xff")
