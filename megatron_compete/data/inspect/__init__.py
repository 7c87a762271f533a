"""What a finished dataset holds and whether it is whole; `inspect_dataset.py` is the command.

checks.py         the files against each other, the manifest and the vocabulary
document_ends.py  end-of-document ids: that each document has one, and none is where it should not be
lengths.py        how long documents are: quantiles, histogram, figure
"""
