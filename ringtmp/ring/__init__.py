"""The ring: partition, plans and their checker, the engine, and the trainer that puts them together."""
