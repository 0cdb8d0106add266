"""``export.py``: models with integer products beside the artefact."""

from shutil import copytree

import pytest
from omegaconf import OmegaConf

from quantsr.errors import UserError
from quantsr.run import export
from tests.deploy.conftest import image_run  # noqa: F401

PARTS = ("encoder", "denoiser", "decoder")


def test_it_writes_models_beside_the_artefact(run_alone, image_run, tmp_path):  # noqa: F811
    folder = copytree(image_run, tmp_path / "run")
    done = run_alone("export.py", f"artefact={folder}")
    assert done.code == 0, done.err
    assert "quantized layers multiply integers" in done.out
    written = folder / "artefact" / "openvino"
    assert f"result   {written}" in done.out
    names = {f"{part}.{kind}" for part in PARTS for kind in ("xml", "bin")}
    assert {path.name for path in written.iterdir()} == names | {"openvino.json"}


def test_bad_input_ends_in_one_sentence(run_alone):
    done = run_alone("export.py", "artefact=nowhere")
    assert done.code == 2 and done.err.startswith("error: no artefact in nowhere")
    assert len(done.err.strip().splitlines()) == 1


def test_what_cannot_be_exported_is_said_first(image_run):  # noqa: F811
    with pytest.raises(UserError, match="give artefact=FOLDER"):
        export(OmegaConf.create({"artefact": None, "runtime": "openvino"}))
    with pytest.raises(UserError, match=r"runtime takes one of \['openvino'\], not 'tensorrt'"):
        export(OmegaConf.create({"artefact": str(image_run), "runtime": "tensorrt"}))
    assert not list((image_run / "artefact").glob("openvino*"))


@pytest.mark.parametrize("lacking", [True, False])
def test_products_that_this_processor_lacks_are_named(image_run, tmp_path, monkeypatch, capsys, lacking):  # noqa: F811
    monkeypatch.setattr("quantsr.deploy.openvino.overflow.overflows", lambda: lacking)
    export(OmegaConf.create({"artefact": str(copytree(image_run, tmp_path / "run")), "runtime": "openvino"}))
    assert ("lacks exact products of 8 bits" in capsys.readouterr().out) == lacking


def test_a_missing_package_is_named(image_run, monkeypatch):  # noqa: F811
    monkeypatch.setattr("quantsr.deploy.runtimes.openvino.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'quantsr\[openvino\]'"):
        export(OmegaConf.create({"artefact": str(image_run), "runtime": "openvino"}))
