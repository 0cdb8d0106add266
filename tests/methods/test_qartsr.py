"""QArtSR: the layer, the order in which modules are quantized, what each stage trains, and that training helps."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback

from quantsr.errors import UserError
from quantsr.methods.borders import recorded, tensor_of
from quantsr.methods.qartsr import QArtSR
from quantsr.quant.calibrate import mode, quantized_modules, set_mode
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.low_rank import LowRank, LowRankUpdate
from quantsr.quant.spec import Bits
from quantsr.quant.transforms import Smoothing


@pytest.fixture
def build(build_method):
    """A function that makes a short QArtSR."""
    return lambda **options: build_method(QArtSR, **options)


@pytest.fixture
def batch(build_data) -> dict[str, torch.Tensor]:
    data = build_data().calibration()
    return {"lq": torch.stack([data[i]["lq"] for i in range(2)])}


def kinds(method) -> set[type]:
    return {type(module) for module in method.student.modules()}


class Spy(Callback):
    """For every stage: which blocks are quantized, which run, what has a gradient; and how often the teacher runs."""

    def __init__(self):
        self.order: list[str] = []
        self.quantized, self.ran, self.gradients = {}, {}, {}
        self.teacher_runs = 0

    def on_train_start(self, trainer, module):
        self.stage = None
        blocks = [name for names in module.teacher.blocks().values() for name in names]
        module.teacher.unet.conv_in.register_forward_hook(self.count)
        for name, layer in quantized_modules(module.student):
            if name not in blocks:  # Of a replayed block the hook is called all the same; of what is in it, not.
                layer.register_forward_hook(lambda *_, name=name: self.ran[self.stage].add(name))

    def count(self, *_):
        self.teacher_runs += 1

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.stage = module.stage.name
        if self.stage not in self.order:
            self.order.append(self.stage)
        self.ran.setdefault(self.stage, set())

    def on_before_optimizer_step(self, trainer, module, optimizer):
        student = module.student
        self.gradients[self.stage] = {n for n, p in student.named_parameters() if p.grad is not None and p.grad.any()}
        self.quantized[self.stage] = {n for n, layer in quantized_modules(student) if layer.mode == "quantized"}


def inside(names: set[str], blocks: list[str]) -> bool:
    return all(any(f"{name}.".startswith(f"{block}.") for block in blocks) for name in names)


@pytest.fixture(scope="module")
def runs() -> list:
    """The finished run of :func:`finished`, one for all tests."""
    return []


@pytest.fixture
def finished(runs, build, fit, tmp_path_factory):
    """A finished run, which tests leave as it is: the method, what was seen of it, its checkpoint, its teacher before.

    The update's F2 learns from the second step on: its other factor starts at 0.
    """
    if not runs:
        method, spy = build(module_steps=2, image_weight=3.0, perceptual_weight=2.0, pixel_weight=3.0), Spy()
        before = {name: tensor.clone() for name, tensor in method.teacher.state_dict().items()}
        checkpoint = tmp_path_factory.mktemp("qartsr") / "last.ckpt"
        fit(method, spy).save_checkpoint(checkpoint)
        runs.append((method, spy, checkpoint, before))
    return runs[0]


class TestLayer:
    def test_has_branch_update_and_phi(self, build):
        method = build()
        layers = [m for _, m in quantized_modules(method.student) if isinstance(m, QuantizedLayer)]
        assert layers
        for layer in layers:
            assert layer.low_rank is not None and layer.update is not None
            assert layer.smoothing is not None and layer.smoothing.offset is None
            assert not layer.update.F1.any()

    @pytest.mark.parametrize(
        ("option", "gone"),
        [({"alpha": None}, Smoothing), ({"rank": 0}, LowRank), ({"update_rank": 0}, LowRankUpdate)],
        ids=["phi", "branch", "update"],
    )
    def test_each_part_can_be_left_out(self, build, fit, option, gone):
        assert gone in kinds(build()) and gone not in kinds(build(**option))
        fit(build(module_steps=0, **option))

    def test_the_denoiser_alone_is_quantized_unless_said_otherwise(self, build):
        assert all(name.startswith("unet.") for name, _ in quantized_modules(build().student))
        names = {name.partition(".")[0] for name, _ in quantized_modules(build(parts=["decoder"]).student)}
        assert names == {"vae"}


class TestReversedOrder:
    """RPQ."""

    def test_modules_are_quantized_from_the_last_to_the_first(self, finished):
        method, spy, *_ = finished
        blocks = method.teacher.blocks()["denoiser"]
        assert spy.order == ["smoothing", "ranges", *(f"module {name}" for name in reversed(blocks)), "extended"]
        assert blocks[-1] == "unet.conv_out" and blocks[:2] == ["unet.time_embedding", "unet.conv_in"]

    def test_before_the_module_full_precision_and_after_it_quantized(self, finished):
        method, spy, *_ = finished
        blocks = method.teacher.blocks()["denoiser"]
        everything = {name for name, _ in quantized_modules(method.student)}
        for number, name in enumerate(blocks):
            quantized = spy.quantized[f"module {name}"]
            assert inside(quantized, blocks[number:]) and inside(everything - quantized, blocks[:number])
        assert spy.quantized["extended"] == everything

    def test_nothing_before_the_module_runs_or_learns(self, finished):
        method, spy, *_ = finished
        blocks = method.teacher.blocks()["denoiser"]
        for number, name in enumerate(blocks):
            assert inside(spy.ran[f"module {name}"], blocks[number:])
            assert inside(spy.gradients[f"module {name}"], blocks[number:])

    def test_the_module_and_all_after_it_learn(self, finished):
        method, spy, *_ = finished
        blocks = method.teacher.blocks()["denoiser"]
        for number, name in enumerate(blocks):
            stage = next(stage for stage in method.plan if stage.name == f"module {name}")
            names = {id(p): n for n, p in method.student.named_parameters()}
            trained = {names[id(p)] for p in stage.parameters}
            assert trained and inside(trained, blocks[number:])
            assert spy.gradients[stage.name] <= trained
            assert len(spy.gradients[stage.name]) > 0.85 * len(trained)
            own = {n for n in spy.gradients[stage.name] if n.startswith(f"{name}.")}
            assert {n.rpartition(".")[2] for n in own} >= {"L1", "L2", "F1", "F2", "scale", "lower", "upper"}

    def test_the_teacher_runs_once_a_batch(self, finished):
        method, spy, *_ = finished
        assert spy.teacher_runs == sum(stage.steps for stage in method.plan if stage.parameters)

    def test_the_loss_is_that_of_the_module_on_the_teachers_features_and_of_the_image(self, finished, batch):
        """Against the whole student computed anew, with everything before the module in full precision."""
        method, *_ = finished
        teacher, blocks = method.teacher, method.teacher.blocks()["denoiser"]
        for number in (0, len(blocks) // 2, len(blocks) - 1):
            name = blocks[number]
            with torch.no_grad():
                loss = method.module_loss(name, blocks[number:], batch)
                with recorded(teacher, [name]) as target:
                    target_image = teacher.restore(batch["lq"])
                set_mode(method.student, "quantized")
                before = torch.nn.ModuleList(method.student.get_submodule(block) for block in blocks[:number])
                with mode(before, "full_precision"), recorded(method.student, [name]) as own:
                    own_image = method.student.restore(batch["lq"])
            ours, theirs = tensor_of(own[name]), tensor_of(target[name])
            module = (ours - theirs).square().sum() / theirs.square().sum()
            torch.testing.assert_close(loss, module + 3 * F.mse_loss(own_image, target_image), rtol=1e-4, atol=1e-7)
            assert module > 0

    def test_parts_are_one_chain_of_modules(self, build, teacher, fit):
        parts = ["encoder", "denoiser", "decoder"]
        method, spy = build(parts=parts, module_steps=1, extended_steps=1), Spy()
        chain = [name for part in parts for name in teacher.blocks()[part]]
        fit(method, spy)
        assert spy.order[2:-1] == [f"module {name}" for name in reversed(chain)]
        for number, name in enumerate(chain):
            assert inside(spy.ran[f"module {name}"], chain[number:])


class TestOtherOrders:
    """For the paper's ablations."""

    def test_forward(self, build, teacher, fit):
        method, spy = build(order="forward", module_steps=1, parts=["encoder"]), Spy()
        blocks = teacher.blocks()["encoder"]
        fit(method, spy)
        assert spy.order[2:-1] == [f"module {name}" for name in blocks]
        for number, name in enumerate(blocks):
            assert inside(spy.quantized[f"module {name}"], blocks[: number + 1])
            assert inside(spy.gradients[f"module {name}"], blocks[: number + 1])

    def test_together(self, build, teacher, fit):
        method, spy = build(order="together", module_steps=1, parts=["encoder"]), Spy()
        fit(method, spy)
        assert spy.order[2:] == ["together", "extended"]
        assert spy.quantized["together"] == {name for name, _ in quantized_modules(method.student)}

    def test_all_orders_take_as_many_steps(self, build):
        assert len({build(order=order).steps for order in ("reversed", "forward", "together")}) == 1

    def test_an_unknown_order_is_refused(self, build):
        with pytest.raises(UserError, match=r"method\.order takes one of \['reversed', 'forward', 'together'\]"):
            build(order="random")


class TestExtendedTraining:
    """ET."""

    def test_can_be_left_out(self, build, fit):
        method = build(extended_steps=0, module_steps=1, parts=["encoder"])
        assert method.plan[-1].name.startswith("module")
        fit(method)

    def test_loss_is_the_weighted_sum(self, finished, batch):
        method, *_ = finished
        with torch.no_grad():
            own, target = method.student.restore(batch["lq"]), method.teacher.restore(batch["lq"])
            expected = 2 * method.distance(own, target) + 3 * F.mse_loss(own, target)
            torch.testing.assert_close(method.extended_loss(batch), expected)

    def test_the_distance_is_printed(self, build):
        assert "perceptual distance in extended training: features of the teacher's encoder" in build().summary()

    def test_lpips_without_its_weights_is_refused_before_any_work(self, build, monkeypatch, tmp_path):
        monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
        with pytest.raises(UserError, match=r"vgg16.*\.pth.*method\.perceptual=features"):
            build(perceptual="lpips").setup("fit")


def test_the_teachers_weights_stay_as_they_are(finished):
    method, _, _, before = finished
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.teacher.state_dict().items())
    own = dict(method.teacher.named_parameters())
    for name, layer in quantized_modules(method.student):
        if isinstance(layer, QuantizedLayer):
            assert layer.weight is own[f"{name}.weight"]


def test_a_checkpoint_holds_nothing_of_the_teacher(finished):
    _, _, checkpoint, teacher = finished
    stored = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert stored and all(name.startswith("model.") for name in stored)
    assert not {f"model.{name}" for name in teacher} & set(stored)


@pytest.mark.slow
def test_calibration_brings_the_student_nearer_to_the_teacher_at_2_bits(build, teacher, fit, batch):
    errors = []
    for steps in ({"module_steps": 0, "extended_steps": 0}, {"module_steps": 2, "extended_steps": 24}):
        method = build(bits=Bits(2, 2), weight_lr=3e-3, transform_lr=3e-3, bounds_lr=1e-2, **steps)
        fit(method)
        set_mode(method.student, "quantized")
        with torch.no_grad():
            errors.append(F.mse_loss(method.student.restore(batch["lq"]), teacher.restore(batch["lq"])).item())
    assert errors[1] < 0.8 * errors[0]
