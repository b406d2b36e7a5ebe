"""Tokenizer files: a tokenizer from tokenizer.json, tokenizer_config.json and a chat template.

What goes around a sequence is tokenizer.json's to say. `add_bos_token` and `add_eos_token` in
tokenizer_config.json are for models without that file, as in transformers 5.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from alpage.errors import BadCheckpoint
from alpage.models.json_file import read_object_or_empty, read_text
from alpage.models.tokenizer import Tokenizer

_SPECIAL_TOKENS = frozenset(
    f"{name}_token" for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
)
_TEMPLATE_FILE = "chat_template.jinja"


def read_tokenizer(directory: Path, eos_ids: frozenset[int]) -> Tokenizer:
    """Return the tokenizer of a Hugging Face directory.

    Args:
        directory: holds tokenizer.json, and maybe tokenizer_config.json and chat_template.jinja.
        eos_ids: ids that end a generation, besides the tokenizer's own.

    Raises:
        BadCheckpoint: there is no tokenizer.json, or a file is corrupt.
    """
    path = directory / "tokenizer.json"
    if not path.exists():
        raise _bad(path, "is missing, and the model has no other tokenizer that is read here")
    try:
        backend = tokenizers.Tokenizer.from_str(read_text(path))
    except BadCheckpoint:
        raise
    except Exception as error:
        # The library raises nothing narrower.
        raise _bad(path, f"is no tokenizer: {error}") from error
    config_path = directory / "tokenizer_config.json"
    config = read_object_or_empty(config_path)
    return Tokenizer(
        backend,
        source=config_path,
        special_tokens=_special_tokens(config_path, config),
        eos_ids=eos_ids,
        chat_templates=_chat_templates(directory, config),
    )


def _special_tokens(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of bos_token, eos_token and so on, which may be tables with their flags."""
    texts: dict[str, str] = {}
    for name, value in config.items():
        if name not in _SPECIAL_TOKENS or value is None:
            continue
        text = value.get("content") if isinstance(value, Mapping) else value
        if not isinstance(text, str):
            raise _bad(path, f"gives {name} as {value!r}, which is no token")
        texts[name] = text
    return texts


def _chat_templates(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the templates by name; the file of its own goes before tokenizer_config.json."""
    if (directory / _TEMPLATE_FILE).exists():
        return {"default": read_text(directory / _TEMPLATE_FILE)}
    path, stored = directory / "tokenizer_config.json", config.get("chat_template")
    if stored is None:
        return {}
    if isinstance(stored, str):
        return {"default": stored}
    entries = stored if isinstance(stored, list) else [stored]
    templates: dict[str, str] = {}
    for entry in entries:
        name = entry.get("name") if isinstance(entry, Mapping) else None
        text = entry.get("template") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or not isinstance(text, str):
            raise _bad(path, "gives chat_template as neither a text nor a list of named texts")
        templates[name] = text
    return templates


def _bad(path: Path, limit: str) -> BadCheckpoint:
    return BadCheckpoint(
        field=path.name,
        value=str(path),
        limit=limit,
        remedy="Get the model's tokenizer files again, whole",
    )
