"""``export.py``: models with integer products beside the artefact."""

import sys
from shutil import copytree

import pytest

from tests.deploy.conftest import image_run, video_run  # noqa: F401

PARTS = ("encoder", "denoiser", "decoder")


def test_it_writes_models_beside_the_artefact(run, image_run, tmp_path):  # noqa: F811
    folder = copytree(image_run, tmp_path / "run")
    done = run("export.py", f"artefact={folder}")
    assert done.code == 0, done.err
    assert "quantized products run as integers" in done.out
    written = folder / "artefact" / "openvino"
    assert f"result   {written}" in done.out
    names = {f"{part}.{kind}" for part in PARTS for kind in ("xml", "bin")}
    assert {path.name for path in written.iterdir()} == names | {"openvino.json"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["artefact=nowhere"], "error: no artefact in nowhere"),
        (["artefact={video}"], "error: runtime=openvino takes one-step image models, this one is mgldvsr"),
        (["artefact={video}", "runtime=tensorrt"], "error: runtime takes one of ['openvino'], not 'tensorrt'"),
        ([], "error: "),
    ],
    ids=["nowhere", "video", "runtime", "nothing"],
)
def test_bad_input_ends_in_one_sentence(run, video_run, options, sentence):  # noqa: F811
    done = run("export.py", *(option.format(video=video_run) for option in options))
    assert done.code == 2 and done.err.startswith(sentence)
    assert len(done.err.strip().splitlines()) == 1
    assert not list((video_run / "artefact").glob("openvino*"))


def test_a_missing_package_is_named(run, image_run, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "quantsr.deploy.openvino", None)
    done = run("export.py", f"artefact={image_run}")
    assert done.code == 2 and "pip install 'quantsr[openvino]'" in done.err
