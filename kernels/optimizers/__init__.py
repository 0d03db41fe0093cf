"""One file an optimizer, each called like its optimizer; `ringtmp.kernels.update.optimizer` declares it."""
