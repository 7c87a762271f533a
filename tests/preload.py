"""What the fork server imports once, so that each rank of a distributed test starts in milliseconds."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch

import megatron_compete.training.pretrain  # noqa: F401  Megatron, its trainer and all of moe/

torch.set_num_threads(1)
