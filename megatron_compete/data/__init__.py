"""Corpus tools: from raw text to a trained tokenizer and Megatron's .bin/.idx datasets.

    inputs/                reading: JSON Lines, Parquet, plain text, compressed or not; shards and samples of a corpus
    bad_documents.py       what can be wrong with a document, and what becomes of it
    stdlib_corpus.py       the demo's corpus, made from the interpreter's own standard library
    digit_pictures.py      the vision demo's: handwritten digits with questions and answers, in LLaVA's format
    digit_processor.py     its tokenizer and image processor
    digit_answers.py       which answers are right

    tokenizer.py           SentencePiece training                        (megatron-compete tokenizer)
    sample.py              what part of a corpus it is trained on; clock.py: a sign of life meanwhile
    megatron_tokenizer.py  the tokenizer that Megatron's flags name, and its fingerprint; flags in tokenizer_flags.py
    tokenizer_merges.py    the merges of a SentencePiece model, exactly
    engines/               what encodes with that tokenizer: itself, an exact engine, or one that the user names

    preprocessing/         shards to parts to a dataset, by workers and MPI ranks, surviving kills
    preprocess.py          the command over it                           (megatron-compete preprocess)

    indexed.py             writing .idx and .bin from parts; index_file.py: reading .idx
    manifest.py            the manifest beside a dataset: what it was made of
    tokenizer_match.py     does this dataset belong to this tokenizer?
    dataset.py             finding and comparing finished datasets
    inspect/               is it whole, and what is in it; inspect_dataset.py is the command (megatron-compete inspect)
    merge.py, split.py     several to one, one to several                (megatron-compete merge, split)
    blend.py               weights and epochs of several                 (megatron-compete blend)

    conversations/         visual instruction data: LLaVA's JSON, images (megatron-compete conversations)

Nothing here imports torch or Megatron before it has to: `--help` and a wrong path answer at once.
"""
