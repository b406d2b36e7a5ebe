"""Models: one readable file per architecture, and the files that checkpoints come in.

May import: ops and the base modules. Training and serving build the same modules.
"""

from typing import TYPE_CHECKING

from alpage.lazy import lazy_names

if TYPE_CHECKING:
    from alpage.models import catalogue
    from alpage.models.architectures import build, load
    from alpage.models.catalogue import resolve
    from alpage.models.checkpoint import Checkpoint, open_checkpoint
    from alpage.models.model import Model
    from alpage.models.tokenizer import Tokenizer

__all__ = [
    "Checkpoint",
    "Model",
    "Tokenizer",
    "build",
    "catalogue",
    "load",
    "open_checkpoint",
    "resolve",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Checkpoint": "checkpoint",
        "Model": "model",
        "Tokenizer": "tokenizer",
        "build": "architectures",
        "catalogue": "catalogue",
        "load": "architectures",
        "open_checkpoint": "checkpoint",
        "resolve": "catalogue",
    },
)
