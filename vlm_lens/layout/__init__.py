"""The coordinates of a prompt: patches and pixels, spans of positions, symbolic positions."""
