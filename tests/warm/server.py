"""What ``python.py`` asks for a process: ``python -m tests.warm.server SOCKET``.

It imports what takes long and does nothing else: a process forked off it is as a new one would be after the same
imports. A guard stands between them: it waits for the command, and ends it when nobody waits for it any more.
"""

import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import select
import socket
import sys
from pathlib import Path

HEAVY = ["lightning", "quantsr.deploy.openvino"]  # And what they import: torch, diffusers.
INTERPRETER = str(Path(__file__).with_name("python.py"))
POLL = 0.02
fork = multiprocessing.get_context("fork")


def serve(path: str) -> None:
    """For as long as the process that started this one lives."""
    parent = os.getppid()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(64)
        for name in HEAVY:
            importlib.import_module(name)
        gc.collect()
        gc.freeze()  # A command does not look through what it did not make.
        while os.getppid() == parent:
            if select.select([listening], [], [], 1)[0]:
                client, _ = listening.accept()
                fork.Process(target=guard, args=(client,)).start()
                client.close()
            fork.active_children()  # Forgets those that are done.


def guard(client: socket.socket) -> None:
    """Run the command that a client asks for in a process; the client hears its number and its exit code."""
    head, streams, *_ = socket.recv_fds(client, 4, 3)
    content = client.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
    command = fork.Process(target=become, args=(client, streams), kwargs=json.loads(content))
    command.start()
    for stream in streams:
        os.close(stream)
    client.sendall(f"{command.pid}\n".encode())
    while command.exitcode is None:
        if select.select([client], [], [], POLL)[0]:  # A client says nothing more: this is its end.
            command.kill()
    with contextlib.suppress(BrokenPipeError):
        client.sendall(f"{command.exitcode}\n".encode())


def become(
    client: socket.socket, streams: list[int], arguments: list[str], environment: dict[str, str], folder: str
) -> None:
    """Run a command in this process, as the interpreter does."""
    client.close()
    os.setpgid(0, 0)  # Signals of the terminal come from the client, once.
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.executable = INTERPRETER
    if arguments[0] == "-c":
        _, code, *rest = arguments
        sys.argv, sys.path[0] = ["-c", *rest], ""
        exec(code, {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).resolve().parent)
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1])
