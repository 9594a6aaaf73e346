"""Other libraries at the edge: one file a library, imported when it is used."""
