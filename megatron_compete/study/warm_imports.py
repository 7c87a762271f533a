"""What the warm process imports once; nothing here touches a device."""

import logging

from megatron_compete.launch.launchers import silence_cpu_warnings

silence_cpu_warnings()
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # where there is no CUDA, it says so

import megatron.core.tokenizers.text  # noqa: E402, F401  and transformers with it, a second of each run that forks later
import torch  # noqa: E402

import megatron_compete.training.pretrain  # noqa: E402, F401  Megatron, its trainer and all of moe/

torch.set_num_threads(1)
