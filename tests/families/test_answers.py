"""Without compression: what transformers' `generate()` answers, the server answers."""

from concurrent.futures import ThreadPoolExecutor

from tests.families.served import NUM_TOKENS, Served
from tests.lookm.models.transformers_answer import answer_to


def test_answers_and_prompts_are_those_of_generate(served: Served) -> None:
    for chat in served.chats:
        answer = served.answer(chat)
        assert answer.usage.prompt_tokens == len(served.asked(chat).is_image)
        assert answer.usage.completion_tokens == NUM_TOKENS
        served.compare(answer, served.expected(chat))


def test_together_they_are_the_same(served: Served) -> None:
    """Afresh, in one batch: nothing of what is known of these prompts is used."""
    chats = [chat for _ in range(2) for chat in served.chats]
    with ThreadPoolExecutor(len(chats)) as pool:
        afresh = {"method": "full", "reuse": "none"}
        answers = list(pool.map(lambda chat: served.answer(chat, kv_cache=afresh), chats))
    for chat, answer in zip(chats, answers, strict=True):
        served.compare(answer, served.expected(chat))


def test_any_end_of_text_that_the_checkpoint_names_ends_an_answer(served: Served) -> None:
    chat = served.chats[0]
    whole, inputs = served.expected(chat), served.asked(chat).inputs()
    end = whole[NUM_TOKENS // 2]
    expected = answer_to(served.model, inputs, NUM_TOKENS, eos_token_id=[2, end])
    assert expected == whole[: whole.index(end) + 1]
    answer = served.answer(chat, ignore_eos=False)
    assert answer.choices[0].finish_reason == "stop"
    served.compare(answer, [*expected[:-1], 2])  # the end itself is not shown
