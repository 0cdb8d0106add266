"""Values are held against the signatures of what takes them; a wrong one is named with its key."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf

from quantsr.check import check_types, described, fits, signature
from quantsr.errors import UserError

HERE = __name__


class Base:
    def __init__(self, size: int, rate: float = 0.1):
        pass


class Derived(Base):
    def __init__(self, names: Sequence[str], helper: Base | None = None, **options: Any):
        super().__init__(**options)


class Inherits(Base):
    pass


@dataclass
class Data:
    bits: int


def make(folder: str | Path, **options: Any) -> Base:
    return Base(**options)


def refused(**node) -> str:
    """The sentence that a configuration with this method is refused with."""
    with pytest.raises(UserError) as error:
        check_types(OmegaConf.create({"method": node}))
    return str(error.value)


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        (int, [3, -1], ["two", 2.5, 1e3, True, None, [1]]),
        (float, [0.5, 3, float("inf")], ["0.5x", False, None]),
        (bool, [True, False], [1, 0, "yes", None]),
        (str, ["", "a"], [3, True, None, ["a"]]),
        (Path, ["a", Path("a")], [3]),
        (int | None, [3, None], ["two"]),
        (str | Path | None, ["a", None], [3]),
        (Sequence[str], [["a", "b"], []], ["a", [1], None]),
        (list[int] | str | int, [[0, 1], "auto", 2], [["a"], None, 1.5]),
        (tuple[float, float], [[1, 2.5]], [["a", 1], 3]),
        (dict[str, Any], [{}, {"a": 1}], [3, [1]]),
        (Literal["a", 16], ["a", 16], ["b", None]),
    ],
    ids=str,
)
def test_what_fits(annotation, right, wrong):
    assert all(fits(value, annotation) for value in right)
    assert not any(fits(value, annotation) for value in wrong)


@pytest.mark.parametrize("annotation", [Any, Base, Base | None, str | Base])
def test_what_is_not_plain_is_left_to_the_constructor(annotation):
    assert fits(3, annotation)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "a whole number"),
        (int | None, "a whole number or null"),
        (str | Path | None, "text or null"),
        (Sequence[str], "a list of text"),
        (list[int] | str | int, "a list of whole numbers, text or a whole number"),
        (tuple[float, ...], "a list of numbers"),
        (list, "a list"),
        (Literal["a", 16], "'a' or 16"),
        (Literal["a", "b"] | int | None, "'a', 'b', a whole number or null"),
    ],
    ids=str,
)
def test_in_words(annotation, words):
    assert described(annotation) == words


@pytest.mark.parametrize("target", [Base, Inherits, Derived, make])
def test_signature_reaches_through_inheritance_and_functions(target):
    annotations = signature(target)
    assert (annotations["size"], annotations["rate"]) == (int, float)


def test_signature_of_a_dataclass():
    assert signature(Data) == {"bits": int}


def test_names_the_key_what_it_takes_and_the_value():
    assert refused(_target_=f"{HERE}.Base", size="two") == "method.size takes a whole number, not 'two'"
    assert refused(_target_=f"{HERE}.Base", size=True) == "method.size takes a whole number, not true"
    assert refused(_target_=f"{HERE}.Base", size=1, rate=None) == "method.rate takes a number, not null"
    assert refused(_target_=f"{HERE}.Derived", names=[1]) == "method.names takes a list of text, not [1]"


def test_nested_targets():
    helper = {"_target_": f"{HERE}.Base", "size": "two"}
    assert "method.helper.size" in refused(_target_=f"{HERE}.Derived", names=["a"], helper=helper)
    assert "method.several.0.size" in refused(several=[helper])


@pytest.mark.parametrize(
    ("cfg", "sentence"),
    [
        ({"seed": "x"}, "seed takes a whole number, not 'x'"),
        ({"checkpoint_every": 2.5}, "checkpoint_every takes a whole number, not 2.5"),
        ({"ckpt_path": 3}, "ckpt_path takes text or null, not 3"),
        ({"input": 3}, "input takes text or null, not 3"),
        ({"flow": {"name": None}}, "flow.name takes text, not null"),
        ({"flow": {"name": "dis", "weights": ["a"]}}, "flow.weights takes text or null, not ['a']"),
        ({"metrics": {"names": "niqe"}}, "metrics.names takes a list of text, not 'niqe'"),
        ({"metrics": {"names": [], "require": [1]}}, "metrics.require takes a list of text, not [1]"),
        ({"metrics": {"weights_dir": 3}}, "metrics.weights_dir takes text or null, not 3"),
    ],
)
def test_keys_that_no_constructor_takes(cfg, sentence):
    with pytest.raises(UserError) as error:
        check_types(OmegaConf.create(cfg))
    assert str(error.value) == sentence


def test_what_stands_for_another_value_is_checked_there():
    method = {"_target_": f"{HERE}.Base", "size": "${seed}"}
    with pytest.raises(UserError, match=r"^seed takes"):
        check_types(OmegaConf.create({"method": method, "seed": "x"}))


def test_missing_values_and_unknown_keys_are_left_to_the_constructor():
    check_types(OmegaConf.create({"method": {"_target_": f"{HERE}.Base", "size": "???", "stepz": "x"}}))
