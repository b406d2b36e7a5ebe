"""GGUF tokenizers: a tokenizer from a GGUF file's vocabulary, equal to the model's original one.

A file names its kind (`tokenizer.ggml.model`) and, for byte-level BPE, how text is split before
merging (`tokenizer.ggml.pre`), but it does not hold the rules themselves. They are below as data;
the patterns are those of the models' own tokenizer.json.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Final, final

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from alpage.errors import Unsupported
from alpage.models.gguf_file import GgufFile
from alpage.models.tokenizer import Tokenizer

# Kinds of tokens, as the files number them.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_MAX_PIECE_CHARACTERS: Final = 1024
_TEMPLATE_KEY: Final = "tokenizer.chat_template"

_GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _ByteLevel:
    """How a byte-level vocabulary's text is split.

    Args:
        patterns: applied in turn, each to the pieces of the one before.
        is_nfc: text is normalised to NFC first.
        has_whole_words: a piece that is a token is taken without merging.
        has_bos: sequences start with the BOS token unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    is_nfc: bool = False
    has_whole_words: bool = False
    has_bos: bool = False


_GPT2 = _ByteLevel(patterns=(_GPT2_SPLIT,))
_LLAMA3 = _ByteLevel(
    patterns=(rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_MARKS_AND_SPACES}",),
    has_whole_words=True,
    has_bos=True,
)
_QWEN2 = _ByteLevel(
    patterns=(rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_MARKS_AND_SPACES}",), is_nfc=True
)
_SMOLLM = _ByteLevel(patterns=(r"\p{N}", _GPT2_SPLIT))
_BYTE_LEVELS: Final[Mapping[str, _ByteLevel]] = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "smollm": _SMOLLM,
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Vocabulary:
    """A file's tokens, by id."""

    tokens: list[str]
    kinds: list[int]

    def ids(self) -> dict[str, int]:
        """Return the ids of the tokens that a text can become."""
        pairs = enumerate(zip(self.tokens, self.kinds, strict=True))
        return {token: i for i, (token, kind) in pairs if kind != _UNUSED}

    def of_kind(self, *kinds: int) -> list[str]:
        """Return the tokens of some kinds."""
        pairs = zip(self.tokens, self.kinds, strict=True)
        return [token for token, kind in pairs if kind in kinds]


def build_tokenizer(file: GgufFile, eos_ids: frozenset[int]) -> Tokenizer:
    """Return the tokenizer whose vocabulary a GGUF file holds.

    Args:
        file: the file.
        eos_ids: ids that end a generation besides the file's end-of-sequence token.

    Raises:
        BadCheckpoint: the file has no vocabulary, or its parts contradict each other.
        Unsupported: it is of a kind that is not known.
    """
    kind = file.get("tokenizer.ggml.model", str)
    if kind is None:
        raise file.bad("tokenizer.ggml.model", None, "the file holds no tokenizer")
    vocabulary = _read_vocabulary(file)
    if kind == "gpt2":
        rules = _byte_level_rules(file)
        backend, has_bos = _byte_level(file, vocabulary, rules), rules.has_bos
    elif kind == "llama":
        backend, has_bos = _sentencepiece(file, vocabulary), True
    else:
        raise _unknown(file, "tokenizer.ggml.model", kind, ("gpt2", "llama"))
    # Special tokens are never text to be normalised; matched whole, they keep the ids they have.
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token in vocabulary.of_kind(_UNKNOWN, _CONTROL)
        ]
    )
    backend.add_tokens(
        [AddedToken(token, normalized=False) for token in vocabulary.of_kind(_USER_DEFINED)]
    )
    return Tokenizer(
        backend,
        source=file.path,
        special_tokens=_special_tokens(file, vocabulary.tokens),
        eos_ids=eos_ids,
        chat_templates=_chat_templates(file),
        boundaries=_boundaries(file, has_bos=has_bos),
    )


def _read_vocabulary(file: GgufFile) -> _Vocabulary:
    tokens = file.need("tokenizer.ggml.tokens", list)
    if not tokens:
        raise file.bad("tokenizer.ggml.tokens", tokens, "must hold at least one token")
    kinds = file.get("tokenizer.ggml.token_type", np.ndarray)
    if kinds is not None and len(kinds) != len(tokens):
        limit = f"must be as many as the {len(tokens)} tokens"
        raise file.bad("tokenizer.ggml.token_type", len(kinds), limit)
    vocabulary = _Vocabulary(
        tokens=tokens, kinds=[_NORMAL] * len(tokens) if kinds is None else kinds.tolist()
    )
    num_unused = vocabulary.kinds.count(_UNUSED)
    num_distinct = len(vocabulary.ids())
    if num_distinct + num_unused != len(tokens):
        limit = f"has {len(tokens) - num_unused - num_distinct} tokens twice"
        raise file.bad("tokenizer.ggml.tokens", len(tokens), limit)
    return vocabulary


def _byte_level_rules(file: GgufFile) -> _ByteLevel:
    name = file.get("tokenizer.ggml.pre", str) or "default"
    if name not in _BYTE_LEVELS:
        raise _unknown(file, "tokenizer.ggml.pre", name, _BYTE_LEVELS)
    return _BYTE_LEVELS[name]


def _byte_level(file: GgufFile, vocabulary: _Vocabulary, rules: _ByteLevel) -> tokenizers.Tokenizer:
    merges = _read_merges(file)
    if merges is None:
        raise file.bad("tokenizer.ggml.merges", None, "is missing")
    backend = tokenizers.Tokenizer(
        _bpe(file, vocabulary.ids(), merges, ignore_merges=rules.has_whole_words)
    )
    if rules.is_nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rules.patterns]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(file: GgufFile, vocabulary: _Vocabulary) -> tokenizers.Tokenizer:
    ids = vocabulary.ids()
    merges = _read_merges(file)
    if merges is None:
        merges = _merges_by_score(file, vocabulary)
    unknown = vocabulary.of_kind(_UNKNOWN)
    backend = tokenizers.Tokenizer(
        _bpe(
            file,
            ids,
            merges,
            unk_token=unknown[0] if unknown else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    has_prefix = file.get("tokenizer.ggml.add_space_prefix", bool)
    has_prefix = True if has_prefix is None else has_prefix
    prepend = [normalizers.Prepend("▁")] if has_prefix else []
    backend.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(content=" ", left=1)] if has_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend


def _bpe(
    file: GgufFile, ids: dict[str, int], merges: list[tuple[str, str]], **options: object
) -> BPE:
    try:
        return BPE(vocab=ids, merges=merges, **options)
    except Exception as error:
        # The library raises nothing narrower.
        limit = f"do not fit the vocabulary: {error}"
        raise file.bad("tokenizer.ggml.merges", len(merges), limit) from error


def _read_merges(file: GgufFile) -> list[tuple[str, str]] | None:
    lines = file.get("tokenizer.ggml.merges", list)
    if lines is None:
        return None
    merges: list[tuple[str, str]] = []
    for line in lines:
        # A half may itself start with a space, where a vocabulary is spelled in plain text.
        left, space, right = line.partition(" ") if isinstance(line, str) else ("", "", "")
        if not (left and space and right):
            raise file.bad("tokenizer.ggml.merges", line, "must be two tokens with a space between")
        merges.append((left, right))
    return merges


def _merges_by_score(file: GgufFile, vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """Return the merges that a SentencePiece vocabulary implies, best score first.

    SentencePiece merges the neighbours whose union is the best-scored piece. As a list of merges:
    every way to split a piece in two pieces, by the piece's score; ties as in Hugging Face, longer
    left halves first, then longer right halves.
    """
    scores = file.need("tokenizer.ggml.scores", np.ndarray)
    if len(scores) != len(vocabulary.tokens):
        limit = f"must be as many as the {len(vocabulary.tokens)} tokens"
        raise file.bad("tokenizer.ggml.scores", len(scores), limit)
    entries = zip(vocabulary.tokens, vocabulary.kinds, scores.tolist(), strict=True)
    score_of = {token: score for token, kind, score in entries if kind in (_NORMAL, _USER_DEFINED)}
    if max(map(len, score_of), default=0) > _MAX_PIECE_CHARACTERS:
        limit = f"must be of at most {_MAX_PIECE_CHARACTERS} characters each"
        raise file.bad("tokenizer.ggml.tokens", max(score_of, key=len), limit)
    ranked = [
        ((score, cut, len(token) - cut), (token[:cut], token[cut:]))
        for token, score in score_of.items()
        for cut in range(1, len(token))
        if token[:cut] in score_of and token[cut:] in score_of
    ]
    ranked.sort(key=itemgetter(0), reverse=True)
    return [merge for _, merge in ranked]


def _special_tokens(file: GgufFile, tokens: list[str]) -> dict[str, str]:
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    found: dict[str, str] = {}
    for name, key in keys.items():
        token_id = _token_id(file, key, tokens)
        if token_id is not None:
            found[f"{name}_token"] = tokens[token_id]
    return found


def _token_id(file: GgufFile, name: str, tokens: list[str]) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    token_id = file.get(key, int)
    if token_id is not None and not 0 <= token_id < len(tokens):
        raise file.bad(key, token_id, f"must be one of the {len(tokens)} tokens")
    return token_id


def _chat_templates(file: GgufFile) -> dict[str, str]:
    """Return the default template, and named ones, whose keys end in their names."""
    templates: dict[str, str] = {}
    for key in file.metadata:
        if key == _TEMPLATE_KEY:
            templates["default"] = file.need(key, str)
        elif key.startswith(f"{_TEMPLATE_KEY}."):
            templates[key.removeprefix(f"{_TEMPLATE_KEY}.")] = file.need(key, str)
    return templates


def _boundaries(file: GgufFile, *, has_bos: bool) -> list[str]:
    add_bos = file.get("tokenizer.ggml.add_bos_token", bool)
    add_eos = file.get("tokenizer.ggml.add_eos_token", bool)
    bos = ["bos_token"] if (has_bos if add_bos is None else add_bos) else []
    return [*bos, "eos_token"] if add_eos else bos


def _unknown(file: GgufFile, key: str, value: str, choices: Collection[str]) -> Unsupported:
    return Unsupported(
        field=f"{file.path.name}: {key}",
        value=value,
        limit=f"must be one of {', '.join(choices)}",
        remedy="Use the model's Hugging Face directory, which holds its tokenizer.json",
    )
