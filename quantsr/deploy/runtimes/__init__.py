"""What an artefact can run on. A runtime is a module of two functions:

    available(folder, device) -> str | None     why it cannot be used here, in one sentence; None if it can
    load(folder, device) -> Teacher             the student on that device: ``student(lq)`` super-resolves
    ready(folder) -> bool                       where there is something to prepare first: whether that was done

``available`` is asked often and imports nothing heavy. ``auto`` leaves out what is not ready: nobody waits for a
conversion that was not asked for.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from quantsr.errors import UserError
from quantsr.teachers.base import Teacher

RUNTIMES = {
    "openvino": "quantsr.deploy.runtimes.openvino",
    "triton": "quantsr.deploy.runtimes.triton",
    "torch": "quantsr.deploy.runtimes.simulated",
}
"""Modules by name, the fastest first: ``auto`` takes the first that is available and ready. The last one always is."""
AUTO = "auto"


def choose(folder: Path, runtime: str = AUTO, device: str = "cpu") -> str:
    """The name of the runtime that :func:`load` would use.

    Raises:
        UserError: there is none of that name, or it cannot be used here.
    """
    names = list(RUNTIMES) if runtime == AUTO else [runtime]
    if names[0] not in RUNTIMES:
        raise UserError(f"runtime takes one of {[AUTO, *RUNTIMES]}, not {runtime!r}")
    reasons = {}
    for name in names:
        module = _module(name)
        reason = module.available(folder, device)
        if reason is None and (runtime != AUTO or getattr(module, "ready", lambda _: True)(folder)):
            return name
        reasons[name] = reason
    raise UserError("; ".join(f"runtime={name} cannot be used here: {reason}" for name, reason in reasons.items()))


def load(folder: Path, runtime: str = AUTO, device: str = "cpu") -> tuple[str, Teacher]:
    """The student of an artefact folder on a runtime, and the runtime's name; errors as :func:`choose`'s."""
    name = choose(folder, runtime, device)
    return name, _module(name).load(folder, device)


def _module(name: str) -> Any:
    return import_module(RUNTIMES[name])
