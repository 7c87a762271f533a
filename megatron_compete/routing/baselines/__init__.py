"""The formulas of baseline routers, as pure functions of tensors that can be read beside their papers."""
