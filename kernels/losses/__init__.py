"""One file a loss, each called like its loss; `ringtmp.kernels.loss.loss` declares it."""
