"""Corpus tools: from JSON Lines text to a trained tokenizer and Megatron's .bin/.idx datasets.

    corpus.py              JSON Lines files as a stream of documents; what happens to malformed lines
    stdlib_corpus.py       the demo's corpus, made from the interpreter's own standard library
    sample.py              what part of a corpus a tokenizer is trained on
    tokenizer.py           SentencePiece training                        (tools/train_tokenizer.py)
    megatron_tokenizer.py  the tokenizer that Megatron's flags name, and its fingerprint
    encode.py              document -> token ids, in this process or in workers
    preprocess.py          corpus -> .bin/.idx and a manifest            (tools/preprocess_data.py)
    manifest.py            the manifest beside a dataset: what it was made of
    match.py               does this dataset belong to this tokenizer?
    staged.py, progress.py outputs that appear complete or not at all; a bar or plain lines

Nothing here imports torch or Megatron before it has to: `--help` and a wrong path answer at once.
"""
