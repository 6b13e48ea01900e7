"""Tasks that need each other: their graph, and the scheduler that runs it as wide as allowed."""
