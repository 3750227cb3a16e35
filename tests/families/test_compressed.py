"""Under a policy: what the same policy answers on transformers' own model."""

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.families.served import Served

POLICIES = ("look-m@0.3", "look-m-plus@0.3", "h2o@0.4", "snapkv@0.3")


def test_compressed_answers_are_those_of_compressing(served: Served) -> None:
    """Of several policies in one batch."""
    if served.case.windows_only:
        pytest.skip("every layer sees a window")
    asked = [(chat, policy) for chat in served.chats[:2] for policy in POLICIES]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda each: served.answer(*each), asked))
    num_changed = 0
    for (chat, policy), answer in zip(asked, answers, strict=True):
        expected = served.expected(chat, policy)
        served.compare(answer, expected)
        assert answer.usage.kv_cache["compressed"]
        num_changed += expected != served.expected(chat)
    assert num_changed > len(asked) // 2, "a policy that changes nothing proves nothing"


def test_where_every_layer_sees_a_window_a_policy_is_refused(served: Served) -> None:
    if not served.case.windows_only:
        pytest.skip("some layer sees all")
    with pytest.raises(openai.BadRequestError, match="every layer of this model sees a window"):
        served.answer(served.chats[0], "look-m@0.3")
