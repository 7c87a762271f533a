"""Corpus tools: from raw text to a trained tokenizer and Megatron's .bin/.idx datasets.

    inputs/                a corpus in whatever form it comes, as a stream of documents
    faults.py              what can be wrong with a document, and what becomes of it
    stdlib_corpus.py       the demo's corpus, made from the interpreter's own standard library
    sample.py              what part of a corpus a tokenizer is trained on
    tokenizer.py           SentencePiece training                        (tools/train_tokenizer.py)
    megatron_tokenizer.py  the tokenizer that Megatron's flags name, and its fingerprint
    tokenizer_flags.py     those flags
    engines*.py            faster engines behind the same tokenizer, and the proof that they give the same ids
    preprocess.py          corpus -> .bin/.idx and a manifest            (tools/preprocess_data.py)
    preprocessing/         how: shards, workers, MPI ranks, what survives a kill
    indexed.py             .idx and .bin written from parts              index_file.py  .idx read and checked
    manifest.py            the manifest beside a dataset: what it was made of
    match.py               does this dataset belong to this tokenizer?
    dataset.py             a dataset on disk with its manifest
    inspect_*.py           what is in a dataset, and is it whole?        (tools/inspect_dataset.py)
    merge.py, split.py     datasets joined and parted                    (tools/merge_datasets.py, split_dataset.py)
    blend.py               several datasets as one --data-path           (tools/make_blend.py)
    staged.py              outputs that appear complete or not at all
    progress.py, clock.py  a bar, or a plain line a minute

Nothing here imports torch or Megatron before it has to: `--help` and a wrong path answer at once.
"""
