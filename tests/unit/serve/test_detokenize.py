import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpage.serve.detokenize import Detokenizer


class Bytes:
    """A tokenizer whose tokens are bytes; 256 is a special token."""

    def decode(self, ids, *, skip_special_tokens=True):
        text = b"".join(
            bytes([i]) if i < 256 else b"" if skip_special_tokens else b"<end>" for i in ids
        )
        return text.decode("utf-8", errors="replace")


@given(st.text(), st.data())
def test_pieces_join_to_the_text_and_are_whole_characters(text, data):
    detokenizer = Detokenizer(Bytes(), skip_special_tokens=True)
    tokens = list(text.encode())
    pieces = []
    while tokens:
        count = data.draw(st.integers(1, 5))
        pieces.append(detokenizer.push(tokens[:count]))
        del tokens[:count]
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
        assert "".join(pieces) == text
    assert "".join(pieces) + detokenizer.flush() == text


@given(st.binary(max_size=40))
def test_any_bytes_come_out_as_one_decode_would(data):
    detokenizer = Detokenizer(Bytes(), skip_special_tokens=True)
    pieces = [detokenizer.push([byte]) for byte in data]
    joined = "".join(pieces) + detokenizer.flush()
    # Broken bytes may make another number of replacement characters; what is whole stays whole.
    assert joined.replace("\ufffd", "") == data.decode(errors="replace").replace("\ufffd", "")


def test_broken_bytes_do_not_pile_up():
    detokenizer = Detokenizer(Bytes(), skip_special_tokens=True)
    pieces = [detokenizer.push([0xFF]) for _ in range(100)]
    assert len("".join(pieces)) >= 90


@pytest.mark.parametrize(("skip", "text"), [(True, "a"), (False, "a<end>")])
def test_special_tokens(skip, text):
    detokenizer = Detokenizer(Bytes(), skip_special_tokens=skip)
    assert detokenizer.push([97, 256]) == text
