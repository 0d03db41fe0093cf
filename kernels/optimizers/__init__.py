"""One file an optimizer, each called like its optimizer; `kernels.update.optimizer` declares it."""
