"""One run from configuration to result: job, launch, progress, end."""
