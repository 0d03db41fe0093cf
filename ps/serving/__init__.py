"""The server: its ranges, updates and answers, its part in checkpoints, and its copies in node memory."""
