"""Training a teacher: the loss falls, with each of its terms; the start stays as it was."""

import pytest
import torch

from quantsr.methods.teacher import TeacherTraining
from tests.conftest import micro_teacher

TERMS = {
    "pixel": {"pixel": 1.0},
    "feature": {"pixel": 0.0, "feature": 1.0},
    "latent": {"pixel": 0.0, "latent": 1.0},
    "all": {"pixel": 1.0, "feature": 0.5, "latent": 0.5},
}


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_every_term_of_the_loss_falls(terms, fit, build_data):
    start = micro_teacher(seed=1)
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    method = TeacherTraining(start, steps=25, lr=2e-3, **terms)
    data = build_data().calibration()
    batch = {key: torch.stack([data[i][key] for i in range(len(data))]) for key in ("lq", "gt")}
    with torch.no_grad():
        loss = method.loss(batch)
        fit(method)
        assert method.loss(batch) < 0.9 * loss
    assert all(torch.equal(tensor, start.state_dict()[name]) for name, tensor in before.items())


def test_all_of_the_model_trains(fit):
    method = TeacherTraining(micro_teacher(), steps=3, pixel=1.0, feature=0.1, latent=0.1)
    before = {name: p.clone() for name, p in method.model.named_parameters()}
    fit(method)
    still = {name for name, p in method.model.named_parameters() if torch.equal(p, before[name])}
    # Keys' biases do not change attention.
    assert {name for name in still if not name.endswith("to_k.bias")} == set()
    assert list(method.models()) == ["teacher"]


def test_learning_rate_warms_up_and_decays(fit):
    from lightning.pytorch import Callback

    rates = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    fit(TeacherTraining(micro_teacher(), steps=10, lr=1e-3), Rates())
    assert len(rates) == 10 and rates[0] < 2e-5 and rates[1] > 0.9e-3 and rates[1:] == sorted(rates[1:], reverse=True)
