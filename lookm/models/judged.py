"""Whether a checkpoint's parts fit each other: weights, tokenizer, image processor and config.

All that a start refuses, before a weight is read. The processor says how many tokens an image
takes, the model how many features it gives; where a tower can be asked without numbers (on the meta
device), the two are compared. Towers that decide by the values of pixels or sizes cannot be asked
(Pixtral's, Qwen's, Idefics3's).
"""

from typing import Any

import torch

from lookm.errors import ModelError, in_one_line
from lookm.models.checkpoint import Checkpoint
from lookm.models.loading import judge_weights, supported_config
from lookm.models.processor import Processor
from lookm.types import ImageInput


def judged_processor(checkpoint: Checkpoint, *, name: str) -> Processor:
    """The processor of a checkpoint whose parts fit. Raises `ModelError`."""
    path = str(checkpoint.folder)
    config = supported_config(path)
    judge_weights(config, checkpoint.weights, path)
    processor = Processor.of(checkpoint, name=name)
    check_vocabulary(config, processor)
    check_image(config, processor)
    return processor


def check_vocabulary(config: Any, processor: Processor) -> None:
    """Raises `ModelError` where text gets ids that the model has no embeddings for."""
    num_tokens, size = processor.num_text_tokens, config.get_text_config().vocab_size
    if num_tokens > size:
        raise ModelError(
            f"{processor.name}: its tokenizer has {num_tokens:,} tokens, vocab_size of config.json "
            f"is {size:,}: one is of another model",
            param="model",
        )


def check_image(config: Any, processor: Processor) -> None:
    """Raises `ModelError` where the model takes no such images, or gives another number of features
    than the processor leaves places for."""
    image = processor.small_image()
    try:
        num_features = _num_features(config, processor, image)
    except NotImplementedError:
        return
    except Exception as error:
        if "meta" in str(error):  # a tensor without numbers beside one that has them
            return
        raise _unfit(processor.name, f"the model fails on it ({in_one_line(error)})") from error
    if num_features != image.num_tokens:
        places = f"{num_features} features for {image.num_tokens} places in the prompt"
        raise _unfit(processor.name, places)


def _num_features(config: Any, processor: Processor, image: ImageInput) -> int:
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    arrays = {name: image.tensors.get(name) for name in processor.family.image_tensors}
    tensors = {name: torch.tensor(array) for name, array in arrays.items() if array is not None}
    asked = {
        name: tensor.to("meta") if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    features = model.get_image_features(**asked, return_dict=True).pooler_output
    return sum(each.numel() // each.shape[-1] for each in features)


def _unfit(name: str, what: str) -> ModelError:
    return ModelError(
        f"{name}: its processor makes something else of an image than its config.json describes: "
        f"{what}. Take the processor_config.json or preprocessor_config.json of the same model "
        "(patch_size, vision_feature_select_strategy, image_seq_length, sizes)",
        param="model",
    )
