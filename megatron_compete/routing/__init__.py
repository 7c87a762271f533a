"""The mathematics of competition routing: pure functions on tensors, to be read beside the paper (arXiv 2505.13380).

Shapes, here and in `moe/`: T tokens, E experts, K winners per token, H hidden size. A suffix names the axes of a
tensor: `responses_TE` is [T, E]. Every reduction is in fp32.
"""
