"""Named chat templates, for tokenizers that bring none or another one; Jinja as in a tokenizer's `chat_template`."""

_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""The system prompt that Vicuna was trained with, and LLaVA-1.5 after it; a format, not prose of ours."""

VICUNA_V1 = (
    "{{ bos_token or '' }}"
    "{% if messages and messages[0].role == 'system' %}{{ messages[0].content + ' ' }}"
    "{% else %}" + _SYSTEM + " {% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{{ 'USER: ' + message.content + ' ' }}"
    "{% elif message.role == 'assistant' %}{{ 'ASSISTANT: ' + message.content + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

PLAIN = "{{ bos_token or '' }}{% for message in messages %}{{ message.content }}{% if message.role == 'assistant' %}{{ '\n' }}{% endif %}{% endfor %}"
"""Image and caption, whose end is a line's; what is asked for is left out (`chat.py`)."""

TEMPLATES = {"vicuna_v1": VICUNA_V1, "chatml": CHATML, "plain": PLAIN}
