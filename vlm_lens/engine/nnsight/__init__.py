"""nnsight in place of torch hooks, here or in a remote service. Needs the extra `interop`."""
