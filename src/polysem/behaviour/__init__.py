"""Beyond the next token: what a push does to texts and tasks, and whether a feature is a handle on behaviour."""
