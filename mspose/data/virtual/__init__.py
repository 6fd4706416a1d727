"""The virtual data set: seven rooms and courtyards that are rendered from a seed, with exact poses.

    dataset.py      what lies on disk, and what is rendered when: `render_virtual`
    sequences.py    one sequence: its frames, and its files
    trajectory.py   the camera's path
    rooms.py        the seven scenes; space.py: walls; furniture.py: what stands in them
    scene.py        a scene's surfaces and how they are collected; textures.py: how they are
                    painted; atlas.py
    rendering.py    camera, lighting, images
    exact.py        the arithmetic that all of it uses

The same settings give the same rooms, paths and poses to the last bit on every processor; images
may differ by a grey level in single pixels.
"""

VERSION = 2
"""Version of the pictures: raise it when the same settings render other images or poses."""
RECORD = "virtual.json"
"""File of a rendered scene that holds its settings and their version."""
