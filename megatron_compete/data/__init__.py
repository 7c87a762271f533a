"""Corpus tools: from raw text to a trained tokenizer and Megatron's .bin/.idx datasets.

    inputs/                reading: JSON Lines, Parquet, plain text, compressed or not; shards and samples of a corpus
    faults.py              what can be wrong with a document, and what becomes of it
    stdlib_corpus.py       the demo's corpus, made from the interpreter's own standard library

    sample.py              what part of a corpus a tokenizer is trained on
    tokenizer.py           SentencePiece training                        `megatron-compete tokenizer`
    megatron_tokenizer.py  the tokenizer that Megatron's flags name, and its fingerprint; flags in tokenizer_flags.py
    engines.py             faster engines behind that tokenizer: choosing, checking while they work
    engines_load.py        how each of them takes over a tokenizer; engines_proof.py: are they identical to it?

    preprocessing/         shards to parts to a dataset, by workers and MPI ranks, surviving kills
    preprocess.py          the command over it                           `... preprocess`

    indexed.py             writing .idx and .bin from parts; index_file.py: reading .idx
    manifest.py            the manifest beside a dataset: what it was made of
    match.py               does this dataset belong to this tokenizer?
    dataset.py             finding and comparing finished datasets
    inspect_dataset.py     is it whole, and what is in it?               `... inspect`
    inspect_ends.py        marks of the end of a document, and where they should not be
    merge.py, split.py     several to one, one to several                `... merge`, `... split`
    blend.py               weights and epochs of several                 `... blend`
    staged.py              outputs that appear complete or not at all
    progress.py, clock.py  a bar or plain lines; a sign of life during one long call

Nothing here imports torch or Megatron before it has to: `--help` and a wrong path answer at once.
"""
