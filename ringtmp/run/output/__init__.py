"""What rank 0 prints: first lines, a line for each epoch under or above a live bar, and the summary at the end."""
