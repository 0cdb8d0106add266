"""Values of the wrong type in a configuration, found before any work: against the signature of what they are for."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from quantsr.errors import UserError

WITHOUT_TARGET = {
    "seed": int,
    "checkpoint_every": int,
    "gradient_checkpointing": bool,
    "offload": bool,
    "micro_batch": int | None,
    "ckpt_path": str | None,
    "artefact": str | None,
    "input": str | None,
    "tile": int | None,
    "outputs": str | None,
    "files": list[str],
    "teacher": str | None,  # of eval.py; in train.py it is a node of its own
    "flow.name": str,
    "flow.weights": str | None,
    "metrics.names": list[str],
    "metrics.require": list[str],
    "metrics.weights_dir": str | None,
}
"""Keys of a configuration that no constructor takes."""

# One of it, several of it.
WORDS = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "text"),
    Path: ("a path", "paths"),
    dict: ("a mapping", "mappings"),
    NoneType: ("null", "nulls"),
}
LISTS = (list, tuple, Sequence)


def check_types(cfg: DictConfig) -> None:
    """Compare the plain values of a composed configuration with the annotations of what takes them.

    Every node with a ``_target_`` is held against the target's signature. Interpolations are left out: what they
    point to is checked in its own place, and named by the key that was given. So are missing values, keys that the
    target does not have (instantiating says so) and annotations that are not made of :data:`WORDS` and lists.

    Raises:
        UserError: naming the first value of a wrong type, and what its key takes.
    """
    for key, annotation, value in _expected(cfg):
        if not fits(value, annotation):
            raise UserError(f"{key} takes {described(annotation)}, not {_written(value)}")


def _expected(node: DictConfig | ListConfig, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(full key, annotation, value) of everything in ``node`` that has an annotation."""
    annotations = _annotations_of(node)
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        value, full_key = node[key], f"{path}.{key}" if path else str(key)
        annotation = annotations.get(key, WITHOUT_TARGET.get(full_key, Any))
        if annotation is not Any and not _has_target(value):
            yield full_key, annotation, OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        if OmegaConf.is_config(value):
            yield from _expected(value, full_key)


def _has_target(value: Any) -> bool:
    return isinstance(value, DictConfig) and "_target_" in value


def _annotations_of(node: DictConfig | ListConfig) -> dict[str, Any]:
    return signature(get_object(node["_target_"])) if _has_target(node) else {}


def signature(target: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of a target's arguments.

    What it takes as ``**kwargs`` is passed on: by a class to the class it derives from, by a function to the class it
    returns.
    """
    if not inspect.isclass(target):
        annotations = _annotations(target)
        made = annotations.pop("return", None)
        return signature(made) | annotations if inspect.isclass(made) and _passes_on(target) else annotations
    annotations = {}
    for owner in target.__mro__:
        if "__init__" in vars(owner):
            annotations = _annotations(owner.__init__) | annotations
            if not _passes_on(owner.__init__):
                break
    annotations.pop("return", None)
    return annotations


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except NameError:  # Names that only a type checker imports, in other people's code.
        return {}


def _passes_on(function: Callable[..., Any]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value is of the annotated type; True where the annotation is not plain.

    A whole number is a number too; true and false are not.
    """
    kind, inner = get_origin(annotation) or annotation, get_args(annotation)
    if kind in (Union, UnionType):
        return any(fits(value, member) for member in inner)
    if kind is Literal:
        return value in inner
    if kind in LISTS:
        # A tuple's types go by place; that all are among them is enough here.
        types = [member for member in inner if member is not ...] or [Any]
        return isinstance(value, list) and all(any(fits(item, t) for t in types) for item in value)
    if kind in (dict, Mapping):
        return isinstance(value, dict)
    if kind in (int, float) and isinstance(value, bool):
        return False
    accepted = {float: (int, float), Path: (str, Path)}
    return kind not in WORDS or isinstance(value, accepted.get(kind, kind))


def described(annotation: Any) -> str:
    """A plain annotation in words: ``a whole number or null``."""
    return _alternatives(_words(annotation, several=False))


def _words(annotation: Any, several: bool) -> list[str]:
    kind, inner = get_origin(annotation) or annotation, [a for a in get_args(annotation) if a is not ...]
    if kind in (Union, UnionType):
        # Path next to str says nothing more to who writes a command line.
        members = [member for member in inner if not (member is Path and str in inner)]
        return [word for member in members for word in _words(member, several)]
    if kind is Literal:
        return [_written(choice) for choice in inner]
    if kind in LISTS:
        items = _alternatives([word for item in inner for word in _words(item, several=True)])
        return [("lists" if several else "a list") + (f" of {items}" if items else "")]
    return [WORDS.get(dict if kind is Mapping else kind, ("something else",) * 2)[several]]


def _alternatives(words: list[str]) -> str:
    """``a, b or c``, each once."""
    *first, last = dict.fromkeys(words) or [""]
    return f"{', '.join(first)} or {last}" if first else last


def _written(value: Any) -> str:
    """A value as it is written on the command line; text in quotes."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else repr(value)
