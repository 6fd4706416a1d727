"""The network: two backbone maps, one transformer per pose component, heads shared by all scenes."""
