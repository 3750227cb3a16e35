"""Whether a checkpoint's parts fit each other: weights, tokenizer, image processor and config.

All that a start refuses, before a weight is read. The processor says how many tokens an image
takes, the model, without its weights (`weightless`), how many features it gives: the two are
compared. Its text side is asked for a few tokens.
"""

import logging
from typing import Any

import torch

from lookm.errors import ModelError, in_one_line
from lookm.models.checkpoint import Checkpoint
from lookm.models.loading import judge_weights, supported_config
from lookm.models.processor import Processor
from lookm.models.weightless import META, InputsKeepNumbers, weightless
from lookm.types import ImageInput

NUM_TOKENS = 4

logger = logging.getLogger(__name__)


def judged_processor(checkpoint: Checkpoint, *, name: str) -> Processor:
    """The processor of a checkpoint whose parts fit. Raises `ModelError`."""
    path = str(checkpoint.folder)
    config = supported_config(path)
    judge_weights(config, checkpoint.weights, path)
    processor = Processor.of(checkpoint, name=name)
    check_vocabulary(config, processor)
    model = weightless(config)
    check_image(model, processor)
    check_text(model, processor)
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


def check_image(model: Any, processor: Processor) -> None:
    """Raises `ModelError` where the model takes no such images, or gives another number of features
    than the processor leaves places for."""
    image = processor.small_image()
    try:
        num_features = _num_features(model, processor, image)
    except NotImplementedError as error:  # it decides by what its weights would give
        not_asked(processor.name, error)
        return
    except Exception as error:
        raise _unfit(processor.name, f"the model fails on it ({in_one_line(error)})") from error
    if num_features != image.num_tokens:
        places = f"{num_features} features for {image.num_tokens} places in the prompt"
        raise _unfit(processor.name, places)


def check_text(model: Any, processor: Processor) -> None:
    """Raises `ModelError` where the text model fails on any prompt, by what config.json says."""
    family = processor.family
    text_model = getattr(model.model, family.text_model)
    if hasattr(text_model, "layers"):  # one says as much as all of them
        text_model.layers = text_model.layers[:1]
    embeds_1TE = model.get_input_embeddings()(
        torch.zeros(1, NUM_TOKENS, dtype=torch.long, device=META)
    )
    pos_R1T = torch.arange(NUM_TOKENS).expand(family.position_rows, 1, -1)
    pos = pos_R1T if family.position_rows > 1 else pos_R1T[0]
    try:
        with torch.no_grad(), InputsKeepNumbers():
            text_model(inputs_embeds=embeds_1TE, position_ids=pos, use_cache=False)
    except NotImplementedError as error:
        not_asked(processor.name, error)
    except Exception as error:
        why = f"the model fails on any text ({in_one_line(error)})"
        raise _contradictory(processor.name, why) from error
    for module in text_model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            rotations = type(module)(module.config).buffers()
            if not all(each.isfinite().all() for each in rotations):
                why = "its rotations of positions are no numbers"
                raise _contradictory(processor.name, why)


def _num_features(model: Any, processor: Processor, image: ImageInput) -> int:
    arrays = {name: image.tensors.get(name) for name in processor.family.image_tensors}
    tensors = {name: torch.tensor(array) for name, array in arrays.items() if array is not None}
    with torch.no_grad(), InputsKeepNumbers():
        features = model.get_image_features(**tensors, return_dict=True).pooler_output
    return sum(each.numel() // each.shape[-1] for each in features)


def not_asked(name: str, error: Exception) -> None:
    """Leave it to the first request to find out."""
    logger.info("%s was not asked for its features: %s", name, in_one_line(error))


def _contradictory(name: str, what: str) -> ModelError:
    return ModelError(
        f"{name}: config.json describes no model that computes: {what}. Look at rope_theta, "
        "rope_scaling and rope_parameters in it, or take the one of the same model",
        param="model",
    )


def _unfit(name: str, what: str) -> ModelError:
    return ModelError(
        f"{name}: its processor makes something else of an image than its config.json describes: "
        f"{what}. Take the processor_config.json or preprocessor_config.json of the same model "
        "(patch_size, vision_feature_select_strategy, image_seq_length, sizes)",
        param="model",
    )
