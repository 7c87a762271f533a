"""The formulas of rival routers, as pure functions of tensors that can be read beside their papers."""
