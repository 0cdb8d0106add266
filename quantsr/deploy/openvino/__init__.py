"""Students as OpenVINO models for CPUs, their quantized products in integers.

    python export.py artefact=RUN        writes RUN/artefact/openvino, which any OpenVINO runtime reads
    quantsr.load(RUN)                    runs it; with runtime="openvino" also what was not exported, after a conversion

Scales and zero points are those of the calibration, written into the graph; no other tool derives them anew.
"""

import sys

# OpenVINO tells its makers of every process that imports it; without the package that does so it does not.
sys.modules.setdefault("openvino_telemetry", None)

from quantsr.deploy.openvino.exporting import export  # noqa: E402
from quantsr.deploy.openvino.student import load  # noqa: E402

__all__ = ["export", "load"]
