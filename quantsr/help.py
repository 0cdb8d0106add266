"""What ``--help`` prints out of ``conf/``: the keys of a command with their comments, the options of a group.

Hydra's own words for it are the whole configuration without comments, and the groups of all commands.
"""

from pathlib import Path
from textwrap import indent

from omegaconf import OmegaConf


def register(conf: Path) -> None:
    """Let help templates say ``${keys_of:eval}`` and ``${options_of:data}``.

    Args:
        conf: the folder of the configuration.
    """
    OmegaConf.register_new_resolver("keys_of", lambda name: keys(conf / f"{name}.yaml"), replace=True)
    OmegaConf.register_new_resolver("options_of", lambda group: options(conf, group), replace=True)


def keys(file: Path) -> str:
    """A primary configuration's lines between its defaults and Hydra's part."""
    _, _, lines = file.read_text().partition("\n\n")
    lines, _, _ = lines.partition("\nhydra:")
    return indent(lines.strip().replace("$", "$$"), "  ")  # In a template $ is the start of a name.


def options(conf: Path, group: str) -> str:
    """The options of a group in one line."""
    return f"  {group}: {', '.join(sorted(path.stem for path in (conf / group).glob('*.yaml')))}"
