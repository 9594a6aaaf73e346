"""HookedVLM, and what it takes to load, describe and generate with one."""
