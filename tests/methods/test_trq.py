"""Timestep retraining: what is measured, what is chosen, what trains, and that a resumed run ends the same."""

import csv

import pytest
import torch
from lightning.pytorch import Callback

from quantsr.data.photos import PhotosDataModule
from quantsr.errors import UserError
from quantsr.methods.trq import TimestepRetraining
from quantsr.methods.trq.curve import TimestepCurve
from quantsr.methods.trq.probe import TimestepProbe
from quantsr.quant.calibrate import quantized_modules
from quantsr.quant.spec import Bits
from quantsr.teachers.files import load_teacher, save_teacher
from tests.conftest import micro_teacher
from tests.methods.resuming import SaveInside, assert_same, state

TIMESTEPS = [99, 399, 499, 799]


def build(teacher=None, **options) -> TimestepRetraining:
    defaults = {"timesteps": TIMESTEPS, "observation_steps": 3, "steps": 3, "lr": 1e-3}
    return TimestepRetraining(teacher or micro_teacher(), Bits(4, 4), **defaults | options)


def curve_of(*rows: tuple[float, float]) -> TimestepCurve:
    """A curve with these (error of z_H, needed epsilon), over two batches."""
    curve = TimestepCurve(TIMESTEPS[: len(rows)], micro_teacher().abars)
    for _ in range(2):
        curve.add(torch.tensor([[error**2, 0.0, needed**2] for error, needed in rows]))
    return curve


@pytest.mark.parametrize(
    ("rows", "limit", "best", "reason"),
    [
        ([(0.1, 3.0), (0.2, 0.9), (0.3, 0.1), (0.4, 0.8)], 1.0, 399, "3 of 4"),
        ([(0.1, 0.9), (0.2, 0.9), (0.3, 0.1), (0.4, 0.8)], 1.0, 99, "4 of 4"),
        ([(0.4, 0.9), (0.3, 0.9), (0.1, 0.1), (0.2, 0.8)], 1.0, 499, "4 of 4"),
        ([(0.1, 0.9), (0.2, 0.9), (0.3, 0.1), (0.4, 0.8)], 0.5, 499, "1 of 4"),
        ([(0.1, 3.0), (0.2, 2.0), (0.3, 1.5), (0.4, 1.7)], 1.0, 499, "every candidate"),
    ],
    ids=["small t needs too much", "all can", "not the smallest t", "a lower limit", "none can"],
)
def test_the_lowest_error_among_those_with_a_small_enough_epsilon_is_best(rows, limit, best, reason):
    curve = curve_of(*rows)
    assert curve.best(limit)[0] == best and reason in curve.best(limit)[1]
    assert [(p.hq_latent_rmse, p.needed_epsilon_rms) for p in curve.points()] == [pytest.approx(row) for row in rows]


class Watch(Callback):
    """Notes after every step what may train, and the model's timestep."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        training = {name for name, p in module.named_parameters() if p.requires_grad}
        self.seen.append((module._active.name, training, module.model.timestep, state(module)))


def test_nothing_trains_while_measuring_and_then_the_model_at_the_chosen_timestep(fit):
    start = micro_teacher()
    before, config = {name: t.clone() for name, t in start.state_dict().items()}, dict(start.config)
    method, watch = build(start, epsilon_limit=100.0), Watch()
    fit(method, watch)
    trains = {id(p) for p in method.plan[-1].parameters}
    parameters = {f"model.{name}" for name, p in method.model.named_parameters() if id(p) in trains}
    assert {name for name in parameters if "unet" in name} and method.plan[-1].name == "teacher"
    assert [name for name, *_ in watch.seen] == 3 * ["timesteps"] + 3 * ["teacher"]
    assert [training for _, training, *_ in watch.seen] == 3 * [set()] + 3 * [parameters]
    assert [timestep for *_, timestep, _ in watch.seen] == [499, 499, 99, 99, 99, 99]
    assert_same(watch.seen[2][3], before)
    trained = watch.seen[5][3]
    moved = {f"model.{name}" for name in trained if not torch.equal(trained[name], before[name])}
    # Keys' biases do not change attention.
    assert {name for name in parameters - moved if not name.endswith("to_k.bias")} == set()
    assert moved <= parameters
    assert_same({name: t.clone() for name, t in method.teacher.state_dict().items()}, before)
    assert method.teacher.config == config and method.teacher.timestep == 499
    models = method.models()
    assert list(models) == ["before", "teacher"]
    assert models["before"] is method.teacher and models["teacher"] is method.model


def test_the_choice_follows_from_what_was_measured(fit, capsys):
    method = build(steps=0)
    fit(method)
    points = {point.timestep: point for point in method.curve.points()}
    able = [t for t, point in points.items() if point.needed_epsilon_rms <= 1]
    assert 0 < len(able) < len(TIMESTEPS)
    chosen = method.model.timestep
    assert chosen == min(able, key=lambda t: points[t].hq_latent_rmse)
    assert f"timestep {chosen} instead of 499: the lowest HQ-latent error" in capsys.readouterr().out


@pytest.mark.parametrize("timestep", [799, 650], ids=["a candidate", "another"])
def test_a_timestep_can_be_forced_and_is_measured_too(fit, timestep, capsys):
    method = build(timestep=timestep, steps=1)
    fit(method)
    assert method.model.timestep == method.model.config["timestep"] == timestep
    assert method.curve.timesteps == sorted({*TIMESTEPS, timestep})
    assert f"timestep {timestep} instead of 499: asked for" in capsys.readouterr().out


def test_measured_errors_are_those_of_the_two_models(lq):
    teacher = micro_teacher().freeze()
    probe = TimestepProbe(teacher, Bits(3, 3))
    found = probe.measure(lq, [99, 799])
    for row, timestep in zip(found, (99, 799), strict=True):
        per_image = []
        for image in lq.split(1):
            latent = teacher.encode(image)
            full, student = (model.retime(timestep) for model in (probe.full, probe.student))
            error = student.clean(latent, student.denoise(latent)) - full.clean(latent, full.denoise(latent))
            needed = (latent - full.signal * teacher.clean(latent, teacher.denoise(latent))) / full.noise
            # What is needed makes the same output.
            torch.testing.assert_close(
                full.clean(latent, needed), teacher.clean(latent, teacher.denoise(latent)), atol=1e-4, rtol=1e-4
            )
            per_image.append(torch.stack([error.square().mean(), needed.square().mean()]))
        torch.testing.assert_close(row[[0, 2]], torch.stack(per_image).mean(0))
    assert teacher.timestep == 499


def test_measuring_does_not_depend_on_the_batch(lq):
    probe = TimestepProbe(micro_teacher().freeze(), Bits(4, 4))
    together, alone = probe.measure(lq, TIMESTEPS), [probe.measure(one, TIMESTEPS) for one in lq.split(1)]
    torch.testing.assert_close(together, torch.stack(alone).mean(0))


def test_only_the_denoiser_is_quantized_and_its_sensitive_layers_at_8_bits():
    teacher = micro_teacher()
    probe = TimestepProbe(teacher.freeze(), Bits(2, 3))
    bits = {name: (m.recipe.weight.bits, m.recipe.act.bits) for name, m in quantized_modules(probe.student)}
    assert all(name.startswith("unet.") for name in bits)
    assert {name for name, pair in bits.items() if pair == (8, 8)} == set(teacher.sensitive()["denoiser"])
    assert set(bits.values()) == {(8, 8), (2, 3)}
    assert not list(quantized_modules(probe.full)) and not list(quantized_modules(teacher))


@pytest.mark.parametrize("stage", ["timesteps", "timesteps-end", "teacher", "teacher-end"])
def test_a_resumed_run_ends_the_same(resume, stage):
    resumed, whole = resume(lambda: build(epsilon_limit=100.0), stage, random_crops=True)
    assert_same(dict(resumed.curve.state_dict()), dict(whole.curve.state_dict()))
    assert resumed.model.timestep == whole.model.timestep == 99


@pytest.mark.parametrize(
    "options",
    [{"timesteps": [99, 499]}, {"timestep": 499}, {"epsilon_limit": 2.0}, {"observation_steps": 2}],
    ids=lambda options: next(iter(options)),
)
def test_a_run_with_other_options_does_not_resume(fit, tmp_path, options):
    fit(build(steps=1), SaveInside(tmp_path, ["timesteps"]))
    checkpoint = torch.load(tmp_path / "timesteps.ckpt", weights_only=True)
    build(steps=1).check_checkpoint(checkpoint)
    with pytest.raises(UserError, match="this run has"):
        build(steps=1, **options).check_checkpoint(checkpoint)
    with pytest.raises(UserError, match="bits = w4a4, this run has w2a2"):
        TimestepRetraining(micro_teacher(), Bits(2, 2), TIMESTEPS, 3, steps=1).check_checkpoint(checkpoint)


def test_the_file_of_the_result_keeps_the_timestep(fit, tmp_path, lq):
    method = build(timestep=199, steps=2)
    fit(method)
    save_teacher(method.model, tmp_path / "teacher.safetensors", torch.float32)
    loaded = load_teacher(tmp_path / "teacher.safetensors")
    assert loaded.timestep == loaded.config["timestep"] == 199
    assert torch.equal(loaded(lq), method.model.eval()(lq))


@pytest.mark.parametrize("timesteps", [[], [499], [99, 1000], [-1, 99], [499, 99], [99, 99, 499], [99.5, 499]], ids=str)
def test_impossible_candidates_are_refused(timesteps):
    with pytest.raises(UserError, match=r"method\.timesteps takes two or more whole numbers from 0 to 999"):
        build(timesteps=timesteps)


def test_other_impossible_options_are_refused():
    with pytest.raises(ValueError, match="timestep must be from 0 to 999, not 1000"):
        build(timestep=1000)
    with pytest.raises(UserError, match="observation_steps"):
        build(observation_steps=0)


def test_extras_show_the_curve(fit, tmp_path, capsys):
    method = build(steps=0)
    fit(method)
    capsys.readouterr()
    pictures = method.save_extras(tmp_path)
    assert pictures == {"timesteps": tmp_path / "timesteps.png"} and pictures["timesteps"].stat().st_size > 10_000
    rows = list(csv.DictReader((tmp_path / "timesteps.csv").open()))
    assert list(rows[0]) == ["timestep", "hq_latent_rmse", "epsilon_rmse", "needed_epsilon_rms", "factor", "chosen"]
    assert [int(row["timestep"]) for row in rows] == TIMESTEPS
    assert [int(row["timestep"]) for row in rows if row["chosen"] == "1"] == [method.model.timestep]
    for row in rows:
        assert float(row["hq_latent_rmse"]) == pytest.approx(float(row["factor"]) * float(row["epsilon_rmse"]))
    shown = capsys.readouterr().out
    assert shown.count("chosen") == 1 and "untrained w4a4 student" in shown


@pytest.mark.slow
def test_for_equal_epsilon_error_the_error_of_the_packaged_teacher_follows_the_schedule():
    teacher = load_teacher("tiny_image")
    data = PhotosDataModule(crop=128).calibration()
    curve = TimestepCurve([199, 499, 899], teacher.abars)
    probe = TimestepProbe(teacher, Bits(4, 4))
    for number in range(0, len(data), len(data) // 4):
        curve.add(probe.measure(data[number]["lq"][None], curve.timesteps))
    points = curve.points()
    for first, second in ((0, 1), (1, 2), (0, 2)):
        a, b = points[first], points[second]
        for_equal = (b.hq_latent_rmse / a.hq_latent_rmse) / (b.epsilon_rmse / a.epsilon_rmse)
        signal = [teacher.retime(t).signal for t in (a.timestep, b.timestep)]
        factors = [(1 - s**2) ** 0.5 / s for s in signal]
        assert for_equal == pytest.approx(factors[1] / factors[0], rel=0.1)
