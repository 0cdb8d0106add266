"""Keys on the command line: one that the configuration does not have, with the nearest; one that has to be given."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from quantsr.errors import UserError

UNSEEN = ("debug", "experiment", "hparams_search", "objective")
"""What can be given although it is no key of a configuration without it."""

KINDS = {"root": "FOLDER", "lq": "FOLDER", "gt": "FOLDER", "artefact": "FOLDER", "file": "FILE", "files": "[FILE,FILE]"}
"""What keys take that have to be given, by their endings."""


def about_key(error: Exception) -> str | None:
    """What to say of an error that comes from a key without a value, or from one that is not there; None for any other.

    Hydra's own words advise to add the latter, and nothing would read it.
    """
    if isinstance(error, MissingMandatoryValue):
        what = next((word for ending, word in KINDS.items() if str(error.full_key).endswith(ending)), "VALUE")
        return f"{error.full_key} has to be given: {error.full_key}={what}"
    reason = error.__cause__
    full_key, parent = getattr(reason, "full_key", None), getattr(reason, "parent_node", None)
    if not full_key or not isinstance(parent, DictConfig):
        return None
    path, _, key = full_key.rpartition(".")
    return no_key(key, [*parent, *(() if path else UNSEEN)], path)


def refuse_added(hydra: DictConfig) -> None:
    """Refuse keys that are added (``+key=value``) where the command reads none of that name.

    Args:
        hydra: Hydra's part of the configuration, of a run or of a sweep.

    Raises:
        UserError: naming the first one.
    """
    folders = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
    files = [folder / f"{hydra.job.config_name.removesuffix('.yaml')}.yaml" for folder in folders]
    groups = {entry.name for folder in folders for entry in folder.iterdir() if entry.is_dir()}
    known = groups.union(UNSEEN, *(OmegaConf.load(file) for file in files if file.is_file()))
    for override in hydra.overrides.task:
        key = re.split("[.@/=]", override.lstrip("+"))[0]
        if override.startswith("+") and key not in known:
            raise UserError(no_key(key, known))


def no_key(key: str, known: Iterable[str], path: str = "") -> str:
    """That there is no such key at a path, and the one that may have been meant."""
    prefix, nearest = f"{path}." if path else "", get_close_matches(key, sorted(known), n=1)
    hint = f"did you mean {prefix}{nearest[0]}?" if nearest else "see --help for those there are"
    return f"there is no key {prefix}{key}: {hint}"
