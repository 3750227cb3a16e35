"""The bound on characters never refuses a text that fits, and counting ends early."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from lookm.errors import PromptTooLongError
from lookm.models.processor import Processor
from lookm.models.token_sizes import BYTE_TOKENS, UNKNOWN, check_length, max_token_characters

MARKS = "\u0313\u0300\u0345"  # on an alpha they become one character with it
TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from(f"α{MARKS} \n"), min_size=1)
TEXTS |= st.integers(1, 9).map(lambda times: f"α{MARKS}" * times)
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def bpe(extra: tuple[str, ...] = (), words: Any = ALPHABET, **options: Any) -> Tokenizer:
    vocabulary = {word: n for n, word in enumerate(dict.fromkeys([*words, *extra]))}
    return Tokenizer(models.BPE(vocabulary, [], **options))


def byte_level(*normalizer: Any) -> Tokenizer:
    """Of 256 bytes and a token of ten spaces."""
    tokenizer = bpe(("Ġ" * 10,))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer:
        tokenizer.normalizer = normalizers.Sequence(list(normalizer))
    return tokenizer


def byte_fallback(**options: Any) -> Tokenizer:
    """As Llama's and Gemma's: spaces are replaced, what is unknown becomes bytes."""
    options = {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"} | options
    tokenizer = bpe(("<unk>", "▁", "▁" * 8), sorted(BYTE_TOKENS), **options)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer


def with_added(tokenizer: Tokenizer, token: AddedToken) -> Tokenizer:
    tokenizer.add_special_tokens([token])
    return tokenizer


def dropping(tokenizer: Tokenizer, pre_tokenizer: Any) -> Tokenizer:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizer, tokenizer.pre_tokenizer])
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "characters"),
    [
        (byte_level(), 10),
        (byte_level(normalizers.NFD(), normalizers.Lowercase()), 10),
        (byte_level(normalizers.NFC()), 40),
        (byte_level(normalizers.Replace("abc", "a")), 30),
        (with_added(byte_level(), AddedToken("<|of sixteen ch|>")), 17),
        (byte_fallback(), 8),
        (bpe(("<unk>",), unk_token="<unk>"), 5),
    ],
)
def test_tokenizers_that_keep_all_text_have_an_exact_bound(
    tokenizer: Tokenizer, characters: int
) -> None:
    assert max_token_characters(tokenizer) == characters


@pytest.mark.parametrize(
    "tokenizer",
    [
        None,
        bpe(),  # what is not in its vocabulary is dropped
        bpe(("<unk>",), unk_token="<unk>", fuse_unk=True),
        byte_level(normalizers.Strip()),
        byte_level(normalizers.StripAccents(), normalizers.NFC()),
        byte_level(normalizers.Replace("a", "")),
        byte_level(normalizers.BertNormalizer()),
        with_added(byte_level(), AddedToken("<s>", rstrip=True)),
        dropping(byte_level(), pre_tokenizers.Whitespace()),
        dropping(byte_level(), pre_tokenizers.Split(" ", "removed")),
        Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")),
        Tokenizer(models.WordPiece({"<unk>": 0}, unk_token="<unk>")),
        Tokenizer(models.Unigram([("<unk>", 0.0)], 0)),
    ],
)
def test_tokenizers_that_may_drop_text_have_a_generous_bound(tokenizer: Tokenizer | None) -> None:
    assert max_token_characters(tokenizer) == UNKNOWN


@pytest.mark.parametrize(
    "tokenizer",
    [byte_level(), byte_level(normalizers.NFKC()), byte_fallback(), byte_level(normalizers.NFC())],
)
def test_no_text_has_more_characters_than_the_bound_of_its_tokens(tokenizer: Tokenizer) -> None:
    bound = max_token_characters(tokenizer)

    @given(TEXTS)
    def holds(text: str) -> None:
        assert len(text) <= bound * len(tokenizer.encode(text, add_special_tokens=False).ids)

    holds()


def test_counting_ends_where_it_is_clear_that_a_text_does_not_fit() -> None:
    asked: list[int] = []

    def count(piece: str) -> int:
        asked.append(len(piece))
        return len(piece) // 2

    with pytest.raises(PromptTooLongError) as refused:
        check_length("a " * 50_000_000, count, 10_000, param="prompt")
    assert sum(asked) < 3 * 2 * 10_000, "of 100 MB"
    assert refused.value.param == "prompt"
    assert "100000000 characters" in str(refused.value)
    assert "context is 10000" in str(refused.value)


def test_a_short_text_is_not_counted_first_and_a_long_one_of_few_tokens_fits() -> None:
    def never(piece: str) -> int:
        raise AssertionError

    check_length("a b " * 100, never, 100, param="messages")
    check_length(" " * 10**6, lambda piece: 1, 2000, param="messages")


@pytest.fixture(scope="module")
def demo() -> Processor:
    return Processor.load("llava-demo")


def test_the_demo_models_bound_is_its_longest_token(demo: Processor) -> None:
    assert demo.max_token_characters == 12


@pytest.mark.parametrize("word", ["a b ", "Image 12:", "</s> ", "é ", " yellow", " rectangles"])
def test_no_prompt_that_fits_is_refused_by_counting_its_pieces(demo: Processor, word: str) -> None:
    fitting = word * ((demo.max_context_tokens - 20) // (len(demo.text(word)) - 1))
    assert len(demo.text(fitting)) > demo.max_context_tokens / 2
    ids = demo.prompt([{"role": "user", "content": fitting}], [])
    assert demo.max_context_tokens / 2 < len(ids) <= demo.max_context_tokens
    for refused in (demo.text, lambda text: demo.prompt([{"role": "user", "content": text}], [])):
        with pytest.raises(PromptTooLongError, match=f"context is {demo.max_context_tokens}"):
            refused(fitting * 40)
