"""HookedVLM, and what it takes to load one."""
