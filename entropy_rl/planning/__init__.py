"""Before a run: does it compile, does it fit, and what will it cost? No device and no weights are
needed.
"""
