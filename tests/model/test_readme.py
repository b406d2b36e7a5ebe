"""The README's snippets run as they stand."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.slow
@pytest.mark.smollm2
@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets_run(snippet, capsys):
    exec(compile(snippet, str(README), "exec"), {})
    assert len(capsys.readouterr().out) > 10


def test_there_are_snippets():
    assert len(SNIPPETS) >= 2
