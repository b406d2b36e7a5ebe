"""`alpage models`: the short names, and what of them is in the cache."""

import json

import pytest

from alpage.models import catalogue

NAME = "smollm2-135m"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "alpage" / "models"


def put_in(cache):
    cache.mkdir(parents=True)
    path = cache / f"{NAME}.gguf"
    with path.open("wb") as file:
        file.truncate(catalogue.CATALOGUE[NAME].size_bytes)
    return path


def test_list_tells_how_to_get_what_is_absent(command_line, cache):
    status, out, err = command_line("models")
    assert (status, err) == (0, "")
    header, line = out.splitlines()
    assert header.split() == ["NAME", "SIZE", "LICENSE", "PATH"]
    assert line.split() == [
        NAME,
        "93.8",
        "MiB",
        "Apache-2.0",
        "(alpage",
        "models",
        "pull",
        f"{NAME})",
    ]


def test_list_tells_where_the_rest_is(command_line, cache):
    path = put_in(cache)
    _, out, _ = command_line("models")
    assert out.splitlines()[1].endswith(f"  {path}")


@pytest.mark.parametrize("is_present", [True, False])
def test_json_has_the_same(is_present, command_line, cache):
    if is_present:
        put_in(cache)
    _, out, _ = command_line("models", "--json")
    (model,) = json.loads(out)
    assert model["name"] == NAME
    assert model["is_present"] == is_present
    assert model["path"] == str(cache / f"{NAME}.gguf")
    assert model["license"] == "Apache-2.0"
    assert model["size_bytes"] == catalogue.CATALOGUE[NAME].size_bytes


def test_pull_prints_the_path(command_line, cache):
    path = put_in(cache)
    assert command_line("models", "pull", NAME) == (0, f"{path}\n", "")
