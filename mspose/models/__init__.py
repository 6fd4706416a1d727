"""The networks, their parts, and the weights of the released code."""
