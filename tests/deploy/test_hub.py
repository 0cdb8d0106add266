"""To the hub and back, without a network: the calls to it are patched."""

import shutil
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

import quantsr
from quantsr.deploy import hub, openvino
from quantsr.deploy.pipeline import Pipeline
from quantsr.errors import UserError
from tests.conftest import micro_teacher

NAMES = ["README.md", "config.json", "student.safetensors"]


@pytest.fixture
def pipe(image_run) -> Pipeline:
    return quantsr.load(image_run, device="cpu")


class TestSave:
    def test_a_saved_pipeline_computes_the_same(self, pipe, lq, tmp_path):
        assert pipe.save_pretrained(tmp_path / "copy") == tmp_path / "copy"
        assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == NAMES
        assert torch.equal(Pipeline.from_pretrained(tmp_path / "copy")(lq), pipe(lq))

    def test_other_files_there_stay(self, pipe, tmp_path):
        (tmp_path / "LICENSE").write_text("mine")
        (tmp_path / "openvino").mkdir()
        (tmp_path / "openvino" / "notes.txt").write_text("mine")
        pipe.save_pretrained(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["LICENSE", *NAMES[:2], "openvino", NAMES[2]]
        assert (tmp_path / "openvino" / "notes.txt").is_file()

    def test_models_exported_of_the_student_that_was_there_do_not_stay(self, pipe, lq, dynamic_run, tmp_path):
        shutil.copytree(dynamic_run / "artefact", tmp_path / "copy")
        openvino.export(tmp_path / "copy")
        loaded = quantsr.load(pipe.save_pretrained(tmp_path / "copy"), device="cpu")
        assert loaded.runtime == "torch" and torch.equal(loaded(lq), pipe(lq))
        assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == NAMES

    def test_where_nothing_can_be_written(self, pipe, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(UserError, match=r"nothing can be written into a folder .*file"):
            pipe.save_pretrained(tmp_path / "file")

    def test_onto_itself(self, pipe, image_run):
        with pytest.raises(UserError, match=r"is in .* already: give another folder"):
            pipe.save_pretrained(image_run / "artefact")

    def test_a_model_in_memory_has_nothing_to_save(self, tmp_path):
        with pytest.raises(UserError, match="made of a model in memory"):
            Pipeline(micro_teacher().freeze()).save_pretrained(tmp_path)


class TestCard:
    def test_front_matter(self, pipe, tmp_path):
        card = ModelCard.load(pipe.save_pretrained(tmp_path) / "README.md")
        assert card.data.to_dict() == {
            "library_name": "quantsr",
            "pipeline_tag": "image-to-image",
            "tags": ["super-resolution", "quantization", "diffusion"],
            "license": "apache-2.0",
            "metrics": ["psnr", "ssim"],
        }
        assert "| student | 25.12 | 0.7500 |" in card.text and "quantsr.load" in card.text

    def test_runtimes_are_told_apart(self, pipe, tmp_path):
        text = " ".join((pipe.save_pretrained(tmp_path) / "README.md").read_text().split())
        assert "`openvino` on a CPU, once exported, and `triton` on a GPU multiply integers" in text

    def test_students_of_other_teachers_inherit_a_licence_that_is_not_known_here(self, video_run, tmp_path):
        data = ModelCard.load(quantsr.load(video_run).save_pretrained(tmp_path) / "README.md").data
        assert (data.license, data.pipeline_tag) == ("other", "video-to-video")

    @pytest.fixture
    def older(self, image_run, tmp_path) -> Path:
        """An artefact whose card was written by hand."""
        shutil.copytree(image_run / "artefact", tmp_path / "older")
        return tmp_path / "older"

    def test_a_card_without_front_matter_gets_one(self, older, tmp_path):
        (older / "README.md").write_text("# Mine\n\nwritten by hand")
        card = ModelCard.load(quantsr.load(older).save_pretrained(tmp_path / "new") / "README.md")
        assert card.data.license == "apache-2.0" and "# Mine\n\nwritten by hand" in card.text

    def test_what_a_card_says_stays_and_what_it_lacks_is_added(self, older, tmp_path):
        (older / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n# Mine\n")
        data = ModelCard.load(quantsr.load(older).save_pretrained(tmp_path / "new") / "README.md").data
        assert (data.license, data.language, data.library_name) == ("mit", "en", "quantsr")

    def test_a_card_that_is_missing_is_written(self, older, tmp_path):
        (older / "README.md").unlink()
        assert "# a_run" in (quantsr.load(older).save_pretrained(tmp_path / "new") / "README.md").read_text()


class Api:
    """The calls that were made to the hub, as its own interface has them, and the files that it was given."""

    def __init__(self):
        self.calls, self.files = [], []

    def __call__(self, token=None):
        self.calls.append(("token", token))
        return self

    def create_repo(self, repo_id, **options):
        signature(HfApi.create_repo).bind(self, repo_id, **options)
        self.calls.append(("create_repo", repo_id, options))

    def upload_folder(self, *, folder_path, **options):
        signature(HfApi.upload_folder).bind(self, folder_path=folder_path, **options)
        self.files = sorted(path.name for path in Path(folder_path).iterdir())
        self.calls.append(("upload_folder", options))
        return SimpleNamespace(commit_url="https://hub/commit/1", pr_url="https://hub/discussions/1")


class TestPush:
    @pytest.fixture
    def api(self, monkeypatch) -> Api:
        monkeypatch.setattr(hub, "HfApi", api := Api())
        return api

    def test_repository_and_files(self, pipe, api):
        assert pipe.push_to_hub("me/student", private=True, token="secret") == "https://hub/commit/1"
        token, create, upload = api.calls
        assert token == ("token", "secret")
        assert create == ("create_repo", "me/student", {"private": True, "exist_ok": True})
        assert upload[1]["repo_id"] == "me/student" and api.files == NAMES

    def test_a_proposal(self, pipe, api):
        assert pipe.push_to_hub("me/student", create_pr=True, revision="next") == "https://hub/discussions/1"
        assert api.calls[-1][1]["create_pr"] is True and api.calls[-1][1]["revision"] == "next"

    def test_what_the_hub_refuses_is_said_in_one_sentence(self, pipe, api, monkeypatch):
        def refuse(*args, **options):
            raise HFValidationError("Repo id must be in the form 'repo_name'\nand so on")

        monkeypatch.setattr(Api, "create_repo", refuse)
        with pytest.raises(UserError, match=r"does not take .* as a/b/c: Repo id must be") as caught:
            pipe.push_to_hub("a/b/c")
        assert "\n" not in str(caught.value)


class TestDownload:
    @pytest.fixture
    def downloads(self, monkeypatch, image_run) -> list:
        """What was asked of the hub, which has the student of images."""
        asked = []

        interface = signature(hub.snapshot_download)

        def snapshot_download(name, **options):
            interface.bind(name, **options)
            asked.append((name, options))
            return str(image_run / "artefact")

        monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
        return asked

    def test_a_name_is_a_repository(self, pipe, downloads, lq):
        loaded = quantsr.from_pretrained("me/student", revision="v1", token="secret", device="cpu")
        assert torch.equal(loaded(lq), pipe(lq)) and loaded.runtime == "torch"
        ((name, options),) = downloads
        assert name == "me/student" and sorted(options["allow_patterns"]) == NAMES
        assert (options["revision"], options["token"], options["local_files_only"]) == ("v1", "secret", False)

    def test_a_folder_is_a_folder(self, downloads, image_run):
        quantsr.from_pretrained(image_run)
        assert not downloads

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (HFValidationError("Repo id ..."), "no folder runs/x/y/z, and a repository on the hub is named user/name"),
            (LocalEntryNotFoundError("Cannot find\nmore"), "no folder runs/x/y/z, and from the hub: Cannot find$"),
            (ConnectionError("no route"), "from the hub: no route"),
        ],
    )
    def test_neither(self, monkeypatch, error, words):
        def fail(*args, **options):
            raise error

        monkeypatch.setattr(hub, "snapshot_download", fail)
        with pytest.raises(UserError, match=words):
            quantsr.from_pretrained("runs/x/y/z")

    def test_a_repository_that_holds_something_else(self, monkeypatch, tmp_path):
        monkeypatch.setattr(hub, "snapshot_download", lambda *args, **options: str(tmp_path))
        with pytest.raises(UserError, match="no artefact in"):
            quantsr.from_pretrained("me/something")
