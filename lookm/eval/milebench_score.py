"""MileBench's scoring rules (Song et al., COLM 2024, arXiv 2404.18532; `evaluate.py` of its code).

The rules are followed to the letter, odd ones too, for numbers are compared with the paper's: what
looks strange below says "as the original does". Knows text; knows nothing of files or models.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from lookm.errors import ConfigError
from lookm.eval.page import INSTALL

#: LOOK-M's table 1: a column is the unweighted mean over its data sets.
COLUMNS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "T-1": ("ActionLocalization", "ActionPrediction", "ActionSequence"),
        "T-2": ("ObjectExistence", "ObjectInteraction", "MovingAttribute", "ObjectShuffle"),
        "T-3": ("EgocentricNavigation", "MovingDirection"),
        "T-4": ("CounterfactualInference", "StateChange", "CharacterOrder", "SceneTransition"),
        "S-1": ("WebQA", "TQA", "MultiModalQA", "WikiVQA"),
        "S-2": ("SlideVQA", "OCR-VQA", "DocVQA"),
        "S-3": ("Spot-the-Diff", "CLEVR-Change", "IEdit"),
        "S-4": ("MMCoQA", "ALFRED"),
        "S-5": ("nuscenes",),
        "NH": ("TextNeedleInAHaystack", "ImageNeedleInAHaystack"),
        "IR": ("GPR1200",),
    }
)
DATASETS: Final = tuple(name for names in COLUMNS.values() for name in names)

_PUNCTUATION: Final = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD: Final = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER: Final = re.compile(r"\d,\d")
_MAX_PERIODS: Final = 32  # the original passes re.UNICODE, which is 32, where a count belongs
_REGEX_SIGNS: Final = "\\.^$*+?{}[]|()"


def scorer(
    dataset: str, question_type: str, truth: str, choices: Sequence[str] | None
) -> Callable[[str], float]:
    """The rule that judges an answer to one sample, in [0, 1]. Raises `ConfigError`."""
    true = normalise(truth)
    if "NeedleInAHaystack" in dataset:
        return lambda answer: float(true in normalise(answer).split())
    if "MMCoQA" in dataset:
        return lambda answer: float(true in normalise(answer))
    if question_type == "open-ended":
        if not true:
            raise ConfigError(f"{dataset} has a sample whose response is empty")
        rouge = _rouge()
        return lambda answer: rouge_l(rouge, normalise(answer), true)
    if question_type != "multi-choice" or choices is None:
        raise ConfigError(f"{dataset}: no rule for question_type {question_type!r}")
    options = [normalise(str(choice)) for choice in choices]
    if true not in options:
        raise ConfigError(f"{dataset} has a sample whose response is not in its choice_list")
    right = letter(options.index(true))
    return lambda answer: float(extract(normalise(answer), options) == right)


def columns(share_by_dataset: Mapping[str, float]) -> dict[str, float | None]:
    """Column -> unweighted mean over those of its data sets that were asked; None for none."""
    found = {
        name: [share_by_dataset[one] for one in members if one in share_by_dataset]
        for name, members in COLUMNS.items()
    }
    return {name: sum(shares) / len(shares) if shares else None for name, shares in found.items()}


def normalise(text: str) -> str:
    """Lower case without most punctuation.

    A sign goes without a trace where it touches a space anywhere in the text, or where the text has
    a number with a comma; elsewhere it becomes a space. A period stays before a digit only. An
    apostrophe goes at both ends.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for sign in _PUNCTUATION:
        touches = f"{sign} " in text or f" {sign}" in text
        out = out.replace(sign, "" if touches or has_number else " ")
    out = _PERIOD.sub("", out, count=_MAX_PERIODS)
    return out.strip("'").strip('"').strip().lower()


def letter(index: int) -> str:
    """`A` to `Z`, then `AA` to `AZ`, then `BA` and on."""
    if index < 26:
        return chr(65 + index)
    if index < 52:
        return "A" + chr(65 + index - 26)
    return "B" + chr(65 + index - 52)


def extract(text: str, options: Sequence[str]) -> str:
    """The letter that a normalised answer chooses among normalised options, as the original does.

    In this order: nothing said is C; `letter text` of an option anywhere; an option's text
    anywhere, spaces aside; the whole answer is one or two letters; else every letter of the answer
    that names an option, run together (so "the answer is b" of four options is AB, and wrong).
    """
    if not text:
        return "C"
    by_letter = {letter(index): option for index, option in enumerate(options)}
    whole = "|".join(_pattern(normalise(f"{key} {option}")) for key, option in by_letter.items())
    match = re.search(whole, text)
    if match:
        return match[0][0].upper()
    bare = {key: _pattern(normalise(option)).replace(" ", "") for key, option in by_letter.items()}
    match = re.search("|".join(bare.values()), text.replace(" ", ""))
    if match:
        for key, pattern in bare.items():
            # Against the pattern, not the option: one with a point in it is never found here.
            if match[0].strip() == pattern:
                return key
    if len(text) <= 2 and text.upper() in by_letter:
        return text.upper()
    return "".join(sign.upper() for sign in text if sign.upper() in by_letter)


def rouge_l(rouge: Any, answer: str, true: str) -> float:
    """ROUGE-L's F1 as the `rouge` package has it: words of the union of longest common
    subsequences, each word once, without stemming (Lin 2004, summary level)."""
    if not answer.replace(".", ""):
        return 0.0
    return float(rouge.get_scores(answer, true)[0]["rouge-l"]["f"])


def _pattern(option: str) -> str:
    for sign in _REGEX_SIGNS:
        option = option.replace(sign, "\\" + sign)
    return option


def _rouge() -> Any:
    try:
        from rouge import Rouge
    except ImportError:
        raise ConfigError(f"open-ended MileBench answers need rouge: {INSTALL}") from None
    return Rouge(metrics=["rouge-l"])
