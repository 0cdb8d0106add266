"""QuantVSR: what its layers are, which ranks they get, what each stage trains, and that training helps.

On clips and, with the spatial complexity alone, on images.
"""

import csv
from copy import deepcopy

import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image

from quantsr.deploy.artefact import load_student, save_student
from quantsr.errors import UserError
from quantsr.methods.quantvsr import QuantVSR, noisy_of
from quantsr.methods.quantvsr.allocation import allocate
from quantsr.methods.quantvsr.complexity import ComplexityProbe
from quantsr.quant.calibrate import mode, quantized_modules, uncalibrated
from quantsr.quant.folded import fold
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.recipe import LayerRecipe
from tests.conftest import micro_teacher, micro_video_teacher

TEACHERS = {"clips": micro_video_teacher, "images": micro_teacher}
RANKS = (0.25, 2, 8, 2)  # As the short schedule has them.


class Spy(Callback):
    """The order of the stages, every batch, and the student's state where each stage begins."""

    def __init__(self):
        self.states, self.batches = {}, {}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        stage = module.stage.name
        if stage not in self.states:
            self.states[stage] = state_of(module.student)
        self.batches.setdefault(stage, []).append(batch)


def state_of(student) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in student.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def kinds(names: set[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


@pytest.fixture(scope="module")
def runs() -> dict:
    """Finished runs by the name of their teacher, one of each for all tests."""
    return {}


@pytest.fixture(params=TEACHERS)
def finished(request, runs, build_method, fit):
    """A finished run, which tests leave as it is: the method, and what was seen of it."""
    if request.param not in runs:
        method, spy = build_method(QuantVSR, of=TEACHERS[request.param]()), Spy()
        fit(method, spy)
        runs[request.param] = method.eval(), spy
    return runs[request.param]


def ranks_of(method) -> dict[str, int]:
    return {name: layer.low_rank.L1.shape[1] for name, layer in method.layers.items()}


class TestLayers:
    def test_the_denoiser_is_quantized_but_for_its_entrance_exit_and_first_layer_of_time(self, finished):
        method, _ = finished
        denoiser = [s for s in method.swaps if s.name.startswith("unet.")]
        time = "unet.time_embed.0" if method.teacher.frames > 1 else "unet.time_embedding.linear_1"
        kept = {s.name for s in denoiser if s.recipe is None}
        assert kept == {method.teacher.entrance, method.teacher.exit, time}
        assert set(method.layers) == {s.name for s in denoiser} - kept
        assert all(s.recipe is None for s in method.swaps if s not in denoiser)
        assert {name for name, _ in quantized_modules(method.student)} == set(method.layers)

    def test_has_rotation_halves_branch_and_aligned_bias_and_attention_is_left_alone(self, finished):
        method, _ = finished
        for layer in method.layers.values():
            assert layer.rotation is not None and layer.low_rank is not None and layer.bias_alignment is not None
            assert layer.recipe.act.range == "dynamic" and layer.recipe.channel_split
            assert (layer.recipe.weight.bits, layer.recipe.act.bits) == (4, 4)
        assert all(isinstance(s.recipe, LayerRecipe | None) for s in method.swaps)

    def test_summary(self, finished):
        method, _ = finished
        lines = method.summary().splitlines()
        assert lines[0] == "QuantVSR: complexity 4, refinement 3, alignment 3"
        assert lines[1].startswith(f"{len(method.layers)} layers and 0 attention products quantized at w4a4")


class TestRanks:
    def test_follow_from_the_inputs_of_the_first_stage(self, finished):
        """Measured anew, on the batches that the stage saw."""
        method, spy = finished
        probe = ComplexityProbe(method.layers, method.teacher.frames)
        for batch in spy.batches["complexity"]:
            with torch.no_grad(), mode(method.student, "full_precision"), probe:
                method.student.denoise(batch["latent"], noisy_of(batch))
        expected = allocate(probe.samples, *RANKS)
        assert method.allocation.ranks == expected.ranks
        assert method.allocation.quantiles == pytest.approx(expected.quantiles)
        assert method.allocation.moving == (method.teacher.frames > 1)

    def test_branches_recipes_and_swaps_have_them(self, finished):
        method, _ = finished
        ranks = ranks_of(method)
        allocated = method.allocation.real_ranks
        assert len(set(allocated.values())) > 1 and set(allocated.values()) <= {2, 4, 6, 8}
        assert ranks == {name: allocated.get(name, 2) for name in ranks}
        recipes = {s.name: s.recipe for s in method.swaps}
        for name, layer in method.layers.items():
            assert layer.recipe.rank == ranks[name] and recipes[name] == layer.recipe

    def test_layers_of_the_timestep_have_no_complexity_and_keep_the_smallest(self, finished):
        method, _ = finished
        without = set(method.layers) - set(method.allocation.ranks)
        assert without and all("time_emb" in name or "emb_layers" in name for name in without)

    def test_branches_start_as_the_best_of_their_rank(self, finished):
        method, spy = finished
        state = spy.states["refinement"]
        for name, rank in ranks_of(method).items():
            weight = method.layers[name].weight.flatten(1)
            u, s, vh = torch.linalg.svd(weight, full_matrices=False)
            product = state[f"{name}.low_rank.L1"] @ state[f"{name}.low_rank.L2"]
            torch.testing.assert_close(product, u[:, :rank] * s[:rank] @ vh[:rank], rtol=1e-4, atol=1e-5)

    def test_weight_ranges_are_those_of_what_the_branches_leave(self, finished, build_method):
        """Recorded after the ranks are known."""
        method, spy = finished
        other = build_method(QuantVSR, of=method.teacher)
        other.set_allocation(method.allocation)
        other.find_weight_ranges()
        state = state_of(other.student)
        bounds = {name for name in state if ".weight_quantizer." in name}
        assert bounds and all(torch.equal(state[name], spy.states["refinement"][name]) for name in bounds)

    def test_without_complexity_every_layer_has_the_smallest_rank(self, build_method, video_teacher, fit, tmp_path):
        method = build_method(QuantVSR, of=video_teacher, complexity_steps=0)
        assert [stage.name for stage in method.plan] == ["refinement", "alignment"]
        assert set(ranks_of(method).values()) == {2}
        assert uncalibrated(quantized_modules(method.student)) == []
        before = state_of(method.student)
        fit(method)
        assert kinds(changed(before, state_of(method.student))) == {"L1", "L2", "bias_alignment"}
        assert method.save_extras(tmp_path) == {} and not list(tmp_path.iterdir())

    def test_table_and_picture(self, finished, tmp_path, capsys):
        method, _ = finished
        assert method.save_extras(tmp_path) == {
            "ranks": tmp_path / "ranks.png",
            "ranks_table": tmp_path / "ranks.csv",
        }
        rows = list(csv.DictReader((tmp_path / "ranks.csv").open()))
        assert {row["layer"]: int(row["rank"]) for row in rows} == method.allocation.real_ranks
        still = {float(row["temporal"]) for row in rows} == {0}
        assert still == (method.teacher.frames == 1)
        with Image.open(tmp_path / "ranks.png") as picture:
            assert min(picture.size) > 400
        assert f"average rank {method.allocation.average_rank:.4g}" in capsys.readouterr().out


class TestStages:
    def test_come_in_order(self, finished):
        _, spy = finished
        assert {stage: len(batches) for stage, batches in spy.batches.items()} == {
            "complexity": 4,
            "refinement": 3,
            "alignment": 3,
        }
        assert list(spy.batches) == ["complexity", "refinement", "alignment"]

    def test_the_first_observes_in_full_precision_and_changes_no_weight(self, finished):
        method, spy = finished
        differing = changed(spy.states["complexity"], spy.states["refinement"])
        assert {name.split(".")[-2] for name in differing} <= {"low_rank", "weight_quantizer"}
        assert all(layer.mode == "quantized" for layer in method.layers.values())

    def test_refinement_trains_the_branches_alone(self, finished):
        method, spy = finished
        trained = changed(spy.states["refinement"], spy.states["alignment"])
        assert kinds(trained) == {"L1", "L2"}
        assert len(trained) == 2 * len(method.layers)

    def test_alignment_trains_the_biases_alone(self, finished):
        method, spy = finished
        trained = changed(spy.states["alignment"], state_of(method.student))
        assert kinds(trained) == {"bias_alignment"}
        # Attention is blind to one vector added to all keys.
        keys = sum(name.endswith("to_k") for name in method.layers)
        assert len(trained) >= len(method.layers) - keys

    def test_the_teacher_stays_as_it_was_and_its_weights_are_the_students(self, finished):
        method, _ = finished
        original = TEACHERS["clips" if method.teacher.frames > 1 else "images"]()
        assert not changed(original.state_dict(), method.teacher.state_dict())
        own = dict(method.teacher.named_parameters())
        assert all(layer.weight is own[f"{name}.weight"] for name, layer in method.layers.items())

    def test_the_loss_is_that_of_epsilon_at_the_pairs_own_step(self, finished):
        method, spy = finished
        batch = spy.batches["alignment"][-1]
        with torch.no_grad():
            with mode(method.student, "full_precision"):
                assert method.epsilon_loss(batch) < 1e-10
            own = method.student.denoise(batch["latent"], noisy_of(batch))
            assert method.epsilon_loss(batch) == pytest.approx((own - batch["epsilon"]).square().mean().item())
        assert ("noisy" in batch) == (method.teacher.steps > 1)

    def test_both_bring_epsilon_nearer_to_the_teachers(self, build_method, fit, video_teacher):
        """On one pair, as steps of the sampling differ in their losses; fewer steps could end on a peak."""
        options = {"pairs": 1, "complexity_steps": 1, "refinement_steps": 40, "alignment_steps": 8}
        method, spy = build_method(QuantVSR, of=video_teacher, **options), Spy()
        fit(method, spy)
        (batch,) = spy.batches["complexity"]

        def error(state) -> float:
            method.student.load_state_dict(state)
            with torch.no_grad():
                return method.epsilon_loss(batch).item()

        end = state_of(method.student)
        svd, refined, aligned = (error(s) for s in (spy.states["refinement"], spy.states["alignment"], end))
        assert refined < 0.95 * svd and aligned < refined


class TestInference:
    @pytest.fixture
    def folded(self, finished):
        method, _ = finished
        return fold(deepcopy(method.student)).freeze()

    def test_folded_layers_compute_what_was_trained(self, finished, folded):
        """Up to the branch's 16 bits."""
        method, spy = finished
        inputs = {}
        handles = [
            layer.register_forward_hook(lambda _, x, y, name=name: inputs.update({name: (x[0], y)}))
            for name, layer in method.layers.items()
        ]
        batch = spy.batches["alignment"][0]
        with torch.no_grad():
            method.student.denoise(batch["latent"], noisy_of(batch))
            assert set(inputs) == set(method.layers)
            for name, (x, y) in inputs.items():
                difference = (folded.get_submodule(name)(x) - y).norm()
                assert difference <= 5e-3 * y.norm(), name
        for handle in handles:
            handle.remove()

    def test_an_artefact_of_many_ranks_comes_back_bit_for_bit(self, finished, folded, tmp_path):
        method, _ = finished
        save_student(folded, method.swaps, tmp_path / "artefact", 1, {})
        loaded = load_student(tmp_path / "artefact")
        ranks = {name: loaded.get_submodule(name).L1.shape[1] for name in method.layers}
        assert ranks == ranks_of(method) and len(set(ranks.values())) > 1
        frames = () if loaded.frames == 1 else (loaded.frames,)
        for size in ((8, 8), (5, 9)):
            lq = torch.rand(1, *frames, 3, *size, generator=torch.Generator().manual_seed(9))
            with torch.no_grad():
                assert torch.equal(loaded(lq), folded(lq))


BAD = {
    "percentile": ({"percentile": 0.5}, "percentile .* between 0 and 0.5, and is not 0.5"),
    "no rank": ({"smallest_rank": 0}, "ranks go from a smallest of 1 or more .* not from 0 to 8"),
    "ranks the wrong way round": ({"smallest_rank": 16}, "not from 16 to 8"),
    "multiple": ({"rank_multiple": 0}, "multiple of 1 or more, not of 0"),
    "no pairs": ({"pairs": 0}, "method.pairs must be at least 1, not 0"),
}


class TestBadOptions:
    """Found before any work."""

    @pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
    def test_are_refused(self, build_method, options, message):
        with pytest.raises(UserError, match=message):
            build_method(QuantVSR, **options)


def test_a_checkpoint_holds_nothing_of_the_teacher(build_method, fit, video_teacher, tmp_path):
    method = build_method(QuantVSR, of=video_teacher, refinement_steps=1, alignment_steps=1)
    fit(method).save_checkpoint(tmp_path / "last.ckpt")
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert stored and not {f"model.{name}" for name in video_teacher.state_dict()} & set(stored)


def test_a_run_with_other_ranks_cannot_go_on(build_method, fit, video_teacher, tmp_path):
    """Layers without a complexity would have a rank that their recipe does not have."""
    method = build_method(QuantVSR, of=video_teacher, refinement_steps=0, alignment_steps=0)
    fit(method).save_checkpoint(tmp_path / "last.ckpt")
    other = build_method(QuantVSR, of=video_teacher, refinement_steps=0, alignment_steps=0, smallest_rank=4)
    with pytest.raises(UserError, match="ckpt_path was written with ranks"):
        other.check_checkpoint(torch.load(tmp_path / "last.ckpt", weights_only=True))


def test_layers_are_plain_quantized_layers(build_method):
    assert all(type(layer) is QuantizedLayer for layer in build_method(QuantVSR).layers.values())
