"""The README.md of an exported vision-language model."""

from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.llava import Llava, is_custom
from megatron_compete.checkpoint.families.vision import experts_of
from megatron_compete.checkpoint.model_card import tables, trained_for
from megatron_compete.vlm.config import PARTS


def vision_card(llava: Llava, arguments: Mapping[str, Any], iteration: int, has_tokenizer: bool, cautions: tuple[str, ...]) -> str:  # fmt: skip
    """Text of the README.md."""
    custom = is_custom(arguments)
    tags = "".join(f"- {tag}\n" for tag in ("competellava" if custom else "llava", *["mixture-of-experts"] * _has_experts(arguments)))  # fmt: skip
    head = _HEAD.format(tags=tags, architecture=llava.title, experts=_experts(arguments), code=_CODE if custom else "")
    parts = [
        head,
        trained_for(arguments, iteration),
        _use(custom) if has_tokenizer else "The folder holds no tokenizer.\n",
        *(f"{one[0].upper()}{one[1:]}.\n" for one in cautions),
        *tables(arguments),
    ]
    return "\n".join(part for part in parts if part)


def _has_experts(arguments: Mapping[str, Any]) -> bool:
    return any(experts_of(arguments, part)[0] for part in PARTS)


def _experts(arguments: Mapping[str, Any]) -> str:
    found = {part: experts_of(arguments, part) for part in PARTS}
    return "".join(f"\n- {part}: {experts} experts, {k} a token" for part, (experts, k) in found.items() if experts)


def _use(custom: bool) -> str:
    return _USE.format(trust=", trust_remote_code=True" if custom else "")


_HEAD = """---
library_name: transformers
pipeline_tag: image-text-to-text
tags:
{tags}---

# A vision-language model

Architecture: a LLaVA of {architecture}.{code}
{experts}
"""

_CODE = """ No stock class has experts in tower and projector: the folder
brings `modeling_competellava.py`, which `trust_remote_code=True` loads. Competition shaped the routers during training only."""

_USE = """```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("path/to/this/folder"{trust})
processor = AutoProcessor.from_pretrained("path/to/this/folder"{trust})
```
"""
