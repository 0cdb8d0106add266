"""``import.py``: from the authors' file to an artefact that ``eval.py`` measures."""

import pytest
import torch
from omegaconf import OmegaConf

from quantsr.deploy.artefact import load_student, read_config
from quantsr.errors import UserError
from quantsr.run import import_released
from quantsr.teachers.files import load_teacher
from tests.deploy.released.originals import MICRO_UNET, passionsr_state
from tests.end_to_end.test_bad_input import assert_refused


@pytest.fixture
def file(teacher_file, tmp_path):
    path = tmp_path / "unet_ckpt_merge_saw_sep.pth"
    torch.save(passionsr_state(load_teacher(teacher_file).unet, MICRO_UNET, split=True), path)
    return path


@pytest.mark.slow
def test_released_file_to_artefact_to_table(run, file, teacher_file, image_folder, tmp_path):
    where = f"run_dir={tmp_path / 'run'}"
    done = run(
        "import.py", f"files=[{file}]", f"teacher.weights={teacher_file}", "teacher=tiny_image", "bits=w6a6", where
    )
    assert done.code == 0, done.err
    assert "weights" in done.out and str(tmp_path / "run" / "artefact") in done.out
    config = read_config(tmp_path / "run")
    assert config["bits"] == "w6a6" and config["teacher"] == str(teacher_file)
    assert load_student(tmp_path / "run").unet.conv_out.recipe.weight.bits == 8

    measured = run(
        "eval.py", f"artefact={tmp_path / 'run'}", "data=images", f"data.root={image_folder}", "data.crop=32",
        f"run_dir={tmp_path / 'eval'}",
    )  # fmt: skip
    assert measured.code == 0, measured.err
    assert (tmp_path / "eval" / "metrics.json").is_file()


def test_what_does_not_fit_is_said_in_one_sentence(run, file, tmp_path):
    done = run("import.py", f"files=[{file}]", "teacher=tiny_image", "bits=w6a6", f"run_dir={tmp_path / 'run'}")
    assert done.code == 2
    assert done.err.startswith(f"error: {file} does not fit the teacher: ") and "Traceback" not in done.err
    assert not (tmp_path / "run" / "artefact").exists()


def test_files_are_looked_for_before_the_teacher_is_built(tmp_path):
    files, bits = [str(tmp_path / "nowhere.pth")], {"_target_": "builtins.object"}
    cfg = OmegaConf.create({"files": files, "bits": bits, "teacher": {}})
    with pytest.raises(UserError, match=r"there is no file .*nowhere\.pth"):
        import_released(cfg)  # The teacher is none that could be built.


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["bits=w6a6"], "give teacher=NAME, the model that the authors quantized"),
        (["teacher=tiny_image"], "give bits=NAME, the student's"),
        (["teacher=tiny_image", "bits=w6a6"], "files has to be given: files=[FILE,FILE]"),
    ],
    ids=["teacher", "bits", "files"],
)
def test_what_is_missing_is_named(run, tmp_path, given, text):
    assert_refused(run("import.py", *given, f"hydra.run.dir={tmp_path / 'run'}"), text)
