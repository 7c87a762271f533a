"""The scoring pass as Triton kernels: experts run tile by tile and leave one scalar per token and expert.

Read in this order: `tile_math.py` (what happens on a tile), `narrow.py` and `wide.py` (the two ways through an expert),
`quantize.py` (FP8), `scorer.py` (tables of weights, launches), `coverage.py` and `choice.py` (when they are used),
`tiles.py` (their sizes).
"""
