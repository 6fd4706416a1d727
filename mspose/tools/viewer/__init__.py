"""A 3-D viewer in the browser: true and estimated poses of a run, one scene at a time."""
