"""Packed cache: models on disk as their layers hold them, so that the next start only maps them.

Reading a file of blocks and packing it for the kernels takes the larger part of a start. What came
of it is kept in `$XDG_CACHE_HOME/alpage/packed`, one file for a checkpoint, a dtype and a
quantization. Whatever is wrong with such a file, or with the disk, a model is loaded without it.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import torch
from torch import Tensor, nn

from alpage.models.checkpoint import Checkpoint
from alpage.models.layers import Layer
from alpage.models.model import Model
from alpage.models.quantize import Quantization
from alpage.models.stamp import stamp
from alpage.models.tensor_file import read_tensors, write_tensors
from alpage.ops.linear import PackedWeight, packing
from alpage.version import __version__

# Another whenever the same checkpoint comes to other numbers, or to another form of them.
FORM: Final = 2
# Of all that is kept; a larger model is not.
MAX_BYTES: Final = 8 * 2**30
_SUFFIX, _PART = ".safetensors", ".part"
_ABANDONED_S: Final = 3600
_LEAVES: Final = ("weight", "bias", "scale")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PackedModel:
    """A place for one loaded model.

    Attributes:
        path: of its file, whether it is there or not.
        fingerprint: of all that decides what the model's layers hold.
        checkpoint: that it is of.
    """

    path: Path
    fingerprint: str
    checkpoint: Checkpoint

    @staticmethod
    def at(
        directory: Path,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        quantization: Quantization | None,
    ) -> "PackedModel":
        """Return the place of a checkpoint's model in a directory, which need not be there."""
        parts = (FORM, __version__, torch.__version__, packing(), str(dtype), quantization)
        of_all = hashlib.sha256(repr((*parts, checkpoint.stamp)).encode()).hexdigest()[:32]
        return PackedModel(
            path=directory / f"{of_all}{_SUFFIX}", fingerprint=of_all, checkpoint=checkpoint
        )

    def restore(self, model: Model) -> bool:
        """Give a model without weights those of the checkpoint, and say whether they were there."""
        found = read_tensors(self.path)
        if found is None or found[1].get("fingerprint") != self.fingerprint:
            return False
        tensors, facts = found
        packings = json.loads(facts["packings"])
        for name, layer in _layers(model).items():
            for leaf in _LEAVES:
                value = tensors.get(f"{name}.{leaf}")
                kept = None if value is None else nn.Parameter(value, requires_grad=False)
                setattr(layer, leaf, kept)
            if name in packings:
                layer.packed = PackedWeight(
                    **packings[name],
                    panels=tensors[f"{name}.panels"],
                    scale_N=tensors.get(f"{name}.scale_N"),
                )
        model.num_mapped_bytes = sum(tensor.nbytes for tensor in tensors.values())
        # Another user's, or a disk that is only read: it is used all the same.
        with suppress(OSError):
            os.utime(self.path)
        return True

    def store(self, model: Model) -> None:
        """Keep a model that is loaded and packed, if the disk has room for it twice."""
        if stamp(self.checkpoint.files) != self.checkpoint.stamp:
            return  # The files were changed since they were opened: nobody knows what was read.
        tensors: dict[str, Tensor] = {}
        packings: dict[str, dict[str, object]] = {}
        for name, layer in _layers(model).items():
            values: dict[str, Tensor | None] = {leaf: getattr(layer, leaf) for leaf in _LEAVES}
            if (packed := layer.packed) is not None:
                sizes = {"num_in": packed.num_in, "num_out": packed.num_out}
                packings[name] = {"kind": packed.kind, **sizes}
                values |= {"panels": packed.panels, "scale_N": packed.scale_N}
            tensors |= {f"{name}.{leaf}": one for leaf, one in values.items() if one is not None}
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        facts = {"fingerprint": self.fingerprint, "packings": json.dumps(packings)}
        directory = self.path.parent
        # A full disk, or one that is only read: the next start takes as long as this one.
        with suppress(OSError):
            directory.mkdir(parents=True, exist_ok=True)
            if num_bytes <= min(MAX_BYTES, shutil.disk_usage(directory).free // 2):
                self._write(tensors, facts)
            _prune(directory)

    def _write(self, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
        """Write beside the place and move there, so that others see all of it or nothing.

        It is not forced to the disk: what a crash leaves of it does not add up.
        """
        with tempfile.NamedTemporaryFile(suffix=_PART, dir=self.path.parent, delete=False) as file:
            part = Path(file.name)
            try:
                write_tensors(file, tensors, facts)
                file.flush()
                part.replace(self.path)
            except BaseException:
                part.unlink()
                raise


def _prune(directory: Path) -> None:
    """Remove what was used longest ago, and what a process that was killed had begun."""
    found: dict[Path, os.stat_result] = {}
    for path in directory.iterdir():
        with suppress(FileNotFoundError):  # Another process prunes too.
            found[path] = path.stat()
    num_bytes = 0
    for path in sorted(found, key=lambda path: -found[path].st_mtime_ns):
        if path.suffix == _SUFFIX:
            num_bytes += found[path].st_size
            is_old = num_bytes > MAX_BYTES
        else:
            is_abandoned = time.time() - found[path].st_mtime > _ABANDONED_S
            is_old = path.suffix == _PART and is_abandoned
        if is_old:
            path.unlink(missing_ok=True)


def _layers(model: Model) -> dict[str, Layer]:
    return {name: one for name, one in model.named_modules() if isinstance(one, Layer)}
