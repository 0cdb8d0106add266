"""Gradient checkpointing changes what a run holds in memory, and nothing that it computes."""

import pytest
import torch

from quantsr.errors import UserError
from quantsr.methods.passionsr import PassionSR
from quantsr.methods.qartsr import QArtSR
from quantsr.methods.qdiffusion import QDiffusion
from quantsr.methods.quantvsr import QuantVSR
from quantsr.methods.teacher import TeacherTraining
from quantsr.quant.spec import Bits


@pytest.mark.parametrize(
    ("kind", "options"),
    [(PassionSR, {"steps": 2}), (QArtSR, {"module_steps": 1, "extended_steps": 1}), (QuantVSR, {})],
)
def test_a_calibration_ends_with_the_same_student(kind, options, build_method, fit):
    def trained(checkpointed: bool) -> dict[str, torch.Tensor]:
        method = build_method(kind, **options)
        if checkpointed:
            method.checkpoint_gradients()
        fit(method)
        return method.state_dict()

    expected, found = trained(False), trained(True)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_a_teacher_trains_to_the_same(teacher, fit):
    def trained(checkpointed: bool) -> dict[str, torch.Tensor]:
        method = TeacherTraining(teacher, steps=2)
        if checkpointed:
            method.checkpoint_gradients()
        fit(method)
        return method.model.state_dict()

    expected, found = trained(False), trained(True)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_qdiffusion_says_that_it_has_no_use_for_it(teacher):
    with pytest.raises(UserError, match="one block at a time"):
        QDiffusion(teacher, Bits(4, 4)).checkpoint_gradients()
