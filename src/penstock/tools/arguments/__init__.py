"""What a tool takes: declared, or read from a function's signature, and checked strictly in what a model wrote."""
