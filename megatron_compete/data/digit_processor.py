"""Tokenizer and image processor for `digit_pictures`, as a Hugging Face folder.

One token a word, so that a model of this dataset has an embedding of 35 rows and answers in one token. The chat template is
nothing but the turns themselves: a question, a space, the answer and `<eos>`.
"""

import json
from pathlib import Path

from megatron_compete.common.files import write_whole
from megatron_compete.data.digit_pictures import COLOURS, DIGITS, PICTURE_SIDE, PLACES

SPECIAL = PAD, EOS, UNKNOWN, IMAGE = ("<pad>", "<eos>", "<unk>", "<image>")
QUESTION_WORDS = (
    "which",
    "what",
    "where",
    "digit",
    "colour",
    "number",
    "is",
    "the",
    "comes",
    "after",
    "describe",
    "?",
    ".",
)

CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {{- '<image>\\n' if part['type'] == 'image' else part['text'] -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '<eos>' if message['role'] == 'assistant' else ' ' -}}
{%- endfor -%}"""


_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "pad_token": PAD,
    "eos_token": EOS,
    "unk_token": UNKNOWN,
    "image_token": IMAGE,  # LlavaProcessor asks the tokenizer for it
    "extra_special_tokens": {"image_token": IMAGE},  # the same before transformers 5
    "clean_up_tokenization_spaces": False,  # " ?" stays as it is
}

_IMAGE_PROCESSOR = {  # SigLIP's own settings (transformers) at the pictures' size: pixels to [-1, 1]
    "image_processor_type": "SiglipImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"height": PICTURE_SIDE, "width": PICTURE_SIDE},
    "resample": 3,  # bicubic
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def write_digit_processor(folder: Path | str) -> Path:
    """Write the folder that `AutoTokenizer` and `AutoImageProcessor` load.

    Megatron loads it too: `--tokenizer-type HuggingFaceTokenizer --tokenizer-model FOLDER`.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    folder = Path(folder)
    words = [*SPECIAL, *sorted({*QUESTION_WORDS, *DIGITS, *COLOURS, *PLACES})]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    write_whole(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    write_whole(folder / "tokenizer_config.json", json.dumps(_TOKENIZER_CONFIG, indent=2))
    write_whole(folder / "chat_template.jinja", CHAT_TEMPLATE)
    write_whole(folder / "preprocessor_config.json", json.dumps(_IMAGE_PROCESSOR, indent=2))
    return folder
