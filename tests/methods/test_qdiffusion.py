"""Q-Diffusion: what is cut, how rounding trains, what each block sees, and that reconstruction helps."""

import csv
from copy import deepcopy
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback

from quantsr.deploy.artefact import load_student, save_student
from quantsr.errors import UserError
from quantsr.methods.borders import recorded, tensor_of
from quantsr.methods.qdiffusion import QDiffusion, power_error, weights_only
from quantsr.quant.calibrate import mode, quantized_modules
from quantsr.quant.folded import fold
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.rounding import AdaptiveRounding
from quantsr.quant.spec import Bits
from quantsr.teachers.micro import MICRO_VIDEO
from tests.conftest import micro_video_teacher
from tests.methods.resuming import SaveInside, assert_same, state

SHORT = {"observation_steps": 2, "weight_steps": 4, "activation_steps": 3, "kept_batches": 2, "rounding_lr": 0.05}
ONE_LEVEL = {
    "unet": MICRO_VIDEO["unet"] | {"channel_multipliers": [2], "attention_levels": [0]},
    "structure": MICRO_VIDEO["structure"] | {"channel_multipliers": [1], "attention_levels": [0]},
}
"""A denoiser of fewer blocks."""


@pytest.fixture
def build(teacher):
    """A function that makes a short Q-Diffusion."""

    def build(of=None, bits: Bits = Bits(4, 4), **options) -> QDiffusion:  # noqa: B008
        return QDiffusion(of or teacher, bits, **SHORT | options)

    return build


@pytest.fixture
def batch(build_data) -> dict[str, torch.Tensor]:
    data = build_data().calibration()
    return {"lq": torch.stack([data[i]["lq"] for i in range(2)])}


@pytest.fixture
def start(build, batch):
    """A function that makes a method whose ranges are known and whose rounding is about to train."""

    def start(**options) -> QDiffusion:
        method = build(observation_steps=1, **options)
        method.plan[0].loss(batch)
        method.plan[0].finish()
        method.step_index = 1
        return method

    return start


def layers(module) -> dict[str, QuantizedLayer]:
    return {name: m for name, m in quantized_modules(module) if isinstance(m, QuantizedLayer)}


def enter(method: QDiffusion, name: str):
    """Go to a stage's first step, with what the stages before leave behind: hard weights."""
    number = next(n for n, stage in enumerate(method.plan) if stage.name == name)
    method.step_index = sum(stage.steps for stage in method.plan[:number])
    for stage in method.plan[:number]:
        stage.finish()
    method._enter(method.plan[number])
    return method.plan[number]


def train(method: QDiffusion, name: str, batch) -> list[float]:
    """Train a stage on one batch, without Lightning; returns its losses."""
    stage, losses = enter(method, name), []
    optimizer = stage.build_optimizer()
    for step in range(stage.steps):
        loss = stage.loss(batch)
        stage.set_learning_rate(optimizer, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        method.step_index += step < stage.steps - 1
    stage.finish()
    return losses


class Spy(Callback):
    """For every stage, which parameters have a gradient and which have changed."""

    def __init__(self):
        self.gradients, self.changed = {}, {}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.stage = module.stage.name
        self.before = {name: p.detach().clone() for name, p in module.student.named_parameters()}

    def on_before_optimizer_step(self, trainer, module, optimizer):
        named = module.student.named_parameters()
        self.gradients[self.stage] = {name for name, p in named if p.grad is not None and p.grad.any()}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        named = module.student.named_parameters()
        changed = {name for name, p in named if not torch.equal(p.nan_to_num(), self.before[name].nan_to_num())}
        self.changed.setdefault(self.stage, set()).update(changed)


class TestRecipe:
    def test_layers_behind_a_concatenation_have_a_range_for_each_of_its_two_tensors(self, build, teacher, fit):
        method = build(weight_steps=1, activation_steps=1)
        fit(method)
        found, cuts = layers(method.student), teacher.concatenations()
        assert cuts
        for name, layer in found.items():
            rows, channels = layer.weight.shape[:2]
            if name in cuts:
                assert layer.recipe.parts(channels) == (cuts[name], channels - cuts[name])
                assert layer.weight_quantizer.lower.shape == (rows, 2)
                assert len(layer.input_quantizer.scale.unique()) == 2
            else:
                assert layer.recipe.cut is None and layer.input_quantizer.scale.shape == (1,)

    def test_parts_that_are_not_quantized_have_no_cut_layers(self, build):
        method = build(parts=["decoder"])
        assert layers(method.student) and all(layer.recipe.cut is None for layer in layers(method.student).values())

    @pytest.mark.parametrize("attention", [True, False])
    def test_attention_can_be_left_in_full_precision(self, build, attention):
        products = [name for name, m in quantized_modules(build(attention=attention).student) if name not in layers(m)]
        kinds = {type(m) for _, m in quantized_modules(build(attention=attention).student)}
        assert products and (len(kinds) == 2) == attention


class TestOrder:
    def test_first_the_weights_of_all_blocks_then_their_activations(self, build, teacher):
        blocks = teacher.blocks()["denoiser"]
        names = [stage.name for stage in build().plan]
        assert names == ["ranges", *(f"weights {b}" for b in blocks), *(f"activations {b}" for b in blocks)]

    def test_every_stage_trains_its_own_block_alone(self, build, teacher, fit):
        method, spy = build(), Spy()
        before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
        fit(method, spy)
        for name in teacher.blocks()["denoiser"]:
            for kind, ends in (("weights", {"logits"}), ("activations", {"scale"})):
                changed = spy.changed[f"{kind} {name}"]
                assert changed and all(p.startswith(f"{name}.") for p in changed)
                assert {p.rpartition(".")[2] for p in changed} == ends
                assert spy.gradients[f"{kind} {name}"] == changed
            expected = sum(isinstance(m, AdaptiveRounding) for m in method.student.get_submodule(name).modules())
            assert len(spy.changed[f"weights {name}"]) == expected
        assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())

    def test_activations_can_be_left_as_calibrated(self, build, fit):
        method = build(activation_steps=0)
        fit(method)
        assert method.plan[-1].name == "weights unet.conv_out"
        assert all(layer.mode == "quantized" for layer in layers(method.student).values())


class TestRounding:
    def test_the_soft_student_starts_as_the_teacher_where_nothing_is_clipped(self, start, teacher, batch):
        """At 8 bits the search for bounds clips next to nothing."""
        method = start(bits=Bits(8, 8))
        with torch.no_grad(), weights_only(method.student):
            own, target = method.student.predict(batch["lq"]), teacher.predict(batch["lq"])
        torch.testing.assert_close(own, target, atol=5e-3, rtol=0)
        with torch.no_grad():
            assert (method.student.predict(batch["lq"]) - target).abs().max() > 1e-2  # With its activations.

    def test_weights_end_within_one_step_of_the_nearest_code(self, build, fit):
        method = build(rounding_lr=1.0, rounding_weight=1.0)
        fit(method)
        moved = 0
        for layer in layers(method.student).values():
            codes = layer.weight_codes()
            distance = (codes - layer.weight_quantizer.quantize(layer.weight)).abs()
            assert torch.equal(codes, codes.round()) and distance.max() <= 1
            moved += distance.sum()
        assert moved > 0

    def test_the_regularizer_is_off_in_the_warm_up_and_gets_steeper_afterwards(self, start, batch):
        method = start(weight_steps=10, rounding_weight=1e3)
        free = start(weight_steps=10, rounding_weight=0.0)
        losses = []
        for method.step_index in range(1, 11):
            free.step_index = method.step_index
            with torch.no_grad():
                losses.append((method.plan[1].loss(batch) - free.plan[1].loss(batch)).item())
        assert losses[:2] == [0, 0]
        # Nothing trains here: the same V is the less decided the lower beta is taken.
        assert all(later < earlier for earlier, later in pairwise(losses[2:])) and losses[-1] > 0

    def test_a_strong_regularizer_makes_weights_decide(self, start, batch):
        shares, block = [], "unet.mid_block.resnets.0"
        for weight in (0.0, 1.0):
            method = start(weight_steps=100, rounding_lr=0.1, rounding_weight=weight, kept_batches=1)
            train(method, f"weights {block}", batch)
            shares.append(method.decided[block])
        assert shares[1] > 0.95 > shares[0]

    def test_the_share_of_decided_weights_is_written(self, build, run_whole, tmp_path, capsys):
        method, _ = run_whole(build())
        table = method.save_extras(tmp_path)["rounding_table"]
        rows = list(csv.DictReader(table.open()))
        assert [row["block"] for row in rows] == method.blocks
        assert all(0 <= float(row["decided"]) <= 1 for row in rows)
        assert "had decided before hardening" in capsys.readouterr().out


class TestWhatABlockSees:
    def test_weights_train_on_what_the_quantized_weights_before_make_of_the_data(self, start, teacher, batch):
        """And on no quantized activations; the target is the answer of the teacher's own block."""
        method, block = start(), "unet.mid_block.resnets.0"
        enter(method, f"weights {block}")
        call, target = method.example(block, batch)
        found = []
        hook = method.student.get_submodule(block).register_forward_pre_hook(lambda _, args: found.append(args[0]))
        with torch.no_grad(), recorded(teacher, [block]) as wanted:
            teacher.predict(batch["lq"])
            with weights_only(method.student):
                method.student.predict(batch["lq"])
            method.student.predict(batch["lq"])
            with mode(method.student, "full_precision"):
                method.student.predict(batch["lq"])
        hook.remove()
        assert torch.equal(target, tensor_of(wanted[block]))
        torch.testing.assert_close(call.args[0], found[0])
        assert all((call.args[0] - other).abs().max() > 1e-3 for other in found[1:])

    def test_activations_train_on_what_the_teachers_block_sees(self, start, teacher, batch):
        method, block = start(), "unet.mid_block.resnets.0"
        enter(method, f"activations {block}")
        call, target = method.example(block, batch, of_teacher=True)
        with torch.no_grad():
            assert torch.equal(call.of(teacher, block), target)
            own = call.of(method.student, block)
            assert (method.activation_loss(block, batch) - power_error(own, target, 2.4)).abs() < 1e-7
            with weights_only(method.student):
                assert not torch.equal(call.of(method.student, block), own)

    def test_batches_are_kept_and_taken_in_turn(self, start, build_data):
        method, data = start(weight_steps=5, kept_batches=2), build_data().calibration()
        batches = [{"lq": data[i]["lq"][None]} for i in range(5)]
        runs = []
        method.teacher.unet.conv_in.register_forward_hook(lambda *_: runs.append(None))
        stage, seen = enter(method, "weights unet.mid_block.resnets.0"), []
        for offset, batch in enumerate(batches):
            seen.append(stage.loss(batch).item())
            method.step_index += offset < 4
        assert len(runs) == 2
        assert torch.equal(method._kept.batches[1]["lq"], batches[1]["lq"]) and len(method._kept.batches) == 2
        enter(method, "weights unet.mid_block.attentions.0").loss(batches[4])
        assert torch.equal(method._kept.batches[0]["lq"], batches[4]["lq"]) and len(runs) == 3


class TestReconstruction:
    @pytest.mark.parametrize("block", ["unet.down_blocks.1.resnets.0", "unet.up_blocks.0.attentions.0"])
    def test_beats_rounding_to_the_nearest_at_the_blocks_own_error(self, start, batch, block):
        method = start(bits=Bits(3, 8), weight_steps=120, kept_batches=1)
        train(method, f"weights {block}", batch)
        call, target = method.example(block, batch)

        def error() -> float:
            with torch.no_grad(), weights_only(method.student):
                return power_error(call.of(method.student, block), target, 2.0).item()

        trained = error()
        for layer in layers(method.student.get_submodule(block)).values():
            layer.rounding.reset(layer.weight, layer.weight_quantizer)
            layer.rounding.harden()
        assert trained < 0.8 * error()
        assert method.decided[block] > 0.6

    def test_learned_steps_come_back_from_steps_that_are_far_too_long(self, start, batch):
        options = {"activation_steps": 40, "activation_lr": 2e-2, "relative_lr": True, "kept_batches": 1}
        method, block = start(**options), "unet.down_blocks.1.resnets.0"
        for step in method.steps_of(block):
            step.data.mul_(2)
        losses = train(method, f"activations {block}", batch)
        assert losses[-1] < 0.7 * losses[0]


class TestRun:
    @pytest.mark.parametrize(
        "stage",
        ["ranges", "weights unet.mid_block.resnets.0", "weights unet.conv_in-end", "activations unet.conv_in"],
    )
    def test_resumes_bit_for_bit(self, build, resume, stage):
        """Inside a stage the kept batches come back; on a border there are none to come back."""
        resumed, whole = resume(build, stage)
        assert resumed.decided == whole.decided

    def test_more_devices_than_it_was_saved_on_are_refused(self, build, fit, tmp_path):
        whole = build(weight_steps=1, activation_steps=1)
        checkpoint = {"state_dict": {}}
        whole.on_save_checkpoint(checkpoint)
        other = build(weight_steps=1, activation_steps=1)
        other._trainer = SimpleNamespace(world_size=2)
        with pytest.raises(UserError, match=r"has those of 1: resume with trainer\.devices=1$"):
            other.on_load_checkpoint(checkpoint)

    def test_the_artefact_answers_bit_for_bit_as_what_was_saved(self, build, run_whole, teacher, batch, tmp_path):
        method, _ = run_whole(build())
        with torch.no_grad():
            trained = method.student.predict(batch["lq"])
        student = fold(deepcopy(method.student)).freeze()
        save_student(student, method.swaps, tmp_path / "artefact", sum(p.numel() for p in teacher.parameters()), {})
        loaded = load_student(tmp_path / "artefact")
        assert torch.equal(loaded(batch["lq"]), student(batch["lq"]))
        torch.testing.assert_close(student.predict(batch["lq"]), trained, atol=1e-4, rtol=1e-4)

    @pytest.mark.slow
    def test_clips(self, fit, build_clips, tmp_path):
        """Every stage trains; kept batches remember where in the sampling they are."""
        teacher = micro_video_teacher(**ONE_LEVEL).freeze()
        options = SHORT | {"observation_steps": 1, "weight_steps": 3, "activation_steps": 1}
        whole, spy = QDiffusion(teacher, Bits(4, 4), **options), Spy()
        blocks = teacher.blocks()["denoiser"]
        fit(whole, spy, SaveInside(tmp_path, [f"weights {blocks[3]}"]))
        assert all(spy.changed[f"{kind} {name}"] for kind in ("weights", "activations") for name in blocks)
        assert {tuple(b["step"].tolist()) for b in whole._kept.batches} < {(0,), (1,), (2,)}
        assert any(layer.recipe.cut for layer in layers(whole.student).values())
        resumed = QDiffusion(micro_video_teacher(**ONE_LEVEL).freeze(), Bits(4, 4), **options)
        fit(resumed, ckpt_path=tmp_path / f"weights {blocks[3]}.ckpt")
        assert_same(state(resumed), state(whole))

    @pytest.mark.slow
    def test_all_parts(self, build, fit, teacher):
        parts = ["encoder", "denoiser", "decoder"]
        method, spy = build(parts=parts, weight_steps=1, activation_steps=1), Spy()
        fit(method, spy)
        assert all(spy.changed[f"weights {name}"] for part in parts for name in teacher.blocks()[part])
        quantizers = [m for m in method.student.modules() if isinstance(m, Quantizer)]
        assert all(quantizer.calibrated for quantizer in quantizers)
