"""A tokenizer for the tiny model's 96 ids, so that its answers are ASCII text and may be JSON."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.lookm.tiny import VOCABULARY

END = 2


def ascii_tokenizer() -> Any:
    """A byte-level tokenizer with the tiny model's ids: 4 control tokens, 92 ASCII characters."""
    characters = [chr(code) for code in range(33, 127) if chr(code) not in "~`^"]
    words = ["<pad>", "<s>", "</s>", "<image>", "Ġ", *characters][:VOCABULARY]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(words[:4])
    return tokenizer


class AsciiProcessor:
    """Stands in for `Processor`: the tiny model's ids as ASCII."""

    name = "ascii"

    def __init__(self) -> None:
        self.backend_tokenizer = ascii_tokenizer()
        self.tokenizer_json = self.backend_tokenizer.to_str()

    def decode(self, ids: Any) -> Any:
        return self.backend_tokenizer.decode(list(ids), skip_special_tokens=True)
