"""Python files that go into an export whose architecture is not one of transformers'.

`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` loads them through `auto_map`. They import torch
and transformers alone, and each other by name.
"""
