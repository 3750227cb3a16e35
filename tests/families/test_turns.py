"""A chat that goes on: what is known of its first turn changes nothing of the second's answer."""

import pytest

from tests.families.served import Chat, Served, Turn, ask

FIRST = {  # one each: what was prefilled at full has no sums for a policy to go on from
    "full": ask("What is in the picture? " * 8, 0, 3),
    "look-m@0.4": ask("Here is a picture. What is it? " * 8, 3, 0),
}


@pytest.mark.parametrize("policy", FIRST)
def test_a_second_turn_is_answered_as_if_it_were_the_first(served: Served, policy: str) -> None:
    if served.case.family.prefill == "prefix":
        pytest.skip("the family knows no turns")
    if served.case.windows_only and policy != "full":
        pytest.skip("every layer sees a window")
    asked = FIRST[policy]
    first = served.answer(asked, policy)
    served.compare(first, served.expected(asked, policy))
    said = first.choices[0].message.content
    chat: Chat = (
        *asked,
        Turn(said, role="assistant"),
        Turn("And which is the same?", (1,)),
    )
    second = served.answer(chat, policy)
    served.compare(second, served.expected(chat, policy))
    assert second.usage.prompt_tokens == len(served.asked(chat).is_image)
    afresh = served.case.family.prefill != "causal"  # where there are new images
    assert (second.usage.prompt_tokens_details.cached_tokens > 0) != afresh
