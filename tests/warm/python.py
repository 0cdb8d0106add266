#!/usr/bin/env -S python3 -S -E -B
"""A stand-in for the interpreter: ``warm/python.py SCRIPT ARGUMENTS`` or ``-c CODE ARGUMENTS``.

Most of the time of a short command is 15 seconds of importing torch, Lightning and diffusers. This program hands its
arguments, environment, folder and streams to a server (``server.py``) that has them imported; a process forked off
there becomes the command. Signals are passed on, and if this program is killed, so is the command.
"""

import json
import os
import signal
import socket
import sys

ASKS_TO_STOP = (signal.SIGINT, signal.SIGTERM)


def main() -> int:
    """Exit code of the command."""
    request = {"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ["QUANTSR_WARM"])
        content = json.dumps(request).encode()
        socket.send_fds(server, [len(content).to_bytes(4, "big")], [0, 1, 2])
        server.sendall(content)
        answers = server.makefile()
        command = int(answers.readline())
        for number in ASKS_TO_STOP:
            signal.signal(number, lambda number, _: os.kill(command, number))
        code = int(answers.readline())
    if code < 0:  # Ended by a signal: so is this.
        if -code in ASKS_TO_STOP:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main())
