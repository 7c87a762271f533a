#!/usr/bin/env python3
"""lmms-eval with one more model, `exported`: a Hugging Face folder of a vision-language model that this project wrote.

    python examples/lmms_exported.py --model exported --model_args pretrained=HF_DIR --tasks mme,pope --batch_size 8

Arguments are lmms-eval's; `examples/evaluate_vlm.sh` fills them in. A prompt becomes tokens as in training: the chat template
gets text with the image token in it, and an export of a run tokenizes what it renders without more special tokens. docs/guides/evaluating-vision-language.md
says why none of lmms-eval's own models does.
"""

from collections import defaultdict
from itertools import batched
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.__main__ import cli_evaluate
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages
from PIL.Image import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

NAME = "exported"


class ExportedModel(lmms):
    """A LLaVA-style model, stock or with code of its own, that answers in batches.

    Args:
        pretrained: folder that `AutoModelForImageTextToText` and `AutoProcessor` load.
        device: such as `cpu`; default the process's own.
        dtype: such as `bfloat16`; default what the weights are saved in.
        trust_remote_code: run the folder's own code.
    """

    is_simple = False  # lmms-eval hands over messages and not one string

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        alone = self._world_size == 1 and device is not None
        self.device = torch.device(device) if alone else self.accelerator.device
        self.batch_size = int(batch_size)
        code = {"trust_remote_code": trust_remote_code}
        self.processor = AutoProcessor.from_pretrained(pretrained, **code)
        model = AutoModelForImageTextToText.from_pretrained(pretrained, dtype=dtype, **code)
        self.model = model.to(self.device).eval()
        self.trained_here = getattr(model.config, "conversation_template", None) is not None
        self.takes_text = "probe" in self._render([{"role": "user", "content": "probe"}])

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers to requests, in their order; batches have one setting of generation each."""
        groups: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[repr(request.args[2])].append(number)
        answers: dict[int, str] = {}
        for numbers in groups.values():
            for batch in batched(numbers, self.batch_size):
                messages = [self._messages(requests[number]) for number in batch]
                answers.update(zip(batch, self._answer(messages, dict(requests[batch[0]].args[2]))))
        return [answers[number] for number in range(len(requests))]

    def _messages(self, request: Instance) -> ChatMessages:
        _, to_messages, _, number, task, split = request.args
        return ChatMessages(messages=to_messages(self.task_dict[task][split][number]))

    def _answer(self, conversations: list[ChatMessages], settings: dict[str, Any]) -> list[str]:
        images: list[Image] = []
        for conversation in conversations:
            pictures, videos, sounds = conversation.extract_media()
            if videos or sounds:
                raise ValueError(f"--model {NAME} answers questions about pictures, and a task has a video or a sound")
            images.extend(picture.convert("RGB") for picture in pictures)
        prompts = [self._prompt(conversation) for conversation in conversations]
        inputs = self.processor(
            text=prompts,
            images=images or None,
            add_special_tokens=self._adds_special(prompts),
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(self.device)
        stops = settings.pop("until", None) or []
        with torch.inference_mode():
            tokens = self.model.generate(**inputs, **self._generation(settings))
        texts = self.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [_cut(text, [stops] if isinstance(stops, str) else stops) for text in texts]

    def _adds_special(self, prompts: list[str]) -> bool:
        """Whether the tokenizer puts its BOS in front, if it has one to add: not a second one, nor where training had only what
        the template renders."""
        bos = self.processor.tokenizer.bos_token
        return not self.trained_here and not (bos and all(prompt.startswith(bos) for prompt in prompts))

    def _prompt(self, conversation: ChatMessages) -> str:
        if not self.takes_text:  # a template for messages in parts alone, such as llava-hf's
            return self._render(conversation.to_hf_messages())
        messages = []
        for message in conversation.messages:
            parts = (
                f"{self.processor.image_token}\n" if part.type == "image" else part.text for part in message.content
            )
            messages.append({"role": message.role, "content": "".join(parts)})
        return self._render(messages)

    def _render(self, messages: list[dict[str, Any]]) -> str:
        rendered = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return str(rendered)

    def _generation(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Of a task's settings those of `generate`; greedy where no temperature is given."""
        tokenizer, own = self.processor.tokenizer, self.model.generation_config.eos_token_id
        ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        chosen = {"max_new_tokens": settings.get("max_new_tokens", 1024), "num_beams": settings.get("num_beams", 1)}
        if (settings.get("temperature") or 0) > 0:
            return {**chosen, "do_sample": True, "temperature": settings["temperature"], "top_p": settings.get("top_p"),
                    "eos_token_id": list(ends), "pad_token_id": pad}  # fmt: skip
        return {**chosen, "do_sample": False, "eos_token_id": list(ends), "pad_token_id": pad}

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError(f"--model {NAME} generates answers: choose tasks of output_type generate_until")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError(f"--model {NAME} generates answers: choose tasks of output_type generate_until")


def _cut(text: str, stops: list[str]) -> str:
    """A text up to the first of the stops in it."""
    for stop in filter(None, stops):
        text = text.split(stop)[0]
    return text


def main() -> None:
    MODEL_REGISTRY_V2.register_manifest(ModelManifest(NAME, chat_class_path=f"lmms_exported.{ExportedModel.__name__}"))
    cli_evaluate()


if __name__ == "__main__":
    main()
