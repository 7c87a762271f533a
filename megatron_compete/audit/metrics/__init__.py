"""The numbers of an audit as pure functions on tensors; `docs/guides/audit.md` says what each means and where it is from.

T tokens, E experts, K experts of a token, D domains, S sequences, H hidden size; a suffix names the axes of a tensor.
`choices_TK` are the numbers of a token's experts, none of them twice. Everything runs where its tensors are.
"""
