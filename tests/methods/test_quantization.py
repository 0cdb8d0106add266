"""MinMax and PassionSR: what they quantize, what trains in each stage, and that training helps."""

import pytest
import torch
from lightning.pytorch import Callback

from quantsr.errors import UserError
from quantsr.methods.minmax import MinMax
from quantsr.methods.passionsr import PassionSR
from quantsr.methods.quantization import PARTS
from quantsr.quant.attention import PairScale, QuantizedAttention
from quantsr.quant.calibrate import quantized_modules
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.observer import Scale
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.spec import Bits
from quantsr.quant.transforms import Smoothing

METHODS = [MinMax, PassionSR]


def layers(method) -> dict[str, QuantizedLayer]:
    return {name: module for name, module in quantized_modules(method.student) if isinstance(module, QuantizedLayer)}


def part_of(method, name: str) -> str:
    prefixes = method.teacher.parts()
    return next(part for part in PARTS for prefix in prefixes[part] if f"{name}.".startswith(f"{prefix}."))


class TestRecipe:
    @pytest.mark.parametrize("kind", METHODS)
    def test_all_layers_and_attention_products_are_quantized(self, build_method, kind):
        method = build_method(kind)
        assert not [s.name for s in method.swaps if s.recipe is None]
        plain = [m for m in method.student.modules() if type(m) in (torch.nn.Linear, torch.nn.Conv2d)]
        assert not plain
        attentions = [m for m in method.student.modules() if hasattr(m, "to_q")]
        assert all(isinstance(m.processor, QuantizedAttention) for m in attentions) and len(attentions) == 10

    @pytest.mark.parametrize("kind", METHODS)
    @pytest.mark.parametrize("bits", [Bits(2, 3), Bits(8, 16)], ids=str)
    def test_sensitive_layers_have_at_least_8_bits(self, build_method, teacher, kind, bits):
        method = build_method(kind, bits)
        sensitive = {name for names in teacher.sensitive().values() for name in names}
        for name, layer in layers(method).items():
            expected = bits.at_least(8) if name in sensitive else bits
            assert (layer.recipe.weight.bits, layer.recipe.act.bits) == (expected.weight, expected.act), name

    @pytest.mark.parametrize("kind", METHODS)
    @pytest.mark.parametrize("parts", [["denoiser"], ["encoder", "decoder"]], ids="+".join)
    def test_other_parts_stay_as_they_are(self, build_method, kind, parts):
        method = build_method(kind, parts=parts)
        assert {part_of(method, name) for name, _ in quantized_modules(method.student)} == set(parts)
        assert {part_of(method, s.name) for s in method.swaps if s.recipe is None} == set(PARTS) - set(parts)
        assert f"parts: {', '.join(parts)}" in method.summary()

    def test_channels_are_split_in_the_denoiser_only(self, build_method):
        method = build_method(PassionSR)
        for name, layer in layers(method).items():
            split = len(layer.input_quantizer.sizes) > 1
            assert split == (part_of(method, name) == "denoiser"), name

    def test_methods_differ_by_recipe(self, build_method):
        minmax, passionsr = build_method(MinMax), build_method(PassionSR)
        assert [s.name for s in minmax.swaps] == [s.name for s in passionsr.swaps]
        assert not any(isinstance(m, Smoothing | PairScale) for m in minmax.student.modules())
        assert not list(p for m in minmax.student.modules() if isinstance(m, Quantizer) for p in m.parameters())

    @pytest.mark.parametrize("parts", [["denoizer"], [], ["denoiser", "vae"]], ids=str)
    def test_impossible_parts_are_refused(self, build_method, parts):
        with pytest.raises(UserError, match=r"method\.parts takes one or more of \['encoder', 'denoiser', 'decoder'\]"):
            build_method(MinMax, parts=parts)

    @pytest.mark.parametrize("kind", METHODS)
    def test_student_shares_the_teachers_memory(self, build_method, teacher, kind):
        method = build_method(kind)
        own = {tensor.data_ptr() for tensor in teacher.parameters()}
        for layer in layers(method).values():
            assert layer.weight.data_ptr() in own

    def test_stages_are_those_of_the_paper(self, build_method):
        names = [stage.name for stage in build_method(PassionSR).plan]
        trained = [f"{part}.{what}" for part in PARTS for what in ("transforms", "bounds")]
        assert names == ["smoothing", "ranges", *trained]
        assert [stage.name for stage in build_method(MinMax).plan] == ["ranges"]
        assert not build_method(MinMax).trains

    def test_layers_without_data_are_named(self, build_method):
        with pytest.raises(UserError, match=r"layers never ran during calibration, the first: vae\.encoder\.conv_in"):
            build_method(MinMax).check_calibrated()


class Watch(Callback):
    """Notes, for every stage, the tensors that changed in it and those that asked for a gradient."""

    def __init__(self):
        self.changed: dict[str, set[str]] = {}
        self.trained: dict[str, set[str]] = {}
        self.order: list[str] = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.stage, self.before = module.stage.name, {k: v.clone() for k, v in module.student.state_dict().items()}
        self.order.append(self.stage)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        after = module.student.state_dict()
        different = {
            name
            for name, old in self.before.items()
            if old.shape != after[name].shape or not torch.equal(old.nan_to_num(7), after[name].nan_to_num(7))
        }
        self.changed.setdefault(self.stage, set()).update(different)
        trained = {name for name, p in module.student.named_parameters() if p.requires_grad}
        assert self.trained.setdefault(self.stage, trained) == trained


class TestTraining:
    def test_a_stage_changes_its_own_parameters_and_nothing_else(self, build_method, teacher, fit):
        method, watch = build_method(PassionSR), Watch()
        before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
        fit(method, watch)
        assert watch.order == [stage.name for stage in method.plan for _ in range(stage.steps)]
        names = {id(p): name for name, p in method.student.named_parameters()}
        assert set().union(*watch.trained.values()) <= set(names.values())
        for stage in method.plan:
            own = {names[id(parameter)] for parameter in stage.parameters}
            assert watch.trained[stage.name] == own
            if own:
                assert watch.changed[stage.name] <= own
                assert len(watch.changed[stage.name]) > 0.9 * len(own)
        observed = watch.changed["ranges"]
        assert observed and all("quantizer" in n or "processor" in n for n in observed)
        after = teacher.state_dict()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
        assert all(p.grad is None for p in teacher.parameters())

    def test_every_trained_tensor_gets_a_gradient(self, build_method, fit):
        method = build_method(PassionSR, steps=1, relative_lr=False)
        seen = {}

        class Gradients(Callback):
            def on_before_optimizer_step(self, trainer, module, optimizer):
                stage = module.stage
                seen[stage.name] = [p.grad is not None and bool(p.grad.any()) for p in stage.parameters]

        fit(method, Gradients())
        assert len(seen) == 6
        for name, found in seen.items():
            assert sum(found) > 0.9 * len(found), f"{name}: {len(found) - sum(found)} of {len(found)} without"

    @pytest.mark.slow
    def test_training_lowers_the_loss_of_every_part(self, build_method, build_data, fit):
        untrained, trained = (build_method(PassionSR, steps=steps) for steps in (0, 12))
        fit(untrained)
        fit(trained)
        data = build_data().calibration()
        batch = {"lq": torch.stack([data[i]["lq"] for i in range(len(data))])}
        losses = {}
        for method in (untrained, trained):
            with torch.no_grad():
                for part in ("latent_loss", "clean_latent_loss", "image_loss"):
                    losses.setdefault(part, []).append(getattr(method, part)(batch).item())
        for part, (before, after) in losses.items():
            assert after < before, f"{part}: {before} -> {after}"

    def test_minmax_only_looks(self, build_method, fit):
        method, watch = build_method(MinMax), Watch()
        fit(method, watch)
        assert watch.trained == {"ranges": set()}
        assert set(watch.order) == {"ranges"} and len(watch.order) == 2
        method.check_calibrated()

    @pytest.mark.parametrize("kind", METHODS)
    def test_many_bits_are_nearly_the_teacher(self, build_method, build_data, teacher, fit, kind):
        method = build_method(kind, Bits(8, 16), **({} if kind is MinMax else {"steps": 0}))
        fit(method)
        lq = build_data().calibration()[0]["lq"][None]
        with torch.no_grad():
            error = (method.student.eval()(lq) - teacher(lq)).square().mean()
            size = teacher(lq).var()
        assert error < 0.01 * size

    def test_parts_train_alone(self, build_method, fit):
        method = build_method(PassionSR, parts=["decoder"], steps=1)
        assert [stage.name for stage in method.plan][2:] == ["decoder.transforms", "decoder.bounds"]
        fit(method)

    def test_too_large_a_learning_rate_ends_in_one_sentence(self, build_method, fit):
        method = build_method(PassionSR, steps=8, transform_lr=1e20, relative_lr=False)
        with pytest.raises(UserError, match=r"the loss is (nan|inf) in stage encoder\.transforms, step \d of 8"):
            fit(method)

    def test_scales_stay_positive_however_far_a_step_goes(self, build_method, fit):
        method = build_method(PassionSR, parts=["denoiser"], steps=3, transform_lr=2.0)
        fit(method)
        scales = [module.scale for module in method.student.modules() if isinstance(module, Scale)]
        assert len(scales) > 50 and all((scale > 0).all() for scale in scales)

    @pytest.mark.parametrize(
        ("key", "change"),
        [
            ("method", {"kind": MinMax}),
            ("bits", {"bits": Bits(4, 8)}),
            ("parts", {"parts": ["denoiser"]}),
            ("stages", {"steps": 5}),
        ],
    )
    def test_checkpoint_of_another_run_is_refused(self, build_method, tmp_path, fit, key, change):
        checkpoint = {"state_dict": {}}
        build_method(PassionSR).on_save_checkpoint(checkpoint)
        with pytest.raises(UserError, match=f"ckpt_path was written with {key} = "):
            build_method(**change).check_checkpoint(checkpoint)

    def test_the_first_option_that_differs_is_named_before_the_stages_that_follow_from_it(self, build_method):
        checkpoint = {"state_dict": {}}
        first, other = build_method(PassionSR), build_method(PassionSR, steps=5)
        first.options, other.options = {"seed": 0, "method.steps": 4}, {"seed": 0, "method.steps": 5, "data.crop": 64}
        first.on_save_checkpoint(checkpoint)
        with pytest.raises(UserError, match=r"^ckpt_path was written with method\.steps = 4, this run has 5: give the"):
            other.check_checkpoint(checkpoint)

    @pytest.mark.parametrize("options", [{"data.crop": 64}, {"seed": 0, "data.crop": 64}], ids=["more", "fewer"])
    def test_an_option_that_only_one_of_the_two_was_given_differs(self, build_method, options):
        checkpoint, both = {"state_dict": {}}, {"seed": 0, "data.crop": 64}
        method = build_method(PassionSR)
        method.options = options
        method.on_save_checkpoint(checkpoint)
        method.options = both if options != both else {"seed": 0}
        with pytest.raises(UserError, match="None"):
            method.check_checkpoint(checkpoint)

    @pytest.mark.parametrize(("written", "given"), [({}, {"seed": 0}), ({"seed": 0}, {})], ids=["checkpoint", "method"])
    def test_without_options_of_a_run_they_are_not_compared(self, build_method, written, given):
        checkpoint = {"state_dict": {}}
        method = build_method(PassionSR)
        method.options = written
        method.on_save_checkpoint(checkpoint)
        method.options = given
        method.check_checkpoint(checkpoint)

    def test_checkpoints_from_before_options_were_kept_are_read(self, build_method):
        checkpoint = {"state_dict": {}}
        method = build_method(PassionSR)
        method.on_save_checkpoint(checkpoint)
        del checkpoint["quantsr"]["options"]
        method.options = {"seed": 0}
        method.check_checkpoint(checkpoint)

    def test_checkpoint_holds_nothing_of_the_teacher(self, build_method, teacher, fit, tmp_path):
        method = build_method(PassionSR, steps=1)
        fit(method).save_checkpoint(tmp_path / "last.ckpt")
        stored = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
        names = {f"model.{name}" for name in teacher.state_dict()}
        assert stored and not names & set(stored)
