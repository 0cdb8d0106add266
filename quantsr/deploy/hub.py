"""Artefacts in the Hugging Face hub's conventions: a repository holds what an artefact folder holds."""

import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from huggingface_hub import HfApi, ModelCard, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from quantsr.deploy.artefact import CONFIG, WEIGHTS, read_config
from quantsr.deploy.card import front_matter, model_card, with_front_matter
from quantsr.deploy.exported import remove_exported
from quantsr.deploy.saving import writable_folder
from quantsr.errors import UserError

CARD = "README.md"
FILES = (CONFIG, WEIGHTS, CARD)


class OnTheHub(ABC):
    """What a pipeline takes from the hub and gives to it.

    Attributes:
        folder: of the artefact; None if there is none.
    """

    folder: Path | None

    @classmethod
    @abstractmethod
    def load(cls, path: str | Path, runtime: str, device: str | None) -> Self:
        """The pipeline of an artefact folder."""

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        runtime: str = "auto",
        device: str | None = None,
    ) -> Self:
        """The pipeline of a folder, or of a repository on the hub.

        Args:
            name: a folder, or ``user/name``.
            revision: branch, tag or commit of the repository.
            token: of the hub; None takes the one that is logged in.
            cache_dir: where downloads are kept; None for the hub's own place.
            local_files_only: take what was downloaded before.
            runtime, device: as :func:`quantsr.load` takes them.

        Raises:
            UserError: there is no such folder or repository, or what it holds cannot be loaded.
        """
        path = Path(name).expanduser()
        if not path.is_dir():
            options = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
            path = _downloaded(str(name), revision, options)
        return cls.load(path, runtime, device)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the artefact to ``folder``, its own card with the hub's front matter, in place of another there.

        Other files there stay, but not models that were exported of the artefact that it replaces.

        Raises:
            UserError: the pipeline is from no artefact, ``folder`` is the artefact's own, or it takes no files.
        """
        source, folder = self._artefact(), Path(folder).expanduser()
        if folder.resolve() == source.resolve():
            raise UserError(f"the artefact is in {folder} already: give another folder")
        writable_folder(folder)
        for name in (CONFIG, WEIGHTS):
            unfinished = folder / f"{name}.unfinished"
            shutil.copyfile(source / name, unfinished)
            unfinished.replace(folder / name)
        remove_exported(folder)
        (folder / CARD).write_text(card_of(source))
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str = "Upload a quantized student",
        token: str | None = None,
    ) -> str:
        """Put the artefact into a repository on the hub, which is made if it is not there.

        ``config.json`` has the configuration of the run, and so the paths of its data: look at it before.

        Args:
            repo_id: ``user/name``.
            private: a new repository; None for what the account has as its default.
            revision: branch to commit to.
            create_pr: propose the change instead of making it.
            commit_message: of the commit.
            token: of the hub; None takes the one that is logged in.

        Returns:
            The address of the commit, or of the proposal.

        Raises:
            UserError: the pipeline is from no artefact, or the hub refuses.
        """
        folder, api = self._artefact(), HfApi(token=token)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            with TemporaryDirectory() as copy:
                self.save_pretrained(copy)
                done = api.upload_folder(
                    repo_id=repo_id,
                    folder_path=copy,
                    revision=revision,
                    create_pr=create_pr,
                    commit_message=commit_message,
                    allow_patterns=list(FILES),
                )
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise UserError(f"the hub does not take {folder} as {repo_id}: {_first_line(error)}") from error
        return done.pr_url if create_pr else done.commit_url

    def _artefact(self) -> Path:
        if self.folder is None:
            raise UserError("this pipeline was made of a model in memory: load an artefact's folder to save or push it")
        return self.folder


def card_of(folder: Path) -> str:
    """The model card of an artefact folder, its front matter completed by what the hub looks for; the rest stays."""
    config, path = read_config(folder), folder / CARD
    if not path.is_file():
        return model_card(config)
    text, matter = path.read_text(), front_matter(config)
    if not text.startswith("---"):
        return with_front_matter(matter, f"\n{text}")
    card = ModelCard(text, ignore_metadata_errors=True)
    for key, value in matter.items():
        if card.data.get(key) is None:
            card.data[key] = value
    return str(card)


def _downloaded(name: str, revision: str | None, options: dict[str, Any]) -> Path:
    """The local copy of a repository.

    Raises:
        UserError: there is none of that name, or it cannot be reached.
    """
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES), **options))
    except HFValidationError as error:
        raise UserError(f"there is no folder {name}, and a repository on the hub is named user/name") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"there is no folder {name}, and from the hub: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
