"""A SentencePiece model as a Hugging Face fast tokenizer that gives the same ids for every text.

Exact, and why:
- BPE merges: see `tokenizer_merges`.
- Spaces: `▁` for a space, one in front where the model was trained with a dummy prefix, runs of spaces squeezed and
  the ends cut where it was trained with remove_extra_whitespaces. There is no pre-tokenizer: the whole text is one
  word, as in SentencePiece.
- Characters without a piece: bytes, or <unk> with neighbours fused into one.
- Control pieces (`<s>`, `</s>`, `<unk>`) that are written out in a text are ordinary characters to SentencePiece.
  `split_special_tokens` makes transformers treat them so; no id is added in front or behind.
- User-defined symbols: the longest match from the left, before any merge. Only where nothing else touches the text's
  spaces: Hugging Face cuts these symbols out first, SentencePiece after it put the dummy prefix.

Refused, because Hugging Face has no equal:
- A precompiled character map (nmt_nfkc, the default of SentencePiece's trainer, and its relatives). The Precompiled
  normaliser works on grapheme clusters and drops what follows a mapped character in one: it differed on 0.3% to 2.4%
  of random strings over all of Unicode.
- Unigram. SentencePiece adds scores in float32 along the whole text and so breaks near ties by rounding: the ids
  differed on 6 to 11 of 164 Python sources, and on 12% to 21% of strings of repeated characters.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.tokenizer_merges import canonical_merges

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "▁"
"""U+2581, which SentencePiece writes for a space."""

UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # ModelProto.SentencePiece.Type

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model")


@dataclass(frozen=True)
class SentencePieceModel:
    """What a `.model` file says that matters to ids."""

    path: Path
    pieces: tuple[tuple[str, float, int], ...]
    """Text, score and type of every piece; the position is the id."""
    byte_fallback: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    unk_id: int

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.pieces)

    def of_type(self, kind: int) -> list[str]:
        """Pieces of one type, by id."""
        return [piece for piece, _, type_ in self.pieces if type_ == kind]

    def piece(self, index: int | None) -> str | None:
        """Text of the piece with the id `index`."""
        return None if index is None else self.pieces[index][0]


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a SentencePiece model and check that a fast tokenizer can be equal to it.

    Raises:
        CompeteError: no such file, not such a model, or one of a kind that has no exact equal.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(path.read_bytes())
    except OSError as error:
        raise CompeteError(
            f"the tokenizer {path} cannot be read ({error.strerror}): name it with --tokenizer-model, "
            "or export the weights alone with --no-tokenizer"
        ) from error
    except Exception as error:  # google.protobuf.message.DecodeError
        raise CompeteError(f"{path} is not a SentencePiece model: {error}") from error
    if not proto.pieces:
        raise CompeteError(f"{path} is not a SentencePiece model: it has no pieces")
    _check_kind(path, proto)
    return _model(path, proto)


def _check_kind(path: Path, proto: Any) -> None:
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    refused = {
        "unigram (--model-type bpe is exact)": trainer.model_type == UNIGRAM,
        "neither BPE nor unigram": trainer.model_type not in (UNIGRAM, BPE),
        f"a normalisation, {normalizer.name} (identity is exact)": normalizer.precompiled_charsmap,
        "a map that undoes normalisation": proto.denormalizer_spec.precompiled_charsmap,
        "spaces at the end of words (treat_whitespace_as_suffix)": trainer.treat_whitespace_as_suffix,
        "spaces as they are (escape_whitespaces off)": not normalizer.escape_whitespaces,
        "pieces of the type unused": any(piece.type == UNUSED for piece in proto.pieces),
        "user-defined symbols beside add_dummy_prefix or remove_extra_whitespaces": (
            any(piece.type == USER_DEFINED for piece in proto.pieces)
            and (normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces)
        ),
        "a control symbol of one character": any(
            piece.type in (CONTROL, UNKNOWN) and len(piece.piece) == 1 for piece in proto.pieces
        ),
        "byte fallback without all 256 bytes": (
            trainer.byte_fallback and sum(piece.type == BYTE for piece in proto.pieces) != 256
        ),
    }
    for what, found in refused.items():
        if found:
            raise CompeteError(
                f"the tokenizer {path} has {what}: no Hugging Face tokenizer gives the same ids for every text. "
                "Export the weights alone with --no-tokenizer"
            )


def _model(path: Path, proto: Any) -> SentencePieceModel:
    trainer = proto.trainer_spec
    ids = {piece.piece: index for index, piece in enumerate(proto.pieces) if piece.type in (CONTROL, UNKNOWN)}
    unknown = [index for index, piece in enumerate(proto.pieces) if piece.type == UNKNOWN]
    if len(unknown) != 1:
        raise CompeteError(f"{path} is not a SentencePiece model: it has {len(unknown)} unknown pieces")
    return SentencePieceModel(
        path=path,
        pieces=tuple((piece.piece, piece.score, piece.type) for piece in proto.pieces),
        byte_fallback=trainer.byte_fallback,
        add_dummy_prefix=proto.normalizer_spec.add_dummy_prefix,
        remove_extra_whitespaces=proto.normalizer_spec.remove_extra_whitespaces,
        bos_id=ids.get(trainer.bos_piece),
        eos_id=ids.get(trainer.eos_piece),
        pad_id=ids.get(trainer.pad_piece),
        unk_id=unknown[0],
    )


def fast_tokenizer(model: SentencePieceModel) -> "Tokenizer":
    """The model as a `tokenizers.Tokenizer`.

    Raises:
        CompeteError: its merges have no exact equal.
    """
    from tokenizers import AddedToken, Tokenizer, models

    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, (piece, _, _) in enumerate(model.pieces)},
            merges=canonical_merges({piece: score for piece, score, type_ in model.pieces if type_ == NORMAL}),
            unk_token=model.piece(model.unk_id),
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
        )
    )
    tokenizer.normalizer = _normalizer(model)
    tokenizer.decoder = _decoder(model)
    special = model.of_type(UNKNOWN) + model.of_type(CONTROL)
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
    # SentencePiece seeks these where spaces are already ▁ (normalized), so one with a space of its own is never found.
    symbols = [piece for piece in model.of_type(USER_DEFINED) if " " not in piece]
    tokenizer.add_tokens([AddedToken(piece, normalized=True) for piece in symbols])
    return tokenizer


def _normalizer(model: SentencePieceModel) -> Any:
    """SentencePiece's Normalizer::Normalize without a character map (src/normalizer.cc)."""
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if model.remove_extra_whitespaces:
        steps += [
            normalizers.Replace(Regex(r"\A +"), ""),
            normalizers.Replace(Regex(f"[ {SPACE}]+\\z"), ""),  # cut after spaces became ▁: those of the text go too
            normalizers.Replace(Regex(r" {2,}"), " "),
        ]
    if model.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    return normalizers.Sequence(steps)


def _decoder(model: SentencePieceModel) -> Any:
    from tokenizers import decoders

    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.add_dummy_prefix or model.remove_extra_whitespaces:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)


def tokenizer_config(model: SentencePieceModel, max_length: int) -> dict[str, Any]:
    """`tokenizer_config.json`. With this class transformers 4 and 5 take `tokenizer.json` as it is.

    llama.cpp's converter reads pieces and scores from `tokenizer.model`, and the rest here: without add_prefix_space it
    puts a space in front of every text, and symbols that are not in added_tokens_decoder are pieces like others to it.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special_tokens(model),
        "add_prefix_space": model.add_dummy_prefix,
        **_added_tokens(model),
        "add_bos_token": False,
        "add_eos_token": False,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }


def _added_tokens(model: SentencePieceModel) -> dict[str, Any]:
    """The user-defined symbols, as `fast_tokenizer` adds them."""
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False, "special": False}
    symbols = {
        str(index): {"content": piece} | flags
        for index, (piece, _, type_) in enumerate(model.pieces)
        if type_ == USER_DEFINED and " " not in piece
    }
    return {"added_tokens_decoder": symbols} if symbols else {}


def special_tokens(model: SentencePieceModel) -> dict[str, str]:
    """`special_tokens_map.json`: those that the model has."""
    named = {
        "bos_token": model.piece(model.bos_id),
        "eos_token": model.piece(model.eos_id),
        "unk_token": model.piece(model.unk_id),
        "pad_token": model.piece(model.pad_id),
    }
    return {name: piece for name, piece in named.items() if piece is not None}


def write_tokenizer(model: SentencePieceModel, folder: Path, max_length: int) -> None:
    """Write `TOKENIZER_FILES` into `folder`.

    Raises:
        CompeteError: the model's merges have no exact equal.
    """
    fast_tokenizer(model).save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", tokenizer_config(model, max_length))
    _write_json(folder / "special_tokens_map.json", special_tokens(model))
    shutil.copyfile(model.path, folder / "tokenizer.model")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
