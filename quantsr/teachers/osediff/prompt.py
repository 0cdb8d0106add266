"""The embedding of the empty prompt, by Stable Diffusion's own text encoder."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from quantsr.errors import UserError
from quantsr.teachers.osediff.stable_diffusion import is_hub_id

INSTEAD = "give the embedding as a file, teacher.prompt_file=FILE"


@torch.no_grad()
def empty_prompt(source: str | Path, like: Tensor) -> Tensor:
    """The last hidden state of the text encoder for "", padded to the length of ``like``.

    Args:
        source: folder with ``text_encoder/`` and ``tokenizer/``, or the id of such a repository on the hub.
        like: ``(1, tokens, channels)``: shape and dtype of the result.

    Raises:
        UserError: transformers is not installed, there is no text encoder, or it is of another size.
    """
    tokenizer, encoder = _text_encoder(source)
    ids = tokenizer("", padding="max_length", max_length=like.shape[1], truncation=True, return_tensors="pt").input_ids
    embedding = encoder(ids).last_hidden_state
    if embedding.shape != like.shape:
        raise UserError(
            f"the text encoder of {source} gives an embedding {tuple(embedding.shape)} where the UNet takes "
            f"{tuple(like.shape)}: it is not that of Stable Diffusion 2.1"
        )
    return embedding.to(like.dtype)


def _text_encoder(source: str | Path) -> tuple[Any, Any]:
    """Tokenizer and text encoder of a folder or repository."""
    path = Path(source).expanduser()
    if path.is_file():
        raise UserError(f"{path} has no tokenizer to make the embedding of the empty prompt with: {INSTEAD}")
    parts = [path / part for part in ("tokenizer", "text_encoder")]
    if not is_hub_id(source) and not all(part.is_dir() for part in parts):
        raise UserError(f"{path} has no tokenizer/ and text_encoder/ for the embedding of the empty prompt: {INSTEAD}")
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise UserError(
            f"the embedding of the empty prompt needs the package transformers (pip install transformers), or {INSTEAD}"
        ) from error
    where = source if is_hub_id(source) else path
    try:
        tokenizer = CLIPTokenizer.from_pretrained(where, subfolder="tokenizer")
        encoder = CLIPTextModel.from_pretrained(where, subfolder="text_encoder", torch_dtype=torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"the text encoder of {source} cannot be read ({error}): {INSTEAD}") from error
    return tokenizer, encoder.eval()
