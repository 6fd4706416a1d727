"""Why self-attention collapses, and what a remedy does to it: measures and figures of finished
runs, and a probe for any model.
"""

from mspose.attention.probing import probe

__all__ = ["probe"]
