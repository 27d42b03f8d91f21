"""Which value the tensors of a checkpoint have, for each of the libraries that load a folder.

Reads folders from standard input, one a line, and answers each with a line of JSON, an object: for each
library the value that all tensors have, "broken" if they are not all of one checkpoint, or null where the
library refuses the folder.
"""

import gc
import json
import logging
import os
import sys

# Before the libraries are imported: nothing may reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from accelerate import load_checkpoint_in_model
from huggingface_hub import load_torch_model

NAMES = "abcdef"


class Config(transformers.PretrainedConfig):
    model_type = "six-scalars"


class Model(transformers.PreTrainedModel):
    """One parameter a tensor, which says that it was not loaded."""

    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        for name in NAMES:
            setattr(self, name, torch.nn.Parameter(torch.full((1,), -1.0)))
        self.post_init()

    def _init_weights(self, module):
        pass


def with_transformers(folder):
    model, info = Model.from_pretrained(
        folder, config=Config(), use_safetensors=True, output_loading_info=True
    )
    return "broken" if info["missing_keys"] else value(model)


def with_huggingface_hub(folder):
    model = Model(Config())
    load_torch_model(model, folder)
    return value(model)


def with_accelerate(folder):
    model = Model(Config())
    load_checkpoint_in_model(model, folder)
    return value(model)


def value(model):
    values = {getattr(model, name).item() for name in NAMES}
    return values.pop() if len(values) == 1 and values != {-1.0} else "broken"


def refused_or(load, folder):
    try:
        return load(folder)
    except (OSError, ValueError):
        return None


def main():
    torch.set_num_threads(1)
    # accelerate collects garbage after every file, and all that was imported is none.
    gc.freeze()
    logging.disable(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    loaders = {
        "transformers": with_transformers,
        "huggingface_hub": with_huggingface_hub,
        "accelerate": with_accelerate,
    }
    for line in sys.stdin:
        folder = line.rstrip("\n")
        found = {name: refused_or(load, folder) for name, load in loaders.items()}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
