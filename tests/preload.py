"""What the fork server imports once, so that each rank of a distributed test starts in milliseconds."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import gc

import megatron.core.tokenizers.text  # noqa: F401  transformers with it: most of a short run's time when imported late
import torch
import torch.utils.tensorboard

import megatron_compete.training.pretrain  # noqa: F401  Megatron, its trainer and all of moe/
from tests import docstrings
from tests.bridge.environment import is_installed, load_bridge

if is_installed():  # `make test-bridge`
    load_bridge()
docstrings.read_once()
torch.set_num_threads(1)
gc.freeze()  # a rank's collector need not look at, and thereby copy, what was imported here
