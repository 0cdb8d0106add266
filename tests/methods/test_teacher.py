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


@pytest.mark.parametrize(("steps", "network"), [({"autoencoder_steps": 3, "steps": 0}, "vae"), ({"steps": 3}, "unet")])
def test_each_stage_trains_all_of_one_network(fit, steps, network):
    """The denoiser with the autoencoder frozen: it is to do the work."""
    method = TeacherTraining(micro_teacher(), **steps, pixel=1.0, feature=0.1, latent=0.1)
    before = {name: p.clone() for name, p in method.model.named_parameters()}
    fit(method)
    changed = {name for name, p in method.model.named_parameters() if not torch.equal(p, before[name])}
    assert {name.partition(".")[0] for name in changed} == {network}
    # Keys' biases do not change attention, and nothing is drawn with the latent's variance.
    idle = ("to_k.bias", "quant_conv.weight", "quant_conv.bias")
    still = {name for name in before if name.startswith(network) and name not in changed}
    assert {name for name in still if not name.endswith(idle)} == set()
    assert list(method.models()) == ["teacher"]


def test_the_autoencoder_learns_to_give_back_an_image_from_latents_of_unit_variance(fit, build_data):
    method = TeacherTraining(micro_teacher(), steps=0, autoencoder_steps=60, autoencoder_lr=5e-3, variance=0.1)
    data = build_data().calibration()
    batch = {key: torch.stack([data[i][key] for i in range(len(data))]) for key in ("lq", "gt")}

    def errors():
        with torch.no_grad():
            latent = method.model.embed(batch["gt"])
            error = (method.model.render(latent, batch["lq"]) - batch["gt"]).abs().mean()
            return error.item(), abs(latent.square().mean().item() - 1)

    before = errors()
    fit(method)
    after = errors()
    assert after[0] < 0.9 * before[0] and after[1] < 0.5 * before[1]


def test_learning_rate_warms_up_and_decays(fit):
    from lightning.pytorch import Callback

    rates = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    fit(TeacherTraining(micro_teacher(), steps=10, lr=1e-3), Rates())
    assert len(rates) == 10 and rates[0] < 2e-5 and rates[1] > 0.9e-3 and rates[1:] == sorted(rates[1:], reverse=True)
