"""One file a loss, each called like its loss; `kernels.loss.loss` declares it."""
