"""What people say that is not about a picture, and the few things the demo model says back.

Knows English phrases. Knows nothing of scenes. Whatever is not recognised gets `FALLBACK`: a tiny
model that says so is better than one that babbles.
"""

from __future__ import annotations

import random
import string
from typing import Final

from lookm.demo.training.english import ENGLISH

GREETING: Final = "Hello! Send me some images and ask me about them."
IDENTITY: Final = (
    "I am llava-demo, a tiny model that answers questions about images of simple shapes."
)
HELP: Final = (
    "Send me up to 16 images of simple shapes and ask what they show, where and in what colour."
)
THANKS: Final = "You are welcome."
GOODBYE: Final = "Goodbye!"
FALLBACK: Final = "I am a tiny demo model. I can only talk about simple shapes in your images."
NO_IMAGE: Final = "There is no image yet. Send me one and ask again."

#: What is said (one of, separated by bars) and the reply.
_SAID: Final = (
    ("Hello|Hello!|Hi|Hi there|Hey|Hello there!|Good morning|Good evening", GREETING),
    ("How are you?|Hello, how are you?|What's up?|ping|test|Say hello.|Say hi.", GREETING),
    (
        "Who are you?|What are you?|What is your name?|Introduce yourself.|Which model are you?",
        IDENTITY,
    ),
    ("What can you do?|Help|How can you help me?|What can I ask you?|help me", HELP),
    ("Thanks|Thank you!|Thanks!|Thank you very much.|Great, thanks.|ok|Good job!", THANKS),
    ("Bye|Goodbye|Goodbye!|See you later.|Bye bye", GOODBYE),
)
REPLIES: Final = tuple((tuple(said.split("|")), reply) for said, reply in _SAID)
_NO_IMAGE_QUESTIONS_TEXT = (
    "What is in this image?|What is in the image?|Describe the image.|What do you see?|What "
    "is in image 1?|Describe image 2.|What colour is the circle?|What does image 3 "
    "show?|Describe all images.|Describe the images.|List the colours of all images.|What is "
    "this?|What shape is in image 1?|List the shapes.|Where is the star?|Describe this image."
)
NO_IMAGE_QUESTIONS: Final = tuple(_NO_IMAGE_QUESTIONS_TEXT.split("|"))
_OTHER_TEXT = (
    "Tell me a joke.|What is the capital of France?|Write a poem about {}.|What time is "
    "it?|Explain {} to me.|Write a story about a {}.|What is 2 + 2?|Who wrote {}?|Why is the "
    "sky blue?|Translate {} to French.|Tell me about {}.|Count to ten.|How old are you?|Do "
    "you like {}?|What is {}?|Where is {}?|Tell me a story.|Give me a list of {}.|Say "
    "something long.|Write code to sort a list.|What is the weather today?|Summarize the "
    "text: {}"
)
_OTHER: Final = tuple(_OTHER_TEXT.split("|"))
_SYSTEM_TEXT = (
    "You are a helpful assistant.|You are a helpful assistant.|You are a friendly "
    "assistant.|Answer briefly.|Be concise.|You answer questions about images.|Answer in "
    "English.|You are a vision assistant. Look at the images carefully.|Answer in one "
    "sentence.|You are llava-demo.|Always be polite.|You are an expert in image analysis."
)
SYSTEM: Final = tuple(_SYSTEM_TEXT.split("|"))
_INTROS_TEXT = (
    "Here are some images.|Look at these images.|Here are my pictures.|Please look at this.|I"
    " have a few images for you.|Look carefully.|Hello!|Images:|See the images below."
)
INTROS: Final = tuple(_INTROS_TEXT.split("|"))
_BETWEEN_TEXT = "and|Next:|then|Here is another one:|another|Next image:|also|and this"
BETWEEN: Final = tuple(_BETWEEN_TEXT.split("|"))


def draw_reply(rng: random.Random, has_images: bool) -> tuple[str, str]:
    """Something said and its reply; questions about missing pictures only where there are none."""
    fate = rng.random()
    if fate < 0.45:
        said, reply = rng.choice(REPLIES)
        return rng.choice(said), reply
    if fate < 0.65 and not has_images:
        return rng.choice(NO_IMAGE_QUESTIONS), NO_IMAGE
    if fate < 0.85:
        return rng.choice(_OTHER).format(babble(rng, 3)), FALLBACK
    return babble(rng, rng.choice((2, 4, 8, 16, 40))), FALLBACK


def draw_system(rng: random.Random) -> str:
    """A system message; one in four is nothing the model has to understand."""
    return babble(rng, rng.randint(2, 20)) if rng.random() < 0.25 else rng.choice(SYSTEM)


def babble(rng: random.Random, max_words: int) -> str:
    """Random words, a few of them random letters, so that no token stays untrained."""
    words = []
    for _ in range(rng.randint(1, max_words)):
        if rng.random() < 0.1:
            letters = string.printable[:94] if rng.random() < 0.3 else string.ascii_letters
            words.append("".join(rng.choices(letters, k=rng.randint(1, 6))))
        else:
            words.append(rng.choice(ENGLISH))
    text = " ".join(words)
    return text.capitalize() + rng.choice(("", ".", "?")) if rng.random() < 0.5 else text
