"""The command line without a model: what it offers, and what it refuses before it loads one."""

import subprocess
import sys

import pytest
import typer

from alpage.cli import app as app_module


def commands(command, name="alpage"):
    yield name, command
    for child in getattr(command, "commands", {}).values():
        yield from commands(child, f"{name} {child.name}")


def described(name, command):
    """A command as text: not as `--help` lays it out, which changes with Typer's versions."""
    lines = [f"{name}: {' '.join(command.help.split())}"]
    for param in command.params:
        names = " ".join(param.opts) if param.param_type_name == "option" else param.metavar
        shown = param.show_default if isinstance(param.show_default, str) else repr(param.default)
        default = "required" if param.required else f"default: {shown}"
        lines.append(f"    {names} ({default}): {param.help}")
    return "\n".join(lines) + "\n"


def test_offers_what_it_has_always_offered(golden):
    root = typer.main.get_command(app_module.build_app())
    golden("cli.txt", "\n".join(described(*pair) for pair in commands(root)))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("generate", "--help"),
        ("chat", "--help"),
        ("models",),
        ("models", "pull", "--help"),
        ("hardware", "--help"),
        ("hardware", "--cluster", "tpu-v4-64"),
        ("hardware", "--cluster", "v100-64", "--json"),
        ("plan", "inference", "--help"),
        ("plan", "inference", "--model", "palm-540b", "--cluster", "tpu-v4-64"),
        ("bench", "offline", "--help"),
        ("bench", "serve", "--help"),
    ],
    ids=" ".join,
)
def test_answers_without_torch(arguments):
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv[0] = 'alpage'\n"
        "from alpage.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_is_a_module_to_run():
    done = subprocess.run(
        [sys.executable, "-m", "alpage", "generate", "--help"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "Usage: alpage generate [OPTIONS] [MODEL]" in done.stdout


USAGE = {
    "no such command": ("frobnicate",),
    "no prompt": ("generate",),
    "not a number": ("generate", "-p", "x", "--max-tokens", "many"),
    "beams that draw": ("generate", "-p", "x", "--beam-width", "4", "--temperature", "1"),
    "beams that stop": ("generate", "-p", "x", "--beam-width", "4", "--stop", "."),
    "two forms": ("generate", "-p", "x", "--regex", "a", "--json-schema", "schema.json"),
    "an extra argument": ("models", "pull", "smollm2-135m", "another"),
}


@pytest.mark.parametrize("arguments", USAGE.values(), ids=USAGE)
def test_wrong_usage_is_status_2(arguments, command_line):
    status, out, err = command_line(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("Usage: alpage")


REFUSED = {
    "unknown model": (("generate", "nope", "-p", "x"), "model='nope': is no path"),
    "almost a name": (("chat", "smolm2-135m"), "Perhaps you mean smollm2-135m"),
    "missing file": (("chat", "/no/such.gguf"), "model='/no/such.gguf': is no path"),
    "unknown to pull": (("models", "pull", "nope"), "model='nope'"),
    "top_p": (("generate", "-p", "x", "--top-p", "1.5"), "top_p=1.5: must be a number above 0"),
    "no tokens": (("generate", "-p", "x", "--max-tokens", "0"), "max_tokens=0: must be"),
    "temperature": (("chat", "--temperature", "-1"), "temperature=-1.0: must be"),
    "equal texts": (("generate", "-p", "x", "--n", "3"), "n=3: would be 3 times the same text"),
    "too many beams": (("generate", "-p", "x", "--beam-width", "999"), "beam_width=999"),
    "more than the beams": (
        ("generate", "-p", "x", "--beam-width", "2", "--n", "3"),
        "n=3: must be a whole number, between 1 and 2",
    ),
    "no schema": (
        ("generate", "-p", "x", "--json-schema", "/no/such.json"),
        "json_schema='/no/such.json': cannot be read: No such file or directory. Give a file",
    ),
    "a directory of schemas": (
        ("generate", "-p", "x", "--json-schema", "/"),
        "json_schema='/': cannot be read: Is a directory",
    ),
    "unknown cluster": (("hardware", "--cluster", "h10-8"), "Perhaps you mean h100-8"),
    "empty stop": (("generate", "-p", "x", "--stop", ""), "stop='': must be strings"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_refusal_is_one_line_and_status_1(arguments, message, command_line):
    status, out, err = command_line(*arguments)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_prompt_from_stdin_is_utf8(command_line):
    status, _, err = command_line("generate", "-p", "-", stdin=b"caf\xe9")
    assert status == 1
    assert "is not UTF-8 at byte 3" in err


def test_schema_that_is_none_is_refused_before_the_model(command_line, tmp_path):
    path = tmp_path / "schema.json"
    for text, message in ((b"caf\xe9", "it is not UTF-8"), (b"{", "must be JSON")):
        path.write_bytes(text)
        status, _, err = command_line("generate", "-p", "x", "--json-schema", path)
        assert status == 1
        assert err.startswith("error: ")
        assert message in err


def test_traces_without_their_extra_are_refused_before_the_model(command_line, monkeypatch):
    monkeypatch.delitem(sys.modules, "alpage.serve.http.traces", raising=False)
    missing = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    monkeypatch.setitem(sys.modules, missing, None)
    by_option = ("serve", "/no/such/model", "--port", "0", "--otlp-endpoint", "http://127.0.0.1:9")
    status, out, err = command_line(*by_option)
    assert (status, out) == (1, "")
    assert err.startswith("error: otlp_endpoint='http://127.0.0.1:9': needs OpenTelemetry")
    assert "Install alpage[otel]" in err
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:8")
    status, _, err = command_line("serve", "/no/such/model", "--port", "0")
    assert status == 1
    assert err.startswith("error: otlp_endpoint='http://127.0.0.1:8': needs")


def test_kv_memory_is_read_before_the_model(command_line, tmp_path):
    status, _, err = command_line("generate", tmp_path, "-p", "x", "--kv-memory", "lots")
    assert status == 1
    assert "kv_memory='lots': is not a positive size" in err


def test_bugs_keep_their_traceback(command_line, monkeypatch):
    def fail(cache):
        raise ZeroDivisionError

    monkeypatch.setattr("alpage.models.catalogue.list_models", fail)
    with pytest.raises(ZeroDivisionError):
        command_line("models")


def test_reader_that_leaves_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m alpage models | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        check=False,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
