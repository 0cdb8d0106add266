"""Students as OpenVINO models for CPUs, their quantized products in integers.

    python export.py artefact=RUN        writes RUN/artefact/openvino, which any OpenVINO runtime reads
    quantsr.load(RUN)                    runs it; with runtime="openvino" also what was not exported, after a conversion

Scales and zero points are those of the calibration, written into the graph; no other tool derives them anew.
"""

from quantsr.deploy.openvino.exporting import export
from quantsr.deploy.openvino.student import load

__all__ = ["export", "load"]
