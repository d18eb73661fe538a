"""A network as its owner has it: plain PyTorch, with trained weights beside it."""
