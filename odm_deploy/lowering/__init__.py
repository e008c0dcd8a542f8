"""From the reference model to the graph a runtime executes as integers."""
