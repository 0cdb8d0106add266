"""A stage says what trains and how fast; the base module runs stages in order, and nothing else changes."""

import math

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.optim import SGD

from quantsr.errors import UserError
from quantsr.methods.base import StagedModule
from quantsr.methods.stages import Group, Stage, constant, cosine, drop_half_way, linear, warm_cosine


class TestStage:
    @pytest.mark.parametrize("schedule", [constant, cosine, drop_half_way, linear, warm_cosine])
    def test_schedules_stay_in_range(self, schedule):
        assert all(0 < schedule(step / 100) <= 1 for step in range(100))

    def test_drop_comes_at_the_half(self):
        assert [drop_half_way(step / 4) for step in range(4)] == [1, 1, 0.2, 0.2]

    def test_cosine_warms_up_and_ends_low(self):
        factors = [warm_cosine(step / 1000) for step in range(1000)]
        assert factors[0] < 0.02 and max(factors) > 0.99 and factors[-1] == pytest.approx(0.01, abs=1e-3)
        assert factors[20:] == sorted(factors[20:], reverse=True)

    @pytest.mark.parametrize("schedule", [cosine, linear])
    def test_schedules_without_warm_up_fall_from_one_to_nothing(self, schedule):
        factors = [schedule(step / 1000) for step in range(1000)]
        assert factors[0] == 1 and factors[500] == pytest.approx(0.5) and factors[-1] < 2e-3
        assert factors == sorted(factors, reverse=True)

    def parameters(self) -> list[nn.Parameter]:
        return [nn.Parameter(torch.tensor(values)) for values in ([3.0, 4.0], [0.0, 0.0], [0.01])]

    def rates(self, stage: Stage, step: int = 0) -> list[float]:
        optimizer = stage.build_optimizer()
        stage.measure_sizes(optimizer)
        stage.set_learning_rate(optimizer, step)
        return [group["lr"] for group in optimizer.param_groups]

    def test_relative_learning_rate_is_that_of_the_root_mean_square(self):
        stage = Stage(
            "s", 4, lambda batch: None, [Group(self.parameters(), 0.1)], schedule=drop_half_way, relative=True
        )
        expected = [0.1 * math.sqrt(12.5), 0.1, 0.1 * 0.01]
        assert self.rates(stage) == pytest.approx(expected)
        assert self.rates(stage, step=3) == pytest.approx([0.2 * rate for rate in expected])

    def test_absolute_learning_rate_is_the_same_for_all(self):
        assert self.rates(Stage("s", 4, lambda batch: None, [Group(self.parameters(), 0.1)])) == [0.1, 0.1, 0.1]

    @pytest.mark.parametrize("relative", [False, True])
    def test_learning_rate_can_be_relative_to_another_tensor(self, relative):
        """To what it holds when the stage starts, not when the stage is made."""
        first, *others = self.parameters()
        reference = torch.zeros(2)
        groups = [Group([first], 0.1), Group(others, 0.1, reference)]
        stage = Stage("s", 4, lambda batch: None, groups, drop_half_way, relative=relative)
        reference.copy_(torch.tensor([-2.0, 4.0]))
        expected = [0.1 * math.sqrt(12.5) if relative else 0.1, 0.3, 0.3]
        assert self.rates(stage) == pytest.approx(expected)
        assert self.rates(stage, step=3) == pytest.approx([0.2 * rate for rate in expected])

    def test_every_group_has_its_own_learning_rate(self):
        fast, *slow = self.parameters()
        stage = Stage("s", 4, lambda batch: None, [Group([fast], 0.1), Group(slow, 0.01)])
        assert self.rates(stage) == [0.1, 0.01, 0.01] and stage.parameters == [fast, *slow]


class Toy(StagedModule):
    """Two vectors: one observing stage, one of a vector each, and one without steps."""

    def __init__(self, teacher, fails_in: int | None = None):
        super().__init__(teacher, nn.ParameterDict({"a": torch.ones(3), "b": torch.ones(3), "c": torch.ones(3)}))
        self.calls: list[str] = []
        self.fails_in = fails_in

    def models(self) -> dict[str, nn.Module]:
        return {"toy": self.model}

    def stages(self) -> list[Stage]:
        model = self.model
        return [
            Stage("look", 2, lambda batch: self.calls.append("look"), finish=lambda: self.calls.append("done")),
            Stage("first", 3, self.loss, [Group([model["a"]], 0.1)], optimizer=SGD),
            Stage("never", 0, self.loss, [Group([model["c"]], 0.1)], finish=lambda: self.calls.append("never")),
            Stage("second", 2, self.loss, [Group([model["b"]], 0.1)], optimizer=SGD, max_norm=0.01),
        ]

    def loss(self, batch):
        self.calls.append(self.stage.name)
        trained = {name for name, parameter in self.model.items() if parameter.requires_grad}
        assert trained == {{"first": "a", "second": "b"}[self.stage.name]}
        factor = math.nan if self.step_index == self.fails_in else 1.0
        return factor * sum(vector.square().sum() for vector in self.model.values())


def test_stages_run_in_order_and_train_their_own(teacher, fit):
    toy = Toy(teacher)
    assert toy.steps == 7 and toy.trains
    fit(toy)
    assert toy.calls == ["look", "look", "done", "first", "first", "first", "second", "second"]
    assert toy.model["a"].tolist() == pytest.approx([0.8**3] * 3)
    assert torch.equal(toy.model["c"], torch.ones(3))
    # Clipped gradients of norm 0.01 move b by 0.001 a step.
    assert (1 - toy.model["b"]).norm().item() == pytest.approx(2 * 0.001, rel=1e-3)


def test_progress_says_the_stage_of_the_next_step(teacher):
    toy = Toy(teacher)
    names = []
    for toy.step_index in range(8):
        names.append(toy.stage.name)
    assert names == ["look", "look", "first", "first", "first", "second", "second", "second"]
    assert toy.summary() == "Toy: look 2, first 3, second 2"


@pytest.mark.parametrize("step", [3, 6])
def test_loss_that_is_no_number_names_stage_and_step(teacher, fit, step):
    toy = Toy(teacher, fails_in=step)
    stage, number = {3: ("first", "2 of 3"), 6: ("second", "2 of 2")}[step]
    with pytest.raises(UserError, match=f"loss is nan in stage {stage}, step {number}"):
        fit(toy)
    assert all(vector.isfinite().all() for vector in toy.model.values())


class Steep(Toy):
    """The slope of its loss is infinite where the loss is 0."""

    def loss(self, batch):
        return super().loss(batch).sub(6).abs().sqrt()  # b and c have six ones, and a is 0.


def test_gradient_that_is_no_number_stops_before_the_step(teacher, fit):
    toy = Steep(teacher)
    nn.init.zeros_(toy.model["a"])
    with pytest.raises(UserError, match=r"^the gradient is nan in stage first, step 1 of 3: "):
        fit(toy)
    assert all(vector.isfinite().all() for vector in toy.model.values())


class Keep(Callback):
    """Saves a checkpoint after every step."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, module, *args):
        trainer.save_checkpoint(self.folder / f"{module.step_index}.ckpt")


def test_resumed_in_any_step_the_run_ends_the_same(teacher, fit, tmp_path):
    whole = Toy(teacher)
    fit(whole, Keep(tmp_path))
    for step in range(1, 8):
        resumed = Toy(teacher)
        fit(resumed, ckpt_path=tmp_path / f"{step}.ckpt")
        assert resumed.calls == whole.calls[step + (step > 1) :]
        assert all(torch.equal(resumed.model[name], vector) for name, vector in whole.model.items())


def test_checkpoint_of_another_plan_is_refused(teacher, tmp_path, fit):
    fit(Toy(teacher), Keep(tmp_path))
    checkpoint = torch.load(tmp_path / "3.ckpt", weights_only=True)
    toy = Toy(teacher)
    toy.check_checkpoint(checkpoint)
    toy.plan[0].steps = 5
    with pytest.raises(UserError, match=r"written with stages = .*'look', 2.* this run has .*'look', 5.*first run"):
        toy.check_checkpoint(checkpoint)
