"""Tokenizers of every kind that Megatron builds, made from nothing but the tests' own corpus."""

import base64
import json
from pathlib import Path
from typing import Any

from megatron_compete.data.megatron_tokenizer import TokenizerChoice

EOS = "<|endoftext|>"


def train_byte_level(texts: list[str], vocab_size: int = 600) -> Any:
    """A GPT-2-like `tokenizers.Tokenizer`; `EOS` has id 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def hugging_face_folder(folder: Path, tokenizer: Any, **config: Any) -> TokenizerChoice:
    """A folder with `tokenizer.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, "bos_token": EOS} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return TokenizerChoice("HuggingFaceTokenizer", str(folder))


def with_a_hole(tokenizer: Any, token: str, id_: int) -> Any:
    """The tokenizer with one more token, whose id lies far beyond the others, as reserved blocks do."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.to_str())
    state["model"]["vocab"][token] = id_
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    state["added_tokens"].append({"id": id_, "content": token} | plain)
    return Tokenizer.from_str(json.dumps(state))


def with_bos(tokenizer: Any) -> Any:
    """The tokenizer with `EOS` put before every text, as Llama's puts its <s>."""
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(single=f"{EOS} $A", special_tokens=[(EOS, 0)])
    return tokenizer


def gpt2_files(folder: Path, tokenizer: Any) -> TokenizerChoice:
    """`vocab.json` and `merges.txt`; and a folder `gpt2` with the configuration that Megatron would ask the hub for."""
    model = json.loads(tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"]))
    _hub_stand_in(folder / "gpt2", "gpt2")
    return TokenizerChoice(
        "GPT2BPETokenizer", vocab_file=str(folder / "vocab.json"), merge_file=str(folder / "merges.txt")
    )


def bert_files(folder: Path, kind: str) -> TokenizerChoice:
    """`vocab.txt`, and a folder for the configuration."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "def", "Def", "##s", "x", "(", ")", ":", "return"]
    (folder / "vocab.txt").write_text("".join(word + "\n" for word in words))
    cased = kind == "BertWordPieceCase"
    _hub_stand_in(folder / ("bert-large-cased" if cased else "bert-large-uncased"), "bert", do_lower_case=not cased)
    return TokenizerChoice(kind, vocab_file=str(folder / "vocab.txt"))


def _hub_stand_in(folder: Path, model_type: str, **config: Any) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))


def tiktoken_file(folder: Path, tokenizer: Any) -> TokenizerChoice:
    """Ranks in the form that Megatron's TikTokenizer reads: the 256 bytes, then the merges of `tokenizer` in order."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += dict.fromkeys(bytes(byte_of[character] for character in "".join(pair)) for pair in merges)
    ranks = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": token.decode("utf-8", "replace")}
        for rank, token in enumerate(tokens)
    ]
    path = folder / "ranks.json"
    path.write_text(json.dumps(ranks))
    return TokenizerChoice("TikTokenizer", str(path), vocab_size=1000 + len(tokens))
