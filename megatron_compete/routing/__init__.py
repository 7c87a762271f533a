"""The mathematics of competition routing: pure functions on tensors, to be read beside the paper (arXiv 2505.13380).

Shapes, here and in `moe/`: T tokens, E experts, K winners per token, H hidden size. A suffix names the axes of a
tensor: `responses_TE` is [T, E]. Every reduction is in fp32.

Symbols: y_e an expert's raw output, s_e its response (`responses.py`), p the router's softmax over all experts, q that of
all responses, L_D and L_div the paper's losses (`losses.py`). What the paper does not have says so.
"""
