"""What the user can put right is said in one sentence, with exit code 2."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import picture
from tests.end_to_end.conftest import MICRO_STEPS

MINMAX = ["method=minmax"]


def assert_refused(result, *texts: str) -> None:
    """Exit code 2, and one line on standard error that holds the texts."""
    assert result.code == 2, result.err
    (message,) = result.err.splitlines()
    assert message.startswith("error: "), message
    assert "Traceback" not in result.err + result.out
    for text in texts:
        assert text in message, message


@pytest.fixture
def train(run, micro, tmp_path):
    """A function that runs ``train.py`` on the micro set-up with more options."""

    def train(*options: str, folder: Path = tmp_path / "run"):
        return run("train.py", *micro, f"hydra.run.dir={folder}", *options)

    return train


CASES = {
    "missing data folder": (["data.root=/nowhere"], ["No image folder at /nowhere"]),
    "missing teacher weights": (["teacher.weights=/nowhere.safetensors"], ["no teacher weights at /nowhere"]),
    "unknown bits": (["bits=w9a9"], ["w9a9", "w4a4"]),
    "number for a group": (["bits=4"], ["take the name of an option"]),
    "null for a group": (["teacher=null"], ["take the name of an option"]),
    "two modes of Hydra": (["-m", "--cfg", "job"], ["Only one of --run, --multirun, --cfg"]),
    "impossible bits": (["bits.weight=9"], ["bits.weight must be", "from 2 to 8, not 9"]),
    "unknown method": (["method=magic"], ["magic", "passionsr"]),
    "unknown key": (["method.stepz=3"], ["there is no key method.stepz: see --help"]),
    "misspelt key": (["methd=minmax"], ["there is no key methd: did you mean method?"]),
    "misspelt key of a group": (
        ["data.bach_size=3"],
        ["there is no key data.bach_size: did you mean data.batch_size?"],
    ),
    "misspelt group that nothing is chosen of": (["experimant=tiny_image"], ["did you mean experiment?"]),
    "misspelt key that is added": (["+methd=minmax"], ["there is no key methd: did you mean method?"]),
    "key that is added with what is in it": (["++foo.bar=1"], ["there is no key foo: see --help"]),
    "unknown key that is added": (["+method.stepz=3"], ["stepz"]),
    "unknown part": (["method.parts=[denoizer]"], ["method.parts takes", "denoizer"]),
    "missing checkpoint": (["ckpt_path=/nowhere.ckpt"], ["no checkpoint at ckpt_path=/nowhere.ckpt"]),
    "images smaller than the crop": (["data.crop=192"], ["smaller than 192 (data.crop=64 would fit)"]),
    "crop that does not divide": (["data.crop=30"], ["30 pixels does not divide by the scale 4"]),
    "no root": (["data.root=???"], ["data.root has to be given: data.root=FOLDER"]),
    "text for a whole number": (
        ["method.observation_steps=two"],
        ["method.observation_steps takes a whole number, not 'two'"],
    ),
    "fraction for a whole number": (["data.batch_size=1.5"], ["data.batch_size takes a whole number, not 1.5"]),
    "text for data": (["data.batch_size=many"], ["data.batch_size takes a whole number, not 'many'"]),
    "text for bits": (["bits.weight=four"], ["bits.weight takes a whole number, not 'four'"]),
    "text for the seed": (["seed=x"], ["seed takes a whole number, not 'x'"]),
    "text for epochs": (["trainer.max_epochs=a"], ["trainer.max_epochs takes a whole number or null, not 'a'"]),
    "number for a path": (["ckpt_path=3"], ["ckpt_path takes text or null, not 3"]),
    "number for weights": (["teacher.weights=3"], ["teacher.weights takes text, not 3"]),
    "one word for a list": (["method.parts=denoiser"], ["method.parts takes a list of text, not 'denoiser'"]),
    "broken command line": (["method.parts=[denoiser"], ["[denoiser"]),
}


@pytest.mark.parametrize(("options", "texts"), CASES.values(), ids=CASES)
def test_train(train, options, texts):
    assert_refused(train(*MINMAX, *options), *texts)


def test_nothing_is_read_before_the_checkpoint_is_known_to_be_there(train):
    assert_refused(train(*MINMAX, "ckpt_path=/nowhere.ckpt", "data.root=/nowhere"), "ckpt_path")


def test_types_are_checked_before_any_work(train):
    assert_refused(train(*MINMAX, "data.root=/nowhere", "ckpt_path=/nowhere.ckpt", "seed=x"), "seed takes")


def test_a_key_that_is_there_may_be_given_with_plus(train):
    assert_refused(train(*MINMAX, "++seed=3", "+objective=fidelity_psnr", "ckpt_path=/nowhere.ckpt"), "no checkpoint")


def test_a_sweep_over_an_unknown_key_has_no_jobs(run, micro, tmp_path):
    refused = run("train.py", "-m", *micro, *MINMAX, "+sed=1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert_refused(refused, "there is no key sed: did you mean seed?")
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["method=passionsr", "method.relative_lr=maybe"], "method.relative_lr takes true or false, not 'maybe'"),
        (["method=passionsr", "method.bounds_lr=fast"], "method.bounds_lr takes a number, not 'fast'"),
        (["data=realsr", "data.root=/x", "data.crop=x"], "data.crop takes a whole number, not 'x'"),
        (["teacher=one_step", "teacher.timestep=x"], "teacher.timestep takes a whole number, not 'x'"),
    ],
    ids=["bool", "float", "passed on by a function", "passed on to what a function makes"],
)
def test_types_of_other_choices(run, tmp_path, options, text):
    assert_refused(run("train.py", "logger=csv", *options, f"hydra.run.dir={tmp_path}"), text)


def test_batch_that_devices_cannot_share(train):
    assert_refused(train(*MINMAX, "data.batch_size=3", "trainer.devices=2"), "3 cannot be divided among 2 devices")


@pytest.mark.parametrize("option", ["trainer.devices=0", "trainer.devices=two", "trainer.accelerator=tpu"])
def test_devices_that_are_not_there(train, option):
    assert_refused(train(*MINMAX, option), option, "cannot be used here")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there(train):
    assert_refused(train(*MINMAX, "trainer.accelerator=gpu"), "=gpu with trainer.devices=1 cannot be used here")


def test_folder_of_corrupt_images(train, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(b"no image")
    result = train(*MINMAX, f"data.root={folder}")
    assert result.code == 2
    *named, message = result.err.splitlines()
    assert message.startswith("error: ") and f"in {folder} can be used" in message
    assert "not readable" in message and "Traceback" not in result.err
    assert all("skipped" in line for line in named)


def test_one_corrupt_image_among_good_ones_is_named_and_left_out(train, image_folder, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    picture(9).save(folder / "9.png")
    (folder / "9.png").write_bytes((folder / "9.png").read_bytes()[:200])
    result = train(*MINMAX, f"data.root={folder}")
    assert result.code == 0, result.err
    assert "skipped 9.png: not readable" in result.out + result.err
    assert "1 files skipped" in result.out


def test_run_folder_that_cannot_be_made(train, tmp_path):
    (tmp_path / "file").write_text("")
    refused = train(*MINMAX, folder=tmp_path / "file" / "run")
    assert_refused(refused, f"cannot use {tmp_path / 'file'}", "give another hydra.run.dir=FOLDER")


class TestCheckpointOfAnotherRun:
    """A run goes on with the options that decide its result, or not at all."""

    @pytest.fixture
    def resume(self, train, trained):
        """A function that goes on with the finished run, with other options."""
        last = trained[0] / "checkpoints" / "last.ckpt"
        first = [*MICRO_STEPS["passionsr"], "bits=w6a6", "seed=3", f"ckpt_path={last}"]
        return lambda *options: train(*first, *options)

    def test_method(self, train, trained):
        last = next((trained[0] / "checkpoints").glob("*.ckpt"))
        assert_refused(train(*MINMAX, f"ckpt_path={last}"), "method = PassionSR, this run has MinMax")

    @pytest.mark.parametrize(
        ("option", "text"),
        [
            ("seed=4", "seed = 3, this run has 4: give the options of the first run"),
            ("bits.act=8", "bits.act = 6, this run has 8"),
            ("method.steps=3", "method.steps = 2, this run has 3"),
            ("method.bounds_lr=0.5", "method.bounds_lr = "),
            ("data.crop=64", "data.crop = 32, this run has 64"),
            ("trainer.precision=bf16-mixed", "trainer.precision = 32-true, this run has bf16-mixed"),
        ],
    )
    def test_options(self, resume, option, text):
        assert_refused(resume(option), f"ckpt_path was written with {text}")

    def test_data_in_another_folder(self, resume, image_folder, tmp_path):
        other = shutil.copytree(image_folder, tmp_path / "images")
        assert_refused(resume(f"data.root={other}"), f"data.root = {image_folder}, this run has {other}")

    def test_where_and_how_the_work_is_done_may_change(self, resume, image_folder, teacher_file):
        """And a path may be written in another way."""
        paths = [f"data.root={os.path.relpath(image_folder)}", f"teacher.weights={os.path.relpath(teacher_file)}"]
        result = resume(*paths, "micro_batch=1", "checkpoint_every=7", "gradient_checkpointing=true")
        assert result.code == 0, result.err


class TestFolderOfAnotherRun:
    @pytest.fixture
    def folder(self, trained, tmp_path):
        """A copy of a finished run."""
        return Path(shutil.copytree(trained[0], tmp_path / "finished"))

    def test_a_finished_run_is_not_overwritten(self, train, folder):
        files = [path for path in folder.rglob("*") if path.is_file() and ".hydra" not in path.parts]
        before = {path: path.read_bytes() for path in files}
        for options in ([], [f"ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"]):
            refused = train(*MINMAX, *options, folder=folder)
            assert_refused(refused, f"{folder} holds a finished run: give another hydra.run.dir")
        assert {path: path.read_bytes() for path in files} == before

    def test_a_stopped_run_goes_on_in_its_own_folder(self, train, folder):
        (folder / "metrics.json").unlink()
        checkpoint = f"ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"
        result = train(*MICRO_STEPS["passionsr"], "bits=w6a6", "seed=3", checkpoint, folder=folder)
        assert result.code == 0, result.err
        assert (folder / "metrics.json").is_file()


class TestFolderOfARunThatIsRefused:
    @pytest.mark.parametrize("command", [["train.py", "ckpt_path=/nowhere.ckpt"], ["eval.py"], ["import.py"]], ids=str)
    def test_nothing_is_left(self, run, tmp_path, monkeypatch, command):
        monkeypatch.chdir(tmp_path)
        assert run(*command).code == 2
        assert [path for path in tmp_path.glob("runs/*/*")] == []

    def test_a_folder_that_was_given_stays(self, train, tmp_path):
        assert train("ckpt_path=/nowhere.ckpt", folder=tmp_path / "mine").code == 2
        assert (tmp_path / "mine").is_dir()

    def test_what_the_run_has_written_stays(self, run, micro, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        diverging = ["method=passionsr", "method.steps=4", "method.transform_lr=1e20", "method.relative_lr=false"]
        assert run("train.py", *micro, *diverging).code == 2
        [folder] = tmp_path.glob("runs/*/*")
        assert (folder / "config.yaml").is_file()


@pytest.mark.parametrize("content", [b"", b"no checkpoint"], ids=["empty", "text"])
def test_garbage_checkpoint(train, tmp_path, content):
    (tmp_path / "a.ckpt").write_bytes(content)
    assert_refused(train(*MINMAX, f"ckpt_path={tmp_path / 'a.ckpt'}"), "a.ckpt is not a readable checkpoint")


def test_checkpoint_of_something_else(train, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    assert_refused(train(*MINMAX, f"ckpt_path={tmp_path / 'a.ckpt'}"), "a.ckpt is not a checkpoint of quantsr")


def test_loss_that_is_no_number(train):
    result = train("method=passionsr", "method.steps=4", "method.transform_lr=1e20", "method.relative_lr=false")
    assert_refused(result, "stage encoder.transforms")


class TestEval:
    @pytest.mark.parametrize("options", [[], ["artefact=a", "outputs=b"]], ids=["neither", "both"])
    def test_one_of_artefact_and_outputs(self, run, tmp_path, options):
        assert_refused(run("eval.py", *options, f"hydra.run.dir={tmp_path}"), "give one of the two")

    def test_missing_artefact(self, run, tmp_path):
        assert_refused(run("eval.py", "artefact=/nowhere", f"hydra.run.dir={tmp_path}"), "no artefact in /nowhere")

    def test_missing_checkpoint(self, run, tmp_path):
        result = run("eval.py", "artefact=/nowhere/last.ckpt", f"hydra.run.dir={tmp_path}")
        assert_refused(result, "no checkpoint at", "/nowhere/last.ckpt")

    def test_number_for_an_artefact(self, run, tmp_path):
        assert_refused(run("eval.py", "artefact=3", f"hydra.run.dir={tmp_path}"), "artefact takes text or null, not 3")

    def test_outputs_need_ground_truth(self, run, image_folder, tmp_path):
        result = run("eval.py", f"outputs={image_folder}", f"hydra.run.dir={tmp_path}")
        assert_refused(result, "data.gt=FOLDER")
