"""A small MileBench on disk, in exactly the published format, with pictures the demo model knows.

Also the original scorer's rules restated in another way, to hold `milebench_score` against.
"""

import json
import random
import re
from typing import Any

from lookm.demo.scenes import draw_scene, render

SIGNS = ";/[]\"{}()=+\\_-><@`,?!"  # fmt: skip


def write_dataset(
    folder: Any, name: Any, question_type: Any, samples: Any, instructions: Any = None
) -> None:
    """`samples`: (context, number of pictures, choices or None, response)."""
    home = folder / name
    (home / "images").mkdir(parents=True)
    rng = random.Random(name)
    data = []
    for number, (context, num_images, choices, response) in enumerate(samples, start=1):
        paths = [f"{number}_{at}.png" for at in range(num_images)]
        for path in paths:
            render(draw_scene(rng)).save(home / "images" / path)
        task = {"context": context, "images_path": paths}
        if choices is not None:
            task["choice_list"] = choices
        data.append(
            {
                "sample_id": number,
                "task_instruction_id": "0",
                "image_quantity_level": "Few",
                "task_instance": task,
                "response": response,
            }
        )
    meta = {
        "question_type": question_type,
        "num_sample": len(data),
        "task_instruction": instructions or {"0": f"Look at the images ({name})."},
    }
    (home / f"{name}.json").write_text(json.dumps({"meta_data": meta, "data": data}))


def restated_normalise(text: Any) -> Any:
    """One table for all signs, and periods taken out one by one."""
    text = " ".join(re.split("[\n\t]", text)).strip()
    number = any(
        a.isdecimal() and b == "," and c.isdecimal()
        for a, b, c in zip(text, text[1:], text[2:], strict=False)
    )
    table = {
        ord(sign): None if number or f"{sign} " in text or f" {sign}" in text else " "
        for sign in SIGNS
    }
    text, out, gone = text.translate(table), "", 0
    for at, sign in enumerate(text):
        if sign == "." and not text[at + 1 : at + 2].isdecimal() and gone < 32:
            gone += 1
        else:
            out += sign
    return out.strip("'").strip('"').strip().lower()


def restated_choice(told: Any, choices: Any) -> Any:
    """The letter, found by walking through the answer instead of by patterns."""
    told = restated_normalise(told)
    options = [restated_normalise(choice) for choice in choices]
    letters = [chr(65 + at) for at in range(len(options))]
    if not told:
        return "C"
    named = [
        restated_normalise(f"{key} {text}") for key, text in zip(letters, options, strict=True)
    ]
    for at in range(len(told)):
        for text in named:
            if told.startswith(text, at):
                return text[0].upper()
    bare = [restated_normalise(text).replace(" ", "") for text in options]
    close = told.replace(" ", "")
    hit = next(
        (text for at in range(len(close) + 1) for text in bare if close.startswith(text, at)), None
    )
    if hit is not None and not set(hit) & set("\\.^$*+?{}[]|()"):
        return letters[bare.index(hit)]
    if len(told) <= 2 and told.upper() in letters:
        return told.upper()
    return "".join(sign.upper() for sign in told if sign.upper() in letters)
