"""The methods for images on clips: a video teacher of several sampling steps, clips of three frames."""

import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback

from quantsr.errors import UserError
from quantsr.methods.borders import recorded, tensor_of
from quantsr.methods.minmax import MinMax
from quantsr.methods.passionsr import PassionSR
from quantsr.methods.qartsr import QArtSR
from quantsr.methods.quantization import PARTS
from quantsr.methods.teacher import TeacherTraining
from quantsr.methods.trq import TimestepRetraining
from quantsr.quant.calibrate import mode, quantized_modules, set_mode, uncalibrated
from quantsr.quant.recipe import AttentionRecipe
from quantsr.quant.spec import Bits
from quantsr.teachers.micro import MICRO_VIDEO
from tests.conftest import micro_video_teacher

ONE_LEVEL = {
    "unet": MICRO_VIDEO["unet"] | {"channel_multipliers": [2], "attention_levels": [0]},
    "structure": MICRO_VIDEO["structure"] | {"channel_multipliers": [1], "attention_levels": [0]},
}
"""A denoiser of fewer blocks, for methods that have a stage for each."""


class Spy(Callback):
    """The loss and the sampling step of every training step, and for every stage what runs and has a gradient.

    A sampling step shows in the noise level that the denoiser is asked for.
    """

    def __init__(self):
        self.losses, self.steps = {}, {}
        self.ran, self.gradients = {}, {}

    def on_train_start(self, trainer, module):
        self.stage, noisy = "", module.noisy

        def noted(batch):
            found = noisy(batch)
            self.steps.setdefault(self.stage, []).append(found.step.tolist())
            return found

        module.noisy = noted
        blocks = [name for names in module.teacher.blocks().values() for name in names]
        for name, layer in quantized_modules(module.student):
            if name not in blocks:  # Of a replayed block the hook is called all the same; of what is in it, not.
                layer.register_forward_hook(lambda *_, name=name: self.ran[self.stage].add(name))

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.stage = module.stage.name
        self.ran.setdefault(self.stage, set())
        assert batch["lq"].shape[1:] == (3, 3, 8, 8)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        named = module.student.named_parameters()
        self.gradients[self.stage] = {name for name, p in named if p.grad is not None and p.grad.any()}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if outputs and outputs.get("loss") is not None:
            self.losses.setdefault(self.stage, []).append(outputs["loss"].item())

    def assert_finite(self, stages: list[str]) -> None:
        """There are losses of just these stages, and they are finite."""
        assert list(self.losses) == stages
        assert all(math.isfinite(loss) and loss > 0 for losses in self.losses.values() for loss in losses)


@pytest.fixture
def batch(build_clips) -> dict[str, torch.Tensor]:
    """A batch of one calibration clip."""
    return {"lq": build_clips().calibration()[0]["lq"][None]}


@pytest.fixture(scope="module")
def runs() -> dict:
    """Finished runs by method: the method, and what was seen of it."""
    return {}


@pytest.fixture
def build(build_method, video_teacher):
    """A function that makes a short method for the video teacher."""
    return lambda kind, **options: build_method(kind, of=video_teacher, **options)


def inside(names: set[str], blocks: list[str]) -> bool:
    return all(any(f"{name}.".startswith(f"{block}.") for block in blocks) for name in names)


class TestMinMax:
    def test_finds_the_ranges_of_all_parts(self, build, fit, video_teacher, batch):
        method = build(MinMax, bits=Bits(8, 8))
        assert not any(name.startswith("structure") for name, _ in quantized_modules(method.student))
        fit(method)
        assert uncalibrated(quantized_modules(method.student)) == []
        with torch.no_grad():
            own, target = method.student(batch["lq"]), video_teacher(batch["lq"])
        assert own.shape == (1, 3, 3, 32, 32) and not torch.equal(own, target)
        torch.testing.assert_close(own, target, atol=0.4, rtol=0)
        assert (own - target).abs().mean() < 0.05

    def test_observes_every_step_of_the_sampling(self, build, fit, video_teacher):
        method, inputs = build(MinMax, observation_steps=1), []
        layer = method.student.get_submodule("unet.time_embed.0")
        layer.register_forward_hook(lambda _, args, __: inputs.append((layer.mode, args[0])))
        fit(method)
        assert [mode for mode, _ in inputs] == ["observe_ranges"] * video_teacher.steps
        seen = torch.stack([x for _, x in inputs])
        assert layer.input_quantizer.lower == seen.min() and layer.input_quantizer.upper == seen.max()

    @pytest.mark.parametrize("attention", [True, False])
    def test_attention_can_be_left_in_full_precision(self, build, attention):
        method = build(MinMax, attention=attention)
        assert any(isinstance(s.recipe, AttentionRecipe) for s in method.swaps) == attention


class TestPassionSR:
    @pytest.fixture
    def finished(self, runs, build, fit):
        if PassionSR not in runs:
            method, spy = build(PassionSR, observation_steps=1, steps=3), Spy()
            fit(method, spy)
            runs[PassionSR] = method, spy
        return runs[PassionSR]

    def test_calibrates_all_parts_along_the_sampling(self, finished):
        method, spy = finished
        stages = [f"{part}.{name}" for part in PARTS for name in ("transforms", "bounds")]
        spy.assert_finite(stages)
        # One step of smoothing, one of ranges and six of the encoder come before.
        assert spy.steps == {
            "denoiser.transforms": [[step % 3] for step in range(8, 11)],
            "denoiser.bounds": [[step % 3] for step in range(11, 14)],
        }
        prefixes = method.teacher.parts()
        for stage, gradients in spy.gradients.items():
            assert gradients and inside(gradients, prefixes[stage.partition(".")[0]])

    def test_the_denoisers_loss_is_of_the_clean_latents_at_the_step(self, finished, batch):
        method, _ = finished
        for method.step_index in range(3):
            noisy = method.teacher.noisy(batch["lq"], method.step_index)
            with torch.no_grad():
                loss = method.clean_latent_loss(batch)
                own, target = (
                    m.clean(m.encode(batch["lq"]), m.denoise(m.encode(batch["lq"]), noisy), noisy)
                    for m in (method.student, method.teacher)
                )
            torch.testing.assert_close(loss, F.mse_loss(own, target))

    @pytest.mark.slow
    def test_losses_fall(self, build, fit, batch):
        """Of every part; one clip only, as they differ."""
        method = build(PassionSR, steps=8, transform_lr=5e-3, bounds_lr=2e-2)
        before = {}

        class Starts(Callback):
            def on_train_batch_start(self, trainer, module, *_):
                name, step = module.stage.name, module.locate(module.step_index)[1]
                if step == 0 and name.endswith(".transforms"):
                    before[name.partition(".")[0]] = losses(module, name.partition(".")[0])

            def on_train_batch_end(self, trainer, module, *_):
                name, step = module.plan[module.locate(module.step_index - 1)[0]].name, module.step_index - 1
                if name.endswith(".bounds") and module.locate(step)[1] == 7:
                    part = name.partition(".")[0]
                    assert losses(module, part) < before[part], part

        def losses(module, part) -> float:
            of = {"encoder": module.latent_loss, "denoiser": module.clean_latent_loss, "decoder": module.image_loss}
            step, total = module.step_index, 0.0
            with torch.no_grad():
                for module.step_index in range(3):
                    total += of[part](batch).item()
            module.step_index = step
            return total

        fit(method, Starts())
        assert list(before) == list(PARTS)


class TestQArtSR:
    @pytest.fixture
    def finished(self, runs, build_method, fit):
        if QArtSR not in runs:
            teacher, parts = micro_video_teacher(**ONE_LEVEL), list(PARTS)
            options = {"observation_steps": 1, "module_steps": 1, "extended_steps": 1, "image_weight": 3.0}
            method, spy = build_method(QArtSR, of=teacher, parts=parts, **options), Spy()
            fit(method, spy)
            runs[QArtSR] = method, spy
        return runs[QArtSR]

    def test_nothing_before_the_module_runs_or_learns(self, finished):
        """All parts are one chain, although the encoder runs twice: for the latent and for what the decoder fuses."""
        method, spy = finished
        chain = [name for part in PARTS for name in method.teacher.blocks()[part]]
        spy.assert_finite([*(f"module {name}" for name in reversed(chain)), "extended"])
        for number, name in enumerate(chain):
            assert inside(spy.ran[f"module {name}"], chain[number:])
            assert spy.gradients[f"module {name}"] and inside(spy.gradients[f"module {name}"], chain[number:])
        everything = {name for name, _ in quantized_modules(method.student) if name not in chain}
        assert spy.ran["extended"] == everything

    def test_steps_of_the_sampling_come_one_after_the_other(self, finished):
        _, spy = finished
        steps = [step for steps in spy.steps.values() for step in steps]
        # A step of smoothing and one of ranges come before.
        assert steps == [[(2 + number) % 3] for number in range(len(steps))] and len(steps) > 20

    def test_the_loss_is_that_of_the_whole_student_computed_anew(self, finished, batch):
        """Everything before the module in full precision; at every step of the sampling."""
        method, _ = finished
        teacher = method.teacher
        blocks = [name for part in PARTS for name in teacher.blocks()[part]]
        for method.step_index, number in ((0, 1), (1, len(blocks) // 2), (2, len(blocks) - 1)):
            name, noisy = blocks[number], teacher.noisy(batch["lq"], method.step_index)
            with torch.no_grad():
                loss = method.module_loss(name, blocks[number:], batch)
                with recorded(teacher, [name]) as target:
                    target_image = teacher.predict(batch["lq"], noisy)
                set_mode(method.student, "quantized")
                before = torch.nn.ModuleList(method.student.get_submodule(block) for block in blocks[:number])
                with mode(before, "full_precision"), recorded(method.student, [name]) as own:
                    own_image = method.student.predict(batch["lq"], noisy)
            ours, theirs = tensor_of(own[name]), tensor_of(target[name])
            module = (ours - theirs).square().sum() / theirs.square().sum()
            torch.testing.assert_close(loss, module + 3 * F.mse_loss(own_image, target_image), rtol=1e-4, atol=1e-7)
            assert module > 0


class TestTeacher:
    def test_trains_at_the_points_of_its_own_sampling(self, fit):
        start, seen = micro_video_teacher(), []
        before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
        method = TeacherTraining(start, steps=4, pixel=1.0, feature=0.1, latent=0.1)
        noisy = method.model.noisy
        method.model.noisy = lambda lq, step: seen.append(step) or noisy(lq, step)
        fit(method)
        assert seen == [0, 1, 2, 0]
        assert all(torch.equal(tensor, start.state_dict()[name]) for name, tensor in before.items())
        changed = {name for name, p in method.model.named_parameters() if not torch.equal(p, before[name])}
        assert {name.partition(".")[0] for name in changed} == {"unet", "structure"}

    def test_the_loss_falls(self, fit, build_clips):
        method = TeacherTraining(micro_video_teacher(), steps=8, lr=2e-3)
        data = build_clips().calibration()
        batch = {key: torch.stack([data[i][key] for i in range(len(data))]) for key in ("lq", "gt")}

        def loss() -> float:
            with torch.no_grad():
                return method.loss(batch).item()

        before = loss()
        fit(method)
        method.step_index = 0
        assert loss() < 0.95 * before


def test_timestep_retraining_is_for_teachers_of_one_step(video_teacher):
    with pytest.raises(UserError, match=r"^method=trq moves the timestep of one-step teachers, [^.]*$"):
        TimestepRetraining(video_teacher, Bits(4, 4), timesteps=[199, 499])
