"""A Hugging Face folder's model and tokenizer, loaded by transformers; whatever fails is one error."""

from pathlib import Path
from typing import Any

import torch

from megatron_compete.checkpoint.custom_code import is_own_code
from megatron_compete.checkpoint.families.llava import is_llava_config
from megatron_compete.checkpoint.hf_reader import CONFIG, read_json
from megatron_compete.common.errors import CompeteError


def load_hf_model(folder: Path, flag: str, dtype: str = "auto", trust_remote_code: bool = False) -> Any:
    """The model in evaluation mode, on the CPU.

    Args:
        flag: that names the folder, for errors.
        dtype: torch's name of it; "auto" is the folder's own.
        trust_remote_code: run code that the folder brings; this package's own needs no such word.
    Raises:
        CompeteError: it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kind = AutoModelForImageTextToText if takes_pictures(folder) else AutoModelForCausalLM
    wanted = dtype if dtype == "auto" else getattr(torch, dtype)
    return _loaded(kind, folder, flag, trust_remote_code or is_own_code(folder), dtype=wanted).eval()


def takes_pictures(folder: Path) -> bool:
    """Whether the folder's model is a vision-language model that is converted here."""
    try:
        return is_llava_config(read_json(folder / CONFIG))
    except CompeteError:  # whoever loads the folder says what is wrong
        return False


def load_hf_tokenizer(folder: Path, flag: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer; the same arguments."""
    from transformers import AutoTokenizer, PretrainedConfig

    # A configuration of this package's, which AutoTokenizer would read, says nothing of the tokenizer.
    more = {"config": PretrainedConfig()} if is_own_code(folder) else {}
    return _loaded(AutoTokenizer, folder, flag, trust_remote_code, **more)


def model_from_config(folder: Path, flag: str, trust_remote_code: bool = False) -> Any:
    """The model without weights, on the meta device; the same arguments."""
    from transformers import AutoConfig, AutoModelForCausalLM

    trusted = trust_remote_code or is_own_code(folder)
    config = _loaded(AutoConfig, folder, flag, trusted)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
    except Exception as error:
        raise _cannot(folder, flag, error) from error


def _loaded(kind: Any, folder: Path, flag: str, trust_remote_code: bool, **more: Any) -> Any:
    try:
        return kind.from_pretrained(folder, trust_remote_code=trust_remote_code, **more)
    except Exception as error:  # the classes fail in many ways
        raise _cannot(folder, flag, error) from error


def _cannot(folder: Path, flag: str, error: Exception) -> CompeteError:
    return CompeteError(f"{flag} {folder}: transformers cannot load it: {type(error).__name__}: {error}")
