"""Engines: what is compared, where each one's environment and model lie, and how it is started."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, final

BATCHES = ("w1", "w3", "w4")
BEAMS = ("beam4", "beam8")
STREAM = "w2"
ONLINE = "w5"
WORKLOADS = ("w1", "w2", "w3", "w4", *BEAMS, ONLINE)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One engine at one precision.

    Attributes:
        name: in tables and on the command line.
        driver: module of benchmarks.peers.drivers.
        environment: folder with its Python; None: the Python that runs this.
        model: file or folder of the peers' directory.
        weights: as its driver calls them; +kv: keys and values in 8 bits too.
        is_16_bit: whether it computes with weights of 16 bits or more.
        workloads: that it can do.
    """

    name: str
    driver: str
    environment: str | None
    model: str
    weights: str
    is_16_bit: bool
    workloads: tuple[str, ...]

    @property
    def is_own(self) -> bool:
        """Whether it is alpage."""
        return self.driver == "alpage"

    def python(self, directory: Path) -> Path:
        """Return the Python that runs its driver."""
        if self.environment is None:
            return Path(sys.executable)
        return directory / self.environment / "bin/python"

    def missing(self, directory: Path) -> str | None:
        """Return what of it is not in the peers' directory; None: nothing."""
        wanted = [self.model]
        if self.environment is not None:
            wanted.append(f"{self.environment}/bin/python")
        if self.driver == "llama_cpp":
            wanted.append("llama.cpp/build/bin/llama-server")
        return next((path for path in wanted if not (directory / path).exists()), None)

    def variables(self, directory: Path) -> dict[str, str]:
        """Return the variables that its process has."""
        found = dict(os.environ)
        if self.environment is not None:
            # What serves this Python is of no use to another.
            found.pop("PYTHONPATH", None)
        if self.driver == "vllm":
            found |= _vllm_variables(directory)
        return found | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def _vllm_variables(directory: Path) -> dict[str, str]:
    """Return what vLLM's guide for CPUs asks for."""
    libraries = [
        Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"),
        directory / "vllm/lib/libiomp5.so",
    ]
    return {
        "LD_PRELOAD": ":".join(str(path) for path in libraries if path.exists()),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(directory / "vllm-cache"),
    }


def _engine(
    name: str, driver: str, environment: str | None, model: str, weights: str, *workloads: str
) -> Engine:
    return Engine(
        name=name,
        driver=driver,
        environment=environment,
        model=model,
        weights=weights,
        is_16_bit=weights in {"bfloat16", "float32"},
        workloads=workloads,
    )


_ENGINES = (
    _engine("alpage", "alpage", None, "models/bfloat16", "bfloat16", *WORKLOADS),
    _engine("alpage-int8", "alpage", None, "models/bfloat16", "int8", *WORKLOADS),
    _engine("alpage-int8-kv", "alpage", None, "models/bfloat16", "int8+kv", *BATCHES, STREAM),
    _engine("alpage-int4", "alpage", None, "models/q4_1.gguf", "int4", "w1", "w2", "w3", "w4"),
    _engine(
        *("openvino", "openvino", "openvino", "models/openvino-fp16", "bfloat16"),
        *(*BATCHES, STREAM, *BEAMS),
    ),
    _engine(
        *("openvino-int8", "openvino", "openvino", "models/openvino-int8", "int8"),
        *(*BATCHES, STREAM),
    ),
    _engine("vllm", "vllm", "vllm", "models/bfloat16", "bfloat16", *WORKLOADS),
    _engine(
        *("llama.cpp", "llama_cpp", None, "models/bf16.gguf", "bfloat16", *BATCHES, STREAM),
    ),
    _engine("llama.cpp-q8_0", "llama_cpp", None, "models/q8_0.gguf", "q8_0", *BATCHES, STREAM),
    _engine("llama.cpp-q4_1", "llama_cpp", None, "models/q4_1.gguf", "q4_1", *BATCHES, STREAM),
    _engine(
        *("transformers", "transformers_static", "transformers", "models/bfloat16", "bfloat16"),
        *(*BATCHES, STREAM, *BEAMS),
    ),
    _engine(
        *("transformers-cb", "transformers_continuous", "transformers", "models/bfloat16"),
        *("bfloat16", "w1", "w3"),
    ),
    _engine("ctranslate2", "ctranslate2", "ctranslate2", "models/ctranslate2", "float32", *BEAMS),
    _engine(
        *("ctranslate2-int8", "ctranslate2", "ctranslate2", "models/ctranslate2", "int8", *BEAMS),
    ),
)
ENGINES: Final[Mapping[str, Engine]] = MappingProxyType({each.name: each for each in _ENGINES})
