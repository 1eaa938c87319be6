"""What leaves the suite: the profile schema, its reader, layer shapes and data."""
