"""The ring: the engine, what passes between neighbours, and the trainer that puts them together."""
