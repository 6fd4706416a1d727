"""The poses of a run's predictions in a 3-D viewer in the browser: truth against estimate, one
scene at a time.
"""
