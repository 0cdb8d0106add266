"""What the documentation says can be typed: its commands compose, its links and paths lead somewhere."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import OmegaConf

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(
    r"`(python (?:train|eval|export|import)\.py[^`]*)`"  # in a line
    r"|^ +(python (?:train|eval|export|import)\.py.*(?:\n {5,}\S.*)*)",  # or indented, what goes on further in
    re.MULTILINE,
)
OPEN = re.compile(r"\b(METHOD|BITS|OPTIONS)\b|\.\.\.|--help|debug=shapes")
"""In commands of which something is left to the reader, or that need no files: keys without a value may stay."""


def commands() -> Iterator[tuple[str, str]]:
    """(where, command), each command once."""
    seen = set()
    for path in PAGES:
        for match in COMMAND.finditer(path.read_text().replace("\\\n", "")):
            command = " ".join((match[1] or match[2]).split())
            if command not in seen:
                seen.add(command)
                yield path.name, command


def jobs(overrides: list[Override]) -> Iterator[list[str]]:
    """The first and the last values of a sweep; of a run, itself."""
    values = []
    for override in overrides:
        if isinstance(override.value(), IntervalSweep):
            values.append([f"{override.key_or_group}={override.value().start}"])
        elif override.is_sweep_override():
            first, *_, last = override.sweep_string_iterator()
            values.append([f"{override.key_or_group}={value}" for value in (first, last)])
        else:
            values.append([override.input_line])
    for number in range(max(map(len, values), default=1)):
        yield [each[min(number, len(each) - 1)] for each in values]


def missing(tree: object, prefix: str = "") -> list[str]:
    """Keys that have to be given."""
    if isinstance(tree, dict):
        return [key for name, branch in tree.items() for key in missing(branch, f"{prefix}{name}.")]
    return [prefix[:-1]] if tree == "???" else []


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), [*commands()])
def test_command_composes(page, command):
    _, script, *words = shlex.split(command, comments=True)
    given = [word for word in words if "=" in word and not word.endswith("...")]
    overrides = OverridesParser.create().parse_overrides(
        [word for word in given if word not in ("method=METHOD", "bits=BITS")]
    )
    assert "-m" in words or not any(override.is_sweep_override() for override in overrides)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for job in jobs(overrides):
            cfg = compose(Path(script).stem, job)
            if not OPEN.search(command):
                assert missing(OmegaConf.to_container(cfg)) == []


def headings(path: Path) -> set[str]:
    """The anchors of a page, as they are made on GitHub."""
    lines = [line.lstrip("#").strip().lower() for line in path.read_text().splitlines() if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", line).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not link.startswith("https://"):
            assert target.exists(), link
            assert not anchor or anchor in headings(target), link
    for path in re.findall(r"(?:`|python )((?:quantsr|conf|tests|docs|benchmarks|notebooks)/[\w./-]*\w)", text):
        assert (ROOT / path).exists(), path
